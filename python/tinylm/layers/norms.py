"""Norms, and a norm together with the sum before it."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tinylm import ops
from tinylm.config import Role


class RMSNorm(nn.Module):
    """`ops.rms_norm` with a learned weight [D]; it has no bias, whatever `bias` says."""

    roles: ClassVar[dict[str, Role]] = {"weight": "gain"}

    def __init__(self, width: int, *, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to the same shape."""
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """x + branch and its norm, both [..., D]."""
        return ops.add_rms_norm(x, branch, self.weight, self.eps)


class LayerNorm(nn.Module):
    """`ops.layer_norm` with a learned weight [D] and, with `bias`, a learned bias [D]."""

    roles: ClassVar[dict[str, Role]] = {"weight": "gain", "bias": "gain"}

    def __init__(self, width: int, *, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to the same shape."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """x + branch and its norm, both [..., D]."""
        return ops.add_layer_norm(x, branch, self.weight, self.bias, self.eps)


class PlainRMSNorm(nn.Module):
    """`ops.rms_norm` without a weight."""

    def __init__(self, width: int, *, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to the same shape."""
        return ops.rms_norm(x, None, self.eps)


class PlainLayerNorm(nn.Module):
    """`ops.layer_norm` without weight and bias: on a CPU the cheapest of the norms."""

    def __init__(self, width: int, *, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to the same shape."""
        return ops.layer_norm(x, None, None, self.eps)


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is one of `kinds` and no more, so that its weights say all that it does.

    A subclass or an instance may have a `forward` of its own, and hooks may change its output.
    """
    own = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    return type(module) in kinds and not own and not module._backward_hooks


def add_and_norm(norm: nn.Module, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """x + branch and `norm` of it, both [..., D]; one pass over memory if the norm has a kernel."""
    if is_plain(norm, RMSNorm, LayerNorm):
        total_and_normed: tuple[Tensor, Tensor] = norm.add(x, branch)  # type: ignore[operator]
        return total_and_normed
    total = x + branch
    return total, norm(total)


# A module named in `imports` may add to it, so it is read when a model is built and never copied.
NORMS: dict[str, Any] = {
    "rmsnorm": RMSNorm,
    "layernorm": LayerNorm,
    "plain_rmsnorm": PlainRMSNorm,
    "plain_layernorm": PlainLayerNorm,
}
