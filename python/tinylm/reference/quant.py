"""Numbers in 8 bits: whole numbers from -127 to 127 times a scale per row, in plain torch.

    x_i ~ n_i s        s = max over i of |x_i| / 127        n_i = round(x_i / s)

The scheme is symmetric (0 stays 0) and needs no data but the row itself. What a row is, the caller
says by the last axis: a token's key of one head, or the weights of one output. -128 is not used, so
that -x always has the numbers of x with the other sign. Source: Dettmers et al. 2022, section 2.1
(vector-wise quantisation).
"""

import torch
from torch import Tensor

LARGEST = 127


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D], any float dtype, to n [..., D] int8 and s [...] float32; x is finite."""
    x = x.to(torch.float32)
    scale = x.abs().amax(-1) / LARGEST
    # A row of zeros has scale 0, and so has one too small for float32 to divide by 127.
    divisor = torch.where(scale > 0, scale, 1.0)
    # The smallest scales have few bits: |x| / s can pass 127 there.
    whole = (x / divisor[..., None]).round().clamp(-LARGEST, LARGEST)
    return whole.to(torch.int8), scale


def dequantise_rows(n: Tensor, scale: Tensor) -> Tensor:
    """n [..., D] int8 times scale [...], a float tensor: [..., D] in the dtype of scale."""
    return n.to(scale.dtype) * scale[..., None]
