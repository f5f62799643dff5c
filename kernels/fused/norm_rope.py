"""QK-norm and RoPE in one pass: the RMSNorm of each head of queries or keys, then its rotation.

    n = x r w    r = 1 / sqrt(mean(x^2) + eps)      over a head; w [head], or 1 without a weight
    y1 = n1 cos - n2 sin    y2 = n2 cos + n1 sin    (1, 2: the halves of a head)

    dn1 = dy1 cos + dy2 sin    dn2 = dy2 cos - dy1 sin
    dx = r (w dn - x r mean(x r w dn))
    dw = sum over sequences, heads and tokens of dn x r

Sources: Henry et al. 2020 (QK-norm, there with the 2-norm); the Qwen3 technical report 2025,
section 2 (RMSNorm, one weight for all heads); `rms_norm.py` and `rope.py`. Everything between the
loads and the stores is float32. Only the inputs are saved; the backward pass computes r again.
Defined by `tinylm.ops.norm_rope`, held to it by the rung `norm_rope`.

Tiles are those of `rope.py`. Forward, each program has one. Backward, each program walks over many
and keeps its own sum of dw, so that no atomics are needed:

    program 0      tile 0, tile P, tile 2 P, ...    --> dw[0]
    program 1      tile 1, tile P + 1, ...          --> dw[1]      sum of P rows --> dw [head]
    ...
    program P - 1  tile P - 1, tile 2 P - 1, ...    --> dw[P - 1]

Cost, of n = B H T D elements in bfloat16: 4 n bytes forward and 6 n backward, angles and weight
from the cache; 7 n and 14 n floating-point operations. torch's own operations move 76 n bytes
forward. Bound by memory, so under torch.compile `ops` leaves it to the compiler.

Tried: compiled offline for sm_90 and sm_80 without spills, with asynchronous loads in the loop
(tests/golden/kernels.json); speed is not measured. Backward in bfloat16 at D=128, with 16 elements
per thread and two loads in flight, a thread has 96 registers. With 32 elements it has 128 and
spills 8 bytes; with three loads in flight it has 126, which leaves no room for more programs. At
D=256 eight warps have 103 registers where four have 128.
"""

# Triton's language has no types, and torch's functions around devices few.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.kernels import config, rope
from tinylm.kernels.config import Key, Table
from tinylm.kernels.library import LIBRARY, register
from tinylm.kernels.rope import (
    Launch,
    address,
    adjacent,
    broadcast,
    check,
    check_beside,
    find_launch,
    load_angles,
    load_halves,
    places,
    refuse_gradient,
    result,
    store_halves,
    tiling,
)

# A thread holds 32 elements of a tile forward and 16 backward, where dy, x, the weight and the
# share of dw are all in registers at once.
FORWARD = rope.TABLE
BACKWARD: Table[Launch] = (
    (Key(4, 64, (8, 0)), Launch(rows=32, stages=2, programs=4)),
    (Key(4, 128, (8, 0)), Launch(rows=16, stages=2, programs=4)),
    (Key(4, 256, (8, 0)), Launch(rows=16, warps=8, stages=2, programs=2)),
)


@triton.jit
def inverse_rms(first, second, eps, HALF: tl.constexpr):
    """1 / sqrt(mean of the squares of both halves + eps), [rows, 1]."""
    # Inductor hands a Python float over as float64, and would pull the whole row up to it.
    epsilon = tl.full((), eps, tl.float32)
    squares = tl.sum(first * first + second * second, 1, keep_dims=True)
    return tl.rsqrt(squares / (2 * HALF) + epsilon)


@triton.jit
def forward_kernel(
    x,
    weight,
    cos,
    sin,
    y,
    x_strides,
    angle_strides,
    heads,
    length,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """One tile per program; x [B, H, T, D] with any strides but the last, y [B, T, H, D] dense."""
    batch, head, token = places(tl.program_id(0), heads, length, TOKENS, HEADS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (token < length) & (column < HALF)
    first, second = load_halves(x, address(x_strides, batch, head, token) + column, inside, HALF)
    r = inverse_rms(first, second, eps, HALF)
    first *= r
    second *= r
    if weight is not None:
        w_first, w_second = load_halves(weight, column, column < HALF, HALF)
        first *= w_first
        second *= w_second
    c, s = load_angles(cos, sin, address(angle_strides, batch, head, token) + column, inside)
    at = ((batch * length + token) * heads + head) * (2 * HALF) + column
    store_halves(y, at, first * c - second * s, second * c + first * s, inside, HALF)


@triton.jit
def backward_kernel(
    dy,
    x,
    weight,
    cos,
    sin,
    dx,
    dw,
    dy_strides,
    x_strides,
    angle_strides,
    heads,
    length,
    tiles,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Each program walks over every `num_programs`-th tile and sums its own row of dw.

    dx [B, T, H, D] and dw [programs, D], float32, are contiguous; without `weight` dw is untouched.
    """
    column = tl.arange(0, BLOCK)[None, :]
    if weight is not None:
        w_first, w_second = load_halves(weight, column, column < HALF, HALF)
        total_first = tl.zeros((TOKENS * HEADS, BLOCK), tl.float32)
        total_second = tl.zeros((TOKENS * HEADS, BLOCK), tl.float32)
    # The loop's own num_stages makes the loads asynchronous; the launch's does not reach it.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        batch, head, token = places(tile, heads, length, TOKENS, HEADS)
        inside = (token < length) & (column < HALF)
        at = address(dy_strides, batch, head, token) + column
        dy_first, dy_second = load_halves(dy, at, inside, HALF)
        at = address(x_strides, batch, head, token) + column
        first, second = load_halves(x, at, inside, HALF)
        c, s = load_angles(cos, sin, address(angle_strides, batch, head, token) + column, inside)
        slope_first = dy_first * c + dy_second * s
        slope_second = dy_second * c - dy_first * s
        r = inverse_rms(first, second, eps, HALF)
        # Past the last token r is 1 / sqrt(eps), and 0 * inf would reach dw where eps is 0.
        valid = tl.where(token < length, r, 0.0)
        first *= valid
        second *= valid
        if weight is not None:
            total_first += slope_first * first
            total_second += slope_second * second
            slope_first *= w_first
            slope_second *= w_second
        shared = tl.sum(first * slope_first + second * slope_second, 1, keep_dims=True)
        shared /= 2 * HALF
        dx_first = (slope_first - first * shared) * r
        dx_second = (slope_second - second * shared) * r
        at = ((batch * length + token) * heads + head) * (2 * HALF) + column
        store_halves(dx, at, dx_first, dx_second, inside, HALF)
    if weight is not None:
        column = tl.arange(0, BLOCK)
        at = tl.program_id(0).to(tl.int64) * (2 * HALF) + column
        first, second = tl.sum(total_first, 0), tl.sum(total_second, 0)
        store_halves(dw, at, first, second, column < HALF, HALF)


def _check(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor) -> None:
    """Refuse what the kernels would read past the end of, or misread."""
    check("norm_rope", x, cos, sin)
    if weight is None:
        return
    if weight.shape != x.shape[-1:]:
        raise ValueError(
            f"norm_rope: weight {list(weight.shape)} does not match the head size of x "
            f"{list(x.shape)}; it must be [head]"
        )
    check_beside("norm_rope", x, weight, "weight")


def forward(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """x [B, H, T, head] and weight [head] or None to y, as x; head is even and at most 256.

    cos and sin are [T, head / 2] or broadcast to [B, H, T, head / 2] and have no gradient: angles
    that want one are refused.
    """
    _check(x, weight, cos, sin)
    launch = find_launch("norm_rope", FORWARD, x)
    y = result(x)
    if x.numel() == 0:
        return y
    x, (cos, sin) = adjacent(x), broadcast(cos, sin, x)
    tiles, constants = tiling(launch, x)
    with torch.cuda.device_of(x):
        forward_kernel[(tiles,)](
            x,
            None if weight is None else weight.contiguous(),
            cos,
            sin,
            y,
            x.stride(),
            cos.stride(),
            *x.shape[1:3],
            eps,
            **constants,
            num_warps=launch.warps,
        )
    return y


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """dy and x [B, H, T, head] to dx, as x, and dw, as weight; without a weight dw is [0].

    Every program leaves its share of dw in a row of its own and one sum adds the rows up, in an
    order that only the shape and the GPU decide: repeated runs agree to the bit.
    """
    _check(x, weight, cos, sin)
    if dy.shape != x.shape:
        raise ValueError(f"norm_rope: dy {list(dy.shape)} must have the shape of x {list(x.shape)}")
    launch = find_launch("norm_rope", BACKWARD, x)
    dx, (size, of) = result(x), (0, x) if weight is None else (x.size(-1), weight)
    if x.numel() == 0:
        return dx, of.new_zeros(size)
    dy, x, (cos, sin) = adjacent(dy), adjacent(x), broadcast(cos, sin, x)
    tiles, constants = tiling(launch, x)
    programs = min(launch.programs * config.device_of(x.device).processors, tiles)
    partial = torch.empty((programs, size), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        backward_kernel[(programs,)](
            dy,
            x,
            None if weight is None else weight.contiguous(),
            cos,
            sin,
            dx,
            partial,
            dy.stride(),
            x.stride(),
            cos.stride(),
            *x.shape[1:3],
            tiles,
            eps,
            **constants,
            STAGES=launch.stages,
            num_warps=launch.warps,
        )
    return dx, partial.sum(0).to(of.dtype)


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each row of the tables, for the offline compiler."""
    for key, _ in FORWARD:
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.zeros(2, 48, 8, key.size, dtype=dtype).transpose(1, 2)
            angles, weight = torch.zeros(48, key.size // 2), torch.ones(key.size)

            def both(x: Tensor = x, angles: Tensor = angles, weight: Tensor = weight) -> None:
                forward(x, weight, angles, angles, 1e-6)
                backward(x, x, weight, angles, angles, 1e-6)

            yield f"D={key.size} {str(dtype).removeprefix('torch.')}", both


def _forward_fake(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    _check(x, weight, cos, sin)
    return result(x)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return result(x), x.new_empty(0) if weight is None else weight.new_empty(weight.shape)


def _save(
    ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor, Tensor, float], output: Tensor
) -> None:
    x, weight, cos, sin, ctx.eps = inputs
    refuse_gradient("norm_rope", cos, sin)
    ctx.save_for_backward(x, weight, cos, sin)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
    dx, dw = torch.ops.tinylm.norm_rope_backward(dy, *ctx.saved_tensors, ctx.eps)
    return dx, None if ctx.saved_tensors[1] is None else dw, None, None, None


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> NoReturn:
    raise NotImplementedError(
        "norm_rope's kernel has no second derivative; write the norm in torch for create_graph=True"
    )


register(
    "norm_rope(Tensor x, Tensor? weight, Tensor cos, Tensor sin, float eps) -> Tensor",
    forward,
    _forward_fake,
)
register(
    "norm_rope_backward(Tensor dy, Tensor x, Tensor? weight, Tensor cos, Tensor sin, float eps)"
    " -> (Tensor, Tensor)",
    backward,
    _backward_fake,
)
torch.library.register_autograd("tinylm::norm_rope", _gradients, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd("tinylm::norm_rope_backward", _no_second_derivative, lib=LIBRARY)
