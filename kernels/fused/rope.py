"""RoPE: queries or keys [B, H, T, D] turned by the angles of their positions, in one pass.

    y1 = x1 cos - x2 sin    y2 = x2 cos + x1 sin    (1, 2: the halves of a head)

Source: Su et al. 2021, equation 34. A rotation is linear, and its gradient is the rotation by
-angle: the operation is its own backward pass, and nothing but the angles is saved. Everything
between the loads and the stores is float32. Defined by `tinylm.ops.rope`, held to it by the rung
`rope`. With the norm of each head before it: `norm_rope.py`, which shares the tiles.

Tiles. A program has `rows` rows of one sequence: some tokens, some heads of each. The largest
power of two that divides H says how many heads, so only a sequence's last tokens leave rows of a
tile empty. With rows = 4 and H = 6, a tile is 2 tokens by 2 heads:

             head 0    head 1    head 2    head 3    head 4    head 5
           +-------------------+-------------------+-------------------+
    token 0| x1 | x2 | x1 | x2 |                   |                   |
    token 1| x1 | x2 | x1 | x2 |                   |                   |
           +-------------------+-------------------+-------------------+
    token 2|                   |                   |                   |

A view [B, H, T, D] of memory [B, T, H, D], which a projection leaves behind, is read in place, as
is every x whose last stride is 1. y is such a view whatever x is: attention reads it without a
copy, and the heads of its gradient are joined without one.

Cost, of n = B H T D elements in bfloat16: 4 n bytes, and cos and sin from the cache; 3 n
floating-point operations. torch's own operations move 48 n bytes: two casts, four products, two
sums and a concatenation, mostly in float32. Bound by memory, so under torch.compile `ops` leaves
it to the compiler.

Tried: compiled offline for sm_90 and sm_80 without spills (tests/golden/kernels.json); every load
and store of sm_90 has 16 bytes. Speed is not measured. One launch for queries and keys together
would load cos and sin once less, but these come from the cache, and every pointer and stride would
be there twice: left out.
"""

# Triton's language has no types, and torch's functions around devices few.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.kernels import config
from tinylm.kernels.config import Key, Table
from tinylm.kernels.library import LIBRARY, register


class Launch(NamedTuple):
    """How to launch a kernel: `rows` rows of a head are in a program and `warps` share them.

    If a program walks over many tiles, `stages` loads are in flight and each multiprocessor has
    `programs`.
    """

    rows: int
    warps: int = 4
    stages: int = 1
    programs: int = 1


# A thread holds 32 elements of a tile.
TABLE: Table[Launch] = (
    (Key(4, 64, (8, 0)), Launch(rows=64)),
    (Key(4, 128, (8, 0)), Launch(rows=32)),
    (Key(4, 256, (8, 0)), Launch(rows=16)),
)


@triton.jit
def places(tile, heads, length, TOKENS: tl.constexpr, HEADS: tl.constexpr):
    """Sequence, heads and tokens of a tile; the latter two are [rows, 1]. All are int64."""
    across, down = heads // HEADS, tl.cdiv(length, TOKENS)
    row = tl.arange(0, TOKENS * HEADS)[:, None]
    # Divided in 32 bits, which is many times faster, and multiplied in 64: T H D passes 2^31.
    head = (tile % across).to(tl.int64) * HEADS + row % HEADS
    token = (tile // across % down).to(tl.int64) * TOKENS + row // HEADS
    return (tile // across // down).to(tl.int64), head, token


@triton.jit
def address(strides, batch, head, token):
    """Where the rows of a tile begin in a tensor [B, H, T, ...] of these strides."""
    return batch * strides[0] + head * strides[1] + token * strides[2]


@triton.jit
def load_halves(x, at, inside, HALF: tl.constexpr):
    """Both halves of the rows at `at`, in float32."""
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def store_halves(y, at, first, second, inside, HALF: tl.constexpr):
    """Both halves of the rows at `at`, in the dtype of y."""
    tl.store(y + at, first.to(y.dtype.element_ty), mask=inside)
    tl.store(y + at + HALF, second.to(y.dtype.element_ty), mask=inside)


@triton.jit
def load_angles(cos, sin, at, inside):
    """Cosine and sine in float32."""
    c = tl.load(cos + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + at, mask=inside, other=0.0).to(tl.float32)
    return c, s


@triton.jit
def rope_kernel(
    x,
    cos,
    sin,
    y,
    x_strides,
    angle_strides,
    heads,
    length,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """One tile per program; x [B, H, T, D] with any strides but the last, y [B, T, H, D] dense."""
    batch, head, token = places(tl.program_id(0), heads, length, TOKENS, HEADS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (token < length) & (column < HALF)
    first, second = load_halves(x, address(x_strides, batch, head, token) + column, inside, HALF)
    c, s = load_angles(cos, sin, address(angle_strides, batch, head, token) + column, inside)
    if INVERSE:
        s = -s
    at = ((batch * length + token) * heads + head) * (2 * HALF) + column
    store_halves(y, at, first * c - second * s, second * c + first * s, inside, HALF)


def find_launch(name: str, table: Table[Launch], x: Tensor) -> Launch:
    """Return the table's row for the heads of `x`; raise ValueError if no row covers them."""
    launch = config.find(table, x.dtype, x.size(-1), config.device_of(x.device).capability)
    if launch is not None:
        return launch
    limit = config.largest(table)
    if x.dtype in config.DTYPES and x.size(-1) > limit:
        raise ValueError(
            f"{name}: the head size {x.size(-1)} is over the kernel's limit of {limit}; "
            f"tinylm.ops.{name} takes any even size"
        )
    raise ValueError(
        f"{name}: no kernel for {x.dtype} on {x.device}; "
        "float32, float16 and bfloat16 have one from compute capability 8.0"
    )


def check(name: str, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Refuse what a kernel would read past the end of, or misread."""
    if x.dim() != 4 or x.size(-1) % 2:
        raise ValueError(
            f"{name}: x is {list(x.shape)}; it must be [B, H, T, head] with an even head size"
        )
    shape = [*x.shape[:3], x.size(-1) // 2]
    for angles in (cos, sin):
        axes = [1] * (4 - angles.dim()) + list(angles.shape)
        if len(axes) > 4 or any(a not in (1, b) for a, b in zip(axes, shape, strict=True)):
            raise ValueError(
                f"{name}: angles {list(angles.shape)} do not fit x {list(x.shape)}; cos and sin "
                f"must be [T, head / 2] or broadcast to {shape}"
            )
        check_beside(name, x, angles, "cos and sin")


def check_beside(name: str, x: Tensor, other: Tensor, what: str) -> None:
    """Refuse a tensor that no kernel can read together with `x`."""
    if other.dtype not in config.DTYPES:
        raise ValueError(
            f"{name}: {what} must be float32, float16 or bfloat16 and not {other.dtype}"
        )
    if other.device != x.device:
        raise ValueError(
            f"{name}: x is on {x.device} and {what} on {other.device}; move one of them"
        )


def adjacent(x: Tensor) -> Tensor:
    """x with the numbers of a row side by side, copied only if need be."""
    return x if x.stride(-1) == 1 else x.contiguous()


def broadcast(cos: Tensor, sin: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin as views [B, H, T, head / 2] of equal strides, for the heads of `x`."""
    shape = (*x.shape[:3], x.size(-1) // 2)
    cos, sin = (part.expand(*part.shape[:-1], shape[-1]) for part in (cos, sin))
    cos, sin = (adjacent(part).expand(shape) for part in (cos, sin))
    return (cos, sin) if cos.stride() == sin.stride() else (cos.contiguous(), sin.contiguous())


def tiling(launch: Launch, x: Tensor) -> tuple[int, dict[str, int]]:
    """The number of tiles of `x`, and the constants of a kernel that say how it is cut."""
    batch, heads, length, size = x.shape
    together = min(heads & -heads, launch.rows)
    tokens = launch.rows // together
    tiles = batch * triton.cdiv(length, tokens) * (heads // together)
    block = triton.next_power_of_2(size // 2)
    return tiles, {"HALF": size // 2, "BLOCK": block, "TOKENS": tokens, "HEADS": together}


def result(x: Tensor) -> Tensor:
    """[B, H, T, D] without values, over memory [B, T, H, D]."""
    batch, heads, length, size = x.shape
    shape = (batch, length, heads, size)
    return torch.empty(shape, dtype=x.dtype, device=x.device).transpose(1, 2)


def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
    """x [B, H, T, head] to y, by -angle if `inverse`; head is even and at most 256.

    cos and sin are [T, head / 2] or broadcast to [B, H, T, head / 2] and have no gradient: angles
    that want one are refused.
    """
    check("rope", x, cos, sin)
    launch = find_launch("rope", TABLE, x)
    y = result(x)
    if x.numel() == 0:
        return y
    x, (cos, sin) = adjacent(x), broadcast(cos, sin, x)
    tiles, constants = tiling(launch, x)
    with torch.cuda.device_of(x):
        rope_kernel[(tiles,)](
            x,
            cos,
            sin,
            y,
            x.stride(),
            cos.stride(),
            *x.shape[1:3],
            **constants,
            INVERSE=inverse,
            num_warps=launch.warps,
        )
    return y


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each row of the table, for the offline compiler."""
    for key, _ in TABLE:
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.zeros(2, 48, 8, key.size, dtype=dtype).transpose(1, 2)
            angles = torch.zeros(48, key.size // 2)

            def rotation(x: Tensor = x, angles: Tensor = angles) -> None:
                rope(x, angles, angles)

            yield f"D={key.size} {str(dtype).removeprefix('torch.')}", rotation


def _fake(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
    check("rope", x, cos, sin)
    return result(x)


def refuse_gradient(name: str, cos: Tensor, sin: Tensor) -> None:
    """Raise NotImplementedError if an angle wants a gradient."""
    if cos.requires_grad or sin.requires_grad:
        raise NotImplementedError(
            f"{name}: the kernel has no gradient for cos and sin; detach them, or call "
            f"tinylm.ops.{name}, which takes torch then"
        )


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    _, cos, sin, ctx.inverse = inputs
    refuse_gradient("rope", cos, sin)
    ctx.save_for_backward(cos, sin)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
    return torch.ops.tinylm.rope(dy, *ctx.saved_tensors, not ctx.inverse), None, None, None


register("rope(Tensor x, Tensor cos, Tensor sin, bool inverse=False) -> Tensor", rope, _fake)
torch.library.register_autograd("tinylm::rope", _gradients, setup_context=_save, lib=LIBRARY)
