"""Register an operation under `torch.ops.tinylm` from a schema, a launcher and a fake.

`define` and `impl` rather than `triton_op`: these operations pass `opcheck`, gradients and
torch.compile on a machine without a GPU, which `triton_op` cannot.
"""

# torch.library has no types.
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Callable
from typing import Any

import torch
import triton

LIBRARY = torch.library.Library("tinylm", "DEF")

# Triton decides at `@triton.jit`, by TRITON_INTERPRET, whether a kernel runs in its interpreter.
# Then, and only then, it takes CPU tensors: the tests drive the real kernels through it.
KEYS = ("CUDA", "CPU") if triton.knobs.runtime.interpret else ("CUDA",)


def register(schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define the operation of `schema`; `launch` runs it, `fake` gives the outputs' shapes."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    for key in KEYS:
        LIBRARY.impl(name, launch, key)
    torch.library.register_fake(f"tinylm::{name}", fake, lib=LIBRARY)
