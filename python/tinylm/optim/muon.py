"""Muon: momentum, made orthogonal."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinylm.optim.keeping import LightOptimizer, decay, kept_if
from tinylm.optim.orthogonal import orthogonalise, working_dtype
from tinylm.optim.whole import Whole


class Muon(LightOptimizer):
    """Momentum, orthogonalised: every direction of a matrix moves by the same amount.

    m <- beta m + (1 - beta) g;  W <- W - lr (s O(g + beta (m - g)) + decay W), with
    s = sqrt(max(1, rows / columns)). Parameters are [..., rows, columns]: of a stack, each matrix
    is orthogonalised by itself. Matrices of one shape are computed together. State: one number per
    weight. If `found_inf` is set, as GradScaler sets it, and not 0, a step changes nothing.
    Source: Jordan et al. 2024.
    """

    found_inf: Tensor | None = None
    # For one process; `Optimizer` sets another if weights are spread over several.
    whole = Whole()

    def __init__(
        self,
        parameters: Any,
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        cautious: bool = False,
        orthogonal: str = "polar_express",
        steps: int | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)
        self.cautious = cautious
        self.orthogonalise = partial(orthogonalise, method=orthogonal, steps=steps)

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
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        with kept_if(self.found_inf, [*momenta, *parameters]):
            ahead = self._look_ahead(parameters, momenta, group["momentum"])
            moves = self.whole.update(ahead, shape, self.orthogonalise)
            del ahead
            self._move(parameters, moves, shape, group)

    def _look_ahead(
        self, parameters: list[Tensor], momenta: list[Tensor], beta: float
    ) -> list[Tensor]:
        """Update the momenta; return their mean with the gradients, in the working dtype."""
        dtype = working_dtype(parameters[0].dtype, parameters[0].device)
        found: list[Tensor] = []
        for some in _parts(parameters):
            gradients = [p.grad for p in parameters[some] if p.grad is not None]
            # torch's private list functions: one call instead of one per parameter, as in its own
            # optimizers.
            torch._foreach_lerp_(momenta[some], gradients, 1 - beta)
            # Nesterov's momentum looks beta ahead.
            ahead = torch._foreach_lerp(gradients, momenta[some], beta)
            found += [update.to(dtype) for update in ahead]
        return found

    def _move(
        self,
        parameters: list[Tensor],
        moves: list[Tensor],
        shape: torch.Size,
        group: dict[str, Any],
    ) -> None:
        rows, columns = shape[-2:]
        # An orthogonal matrix with more rows than columns makes a smaller step per row; this evens
        # it out.
        scale = group["lr"] * math.sqrt(max(1.0, rows / columns))
        for some in _parts(parameters):
            # Decay before the move, as AdamW does: the move itself must not shrink.
            amount = group["lr"] * group["weight_decay"]
            decay(parameters[some], moves[some], amount, cautious=self.cautious)
            torch._foreach_add_(parameters[some], moves[some], alpha=-scale)


def _parts(parameters: list[Tensor]) -> Iterator[slice]:
    """All at once on a GPU, which counts launches; one by one on a CPU, whose caches are small."""
    step = 1 if parameters[0].device.type == "cpu" else len(parameters)
    for first in range(0, len(parameters), step):
        yield slice(first, first + step)
