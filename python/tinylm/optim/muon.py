"""Muon: momentum, made orthogonal."""

import math
from typing import Any

import torch
from torch import Tensor

from tinylm.optim.whole import Whole


def orthogonalise(updates: Tensor, steps: int = 5) -> Tensor:
    """Approximately the nearest semi-orthogonal matrix to each of `updates` [N, rows, columns].

    Five Newton-Schulz steps of the quintic a x + b x^3 + c x^5 on the singular values, in
    bfloat16; they end between 0.7 and 1.2. Source: Jordan et al. 2024, "Muon".
    """
    # Chosen there for a steep start: small singular values grow fast, at the price that none
    # converges to exactly 1.
    a, b, c = 3.4445, -4.7750, 2.0315
    x = updates.bfloat16()
    # The Frobenius norm is at least the largest singular value, so all of them start between 0 and
    # 1, where the polynomial stays bounded. The small term keeps a gradient of zeros from giving
    # nan.
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.size(-2) > x.size(-1)
    # The Gram matrix then has the size of the shorter side.
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    near: Tensor = x.mT if tall else x
    return near.to(updates.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every direction of a matrix moves by the same amount.

    m <- beta m + (1 - beta) g;  W <- W - lr (s O(g + beta (m - g)) + decay W), with
    s = sqrt(max(1, rows / columns)). Parameters are [..., rows, columns]: of a stack, each matrix
    is orthogonalised by itself. Matrices of one shape are computed together. State: one number per
    weight. Source: Jordan et al. 2024.
    """

    # Of one process; an `Optimizer` whose weights are parts of matrices sets another.
    whole = Whole()

    def __init__(
        self, parameters: Any, *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    # A parameter without a gradient took no part in the step: it must not decay
                    # either.
                    shapes.setdefault(self.whole.shape(parameter), []).append(parameter)
            for shape, parameters in shapes.items():
                self._step_together(parameters, shape, group)

    def _step_together(
        self, parameters: list[Tensor], shape: torch.Size, group: dict[str, Any]
    ) -> None:
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        beta, lr = group["momentum"], group["lr"]
        # torch's private list functions: one call per step instead of one per parameter, as in its
        # own optimizers.
        torch._foreach_lerp_(momenta, gradients, 1 - beta)
        ahead = torch._foreach_lerp(gradients, momenta, beta)
        rows, columns = shape[-2:]
        moves = self.whole.update(ahead, shape, orthogonalise)
        # Decay before the move, as AdamW does: the move itself must not shrink.
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        # An orthogonal matrix with more rows than columns makes a smaller step per row; this evens
        # it out.
        scale = lr * math.sqrt(max(1.0, rows / columns))
        torch._foreach_add_(parameters, moves, alpha=-scale)
