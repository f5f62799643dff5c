"""Gradients to updates: the optimizers, their groups by role, and the schedule of the rate.

optimizer = build(model, OptimConfig())
optimizer.step(rate=schedule(step, steps, config), progress=step / steps)
"""

from tinylm.optim.groups import DECAYED, OPTIMIZERS, RATES, build
from tinylm.optim.muon import Muon
from tinylm.optim.optimizer import Optimizer
from tinylm.optim.orthogonal import ORTHOGONAL, orthogonalise, working_dtype
from tinylm.optim.schedules import SCHEDULES, constant, cosine, linear, schedule, wsd, wsd_sqrt
from tinylm.optim.stock import SGD, AdamW
from tinylm.optim.whole import Whole

__all__ = [
    "DECAYED",
    "OPTIMIZERS",
    "ORTHOGONAL",
    "RATES",
    "SCHEDULES",
    "SGD",
    "AdamW",
    "Muon",
    "Optimizer",
    "Whole",
    "build",
    "constant",
    "cosine",
    "linear",
    "orthogonalise",
    "schedule",
    "working_dtype",
    "wsd",
    "wsd_sqrt",
]
