"""Numbers in 8 and 4 bits, and the products with such weights: what the formats mean.

    int8: w[n, k] = q[n, k] scale[n]                           q in -127 .. 127
    int4: w[n, k] = (nibble[n, k] - 8) scales[n, k // group]   nibble in 0 .. 15

Both are symmetric: 0 stays 0, -w has the numbers of w with the other sign, and no zero point is
stored. What a row is, the caller says by the last axis: the weights of one output, or a token's key
of one head. Source of int8: Dettmers et al. 2022, section 2.1 (vector-wise quantisation).

Eight neighbours along K fill four bytes, the even elements before the odd ones:

    byte     |  0  |  1  |  2  |  3  |  the next eight
    low  4   |  0  |  4  |  1  |  5  |   8   ...
    high 4   |  2  |  6  |  3  |  7  |  10   ...

Read as a 32-bit word (the first byte is its lowest) and shifted right by 4 i, the word has elements
2 i and 2 i + 1 in the low nibbles of its halves. One mask cuts out the pair for a tensor core: it
wants 16-bit neighbours along K in the halves of a register. In the order 0 1 2 3 each nibble would
have to be moved alone. Any K that is a multiple of 32 packs, whatever the group. Q4_0 of llama.cpp
has the same numbers in groups of 32, its nibbles in another order.

A scale is the largest magnitude of its row or group over 127 or 7, and at least the smallest normal
number of its dtype: never 0, and exact enough that |w| / scale rounds to 127 or 7 at most.

Any float dtype, on any device. Nothing here waits for a GPU: values are not checked.
"""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in float32, or float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rounded(x: Tensor, largest: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Whole numbers in -largest .. largest, still floats, and a scale per row, in `dtype`."""
    scale = (wide(x).abs().amax(-1) / largest).to(dtype)
    # A NaN stays: every comparison with it is false.
    scale = torch.where(scale < torch.finfo(dtype).tiny, torch.finfo(dtype).tiny, scale)
    whole = (wide(x) / scale[..., None]).round()
    # inf / inf and nan / nan; times a scale of inf or nan, 0 is nan again.
    return torch.where(whole.isnan(), 0.0, whole), scale


def split(x: Tensor, *sizes: int) -> Tensor:
    """The last axis of x cut into axes of these sizes."""
    return x.reshape(*x.shape[:-1], *sizes)


def quantise_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] to q [..., K] int8 and scale [...] float32.

    |x - q scale| <= scale / 2. A row that has nan or inf comes back as nan, whole.
    """
    whole, scale = rounded(x, 127, torch.float32)
    return whole.to(torch.int8), scale


def dequantise_int8(q: Tensor, scale: Tensor) -> Tensor:
    """q [..., K] and scale [...] to numbers [..., K] in the dtype of scale."""
    return q.to(scale.dtype) * scale[..., None]


def quantise_int4(x: Tensor, group: int = 32) -> tuple[Tensor, Tensor]:
    """x [..., K] to packed [..., K / 2] uint8 and scales [..., K / group] in the dtype of x.

    `group` is 32, 64 or 128 and divides K. |x - (nibble - 8) scale| <= scale / 2. A group that
    has nan or inf comes back as nan, whole.
    """
    whole, scales = rounded(split(x, x.size(-1) // group, group), 7, x.dtype)
    pairs = split((whole + 8).to(torch.uint8).flatten(-2), x.size(-1) // 8, 4, 2)
    nibbles = split(pairs.transpose(-2, -1).flatten(-3), x.size(-1) // 2, 2)
    return nibbles[..., 0] + 16 * nibbles[..., 1], scales


def dequantise_int4(packed: Tensor, scales: Tensor) -> Tensor:
    """packed [..., K / 2] and scales [..., K / group] to numbers [..., K], in scales' dtype."""
    halves = split(
        torch.stack((packed % 16, packed // 16), -1).flatten(-2), packed.size(-1) // 4, 2, 4
    )
    nibbles = halves.transpose(-2, -1).flatten(-3)
    grouped = split(nibbles, scales.size(-1), nibbles.size(-1) // scales.size(-1))
    return ((grouped.to(scales.dtype) - 8) * scales[..., None]).flatten(-2)


def linear_int8(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b; x [..., K], q [N, K], scale [N], bias [N], to y [..., N]."""
    return _linear(x, dequantise_int8(q, wide(scale)), bias)


def linear_int4(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b; x [..., K], packed [N, K / 2], scales [N, K / group], bias [N]."""
    return _linear(x, dequantise_int4(packed, wide(scales)), bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x @ weight.to(x.dtype).T
    return y if bias is None else y + bias.to(x.dtype)
