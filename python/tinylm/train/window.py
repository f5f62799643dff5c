"""The record of every few steps: their mean loss and speed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tinylm import device, optim
from tinylm.config import Run
from tinylm.track import Record
from tinylm.train.state import Progress
from tinylm.train.step import Step


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
        # Added up on the device: only a record reads the sums.
        self.losses = self.counted = torch.zeros((), device=self.device)
        self.norm: Tensor = self.losses
        self.steps = 0
        self.tokens = self.progress.tokens
        self.start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the clock stands still: scoring and saving are not training."""
        before = time.perf_counter()
        yield
        self.start += time.perf_counter() - before

    def add(self, step: Step) -> None:
        """Count one step; log a record at every `track.every`th and at the end."""
        run, progress = self.run, self.progress
        self.losses = torch.where(step.finite, self.losses + step.loss, self.losses)
        self.counted = self.counted + step.finite
        self.norm = torch.where(step.finite, step.norm, self.norm)
        self.steps += 1
        at_end = progress.step == run.train.steps
        # The first step is reported at once: a run that starts wrong shows it early.
        due = progress.step % run.track.every == 0 or at_end or self.first
        if not due:
            return
        counted = self.counted.item()
        if not counted:
            # All steps so far were skipped, and there is nothing to report.
            return
        mean = (self.losses / counted).item()
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
