"""The optimizers by name, and the groups of parameters that they move."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tinylm.config import OptimConfig, Role, choose
from tinylm.optim.muon import Muon
from tinylm.optim.optimizer import Optimizer
from tinylm.optim.whole import Whole

# The roles whose weights decay, and that Muon moves: the matrices between embedding and head.
DECAYED: frozenset[Role] = frozenset({"matrix"})

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


def build(model: Any, config: OptimConfig, whole: Whole | None = None) -> Optimizer:
    """The optimizer of a `Model`: its parameters grouped by role, matrices apart and decayed.

    If the parameters of `model` are parts of weights, `whole` knows the weights.
    """
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
    return Optimizer(model, make([decayed], [plain], config), config.clip, whole)
