"""Steps whose loss or gradients are not finite: how they are found, reported and counted.

The device decides whether a step may move the weights, and it finds the first bad tensor. The host
reads the result when it has arrived: on the CPU at once, on CUDA a few steps later, so that no step
waits for the device. Nothing is lost until then, because the weights are as they were before the
step.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from tinylm.config.fields import NonFinite
from tinylm.train.state import Progress

# After this many steps in a row that are not finite, skipping has no prospect.
MOST_SKIPPED = 10
# The other values of a verdict, which is else the place of the first bad tensor.
FINE, RESCALED, LOSS = -2, -1, 0


class NonFiniteError(ValueError):
    """A loss or gradient that is not finite, with the step and the first bad tensor."""


class Event(Protocol):
    """The part of `torch.cuda.Event` that tells whether a copy has arrived."""

    def query(self) -> bool:
        """Whether it has; does not wait."""

    def synchronize(self) -> None:
        """Wait until it has."""


def first_bad(loss: Tensor, gradients: list[Tensor]) -> Tensor:
    """The first that is not finite: 0 the loss, 1 + i gradient i, and one more if none is.

    A whole number (scalar) on the device of `loss`; the host waits for nothing.
    """
    # Under FSDP a process may hold no row of a small weight, and no numbers have no largest.
    filled = [part if part.numel() else part.new_zeros(1) for part in gradients]
    # The largest entry and not the 2-norm, which passes the largest float32 sooner.
    sizes = torch._foreach_norm(filled, float("inf"))
    sound = torch.stack([loss.float(), *(size.float() for size in sizes)]).isfinite()
    # The last place holds no tensor: if all are finite, only their norm is not.
    places = torch.arange(len(sound) + 1, device=loss.device)
    sound = torch.cat([sound, torch.zeros(1, dtype=torch.bool, device=loss.device)])
    return torch.where(sound, len(sound), places).min()


class Refusals:
    """The verdicts on a run's steps, read in their order as they arrive on the host.

    `policy` is `train.nonfinite`, `say` prints a line for people.
    """

    def __init__(self, policy: NonFinite, say: Callable[[str], None]) -> None:
        self.policy, self.say = policy, say
        self.waiting: deque[tuple[int, list[str], Tensor, Event | None]] = deque()

    def add(self, step: int, verdict: Tensor, names: list[str]) -> None:
        """Take the verdict on a step: FINE, RESCALED or what `first_bad` found (scalar).

        `names` are those of the gradients that `first_bad` got.
        """
        self.waiting.append((step, names, *to_host(verdict)))

    def settle(self, progress: Progress, *, wait: bool) -> None:
        """Count in `progress` what has arrived, or with `wait` all; raise if it is enough.

        `NonFiniteError` names the step and the first bad tensor.
        """
        while self.waiting:
            step, names, verdict, event = self.waiting[0]
            if event is not None and wait:
                event.synchronize()
            elif event is not None and not event.query():
                return
            self.waiting.popleft()
            self._count(step, int(verdict), names, progress)

    def _count(self, step: int, verdict: int, names: list[str], progress: Progress) -> None:
        if verdict == FINE:
            progress.skipped = 0
        if verdict < LOSS:
            # A float16 loss whose scale was too large is no failure: the next one is smaller.
            return
        progress.skipped += 1
        progress.skipped_in_all += 1
        gradients = [f"the gradient of {name}" for name in names]
        bad = ["the loss", *gradients, "the norm of the gradients"][verdict]
        problem = f"step {step}: {bad} is not finite"
        if self.policy != "skip" or progress.skipped >= MOST_SKIPPED:
            raise NonFiniteError(problem)
        self.say(f"{problem}; the batch is passed over")


def to_host(number: Tensor) -> tuple[Tensor, Event | None]:
    """A scalar on its way to the host, and the event of its arrival; None if it is there."""
    if number.device.type != "cuda":
        return number, None
    copy = torch.empty_like(number, device="cpu", pin_memory=True)
    copy.copy_(number, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return copy, event
