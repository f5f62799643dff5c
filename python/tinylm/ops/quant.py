"""Numbers in 8 and 4 bits, with a scale per row or per group of a row.

`tinylm.reference.quant` defines the formats and says why the nibbles of int4 lie as they do.
"""

import torch
from torch import Tensor

from tinylm.ops.dtypes import widened

GROUPS = (32, 64, 128)


def quantise_int8(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x [..., K] to q [..., K] int8 and scale [...] float32, with |x - q scale| <= scale / 2.

    scale = max |x| / 127 of the row, and never 0. A row that has nan or inf comes back from
    `dequantise_int8` as nan, whole. A `scale` that is given is kept; then numbers are clipped to
    -127 .. 127 and a nan becomes 0. Does not wait for a GPU. Raises ValueError unless x is of a
    float dtype and K at least 1. Source: Dettmers et al. 2022, section 2.1.
    """
    if scale is not None:
        return _clipped("quantise_int8", x, -127, 127, scale).to(torch.int8), scale
    whole, scale = rounded("quantise_int8", x, 127, torch.float32)
    return whole.to(torch.int8), scale


def dequantise_int8(q: Tensor, scale: Tensor) -> Tensor:
    """q scale per row: q [..., K] int8 and scale [...] to [..., K] in the dtype of scale."""
    check_int8("dequantise_int8", q, scale)
    return q * scale[..., None]


def quantise_int4(
    x: Tensor, group: int = 32, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x [..., K] to packed [..., K / 2] uint8 and scales [..., K / group] in the dtype of x.

    |x - dequantised| <= scale / 2, with scale = max |x| / 7 of the group, and never 0. A group
    that has nan or inf comes back as nan, whole. Does not wait for a GPU. With groups of 32, scales
    in float32 are a fifth of all bytes, in 16 bits a ninth. `scales` that are given, of any float
    dtype and sign, are kept; then numbers are clipped to -8 .. 7 and a nan becomes 0. Raises
    ValueError unless x is of a float dtype and `group` is 32, 64 or 128 and divides K.
    """
    width = x.size(-1) if x.dim() else 0
    if group not in GROUPS or width == 0 or width % group:
        raise ValueError(
            f"quantise_int4: group={group} must be 32, 64 or 128 and divide K={width}; "
            "32 divides most widths, and quantise_int8 takes any"
        )
    grouped = x.reshape(*x.shape[:-1], width // group, group)
    if scales is None:
        whole, scales = rounded("quantise_int4", grouped, 7, x.dtype)
    else:
        whole = _clipped("quantise_int4", grouped, -8, 7, scales)
    pairs = (whole + 8).to(torch.uint8).view(*x.shape[:-1], width // 8, 4, 2)
    nibbles = pairs.transpose(-2, -1).reshape(*x.shape[:-1], width // 2, 2)
    return nibbles[..., 0] | nibbles[..., 1] << 4, scales


def dequantise_int4(packed: Tensor, scales: Tensor) -> Tensor:
    """packed [..., K / 2] uint8 and scales [..., K / group] to [..., K], in the dtype of scales."""
    group = check_int4("dequantise_int4", packed, scales)
    words = (*packed.shape[:-1], packed.size(-1) // 4)
    halves = torch.stack((packed & 15, packed >> 4), -1).view(*words, 2, 4)
    numbers = halves.transpose(-2, -1).to(torch.int8) - 8
    return (numbers.reshape(*scales.shape, group) * scales[..., None]).flatten(-2)


def check_int8(operation: str, q: Tensor, scale: Tensor) -> None:
    """Raise ValueError unless `scale` has one number per row of `q`."""
    if q.dtype != torch.int8 or scale.shape != q.shape[:-1]:
        raise ValueError(
            f"{operation}: q {list(q.shape)} {q.dtype} and scale {list(scale.shape)} must be "
            "[..., K] int8 and [...], as quantise_int8 returns them"
        )


def check_int4(operation: str, packed: Tensor, scales: Tensor) -> int:
    """Return the group; raise ValueError unless there is one scale per group of nibbles."""
    width = 2 * packed.size(-1)
    group = width // max(1, scales.size(-1))
    same = packed.shape[:-1] == scales.shape[:-1] and group * scales.size(-1) == width
    if packed.dtype != torch.uint8 or not same or group not in GROUPS:
        raise ValueError(
            f"{operation}: packed {list(packed.shape)} {packed.dtype} and scales "
            f"{list(scales.shape)} must be [..., K / 2] uint8 and [..., K / group] with a group "
            "of 32, 64 or 128, as quantise_int4 returns them"
        )
    return group


def _check_x(operation: str, x: Tensor) -> None:
    if not x.is_floating_point() or x.dim() == 0 or x.size(-1) == 0:
        raise ValueError(
            f"{operation}: x {list(x.shape)} is {x.dtype}; it must be [..., K] of a float dtype, "
            "with K at least 1"
        )


def _clipped(operation: str, x: Tensor, least: int, largest: int, scale: Tensor) -> Tensor:
    """Whole numbers in least .. largest, still floats, for scales that are given."""
    _check_x(operation, x)
    if scale.shape != x.shape[:-1]:
        raise ValueError(
            f"{operation}: x {list(x.shape)} and scale {list(scale.shape)} do not fit; there must "
            "be one scale per row or group"
        )
    return (widened(x) / scale[..., None]).round().clamp(least, largest).nan_to_num_(0.0)


def rounded(operation: str, x: Tensor, largest: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Whole numbers in -largest .. largest, still floats, and a scale per row, in `dtype`."""
    _check_x(operation, x)
    wide = widened(x)
    # At least the smallest normal number: 0 would divide, and subnormal numbers are too coarse.
    scale = (wide.abs().amax(-1) / largest).to(dtype).clamp_min(torch.finfo(dtype).tiny)
    # inf / inf and nan / nan become 0, whose product with a scale of inf or nan is nan.
    return (wide / scale[..., None]).round().nan_to_num_(0.0), scale
