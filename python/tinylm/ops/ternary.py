"""Weights of -1, 0 and 1 times one number: 2 bits each (`tinylm.reference.fake`)."""

import torch
from torch import Tensor

from tinylm.ops.dtypes import widened
from tinylm.ops.products import linear_int8
from tinylm.ops.quant import dequantise_int8, quantise_int8

# Numbers in a byte.
PER_BYTE = 4


def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [N, K] to -1, 0 and 1 as floats [N, K], and the scale [1]: mean |w|, never 0.

    Source: Ma et al. 2024 (BitNet b1.58, arXiv 2402.17764), section 2.
    """
    wide = widened(weight)
    scale = wide.abs().mean()[None].clamp_min(torch.finfo(wide.dtype).tiny)
    return (wide / scale).round_().clamp_(-1, 1), scale


def quantise_ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [N, K] to packed [N, K / 4] uint8 and its scale [1] in float32.

    Raises ValueError unless 4 divides K.
    """
    if weight.dim() != 2 or weight.size(-1) % PER_BYTE:
        raise ValueError(
            f"quantise_ternary: weight {list(weight.shape)} must be [N, K] with a K that "
            f"{PER_BYTE} divides; quantise_int8 takes any"
        )
    numbers, scale = ternary(weight)
    codes = (numbers + 1).to(torch.uint8).view(len(weight), -1, PER_BYTE)
    packed = codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6
    return packed, scale.float()


def unpack_ternary(packed: Tensor) -> Tensor:
    """Packed [N, K / 4] to -1, 0 and 1 [N, K] int8."""
    codes = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], -1)
    return codes.flatten(-2).to(torch.int8) - 1


def dequantise_ternary(packed: Tensor, scale: Tensor) -> Tensor:
    """Packed [N, K / 4] and its scale [1] to the matrix [N, K], in the dtype of the scale."""
    return unpack_ternary(packed) * scale


def linear_ternary(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x' W^T + b: x [..., K] rounded to 8 bits per row, W packed [N, K / 4], b [N], to [..., N].

    The result has the dtype of x. For inference: x gets no gradient. The numbers are widened to
    8 bits for each product, so this saves memory and not time.
    """
    with torch.no_grad():
        read = dequantise_int8(*quantise_int8(x)).to(x.dtype)
        return linear_int8(read, unpack_ternary(packed), scale.expand(len(packed)), bias)
