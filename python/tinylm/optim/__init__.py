"""Gradients to updates: the optimizers, their groups by role, and the schedule of the rate.

optimizer = build(model, OptimConfig())
optimizer.step(rate=schedule(step, steps, config))
"""

from tinylm.optim.groups import DECAYED, OPTIMIZERS, build
from tinylm.optim.muon import Muon, orthogonalise
from tinylm.optim.optimizer import Optimizer
from tinylm.optim.schedules import SCHEDULES, constant, cosine, linear, schedule, wsd
from tinylm.optim.whole import Whole

__all__ = [
    "DECAYED",
    "OPTIMIZERS",
    "SCHEDULES",
    "Muon",
    "Optimizer",
    "Whole",
    "build",
    "constant",
    "cosine",
    "linear",
    "orthogonalise",
    "schedule",
    "wsd",
]
