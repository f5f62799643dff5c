"""The record of every few steps: their mean loss and speed."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tinylm import device, optim
from tinylm.config import Run
from tinylm.track import Record
from tinylm.train.state import Progress
from tinylm.train.step import Step


class Window:
    """The steps since the last record, which go to `log` when there are enough.

    `flops` returns those of one token of a row of so many, forward and backward; `peak` is the
    device's rate of them, 0 if that is not known. `roles` are the keys of `Step.roles`, if the run
    asks for them.

    What a checkpoint keeps of it (`state`) makes a resumed run write the means that the run would
    have written, over all steps since the last record.
    """

    def __init__(
        self,
        run: Run,
        progress: Progress,
        place: torch.device,
        log: Callable[[Record], None],
        *,
        flops: Callable[[int], float],
        peak: float,
        roles: Sequence[str] = (),
    ) -> None:
        self.run, self.progress, self.device, self.log = run, progress, place, log
        self.flops, self.peak, self.roles = flops, peak, roles
        # The first step is reported at once: a run that starts wrong shows it early.
        self.first = progress.step == 0
        # The first steps of a process hold the compiler's time: they say nothing of the others.
        self.warm = False
        self._open()

    def _open(self) -> None:
        # Added up on the device: only a record reads the sums.
        self.losses = self.counted = torch.zeros((), device=self.device)
        self.norm: Tensor = self.losses
        self.steps = 0
        self.tokens = self.progress.tokens
        self.start = time.perf_counter()

    def state(self) -> dict[str, Any] | None:
        """Return what `restore` takes, which JSON keeps exactly; None right after a record."""
        if not self.steps:
            return None
        return {
            "losses": self.losses.item(),
            "norm": self.norm.item(),
            "counted": int(self.counted),
            "steps": self.steps,
            "tokens": self.progress.tokens - self.tokens,
            "seconds": time.perf_counter() - self.start,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the steps that `state` counted."""
        self.losses = torch.tensor(state["losses"], device=self.device)
        self.counted = torch.tensor(float(state["counted"]), device=self.device)
        self.norm = torch.tensor(state["norm"], device=self.device)
        self.steps = state["steps"]
        self.tokens = self.progress.tokens - state["tokens"]
        self.start -= state["seconds"]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the clock stands still: scoring and saving are not training."""
        before = time.perf_counter()
        yield
        self.start += time.perf_counter() - before

    def add(self, step: Step, length: int) -> Record | None:
        """Count one step over rows of `length` tokens.

        Logs a record at every `track.every`th and at the end, and returns it.
        """
        run, progress = self.run, self.progress
        self.losses = torch.where(step.finite, self.losses + step.loss, self.losses)
        self.counted = self.counted + step.finite
        self.norm = torch.where(step.finite, step.norm, self.norm)
        self.steps += 1
        at_end = progress.step == run.train.steps
        due = progress.step % run.track.every == 0 or at_end or self.first
        if not due:
            return None
        counted = self.counted.item()
        if not counted:
            # All steps so far were skipped, and there is nothing to report.
            return None
        mean = (self.losses / counted).item()
        passed = time.perf_counter() - self.start
        progress.seconds += passed
        speed = (progress.tokens - self.tokens) / passed
        rate = optim.schedule(progress.step - 1, run.train.steps, run.optim)
        record = {
            "step": progress.step,
            "tokens": progress.tokens,
            "loss": mean,
            "lr": rate * run.optim.lr,
            "grad_norm": self.norm.item(),
            "tokens_per_second": speed,
            "mfu": speed * self.flops(length) / self.peak if self.peak else 0.0,
            "memory_bytes": device.memory_bytes(self.device),
            "seconds": progress.seconds,
            "seconds_per_step": passed / self.steps if self.warm else 0.0,
        }
        if step.roles is not None:
            record |= zip(self.roles, step.roles.tolist(), strict=True)
        busy = device.utilisation(self.device)
        if busy is not None:
            record["gpu_utilisation"] = busy
        self.log(record)
        self.first, self.warm = False, True
        self._open()
        return record
