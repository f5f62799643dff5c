"""The scales of int4: by the largest magnitude of a group, or by a search over clipped grids."""

import torch
from torch import Tensor

# The dtype of int4's scales: 1/9 of the bytes in groups of 32. Its range is that of float32, and
# numbers are rounded to the scale as it is stored, so its 8 bits of precision lose nothing.
SCALES = torch.bfloat16
# Shares of the largest magnitude at which a group may be clipped: 1, 0.95 .. 0.55.
RATIOS = tuple(1 - step / 20 for step in range(10))


def absmax(weight: Tensor, group: int) -> Tensor:
    """weight [N, K] to scales [N, K / group]: the largest magnitude is 7 steps from 0."""
    return _floored(_grouped(weight, group).abs().amax(-1) / 7)


def searched(weight: Tensor, group: int, importance: Tensor | None = None) -> Tensor:
    """weight [N, K] to the scales [N, K / group] with the least squared error, the first of equals.

    The error of a number counts by its input's `importance` [K], 1 without. There are two grids:
    one has the largest magnitude at 7 or -7, the other has it at -8, by a scale of the other sign.
    Both are clipped step by step. A group with nan or inf has no error: it keeps the scale of its
    largest magnitude, by which it comes back as nan. Defined by
    `tinylm.reference.quant.search_scale`.
    """
    grouped = _grouped(weight, group)
    weights = None if importance is None else _grouped(importance[None].to(weight), group)
    extreme = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))[..., 0]
    best = _floored(extreme.abs() / 7)
    least = torch.full_like(extreme, torch.inf)
    for ratio in RATIOS:
        for tried in (ratio * (extreme.abs() / 7), ratio * (-extreme / 8)):
            scales = _floored(tried)
            wide = scales.to(weight.dtype)[..., None]
            error = (grouped - rounded(grouped, wide) * wide).square()
            total = (error if weights is None else error * weights).sum(-1)
            better = total < least
            best, least = torch.where(better, scales, best), torch.where(better, total, least)
    return best


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """The whole numbers in -8 .. 7 nearest to x / scale, still floats."""
    return (x / scale).round().clamp(-8, 7)


def on_grid(weight: Tensor, scales: Tensor) -> Tensor:
    """weight [N, K] rounded to the grids of scales [N, K / group]."""
    wide = scales.to(weight.dtype)[..., None]
    grouped = _grouped(weight, weight.size(-1) // scales.size(-1))
    return (rounded(grouped, wide) * wide).flatten(-2)


def _grouped(x: Tensor, group: int) -> Tensor:
    return x.reshape(*x.shape[:-1], -1, group)


def _floored(scale: Tensor) -> Tensor:
    """In the dtype of scales, and nowhere 0."""
    scale, tiny = scale.to(SCALES), torch.finfo(SCALES).tiny
    return torch.where(scale.abs() < tiny, tiny, scale)
