"""Gradients to updates: the optimizers, their groups by role, and the schedule of the rate.

optimizer = build(model, OptimConfig())
optimizer.step(rate=schedule(step, steps, config))
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tinylm.config import OptimConfig, Role, choose

# The roles whose weights decay, and that Muon moves: the matrices between embedding and head.
DECAYED: frozenset[Role] = frozenset({"matrix"})


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
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for parameters in shapes.values():
                self._step_together(parameters, group)

    def _step_together(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
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
        rows, columns = parameters[0].shape[-2:]
        stacked = torch.stack(ahead)
        moves = orthogonalise(stacked.view(-1, rows, columns)).view_as(stacked)
        # Decay before the move, as AdamW does: the move itself must not shrink.
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        # An orthogonal matrix with more rows than columns makes a smaller step per row; this evens
        # it out.
        scale = lr * math.sqrt(max(1.0, rows / columns))
        torch._foreach_add_(parameters, list(moves.unbind()), alpha=-scale)


class Optimizer:
    """One or more torch optimizers that move a model together, their state under clear names.

    A group's "peak" is its rate when the schedule is 1. `clip` bounds the norm of the
    gradients that AdamW and SGD see; Muon's step does not depend on its gradient's size.
    """

    def __init__(self, model: nn.Module, parts: list[torch.optim.Optimizer], clip: float) -> None:
        self.parts, self.clip = parts, clip
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        for part in parts:
            for group in part.param_groups:
                # `step` overwrites "lr" with the scheduled rate, so the peak needs a key of its
                # own.
                group["peak"] = group["lr"]

    def step(self, rate: float) -> None:
        """Move every weight; `rate` scales the peak learning rates. Gradients are then gone."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate * group["peak"]
            # Norms are taken per optimizer: matrices that Muon moves must not shrink what AdamW
            # gets.
            if self.clip and not isinstance(part, Muon):
                parameters = [p for group in part.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(parameters, self.clip)
            part.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def gradient_norm(self) -> Tensor:
        """2-norm of all gradients together, before clipping (scalar)."""
        gradients = [p.grad for p in self.names if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the state as `<parameter>.<quantity>`; not copies."""
        return {
            f"{self.names[parameter]}.{key}": value
            for part in self.parts
            for parameter, values in part.state.items()
            for key, value in values.items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned; `ValueError` names what does not fit."""
        rest = dict(state)
        for part, parameter in self._parameters():
            prefix = f"{self.names[parameter]}."
            # Quantities have no dot in their names, so a longer parameter name cannot match.
            mine = [key for key in rest if key.rpartition(".")[0] + "." == prefix]
            for key in mine:
                value = rest.pop(key)
                quantity = key.rpartition(".")[2]
                if value.dim() and value.shape != parameter.shape:
                    raise ValueError(
                        f"optimizer state {key} has shape {list(value.shape)}, the parameter "
                        f"{list(parameter.shape)}: the checkpoint is of another model"
                    )
                # torch keeps the step count of a fused optimizer where it made it.
                # Scalars, such as a step count, have no shape to compare.
                part.state[parameter][quantity] = value.to(parameter.device)
        if rest:
            raise ValueError(f"optimizer state for unknown parameters: {', '.join(sorted(rest))}")

    def _parameters(self) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter]]:
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    yield part, parameter


Groups = list[dict[str, Any]]


def _adamw(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _all_adamw(matrices: Groups, rest: Groups, config: OptimConfig) -> list[torch.optim.Optimizer]:
    return [_adamw(matrices + rest, config)]


def _sgd(matrices: Groups, rest: Groups, config: OptimConfig) -> list[torch.optim.Optimizer]:
    # SGD has one momentum; the first beta is the nearest setting.
    return [torch.optim.SGD(matrices + rest, lr=config.lr, momentum=config.betas[0])]


def _muon(matrices: Groups, rest: Groups, config: OptimConfig) -> list[torch.optim.Optimizer]:
    return [Muon(matrices, lr=config.matrix_lr), _adamw(rest, config)]


OPTIMIZERS: dict[str, Callable[..., list[torch.optim.Optimizer]]] = {
    "muon": _muon,
    "adamw": _all_adamw,
    "sgd": _sgd,
}


def build(model: Any, config: OptimConfig) -> Optimizer:
    """The optimizer of a `Model`: its parameters grouped by role, matrices apart and decayed."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for _, parameter, role in model.named_roles():
        if parameter.requires_grad:
            (matrices if role in DECAYED else rest).append(parameter)
    # Both groups are passed even if one is empty: torch refuses an empty list of groups, not an
    # empty group.
    decayed = {"params": matrices, "weight_decay": config.weight_decay}
    plain = {"params": rest, "weight_decay": 0.0}
    make = choose(OPTIMIZERS, "optim.name", config.name)
    return Optimizer(model, make([decayed], [plain], config), config.clip)


def wsd(progress: float, config: OptimConfig) -> float:
    """Warm-up, stable, decay: 1, then a straight fall to min_lr in the last `decay` of the run."""
    left = 1 - progress
    fall = 1 - config.min_lr
    # With decay=0 the first branch always holds, so nothing is divided by 0.
    return 1.0 if left >= config.decay else config.min_lr + fall * left / config.decay


def _after_warmup(progress: float, config: OptimConfig) -> float:
    """Progress from the end of the warm-up (0) to that of the run (1)."""
    # In whole steps the warm-up may end a little before its share of the run.
    past = max(0.0, progress - config.warmup)
    return past / (1 - config.warmup) if config.warmup < 1 else 1.0


def cosine(progress: float, config: OptimConfig) -> float:
    """Half a cosine from 1 to min_lr over the run after the warm-up."""
    after = _after_warmup(progress, config)
    wave = 0.5 * (1 + math.cos(math.pi * after))
    return config.min_lr + (1 - config.min_lr) * wave


def linear(progress: float, config: OptimConfig) -> float:
    """A straight line from 1 to min_lr over the run after the warm-up."""
    after = _after_warmup(progress, config)
    return 1 - (1 - config.min_lr) * after


def constant(progress: float, config: OptimConfig) -> float:
    """1 throughout."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, OptimConfig], float]] = {
    "wsd": wsd,
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
}


def schedule(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of step `step` (0 to steps - 1) as a share of its peak: warm-up, then the course."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        # Begins at 1 / warmup: a step at rate 0 would change nothing.
        return (step + 1) / warmup
    course = choose(SCHEDULES, "optim.schedule", config.schedule)
    return float(course(step / steps, config))
