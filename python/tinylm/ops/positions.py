"""Positions as rotations of queries and keys."""

from collections.abc import Callable
from typing import Any

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
    if choice.by_hand(x) and not (cos.requires_grad or sin.requires_grad):
        y: Tensor = _NormRope.apply(x, None, cos, sin, None)  # type: ignore[no-untyped-call]
        return y
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
    if choice.by_hand(x, weight) and not (cos.requires_grad or sin.requires_grad):
        y: Tensor = _NormRope.apply(x, weight, cos, sin, eps)  # type: ignore[no-untyped-call]
        return y
    wide = widened(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        normed = normed * weight
    return _turned(normed, cos, sin).to(x.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class _NormRope(torch.autograd.Function):
    """`norm_rope`, or with eps None `rope`, on a CPU, in half the passes over memory.

    y = r (x C + x' S), where x' has the halves of x exchanged, and the weight is in the tables C
    and S. B, H, T, head = 8, 3, 256, 64 in bfloat16, forward and backward on one thread of an AMD
    EPYC: 1.5 ms against 2.9.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float | None
    ) -> Tensor:
        """y [B, H, T, head], contiguous, as products over heads want it."""
        c, s = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        if weight is not None:
            c, s = c * weight, s * weight.roll(weight.numel() // 2)
        wide, r = widened(x).contiguous(), None
        y = _rotated(wide, c, s)
        if eps is not None:
            size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            r = size.square_().div_(x.size(-1)).add_(eps).rsqrt_()
            y.mul_(r)
        ctx.save_for_backward(x, weight, cos, sin, r)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """dx [B, H, T, head], the heads of a token side by side in memory, and dweight [head]."""
        x, weight, cos, sin, r = ctx.saved_tensors
        if r is None and torch.is_grad_enabled():
            # A rotation is undone by the opposite one, which torch records for create_graph=True.
            return rope(dy, cos, -sin), None, None, None, None
        choice.refuse_second("norm_rope", "write the norm in torch")
        c, s = torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1)
        slope, dweight = _rotated(widened(dy).contiguous(), c, s), None
        if r is not None:
            # With n = r x and the slope dn of n: dx = r (dn - n mean(dn n)).
            n = widened(x) * r
            along = slope * n
            if weight is not None:
                dweight = along.sum((0, 1, 2)).to(weight.dtype)
                along.mul_(weight)
                slope.mul_(weight)
            share = along.sum(-1, keepdim=True).div_(-x.size(-1))
            slope.addcmul_(n, share).mul_(r)
        dx = torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format)
        dx = dx.transpose(1, 2).copy_(slope)
        return dx, dweight, None, None, None


def _rotated(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """x c + x' s, without a copy of x'."""
    y, half = x * c, x.size(-1) // 2
    first, second = slice(0, half), slice(half, None)
    y[..., first].addcmul_(x[..., second], s[..., first])
    y[..., second].addcmul_(x[..., first], s[..., second])
    return y


def _kernel_for(
    operation: str, x: Tensor, cos: Tensor, sin: Tensor, *weights: Tensor
) -> Callable[..., Tensor] | None:
    # The kernels have no gradient for the angles.
    if cos.requires_grad or sin.requires_grad:
        return None
    return choice.kernel_for(operation, x.size(-1), x, cos, sin, *weights)
