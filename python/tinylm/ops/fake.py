"""Weights and activations as a model of fewer bits would have them, with gradients all the same.

`tinylm.reference.fake` has the definitions and derives the straight-through gradients.
"""

# A function with a gradient of its own has no types.
# mypy: disable-error-code="no-untyped-call"

from typing import Any, Literal

import torch
from torch import Tensor

from tinylm.ops.dtypes import widened
from tinylm.ops.quant import GROUPS, rounded
from tinylm.ops.rounding import on_grid, searched
from tinylm.ops.ternary import PER_BYTE, ternary

Bits = Literal["int8", "int4", "ternary"]


class _Through(torch.autograd.Function):
    """y in place of x: the gradient of y is handed to x as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


def fake_weight(weight: Tensor, share: Tensor, bits: Bits, group: int = 32) -> Tensor:
    """The weight [N, K] mixed with what its packed form gives back, with the gradient of `weight`.

    `share` (a scalar in the dtype of the weight) is 0 for the weight, and 1 for exactly the numbers
    of `dequantise_int8`, `dequantise_int4` or `dequantise_ternary`. Raises ValueError if `refusal`
    has an objection.
    """
    if problem := refusal(weight.size(-1), bits, group):
        raise ValueError(f"fake_weight: {problem}")
    with torch.no_grad():
        mixed = torch.lerp(weight, _on_grid(weight, bits, group), share)
    found: Tensor = _Through.apply(weight, mixed)
    return found


def fake_rows(x: Tensor, share: Tensor | None = None) -> Tensor:
    """Activations [..., K] mixed with themselves in 8 bits, a scale per row; gradients pass.

    Without a `share` (a scalar) it is 1. The result has the dtype of x.
    """
    with torch.no_grad():
        whole, scale = rounded("fake_rows", x, 127, torch.float32)
        mixed = (whole * scale[..., None]).to(x.dtype)
        if share is not None:
            mixed = torch.lerp(x, mixed, share.to(x.dtype))
    found: Tensor = _Through.apply(x, mixed)
    return found


def refusal(width: int, bits: Bits, group: int) -> str | None:
    """Why a weight [N, `width`] has no form of these bits; None if it has one."""
    if bits == "int4" and (group not in GROUPS or width % group):
        return f"group={group} must be 32, 64 or 128 and divide K={width}; int8 takes any K"
    if bits == "ternary" and width % PER_BYTE:
        return f"K={width} must be a multiple of {PER_BYTE}; int8 takes any K"
    return None


def _on_grid(weight: Tensor, bits: Bits, group: int) -> Tensor:
    """The weight [N, K] as its packed form gives it back, in its own dtype."""
    if bits == "ternary":
        numbers, scale = ternary(weight)
        return (numbers * scale).to(weight.dtype)
    if bits == "int4":
        wide = widened(weight)
        return on_grid(wide, searched(wide, group)).to(weight.dtype)
    whole, scale = rounded("fake_weight", weight, 127, torch.float32)
    return (whole * scale[..., None]).to(weight.dtype)
