"""Positions as rotations of queries and keys."""

import torch
from torch import Tensor

from tinylm.ops.dtypes import widened


def rotary_angles(length: int, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [length, head_size / 2] of position times frequency, float32.

    Frequency i is theta^(-2 i / head_size). Source: Su et al. 2021, equation 15.
    """
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + head/2}) by its position's angle.

    x [B, H, T, head], cos and sin [T, head / 2]. The pairing of halves is the one of Llama's
    weights in transformers, so they load without a permutation.
    """
    first, second = widened(x).chunk(2, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return turned.to(x.dtype)
