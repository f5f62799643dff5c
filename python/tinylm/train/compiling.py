"""Whether the loss is compiled, and by what."""

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from tinylm.config import Run
from tinylm.model import Model
from tinylm.train.session import Session

# Shorter runs end before a compiler has paid for itself.
COMPILE_FROM = 500


def loss_function(run: Run, net: Model, session: Session) -> Callable[..., Tensor]:
    """`Model.loss`, compiled where the run asks for it and the machine can."""
    wanted, say = run.train.compile, session.say
    if wanted == "auto":
        wanted = run.train.steps >= COMPILE_FROM and session.device.type in ("cpu", "cuda")
    if wanted and not _has_compiler():
        if run.train.compile is True:
            raise ValueError(
                "train.compile=true needs a C++ compiler, and neither g++ nor clang++ is found: "
                "install one or set train.compile=false"
            )
        say("no C++ compiler (g++, clang++) is found: training without torch.compile, slower")
        wanted = False
    if not wanted:
        return net.loss
    say("compiling the model at the first step: up to 30 s the first time, a few seconds later on")
    compiled: Callable[..., Tensor] = torch.compile(net.loss, dynamic=False)
    return compiled


def _has_compiler() -> bool:
    names = (os.environ.get("CXX"), "g++", "clang++")
    return any(shutil.which(name) for name in names if name)
