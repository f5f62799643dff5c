"""The real kernels where there is no GPU: Triton's interpreter, told from the conftest."""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.support import bfloat16
from tests.support.memory import guarded_memory
from tinylm.ops import choice

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def missing() -> str:
    """Why no kernel can run here, or the empty string."""
    try:
        import triton
    except ImportError:
        return "the fused kernels need triton"
    # It was read at the first import of triton, which asks for it at every kernel.
    if DEVICE == "cpu" and not triton.knobs.runtime.interpret:
        return "there is no GPU, and TRITON_INTERPRET=1 was not set before the import of triton"
    return ""


def interpreted() -> bool:
    """Whether kernels run in Python."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Exact bfloat16, and NumPy as silent about NaN and infinity as a GPU."""
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        if interpreted():
            bfloat16.mend(patch)
        yield


@contextlib.contextmanager
def torch_forms() -> Iterator[None]:
    """`ops` takes no kernel, on a GPU either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "kernel_for", lambda *values, **named: None)
        yield


@contextlib.contextmanager
def playing(capability: tuple[int, int] = (9, 0), processors: int | None = None) -> Iterator[None]:
    """Kernels are launched as on a GPU of this compute capability and so many processors.

    On a GPU the capability is its own if that is less, and the processors are its own if none are
    given; without a GPU that is one.
    """
    from tinylm.kernels import config

    real = config.device_of

    def device_of(device: torch.device) -> config.Device:
        own = real(device)
        most = own.capability if device.type == "cuda" else capability
        return config.Device(min(capability, most), processors or own.processors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "device_of", device_of)
        yield


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Exact numbers in memory with guards."""
    with exact(), guarded_memory():
        yield


@contextlib.contextmanager
def chosen_by_ops() -> Iterator[list[str]]:
    """`ops` takes the kernel that covers an operation on the CPU too; yields what it took."""
    from tinylm import kernels

    taken: list[str] = []

    def kernel_for(operation, size, *tensors, compiled=False):
        dtypes = tuple(tensor.dtype for tensor in tensors)
        if not kernels.covers(operation, size, dtypes, tensors[0].device):
            return None
        taken.append(operation)
        return getattr(torch.ops.tinylm, operation)

    with pytest.MonkeyPatch.context() as patch, exact():
        patch.setattr(choice, "kernel_for", kernel_for)
        yield taken
