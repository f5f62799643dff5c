"""Numbers in 8 bits: whole numbers times a scale per row."""

import torch
from torch import Tensor


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] to whole numbers [..., D] int8 and a float32 scale per row [...], x ~ n * scale.

    scale = max |x| / 127 of the row, n = round(x / scale); x is finite, of any float dtype.
    The error of a number is at most half the scale. Source: Dettmers et al. 2022, section 2.1.
    """
    wide = x.float()
    scale = wide.abs().amax(-1) / 127
    # Rows of zeros divide by 1. A scale near the smallest float32 has few bits, hence the clamp.
    whole = (wide / scale.masked_fill(scale == 0, 1).unsqueeze(-1)).round_().clamp_(-127, 127)
    return whole.to(torch.int8), scale


def dequantise_rows(n: Tensor, scale: Tensor) -> Tensor:
    """n * scale per row: n [..., D] int8, scale [...] float, to [..., D] in the dtype of scale."""
    return n * scale.unsqueeze(-1)
