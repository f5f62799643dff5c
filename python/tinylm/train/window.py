"""The progress of a run, and the record of every few steps: their mean loss and speed."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinylm import device, optim
from tinylm.config import Run
from tinylm.track import Record


@dataclass
class Progress:
    """The counters of a run; with weights, optimizer and loader, they are its whole state."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = -1
    without_better: int = 0
    skipped: int = 0

    def state(self) -> dict[str, Any]:
        """What JSON can hold of it: None for a best loss that there is not yet."""
        best = self.best_loss if math.isfinite(self.best_loss) else None
        return {**vars(self), "best_loss": best}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Progress":
        """The progress of which `state` was taken."""
        best = math.inf if state["best_loss"] is None else state["best_loss"]
        return cls(**{**state, "best_loss": best})


class Window:
    """The steps since the last record, which go to `log` when there are enough.

    `flops` are those of one token, forward and backward; `peak` is the device's rate of them, 0
    if that is not known.
    """

    def __init__(
        self,
        run: Run,
        progress: Progress,
        place: torch.device,
        log: Callable[[Record], None],
        *,
        flops: float,
        peak: float,
    ) -> None:
        self.run, self.progress, self.device, self.log = run, progress, place, log
        self.flops, self.peak = flops, peak
        self.first = True
        self._open()

    def _open(self) -> None:
        self.losses: Tensor | None = None
        self.norm = torch.zeros(())
        self.steps = self.counted = 0
        self.tokens = self.progress.tokens
        self.start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the clock stands still: scoring and saving are not training."""
        before = time.perf_counter()
        yield
        self.start += time.perf_counter() - before

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Count one step; log a record at every `track.every`th and at the end."""
        run, progress = self.run, self.progress
        if not progress.skipped:
            # Added up on the device: only a record reads the sum.
            self.losses = loss if self.losses is None else self.losses + loss
            self.counted += 1
            self.norm = norm
        self.steps += 1
        at_end = progress.step == run.train.steps
        # The first step is reported at once: a run that starts wrong shows it early.
        due = progress.step % run.track.every == 0 or at_end or self.first
        # Without a loss all steps so far were skipped, and there is nothing to report.
        if not due or self.losses is None:
            return
        mean = (self.losses / self.counted).item()
        passed = time.perf_counter() - self.start
        progress.seconds += passed
        speed = (progress.tokens - self.tokens) / passed
        rate = optim.schedule(progress.step - 1, run.train.steps, run.optim)
        self.log(
            {
                "step": progress.step,
                "tokens": progress.tokens,
                "loss": mean,
                "lr": rate * run.optim.lr,
                "grad_norm": self.norm.item(),
                "tokens_per_second": speed,
                "mfu": speed * self.flops / self.peak if self.peak else 0.0,
                "memory_bytes": device.memory_bytes(self.device),
                "seconds": progress.seconds,
                # The first step holds the compiler's time: it says nothing of the others.
                "seconds_per_step": 0.0 if self.first else passed / self.steps,
            }
        )
        self.first = False
        self._open()
