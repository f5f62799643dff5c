"""The fused GPU kernels, one file per operation; importable as `tinylm.kernels`.

Importing this package needs triton but no GPU, and registers every operation under
`torch.ops.tinylm`. Without triton it raises ModuleNotFoundError. `tinylm.ops` imports the package
when the first CUDA tensor arrives, and uses torch if the import fails. To add the kernel of an
operation:

1. It is defined already: the operation of the same name in `tinylm.ops`, slow and plain. Do not
   change it to suit the kernel.
2. `kernels/fused/<operation>.py`: the formula and the source in the docstring; the
   `@triton.jit` kernels (float32 between the loads and the stores, `program_id` cast to int64,
   no atomics on floats, no libdevice); `forward` and `backward`, which check, allocate and
   launch; the fakes; then `register` for each schema and `register_autograd`.
3. In the same file its tables (`config.Table`): what no row covers stays with torch. And
   `every_launch`, by which `make kernels-offline` compiles every row for GPUs that are not there.
   Accept its figures with `python -m tests.support.offline --only <operation> --write`.
4. Import the module below, and add its forward table to `TABLES`.
5. `tinylm.ops`: begin the operation with `kernel = choice.kernel_for("<operation>", ...)`, and
   call the kernel where that is not None. A kernel that is worth more than what the compiler
   makes of the torch form says `compiled=True`.
6. `tests/rungs/kernel_<operation>.py`: a row of the ladder, which compares output and gradients
   with float64, in guarded memory, through Triton's interpreter or on a GPU.
7. `tests/test_kernels_<operation>.py`: `opcheck`; what is refused; which side `ops` takes.
"""

from typing import Any

import torch

from tinylm.kernels import (
    attention,
    attention_backward,
    config,
    cross_entropy,
    decode_attention,
    layer_norm,
    matmul_w4,
    matmul_w8,
    norm_rope,
    norms,
    rms_norm,
    rope,
    swiglu,
)

__all__ = [
    "attention",
    "attention_backward",
    "attention_hopper",
    "config",
    "covers",
    "cross_entropy",
    "decode_attention",
    "layer_norm",
    "matmul_w4",
    "matmul_w8",
    "norm_rope",
    "rms_norm",
    "rope",
    "swiglu",
]

# The table of each operation's forward kernel.
TABLES: dict[str, config.Table[Any]] = {
    "add_layer_norm": norms.FORWARD,
    "add_rms_norm": norms.FORWARD,
    "attention": attention.FORWARD,
    "cross_entropy_": cross_entropy.ROWS,
    "decode_attention": decode_attention.FORWARD,
    "layer_norm": norms.FORWARD,
    "linear_int4": matmul_w4.FORWARD,
    "linear_int8": matmul_w8.FORWARD,
    "norm_rope": norm_rope.FORWARD,
    "relu2": swiglu.TABLE,
    "rms_norm": norms.FORWARD,
    "rope": rope.TABLE,
    "swiglu": swiglu.TABLE,
}
# Gluon's names change from version to version of triton; the other kernels need none of them.
try:
    from tinylm.kernels import attention_hopper
except ImportError:
    pass
else:
    TABLES["attention_hopper"] = attention_hopper.FORWARD


def covers(
    operation: str, size: int, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> bool:
    """Whether an operation has a kernel for tensors of these dtypes at a `size` (`config.Key`)."""
    table = TABLES.get(operation, ())
    return config.covers(table, size, dtypes, device)
