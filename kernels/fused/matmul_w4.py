"""Products of few rows with a weight in 4 bits, which is widened between memory and the product.

    y[m, n] = sum over groups g of scales[n, g] (sum over k in g of x[m, k] (nibble[n, k] - 8))
              + bias[n]

The nibbles are read as 32-bit words of eight, [N, K / 8], as they lie; `tinylm.reference.quant` has
their order. A shift, a mask and an or turn a word into four pairs of the numbers 1 + nibble / 16 in
the dtype of x: the nibble becomes the upper bits of the mantissa. The tensor cores add up
x (1 + nibble / 16) - x 1.5 = x (nibble - 8) / 16. The 1.5 is an operand of its own, because to
subtract it from each number would cost more than the product. float32 does subtract it: it does
without tensor cores, which would round x to 11 bits.

A scale multiplies sums over its group, never a weight: the sums of one block of K, up to four
groups, are kept apart as rows of the product, which the tensor cores would pad with zeros:

          K: one block          N                     N
         +---+---+          +------+              +------+
    m 0  | x | 0 |          |      |       m 0 g 0|      |  scales[n, 0]
         | 0 | x |    dot   |  W   |   =       g 1|      |  scales[n, 1]
    m 1  | x | 0 |          |      |       m 1 g 0|      |
         +---+---+          +------+              +------+
          g 0 g 1                          added up over g after the last block

Cost: N K / 2 bytes of nibbles and 2 N K / group of scales in 16 bits, against 2 M N K FLOPs. K is
split as in `matmul_w8`, whose layout this is, for the same reasons. inf in x gives nan here, where
torch may give inf.

Tried, compiled for 9.0, in instructions per weight in the loop (an H100 can issue 4.4 while it
loads half a byte): even and odd elements in the halves of a byte, and each byte made a number of
its own, take 8.3 to 10. Words take 3.9 with groups of 128, and 4.4 with shorter ones up to 8 rows
of 64 or 4 of 32; blocks of 64 columns take 5.3 to 6. Eight neighbours joined at once, not four
twice, go through shared memory on their way to the tensor cores: 4.5 to 6. The sum of x in the
place of the operand 1.5 takes 0.5 more. If the masks are arguments, one instruction masks a pair
and sets its ones, but the pairs go through shared memory too. Speed is not measured.
"""

# Triton's language has no types, and torch's functions around devices few.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.kernels import config
from tinylm.kernels.config import Key, Table
from tinylm.kernels.library import LIBRARY, register
from tinylm.kernels.split_k import BLOCK, add_kernel, outputs, split, store_part

GROUPS = (32, 64, 128)
# Fewer rows than this a tensor core does not take.
LEAST_ROWS = 16


class Launch(NamedTuple):
    """How to launch the kernel.

    A program has `rows` of x, `columns` of the weight, and at a time `groups` of K, but no more
    than `width` elements. If those are fewer groups, it has more rows, up to 16.
    """

    rows: int
    columns: int
    groups: int
    width: int
    warps: int
    stages: int


# The size of a key is the number of rows of x. More than 16 rows are several programs.
FORWARD: Table[Launch] = (
    (Key(2, 4, (8, 0)), Launch(rows=4, columns=128, groups=4, width=128, warps=4, stages=4)),
    (Key(2, 8, (8, 0)), Launch(rows=8, columns=128, groups=2, width=128, warps=4, stages=4)),
    (Key(2, 64, (8, 0)), Launch(rows=16, columns=128, groups=1, width=128, warps=4, stages=4)),
    (Key(4, 64, (8, 0)), Launch(rows=16, columns=32, groups=1, width=32, warps=4, stages=2)),
)


@triton.jit
def four(first, second, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pairs in the halves of 32-bit words, two words per four neighbours, as [ROWS, COLUMNS]."""
    low = tl.join(first & 0xFFFF, second & 0xFFFF)
    high = tl.join(first >> 16, second >> 16)
    return tl.join(low, high).reshape(ROWS, COLUMNS)


@triton.jit
def linear_int4_kernel(
    x,
    words,
    scales,
    bias,
    y,
    x_stride,
    words_stride,
    scales_stride,
    M,
    N,
    K,
    width,
    stride,
    GROUP: tl.constexpr,
    GROUPS_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """x [M, K], words [N, K / 8], scales [N, K / GROUP]; program (n, split, m) has one block.

    Its part of K is `width` long and, if WHOLE, only whole blocks.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    # Where the upper four bits of a mantissa begin, and the bits of 1.0, in both halves of a word.
    SHIFT: tl.constexpr = 3 if dtype == tl.bfloat16 else 6
    ONES: tl.constexpr = 0x3F803F80 if dtype == tl.bfloat16 else 0x3C003C00
    NIBBLES: tl.constexpr = 0x000F000F << SHIFT
    HALF: tl.constexpr = BLOCK_K // 2

    column = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Past the last row of the weight its last row is read again: cheaper than a mask at every load.
    known = tl.minimum(column, N - 1)
    words += known[:, None] * words_stride
    scales += known[None, :] * scales_stride
    # Row m of x in each of GROUPS_K rows, which have a group each.
    group = tl.arange(0, BLOCK_M * GROUPS_K) % GROUPS_K
    block = tl.program_id(2).to(tl.int64) * BLOCK_M
    row = block + tl.arange(0, BLOCK_M * GROUPS_K) // GROUPS_K
    x += row[:, None] * x_stride
    # Four elements of each eight; the other four come 4 later.
    k = tl.arange(0, HALF).to(tl.int64)
    k = k // 4 * 8 + k % 4
    own = (k // GROUP)[None, :] == group[:, None]
    inside = tl.max_constancy((row < M)[:, None] & own, [1, 4])
    first = tl.program_id(1).to(tl.int64) * width
    last = tl.minimum(first + width, K)
    total = tl.zeros((BLOCK_M * GROUPS_K, BLOCK_N), tl.float32)
    for start in tl.range(first, last, BLOCK_K, num_stages=STAGES):
        place = start // 8 + tl.arange(0, BLOCK_K // 8)[None, :]
        at = start + k[None, :]
        numbers = start // GROUP + group[:, None]
        if WHOLE:
            word = tl.load(words + place)
            left = tl.load(x + at, mask=inside, other=0.0)
            right = tl.load(x + at + 4, mask=inside, other=0.0)
            scale = tl.load(scales + numbers)
        else:
            word = tl.load(words + place, mask=place < K // 8, other=0)
            left = tl.load(x + at, mask=inside & (at < K), other=0.0)
            right = tl.load(x + at + 4, mask=inside & (at < K), other=0.0)
            scale = tl.load(scales + numbers, mask=numbers < K // GROUP, other=0.0)
        if dtype == tl.float32:
            a = four(word & 0x000F000F, (word >> 4) & 0x000F000F, BLOCK_N, HALF)
            b = four((word >> 8) & 0x000F000F, (word >> 12) & 0x000F000F, BLOCK_N, HALF)
            a = (a << 19 | 0x3F800000).to(tl.float32, bitcast=True) - 1.5
            b = (b << 19 | 0x3F800000).to(tl.float32, bitcast=True) - 1.5
            part = tl.dot(left, a.T, input_precision="ieee")
            part = tl.dot(right, b.T, part, input_precision="ieee")
        else:
            pair0 = (word << SHIFT) & NIBBLES | ONES
            if SHIFT > 4:
                pair1 = (word << SHIFT - 4) & NIBBLES | ONES
            else:
                pair1 = (word >> 4 - SHIFT) & NIBBLES | ONES
            pair2 = (word >> 8 - SHIFT) & NIBBLES | ONES
            pair3 = (word >> 12 - SHIFT) & NIBBLES | ONES
            a = four(pair0, pair1, BLOCK_N, HALF).to(tl.int16).to(dtype, bitcast=True)
            b = four(pair2, pair3, BLOCK_N, HALF).to(tl.int16).to(dtype, bitcast=True)
            offset = tl.full((HALF, BLOCK_N), -1.5, tl.float32).to(dtype)
            part = tl.dot(right, offset, tl.dot(left, offset))
            part = tl.dot(right, b.T, tl.dot(left, a.T, part))
        total += part * scale.to(tl.float32)
    total *= 16
    if GROUPS_K > 1:
        total = tl.sum(total.reshape(BLOCK_M, GROUPS_K, BLOCK_N), 1)
    row = block + tl.arange(0, BLOCK_M)
    store_part(total, y, bias, row, column, M, N, stride, HAS_BIAS, SPLIT)


def _launch(x: Tensor, rows: int) -> Launch:
    """Return the table's row for `rows` of `x`; raise ValueError if no row covers it."""
    launch = config.find(FORWARD, x.dtype, rows, config.device_of(x.device).capability)
    if launch is not None:
        return launch
    limit = config.largest(FORWARD)
    if x.dtype in config.DTYPES and rows > limit:
        raise ValueError(
            f"linear_int4: {rows} rows of x are over the kernel's limit of {limit}; "
            "tinylm.ops.linear_int4 takes any number"
        )
    raise ValueError(
        f"linear_int4: no kernel for {x.dtype} on {x.device}; "
        "float32, float16 and bfloat16 have one from compute capability 8.0"
    )


def _check(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None) -> int:
    """Return the group; refuse what the kernel would read past the end of, or misread."""
    fit = packed.dim() == scales.dim() == 2 and len(packed) == len(scales)
    group = 2 * packed.size(1) // max(1, scales.size(1)) if fit else 0
    fit = group in GROUPS and group * scales.size(1) == 2 * packed.size(1)
    if packed.dtype != torch.uint8 or not fit:
        raise ValueError(
            f"linear_int4: packed {list(packed.shape)} {packed.dtype} and scales "
            f"{list(scales.shape)} must be [N, K / 2] uint8 and [N, K / group] with a group of 32, "
            "64 or 128"
        )
    if x.dim() == 0 or x.size(-1) != 2 * packed.size(1):
        raise ValueError(
            f"linear_int4: x {list(x.shape)} does not match packed {list(packed.shape)}; it must "
            "be [..., K]"
        )
    if bias is not None and bias.shape != packed.shape[:1]:
        raise ValueError(f"linear_int4: bias {list(bias.shape)} must be [N], here [{len(packed)}]")
    for name, numbers in (("scales", scales), ("bias", bias)):
        if numbers is not None and numbers.dtype not in config.DTYPES:
            raise ValueError(
                f"linear_int4: {name} is {numbers.dtype}; it must be float32, float16 or bfloat16"
            )
    for name, other in (("packed", packed), ("scales", scales), ("bias", bias)):
        if other is not None and other.device != x.device:
            raise ValueError(
                f"linear_int4: x is on {x.device} and {name} on {other.device}; move one of them"
            )
    return group


def _rows(x: Tensor) -> Tensor:
    """x [..., K] as [rows, K] with the values of a row side by side, copied only if need be."""
    flat = x.reshape(math.prod(x.shape[:-1]), x.size(-1))
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _blocks(launch: Launch, group: int) -> tuple[int, int, int]:
    """Return how many rows of x, elements of K and groups of K a program has at a time."""
    width = min(launch.groups * group, launch.width)
    groups = max(1, width // group)
    return max(launch.rows, LEAST_ROWS // groups), width, groups


def _words(packed: Tensor) -> Tensor:
    """packed [N, K / 2] uint8 as [N, K / 8] int32, copied if a row does not begin at a word."""
    packed = _rows(packed)
    if packed.stride(0) % 4 or packed.storage_offset() % 4:
        packed = packed.clone(memory_format=torch.contiguous_format)
    return packed.view(torch.int32)


def forward(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K], packed [N, K / 2], scales [N, K / group], bias [N] to y [..., N], contiguous."""
    group = _check(x, packed, scales, bias)
    flat, scales = _rows(x), _rows(scales)
    rows, columns, width = flat.size(0), packed.size(0), flat.size(1)
    launch = _launch(x, rows)
    shape = (*x.shape[:-1], columns)
    if rows == 0 or columns == 0:
        return x.new_empty(shape)
    words = _words(packed)
    block_m, block_k, groups = _blocks(launch, group)
    blocks = triton.cdiv(columns, launch.columns), triton.cdiv(rows, block_m)
    k_split = split(x.device, math.prod(blocks), width, block_k)
    y, target = outputs(x, rows, columns, k_split.parts)
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        linear_int4_kernel[(blocks[0], k_split.parts, blocks[1])](
            flat,
            words,
            scales,
            scales if bias is None else bias,
            target,
            flat.stride(0),
            words.stride(0),
            scales.stride(0),
            rows,
            columns,
            width,
            k_split.width,
            rows * columns,
            GROUP=group,
            GROUPS_K=groups,
            HAS_BIAS=bias is not None,
            SPLIT=k_split.parts > 1,
            WHOLE=width % block_k == 0,
            BLOCK_M=block_m,
            BLOCK_N=launch.columns,
            BLOCK_K=block_k,
            STAGES=launch.stages,
            num_warps=launch.warps,
        )
        if k_split.parts > 1:
            add_kernel[(triton.cdiv(columns, BLOCK), rows)](
                target,
                scales if bias is None else bias,
                y,
                columns,
                rows * columns,
                k_split.parts,
                HAS_BIAS=bias is not None,
                BLOCK_N=BLOCK,
                num_warps=4,
            )
    return y.view(shape)


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each kernel of the table, for the offline compiler."""
    seen = set()
    for key, launch in FORWARD:
        for group in GROUPS:
            dtypes = (torch.bfloat16, torch.float16) if group == 128 else (torch.bfloat16,)
            for dtype in dtypes if key.itemsize == 2 else (torch.float32,):
                # Long groups make the launches of some rows the same, and those of float32 all.
                shape = dtype, *_blocks(launch, group)
                if shape in seen:
                    continue
                seen.add(shape)
                x = torch.zeros(launch.rows, 4096, dtype=dtype)
                packed = torch.zeros(4096, 2048, dtype=torch.uint8)
                scales = torch.ones(4096, 4096 // group, dtype=dtype)

                def call(x: Tensor = x, packed: Tensor = packed, scales: Tensor = scales) -> None:
                    forward(x, packed, scales, None)

                yield f"M={launch.rows} group={group} {str(dtype).removeprefix('torch.')}", call
    # One row is a constant to the compiler; with a bias, and inputs that end inside a block.
    x, bias = torch.zeros(1, 4128, dtype=torch.bfloat16), torch.zeros(4096)
    packed, scales = torch.zeros(4096, 2064, dtype=torch.uint8), torch.ones(4096, 129)
    yield "M=1 K=4128 bias bfloat16", partial(forward, x, packed, scales, bias)


def _fake(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    _check(x, packed, scales, bias)
    return x.new_empty((*x.shape[:-1], packed.size(0)))


def _weight(packed: Tensor, scales: Tensor) -> Tensor:
    """The weight [N, K] in float32."""
    words = (*packed.shape[:-1], packed.size(-1) // 4)
    halves = torch.stack((packed & 15, packed >> 4), -1).view(*words, 2, 4)
    numbers = halves.transpose(-2, -1).to(torch.int8) - 8
    return (numbers.reshape(*scales.shape, -1) * scales.float()[..., None]).flatten(-2)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    _, packed, scales, bias = inputs
    ctx.save_for_backward(packed, scales)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
    """Return dx = dy W, in torch, and db, the sum of dy over the rows."""
    if ctx.needs_input_grad[2]:
        raise ValueError("linear_int4: scales have no gradient; detach them")
    dx = db = None
    if ctx.needs_input_grad[0]:
        dx = dy @ _weight(*ctx.saved_tensors).to(dy.dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[3]:
        db = dy.reshape(-1, dy.size(-1)).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return dx, None, None, db


register(
    "linear_int4(Tensor x, Tensor packed, Tensor scales, Tensor? bias) -> Tensor", forward, _fake
)
torch.library.register_autograd("tinylm::linear_int4", _gradients, setup_context=_save, lib=LIBRARY)
