"""Numbers in 8 or 4 bits between the least and the largest of those that share a scale.

    x = zero + scale n    n a whole number in 0 .. 2^bits - 1; scale and zero in float16

Unlike the formats of `tinylm.ops.quant` these are not symmetric: they spend no code on numbers that
do not occur, which pays for the keys and values of a cache (`tinylm.reference.caches`).
Two numbers of 4 bits share a byte: the first half of the axis in the low bits, the second in the
high ones, so that both halves are read in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinylm.ops.dtypes import widened

LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Ranged:
    """Numbers in few bits: `packed` uint8, and `scale` and `zero` float16 of length 1 along `dim`.

    With 4 bits `packed` is half as long along `dim` as the numbers are. An index of the axes before
    `dim` goes to all three.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.packed, self.scale, self.zero

    def __getitem__(self, index: Any) -> "Ranged":
        return Ranged(*(x[index] for x in self.tensors()))

    def __setitem__(self, index: Any, new: "Ranged") -> None:
        for mine, theirs in zip(self.tensors(), new.tensors(), strict=True):
            mine[index] = theirs


def empty_range(shape: Sequence[int], dim: int, bits: int, device: torch.device) -> Ranged:
    """Room for numbers of this shape; they are 0 until some are stored."""
    sizes, ones = [*shape], [*shape]
    sizes[dim], ones[dim] = sizes[dim] * bits // 8, 1
    scales = (torch.zeros(ones, dtype=torch.float16, device=device) for _ in range(2))
    return Ranged(torch.zeros(sizes, dtype=torch.uint8, device=device), *scales)


def quantise_range(x: Tensor, dim: int, bits: int) -> Ranged:
    """x in 8 or 4 bits; the numbers along `dim` share a scale and a zero.

    |x - dequantised| is at most scale / 2, but for the rounding of the scale and the zero to
    float16. Numbers past its range, 65504, end at it, and numbers that share a scale with nan or
    inf come back as nan. Raises `ValueError` for other bits, or an odd length for 4 of them.
    Source: Liu et al. 2024 (KIVI, arXiv 2402.02750), section 3.1, equation 1.
    """
    if bits not in (4, 8) or (bits == 4 and x.size(dim) % 2):
        raise ValueError(
            f"quantise_range: {x.size(dim)} numbers in {bits} bits: the bits are 4 or 8, and 4 "
            "need an even number"
        )
    wide, levels = widened(x), 2**bits - 1
    low, high = wide.amin(dim, keepdim=True), wide.amax(dim, keepdim=True)
    zero = low.clamp(-LARGEST, LARGEST).half()
    scale = ((high.clamp(-LARGEST, LARGEST) - zero) / levels).half()
    # A range of one number has scale 0: 0 / 0 becomes 0, as nan does, which the zero stands for.
    whole = ((wide - zero) / scale).round_().nan_to_num_(0.0).clamp_(0, levels).to(torch.uint8)
    zero = torch.where(wide.isfinite().all(dim, keepdim=True), zero, torch.nan)
    if bits == 4:
        half = x.size(dim) // 2
        whole = whole.narrow(dim, 0, half) | whole.narrow(dim, half, half) << 4
    return Ranged(whole, scale, zero)


def dequantise_range(ranged: Ranged, dim: int, bits: int, out: Tensor) -> Tensor:
    """Fill `out`, whose shape and dtype are those of the numbers, and return it."""
    packed, scale, zero = ranged.tensors()
    if bits == 4:
        half = packed.size(dim)
        out.narrow(dim, 0, half).copy_(packed & 15)
        out.narrow(dim, half, half).copy_(packed >> 4)
    else:
        out.copy_(packed)
    return out.mul_(scale.to(out.dtype)).add_(zero.to(out.dtype))
