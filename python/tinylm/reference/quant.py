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
number of its dtype: never 0, and exact enough that |w| / scale rounds to 127 or 7 at most. A caller
may give other scales, negative ones too; then numbers beyond the grid are clipped to its ends.

Any float dtype, on any device. Nothing here waits for a GPU: values are not checked.

How the scales and numbers of a trained matrix are chosen stands at the end, in loops over one row
at a time: `search_scale`, `gptq`, `awq_factors`.
"""

from collections.abc import Sequence

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


def rounded_to(x: Tensor, least: int, largest: int, scale: Tensor) -> Tensor:
    """Whole numbers in least .. largest, still floats, for scales that are given."""
    whole = (wide(x) / scale[..., None]).round().clamp(least, largest)
    return torch.where(whole.isnan(), 0.0, whole)


def quantise_int8(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x [..., K] to q [..., K] int8 and scale [...] float32, or the `scale` that is given.

    |x - q scale| <= scale / 2. A row that has nan or inf comes back as nan, whole.
    """
    if scale is not None:
        return rounded_to(x, -127, 127, scale).to(torch.int8), scale
    whole, scale = rounded(x, 127, torch.float32)
    return whole.to(torch.int8), scale


def dequantise_int8(q: Tensor, scale: Tensor) -> Tensor:
    """q [..., K] and scale [...] to numbers [..., K] in the dtype of scale."""
    return q.to(scale.dtype) * scale[..., None]


def quantise_int4(
    x: Tensor, group: int = 32, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x [..., K] to packed [..., K / 2] uint8 and scales [..., K / group] in the dtype of x.

    `group` is 32, 64 or 128 and divides K. |x - (nibble - 8) scale| <= scale / 2. A group that
    has nan or inf comes back as nan, whole. With `scales` given, those.
    """
    grouped = split(x, x.size(-1) // group, group)
    if scales is None:
        whole, scales = rounded(grouped, 7, x.dtype)
    else:
        whole = rounded_to(grouped, -8, 7, scales)
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


# Shares of the largest magnitude at which a group may be clipped.
RATIOS = tuple(1 - step / 20 for step in range(10))


def candidates(row: Tensor, dtype: torch.dtype) -> list[float]:
    """The scales that are tried for a group, as numbers of `dtype`.

    Two grids: one puts the largest magnitude at 7 or -7, the other puts the number that has it at
    -8, by a scale of the other sign. Each is then clipped, step by step.
    """
    extreme = float(row[int(row.abs().argmax())])
    scales = [ratio * scale for ratio in RATIOS for scale in (abs(extreme) / 7, -extreme / 8)]
    stored = torch.tensor(scales, dtype=torch.float64).to(dtype).tolist()
    tiny = torch.finfo(dtype).tiny
    return [scale if abs(scale) >= tiny else tiny for scale in stored]


def search_scale(
    row: Tensor, importance: Tensor | None = None, dtype: torch.dtype = torch.bfloat16
) -> float:
    """The scale of a group of numbers [group] with the least squared error; the first of equals.

    The error of each number counts by its `importance` [group], 1 without.
    """
    best, least = 0.0, float("inf")
    for scale in candidates(row, dtype):
        error = 0.0
        for place, number in enumerate(row.tolist()):
            rest = number - nearest(number, scale) * scale
            error += rest * rest * (1.0 if importance is None else float(importance[place]))
        if error < least:
            best, least = scale, error
    return best


def nearest(number: float, scale: float) -> float:
    """The whole number in -8 .. 7 that is nearest to number / scale; of two the even one."""
    return float(min(max(round(number / scale), -8), 7))


def gptq(
    weight: Tensor, moments: Tensor, group: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    """weight [N, K] to numbers on the grid [N, K] and scales [N, K / group], column by column.

    moments [K, K] are X^T X of the inputs that the matrix gets. What rounding a column adds to
    the outputs is taken back, as far as the inputs allow it, by the columns that are not rounded
    yet:

        w[j] -= (w[k] - q[k]) P[k, j] / P[k, k]        for all j after k

    with P the inverse of the moments of the columns from k on. A group's scale is searched when its
    first column comes. Source: Frantar et al. 2022 (GPTQ), equations 2 and 3; there P comes from
    one Cholesky factor.
    """
    weight, width = weight.clone(), weight.size(1)
    done, scales = torch.zeros_like(weight), weight.new_zeros(len(weight), width // group)
    for k in range(width):
        inverse = torch.linalg.inv(moments[k:, k:])
        for n in range(len(weight)):
            if k % group == 0:
                scales[n, k // group] = search_scale(weight[n, k : k + group], dtype=dtype)
            scale = float(scales[n, k // group])
            done[n, k] = nearest(float(weight[n, k]), scale) * scale
            error = (weight[n, k] - done[n, k]) / inverse[0, 0]
            weight[n, k + 1 :] -= error * inverse[0, 1:]
    return done, scales


def damped(moments: Tensor, share: float = 0.01) -> Tensor:
    """moments [K, K] with a share of the mean of its diagonal added to the diagonal."""
    return moments + share * moments.diagonal().mean() * torch.eye(len(moments)).to(moments)


def output_error(change: Tensor, moments: Tensor) -> float:
    """The squared change of all outputs, for a change of the weights [N, K]."""
    return sum(float(row @ moments @ row) for row in change)


def awq_factors(
    weights: Sequence[Tensor], moments: Tensor, group: int, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Factors [K] by which the columns of matrices with one input are enlarged before rounding.

    The inputs are divided by them. A column whose input is large so gets finer steps. The factor
    is (root of the input's mean square) ** alpha, over the geometric mean of the largest and the
    least; alpha is the one of 0, 0.05 .. 0.95 whose outputs are nearest, the first of equals.
    Source: Lin et al. 2023 (AWQ), section 3.2.
    """
    size = moments.diagonal().clamp_min(1e-12 * moments.diagonal().max()).sqrt()
    best, least = torch.ones_like(size), float("inf")
    for step in range(20):
        factors = size ** (step / 20)
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = 0.0
        for weight in weights:
            enlarged = weight * factors
            for n in range(len(enlarged)):
                for first in range(0, enlarged.size(1), group):
                    part = enlarged[n, first : first + group]
                    scale = search_scale(part, dtype=dtype)
                    for place, number in enumerate(part.tolist()):
                        part[place] = nearest(number, scale) * scale
            error += output_error(enlarged / factors - weight, moments)
        if error < least:
            best, least = factors, error
    return best
