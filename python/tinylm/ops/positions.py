"""Positions as rotations of queries and keys."""

from collections.abc import Callable

import torch
from torch import Tensor

from tinylm.ops import choice
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

    x [B, H, T, head], cos and sin [T, head / 2] or, with positions per row, [B, 1, T, head / 2].
    The pairing of halves is the one of Llama's weights in transformers, so they load without a
    permutation.
    """
    kernel = _kernel_for("rope", x, cos, sin)
    if kernel is not None:
        return kernel(x, cos, sin)
    return _turned(widened(x), cos, sin).to(x.dtype)


def norm_rope(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """`rope` of x / sqrt(mean(x^2) + eps) * weight, the mean over a head: QK-norm and rotation.

    Shapes as in `rope`. All heads share the weight [head]; without one the norm has none. Computed
    in float32 and rounded once.
    Sources: Henry et al. 2020; Qwen3 technical report 2025, section 2.
    """
    weights = () if weight is None else (weight,)
    kernel = _kernel_for("norm_rope", x, cos, sin, *weights)
    if kernel is not None:
        return kernel(x, weight, cos, sin, eps)
    wide = widened(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        normed = normed * weight
    return _turned(normed, cos, sin).to(x.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _kernel_for(
    operation: str, x: Tensor, cos: Tensor, sin: Tensor, *weights: Tensor
) -> Callable[..., Tensor] | None:
    # The kernels have no gradient for the angles.
    if cos.requires_grad or sin.requires_grad:
        return None
    return choice.kernel_for(operation, x.size(-1), x, cos, sin, *weights)
