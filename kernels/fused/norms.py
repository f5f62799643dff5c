"""RMSNorm and LayerNorm, forward and backward: launch tables, launchers and what they refuse.

`rms_norm` and `layer_norm` register the operations; `norm_rows` has the kernels and the formulas.
"""

# torch's functions around devices have no types.
# mypy: disable-error-code="no-untyped-call"

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from tinylm.kernels import config
from tinylm.kernels.config import Key, Table
from tinylm.kernels.norm_rows import (
    backward_kernel,
    forward_kernel,
    sum_kernel,
    wide_backward_kernel,
    wide_forward_kernel,
)


class Launch(NamedTuple):
    """How to launch a kernel.

    A program has `rows` of the input at once and `warps` share them. If a program walks over many
    blocks of rows or columns, loads are asynchronous in a pipeline of `stages`, and each
    multiprocessor has `programs`. `block` columns are in registers at once; None is the whole row.
    """

    rows: int
    warps: int
    stages: int = 1
    programs: int = 1
    block: int | None = None


# How many bytes are on their way from memory decides the speed. An H100 moves 3.35 TB/s with a
# latency of about 0.7 us: 18 KB per multiprocessor, and 26 KB on an H200. The rows below ask for
# more than that, since a program that reduces or stores waits for nothing.
#
# Forward, bfloat16: 8, 9, 4 programs of 8, 8, 16 KB fit a multiprocessor at D = 2048, 4096, 8192 by
# their registers: 64 to 72 KB. One program per block of rows, so the hardware balances them.
FORWARD: Table[Launch] = (
    (Key(4, 256, (8, 0)), Launch(rows=16, warps=4)),
    (Key(4, 1024, (8, 0)), Launch(rows=4, warps=4)),
    (Key(4, 2048, (8, 0)), Launch(rows=2, warps=4)),
    (Key(4, 4096, (8, 0)), Launch(rows=1, warps=4)),
    (Key(4, 8192, (8, 0)), Launch(rows=1, warps=8)),
    # Two programs of 16 warps: at D = 65536 the rows that are read twice are 34 MB of bfloat16,
    # which the 50 MB of L2 hold.
    (Key(4, 65536, (8, 0)), Launch(rows=1, warps=16, stages=3, block=4096)),
)
# Backward a program keeps its share of dweight in registers, so it must walk over many rows and
# load them ahead: programs * (stages - 1) * rows * D * (x and dy) is 64 KB from D = 1024 to 8192.
# float32 has that with one stage less, and with three buffers would not fit an A100.
BACKWARD: Table[Launch] = (
    (Key(2, 256, (8, 0)), Launch(rows=8, warps=4, stages=3, programs=4)),
    (Key(2, 1024, (8, 0)), Launch(rows=2, warps=4, stages=3, programs=4)),
    (Key(2, 2048, (8, 0)), Launch(rows=1, warps=4, stages=3, programs=4)),
    (Key(2, 4096, (8, 0)), Launch(rows=1, warps=8, stages=3, programs=2)),
    (Key(2, 8192, (8, 0)), Launch(rows=1, warps=16, stages=3)),
    (Key(2, 16384, (8, 0)), Launch(rows=1, warps=8, stages=3, programs=2, block=4096)),
    # One program: x, dy and the shares of dweight are 68 MB at D = 65536, half of that at 32768.
    (Key(2, 65536, (8, 0)), Launch(rows=1, warps=8, stages=3, block=4096)),
    (Key(4, 256, (8, 0)), Launch(rows=8, warps=4, stages=2, programs=3)),
    (Key(4, 1024, (8, 0)), Launch(rows=2, warps=4, stages=2, programs=3)),
    # An RMSNorm of a sum spills 32 bytes on 4 warps of an A100.
    (Key(4, 2048, (8, 0)), Launch(rows=1, warps=8, stages=2, programs=3)),
    (Key(4, 4096, (8, 0)), Launch(rows=1, warps=8, stages=2, programs=2)),
    # A biased LayerNorm of a sum spills 32 bytes here on an A100, which takes the row below.
    (Key(4, 8192, (9, 0)), Launch(rows=1, warps=16, stages=2)),
    (Key(4, 65536, (9, 0)), Launch(rows=1, warps=8, stages=2, block=4096)),
    # Blocks of 4096 need 104 KiB of shared memory; GPUs of 8.6 and 8.9 have 99.
    (Key(4, 65536, (8, 0)), Launch(rows=1, warps=16, stages=2, block=2048)),
)
# A program of `sum_kernel` adds tiles of this many rows, at most, and this many numbers.
SUM_ROWS, SUM_TILE = 64, 2048


def _launch(operation: str, table: Table[Launch], x: Tensor, dtype: torch.dtype) -> Launch:
    """Return the table's row for `dtype` and D of `x`; raise ValueError if no row covers them."""
    launch = config.find(table, dtype, x.size(-1), config.device_of(x.device).capability)
    if launch is not None:
        return launch
    limit = config.largest(table)
    if dtype in config.DTYPES and x.size(-1) > limit:
        raise ValueError(
            f"{operation}: D={x.size(-1)} is over the kernel's limit of {limit}; "
            f"tinylm.ops.{operation} takes any D"
        )
    raise ValueError(
        f"{operation}: no kernel for {dtype} on {x.device}; "
        "float32, float16 and bfloat16 have one from compute capability 8.0"
    )


def check(
    operation: str,
    x: Tensor,
    weight: Tensor,
    *,
    branch: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Raise ValueError for what the kernels would read past the end of, or misread."""
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and (x.dim() == 0 or vector.shape != x.shape[-1:]):
            raise ValueError(
                f"{operation}: {name} {list(vector.shape)} does not match the last axis of x "
                f"{list(x.shape)}; it must be [D]"
            )
    if branch is not None and branch.shape != x.shape:
        raise ValueError(
            f"{operation}: branch {list(branch.shape)} must have the shape of x {list(x.shape)}"
        )
    for name, tensor in (("weight", weight), ("bias", bias), ("branch", branch)):
        if tensor is not None and tensor.dtype not in config.DTYPES:
            raise ValueError(
                f"{operation}: {name} is {tensor.dtype}; it must be float32, float16 or bfloat16"
            )
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"{operation}: x is on {x.device} and {name} on {tensor.device}; move one of them"
            )


def _rows(x: Tensor) -> Tensor:
    """x [..., D] as [rows, D] with the values of a row side by side, copied only if need be."""
    flat = x.reshape(math.prod(x.shape[:-1]), x.size(-1))
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def forward(
    operation: str,
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    """Return x + branch, or x itself without a branch, and its norm; x and branch [..., D].

    The sum has torch's common dtype of both and the norm has the dtype of the sum. `operation` is
    the name in error messages.
    """
    check(operation, x, weight, branch=branch, bias=bias)
    common = x.dtype if branch is None else torch.promote_types(x.dtype, branch.dtype)
    launch = _launch(operation, FORWARD, x, common)
    total = x if branch is None else torch.empty(x.shape, dtype=common, device=x.device)
    y = torch.empty(x.shape, dtype=common, device=x.device)
    if x.numel() == 0:
        return total, y
    flat, added = _rows(x), None if branch is None else _rows(branch)
    rows, width = flat.shape
    tensors = (
        flat,
        added,
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        None if branch is None else total,
        y,
        flat.stride(0),
        0 if added is None else added.stride(0),
    )
    with torch.cuda.device_of(x):
        if launch.block is None:
            forward_kernel[(triton.cdiv(rows, launch.rows),)](
                *tensors,
                rows,
                eps,
                D=width,
                BLOCK_D=triton.next_power_of_2(width),
                BLOCK_ROWS=launch.rows,
                CENTRED=centred,
                num_warps=launch.warps,
            )
        else:
            wide_forward_kernel[(rows,)](
                *tensors,
                eps,
                D=width,
                BLOCK_D=launch.block,
                STAGES=launch.stages,
                CENTRED=centred,
                num_warps=launch.warps,
            )
    return total, y


class Gradients(NamedTuple):
    """Gradients of the inputs: contiguous, each in the dtype of its input.

    dbranch is None if the branch has the dtype of x: its gradient is dx.
    """

    dx: Tensor
    dbranch: Tensor | None
    dweight: Tensor
    dbias: Tensor | None


def backward(
    operation: str,
    dtotal: Tensor | None,
    dy: Tensor,
    total: Tensor,
    weight: Tensor,
    eps: float,
    *,
    centred: bool,
    x: torch.dtype,
    branch: torch.dtype | None = None,
    bias: torch.dtype | None = None,
) -> Gradients:
    """Gradients from dy [..., D], that of the norm, and dtotal, that of the sum `total`.

    `x`, `branch` and `bias` are the dtypes of those inputs. Every program leaves its share of
    dweight and dbias in rows of its own. A second launch adds these rows up, in an order that
    only the shape and the GPU decide: repeated runs agree to the bit.
    """
    check(operation, total, weight)
    for name, gradient in (("dy", dy), ("the sum's gradient", dtotal)):
        if gradient is not None and gradient.shape != total.shape:
            raise ValueError(
                f"{operation}: {name} {list(gradient.shape)} must have the shape of x "
                f"{list(total.shape)}"
            )
    launch = _launch(operation, BACKWARD, total, total.dtype)

    def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=total.device)

    found = Gradients(
        dx=empty(total.shape, x),
        dbranch=None if branch in (None, x) else empty(total.shape, branch),
        dweight=empty(weight.shape, weight.dtype),
        dbias=None if bias is None else empty(weight.shape, bias),
    )
    if total.numel() == 0:
        for vector in found[2:]:
            if vector is not None:
                vector.zero_()
        return found
    rows = math.prod(total.shape[:-1])
    resident = launch.programs * config.device_of(total.device).processors
    programs = min(resident, triton.cdiv(rows, launch.rows))
    shares = empty((programs, 1 if bias is None else 2, total.size(-1)), torch.float32)
    _walk(launch, dtotal, dy, total, weight, eps, found, shares, centred=centred)
    _sum(shares, found)
    return found


def _walk(
    launch: Launch,
    dtotal: Tensor | None,
    dy: Tensor,
    total: Tensor,
    weight: Tensor,
    eps: float,
    found: Gradients,
    shares: Tensor,
    *,
    centred: bool,
) -> None:
    """Fill dx and dbranch of `found`, and shares [programs, kinds, D]: one pass over the rows."""
    above, slope, flat = None if dtotal is None else _rows(dtotal), _rows(dy), _rows(total)
    rows, width = flat.shape
    tensors = (above, slope, flat, weight.contiguous(), found.dx, found.dbranch, shares)
    strides = (0 if above is None else above.stride(0), slope.stride(0), flat.stride(0))
    options = {
        "D": width,
        "STAGES": launch.stages,
        "CENTRED": centred,
        "BIASED": len(shares[0]) > 1,
    }
    grid = (len(shares),)
    with torch.cuda.device_of(total):
        if launch.block is None:
            backward_kernel[grid](
                *tensors,
                *strides,
                rows,
                eps,
                BLOCK_D=triton.next_power_of_2(width),
                BLOCK_ROWS=launch.rows,
                **options,
                num_warps=launch.warps,
            )
        else:
            wide_backward_kernel[grid](
                *tensors,
                *strides,
                rows,
                eps,
                BLOCK_D=launch.block,
                **options,
                num_warps=launch.warps,
            )


def _sum(shares: Tensor, found: Gradients) -> None:
    """Add up shares [programs, kinds, D] and round them once, into dweight and dbias."""
    programs, kinds, width = shares.shape
    height = min(SUM_ROWS, triton.next_power_of_2(programs))
    with torch.cuda.device_of(shares):
        sum_kernel[(triton.cdiv(width, SUM_TILE // height), kinds)](
            shares,
            found.dweight,
            found.dbias,
            programs,
            D=width,
            BLOCK_ROWS=height,
            BLOCK_D=SUM_TILE // height,
            num_warps=4,
        )


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each row of the tables, for the offline compiler.

    bfloat16 is a plain RMSNorm. float32 is what has the most in registers: a biased LayerNorm of
    a float32 stream and a bfloat16 branch, whose sum has a gradient too. `float32 sum` is the
    backward pass of the same as an RMSNorm, which the default model has under autocast.
    """

    def plain(size: int) -> None:
        x = torch.zeros(1024, size, dtype=torch.bfloat16)
        launch = _launch("", BACKWARD, x, x.dtype)
        found = Gradients(x, None, x[0], None)
        forward("", x, None, x[0], None, 1e-5, centred=False)
        _walk(launch, None, x, x, x[0], 1e-5, found, x.float()[:, None], centred=False)

    def mixed(size: int, *, centred: bool) -> None:
        x = torch.zeros(1024, size)
        launch = _launch("", BACKWARD, x, x.dtype)
        found, kinds = Gradients(x, x.bfloat16(), x[0], x[0]), 2 if centred else 1
        if centred:
            forward("", x, x.bfloat16(), x[0], x[0], 1e-5, centred=True)
        shares = x.view(-1, kinds, size)
        _walk(launch, x, x, x, x[0], 1e-5, found, shares, centred=centred)

    for size in sorted({key.size for key, _ in FORWARD + BACKWARD}):
        yield f"D={size} bfloat16", partial(plain, size)
        yield f"D={size} float32", partial(mixed, size, centred=True)
        yield f"D={size} float32 sum", partial(mixed, size, centred=False)
    shares, vector = torch.zeros(512, 2, 4096), torch.zeros(4096, dtype=torch.bfloat16)
    yield "sum D=4096", partial(_sum, shares, Gradients(vector, None, vector, vector))
