"""RMSNorm, forward and backward: one pass over the rows each way.

    y  = x / sqrt(mean(x^2) + eps) * weight
    dx = r (w dy - n mean(n w dy))    r = 1 / sqrt(mean(x^2) + eps), n = x r
    dw = sum over rows of dy n

Source: Zhang and Sennrich 2019, equation 4. Everything between the loads and the stores is float32.
The backward pass has the row in registers anyway, so it computes r again instead of reading an r
that the forward pass saved. Defined by `tinylm.ops.rms_norm`, held to it by the rung `rms_norm`.
"""

# Triton's language has no types, and torch's functions around devices few.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.kernels import config
from tinylm.kernels.config import Key, Table
from tinylm.kernels.library import LIBRARY, register


class Launch(NamedTuple):
    """How to launch a kernel.

    `rows` of the input are in a program at once and `warps` share them. If a program walks over
    many blocks of rows, `stages` loads are in flight and each multiprocessor has `programs`.
    """

    rows: int
    warps: int
    stages: int = 1
    programs: int = 1


# A thread holds 32 elements of a block forward and 16 backward, where x, dy, the weight and the
# share of dw are all in registers at once.
FORWARD: Table[Launch] = (
    (Key(4, 128, (8, 0)), Launch(rows=32, warps=4)),
    (Key(4, 512, (8, 0)), Launch(rows=8, warps=4)),
    (Key(4, 1024, (8, 0)), Launch(rows=4, warps=4)),
    (Key(4, 2048, (8, 0)), Launch(rows=2, warps=4)),
    (Key(4, 4096, (8, 0)), Launch(rows=1, warps=4)),
    (Key(4, 8192, (8, 0)), Launch(rows=1, warps=8)),
    (Key(4, 16384, (8, 0)), Launch(rows=1, warps=16)),
)
BACKWARD: Table[Launch] = (
    (Key(4, 128, (8, 0)), Launch(rows=16, warps=4, stages=2, programs=3)),
    (Key(4, 512, (8, 0)), Launch(rows=4, warps=4, stages=2, programs=4)),
    (Key(4, 1024, (8, 0)), Launch(rows=2, warps=4, stages=2, programs=4)),
    (Key(4, 2048, (8, 0)), Launch(rows=1, warps=4, stages=2, programs=4)),
    (Key(4, 4096, (8, 0)), Launch(rows=1, warps=8, stages=2, programs=2)),
    (Key(4, 8192, (8, 0)), Launch(rows=1, warps=16, stages=2)),
    # 32 elements per thread: 200 bytes of them spill. 32 warps of 16 elements have half the
    # registers each and spill as much.
    (Key(4, 16384, (8, 0)), Launch(rows=1, warps=16)),
)


@triton.jit
def forward_kernel(
    x,
    weight,
    y,
    x_stride,
    rows,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """`BLOCK_ROWS` rows a program; x [rows, D] with any stride between rows, y contiguous."""
    # int64 from here on: rows times D passes 2^31 with long contexts.
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    inside = (row < rows) & (column < D)
    w = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
    wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    # Inductor hands a Python float over as float64, and would pull the whole row up to it.
    epsilon = tl.full((), eps, tl.float32)
    r = tl.rsqrt(tl.sum(wide * wide, 1, keep_dims=True) / D + epsilon)
    tl.store(y + row * D + column, (wide * r * w).to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dy,
    x,
    weight,
    dx,
    dw,
    dy_stride,
    x_stride,
    rows,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Each program walks over every `num_programs`-th block of rows and sums its own row of dw.

    dx [rows, D] and dw [programs, D], float32, are contiguous.
    """
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)[None, :]
    w = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
    epsilon = tl.full((), eps, tl.float32)
    total = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    step = tl.num_programs(0).to(tl.int64) * BLOCK_ROWS
    # The loop's own num_stages makes the loads asynchronous; the launch's does not reach it.
    for first in tl.range(program * BLOCK_ROWS, rows, step, num_stages=STAGES):
        row = first + tl.arange(0, BLOCK_ROWS).to(tl.int64)[:, None]
        inside = (row < rows) & (column < D)
        wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
        r = tl.rsqrt(tl.sum(wide * wide, 1, keep_dims=True) / D + epsilon)
        # Past the last row r is 1 / sqrt(eps), and 0 * inf would reach dw where eps is 0.
        normed = wide * tl.where(row < rows, r, 0.0)
        scaled = slope * w
        shared = tl.sum(normed * scaled, 1, keep_dims=True) / D
        gradient = (scaled - normed * shared) * r
        tl.store(dx + row * D + column, gradient.to(dx.dtype.element_ty), mask=inside)
        total += slope * normed
    column = tl.arange(0, BLOCK_D)
    tl.store(dw + program * D + column, tl.sum(total, 0), mask=column < D)


def _launch(table: Table[Launch], x: Tensor) -> Launch:
    """Return the table's row for `x`; raise ValueError if no row covers it."""
    launch = config.find(table, x.dtype, x.size(-1), config.device_of(x.device).capability)
    if launch is not None:
        return launch
    limit = config.largest(table)
    if x.dtype in config.DTYPES and x.size(-1) > limit:
        raise ValueError(
            f"rms_norm: D={x.size(-1)} is over the kernel's limit of {limit}; "
            "tinylm.ops.rms_norm takes any D"
        )
    raise ValueError(
        f"rms_norm: no kernel for {x.dtype} on {x.device}; "
        "float32, float16 and bfloat16 have one from compute capability 8.0"
    )


def _check(x: Tensor, weight: Tensor) -> None:
    """Refuse what the kernel would read past the end of, or misread."""
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"rms_norm: weight {list(weight.shape)} does not match the last axis of x "
            f"{list(x.shape)}; it must be [D]"
        )
    if weight.dtype not in config.DTYPES:
        raise ValueError(
            f"rms_norm: weight is {weight.dtype}; it must be float32, float16 or bfloat16"
        )
    if weight.device != x.device:
        raise ValueError(
            f"rms_norm: x is on {x.device} and weight on {weight.device}; move one of them"
        )


def _rows(x: Tensor) -> Tensor:
    """x [..., D] as [rows, D] with the values of a row side by side, copied only if need be."""
    flat = x.reshape(math.prod(x.shape[:-1]), x.size(-1))
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] and weight [D] to y [..., D], contiguous, in the dtype of x."""
    _check(x, weight)
    launch = _launch(FORWARD, x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return y
    flat = _rows(x)
    rows, width = flat.shape
    with torch.cuda.device_of(x):
        forward_kernel[(triton.cdiv(rows, launch.rows),)](
            flat,
            weight.contiguous(),
            y,
            flat.stride(0),
            rows,
            eps,
            D=width,
            BLOCK_D=triton.next_power_of_2(width),
            BLOCK_ROWS=launch.rows,
            num_warps=launch.warps,
        )
    return y


def backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """dy and x [..., D] and weight [D] to dx, as x, and dw, as weight.

    Every program leaves its share of dw in a row of its own and one sum adds the rows up, in an
    order that only the shape and the GPU decide: repeated runs agree to the bit.
    """
    _check(x, weight)
    if dy.shape != x.shape:
        raise ValueError(f"rms_norm: dy {list(dy.shape)} must have the shape of x {list(x.shape)}")
    launch = _launch(BACKWARD, x)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return dx, torch.zeros_like(weight, memory_format=torch.contiguous_format)
    flat, slope = _rows(x), _rows(dy)
    rows, width = flat.shape
    resident = launch.programs * config.device_of(x.device).processors
    programs = min(resident, triton.cdiv(rows, launch.rows))
    partial = torch.empty((programs, width), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        backward_kernel[(programs,)](
            slope,
            flat,
            weight.contiguous(),
            dx,
            partial,
            slope.stride(0),
            flat.stride(0),
            rows,
            eps,
            D=width,
            BLOCK_D=triton.next_power_of_2(width),
            BLOCK_ROWS=launch.rows,
            STAGES=launch.stages,
            num_warps=launch.warps,
        )
    return dx, partial.sum(0).to(weight.dtype)


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each row of the tables, for the offline compiler."""
    for key, _ in FORWARD:
        for dtype in (torch.bfloat16, torch.float32):
            x, weight = torch.zeros(256, key.size, dtype=dtype), torch.ones(key.size)

            def both(x: Tensor = x, weight: Tensor = weight) -> None:
                forward(x, weight, 1e-5)
                backward(x, x, weight, 1e-5)

            yield f"D={key.size} {str(dtype).removeprefix('torch.')}", both


def _forward_fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    _check(x, weight)
    return x.new_empty(x.shape)


def _backward_fake(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    dx, dw = torch.ops.tinylm.rms_norm_backward(dy, *ctx.saved_tensors, ctx.eps)
    return dx, dw, None


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> NoReturn:
    raise NotImplementedError(
        "rms_norm's kernel has no second derivative; write the norm in torch for create_graph=True"
    )


register("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", forward, _forward_fake)
register(
    "rms_norm_backward(Tensor dy, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    backward,
    _backward_fake,
)
torch.library.register_autograd("tinylm::rms_norm", _gradients, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd("tinylm::rms_norm_backward", _no_second_derivative, lib=LIBRARY)
