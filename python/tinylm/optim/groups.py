"""The optimizers by name, and the groups of parameters that they move."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tinylm.config import OptimConfig, Role, choose
from tinylm.optim.muon import Muon
from tinylm.optim.optimizer import Optimizer
from tinylm.optim.stock import SGD, AdamW
from tinylm.optim.whole import Whole

# The roles whose weights decay, and that Muon moves: the matrices between embedding and head.
DECAYED: frozenset[Role] = frozenset({"matrix"})
# The setting with the rate of a role; the other roles have optim.lr.
RATES: dict[Role, str] = {
    "embedding": "embedding_lr",
    "head": "head_lr",
    "scalar": "scalar_lr",
}

Groups = list[dict[str, Any]]
Parts = list[torch.optim.Optimizer]


def _adamw(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, cautious=config.cautious)


def _all_adamw(matrices: Groups, rest: Groups, config: OptimConfig) -> Parts:
    return [_adamw(matrices + rest, config)]


def _sgd(matrices: Groups, rest: Groups, config: OptimConfig) -> Parts:
    # SGD has one momentum; the first beta is the nearest setting.
    return [SGD(matrices + rest, lr=config.lr, momentum=config.betas[0])]


def _muon(matrices: Groups, rest: Groups, config: OptimConfig) -> Parts:
    muon = Muon(
        matrices,
        lr=config.matrix_lr,
        momentum=config.momenta.at(0),
        cautious=config.cautious,
        orthogonal=config.orthogonal,
        steps=config.orthogonal_steps,
    )
    return [muon, _adamw(rest, config)]


OPTIMIZERS: dict[str, Callable[..., Parts]] = {
    "muon": _muon,
    "adamw": _all_adamw,
    "sgd": _sgd,
}


def build(model: Any, config: OptimConfig, whole: Whole | None = None) -> Optimizer:
    """The optimizer of a `Model`: its parameters grouped by role, matrices apart and decayed.

    If the parameters of `model` are parts of weights, `whole` knows the weights.
    """
    matrices: list[nn.Parameter] = []
    # By rate, in the order of the roles' first parameters. One group is there even if it is
    # empty: torch refuses an empty list of groups, not an empty group.
    rest: dict[float, list[nn.Parameter]] = {}
    for _, parameter, role in model.named_roles():
        if not parameter.requires_grad:
            continue
        if role in DECAYED:
            matrices.append(parameter)
        else:
            own = getattr(config, RATES[role]) if role in RATES else None
            rest.setdefault(config.lr if own is None else own, []).append(parameter)
    decayed = [{"params": matrices, "decays": True}]
    plain = [
        {"params": parameters, "lr": rate, "weight_decay": 0.0}
        for rate, parameters in (rest or {config.lr: []}).items()
    ]
    make = choose(OPTIMIZERS, "optim.name", config.name)
    return Optimizer(model, make(decayed, plain, config), config, whole)
