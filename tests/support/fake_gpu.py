"""CUDA tensors on any machine: shapes without values, and the names of the operations that run.

with fake_cuda() as zeros, Called() as called:
    ops.rms_norm(zeros(4, 64), zeros(64), 1e-5)
assert called.names == ["tinylm.rms_norm.default"]
"""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tinylm import kernels


class Called(TorchDispatchMode):
    """Collects the names of the operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if "prim" not in str(operation):
            self.names.append(str(operation))
        return operation(*args, **(kwargs or {}))


@contextlib.contextmanager
def fake_cuda(capability=(9, 0)) -> Iterator[Callable[..., Tensor]]:
    """Yields `torch.zeros` for a GPU of this compute capability."""
    gpu = kernels.config.Device(capability, 132)
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        patch.setattr(kernels.config, "device_of", lambda device: gpu)
        yield lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device="cuda")
