"""One optimizer step: a batch in micro-batches, its gradients, and a check of both."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinylm import optim
from tinylm.config import Run, TrainConfig
from tinylm.data import Batch
from tinylm.ops import IGNORED
from tinylm.train.distributed import Spread
from tinylm.train.nonfinite import FINE, RESCALED, Refusals, first_bad
from tinylm.train.norms import RoleNorms
from tinylm.train.scaling import LossScale
from tinylm.train.session import Session, Stream
from tinylm.train.state import Progress


class Step(NamedTuple):
    """What a step computed, as scalars on the device; it moved the weights if `finite`.

    `roles` are the norms of the gradients by role, if the step was asked for them.
    """

    loss: Tensor
    norm: Tensor
    finite: Tensor
    roles: Tensor | None = None


@dataclass
class Stepper:
    """Takes a model from one step to the next; `loss` is its loss, compiled or not.

    On CUDA no step waits for the device. `say` prints a line for people.
    """

    run: Run
    context_length: int
    loss: Callable[..., Tensor]
    spread: Spread
    optimizer: optim.Optimizer
    session: Session
    say: Callable[[str], None]
    # The norms by role, of the steps whose record is due.
    norms: RoleNorms | None = None
    scale: LossScale | None = field(init=False)
    refusals: Refusals = field(init=False)

    def __post_init__(self) -> None:
        half = self.session.dtype == torch.float16
        self.scale = LossScale(self.session.device) if half else None
        if half and self.session.device.type == "cpu":
            self.say("float16 is slow on a CPU: train.dtype=float32 and bfloat16 are faster")
        self.refusals = Refusals(self.run.train.nonfinite, self.say)

    def __call__(self, batch: Batch, progress: Progress) -> Step:
        """One step over one global batch, counted in `progress`.

        A step that is not finite leaves weights and moments as if the batch had not been seen.
        `settle` reports it.
        """
        settings = self.run.train
        loss = self._backward(batch, progress.step)
        named = {n: p.grad for p, n in self.optimizer.names.items() if p.grad is not None}
        gradients = list(named.values())
        if self.scale is not None:
            self.scale.unscale(gradients)
        norms = self.optimizer.gradient_norms()
        norm = torch.linalg.vector_norm(norms)
        finite = loss.isfinite() & norm.isfinite()
        self.refusals.add(progress.step, self._verdict(loss, finite, gradients), list(named))
        every = self.run.track.every
        due = (progress.step + 1) % every == 0 or progress.step in (0, settings.steps - 1)
        roles = self.norms() if self.norms is not None and due else None
        rate = optim.schedule(progress.step, settings.steps, self.run.optim)
        self.optimizer.step(rate, progress=progress.step / settings.steps, ok=finite, norms=norms)
        if self.scale is not None:
            # A loss that is itself not finite says nothing about the scale.
            self.scale.update(finite | ~loss.isfinite())
        # A skipped batch counts as a step: the schedule and the order of the data go on.
        progress.step += 1
        progress.tokens += batch.tokens.numel() * self.session.world
        return Step(loss, norm, finite, roles)

    def settle(self, progress: Progress, *, wait: bool = False) -> None:
        """Count and report the steps that were not finite, of those that the host knows by now.

        With `wait` it waits until it knows all. Raises `NonFiniteError` if `train.nonfinite` is
        stop, or if too many steps in a row were skipped.
        """
        self.refusals.settle(progress, wait=wait)

    def _backward(self, batch: Batch, step: int) -> Tensor:
        """The mean loss of a batch; leaves the gradients, times the scale, in the parameters."""
        settings, session, spread = self.run.train, self.session, self.spread
        # A batch without a target must divide by 1, not by 0.
        counted = session.sum((batch.targets != IGNORED).sum()).clamp(min=1)
        total = torch.zeros((), device=session.device)
        # The rows of this process.
        rows = batch.tokens.size(0)
        # A shorter row counts for its share of a whole one.
        share_of_row = self.context_length // batch.tokens.size(1)
        size = min((settings.micro_rows or rows) * share_of_row, rows)
        assert rows % size == 0, "checked with the settings: every row is in a micro-batch"
        for micro in range(rows // size):
            part = batch.rows(slice(micro * size, (micro + 1) * size))
            places = _places(part, settings, step)
            session.manual_seed(settings.seed, Stream.DROPOUT, step, micro)
            # Every target of the batch weighs the same, however they fall into micro-batches and
            # processes.
            share = (part.targets != IGNORED).sum() / counted
            factor = share * spread.scale
            with spread.passes((micro + 1) * size == rows):
                loss = self.loss(part.tokens, part.targets, dtype=session.dtype, **places)
                scaled = loss * factor if self.scale is None else loss * factor * self.scale.value
                torch.autograd.backward(scaled)
            # Without a target, as in a micro-batch of a user's words, the mean is nan and its
            # gradients are 0.
            total += (loss.detach() * share).where(share > 0, 0.0)
        return session.sum(total)

    def _verdict(self, loss: Tensor, finite: Tensor, gradients: list[Tensor]) -> Tensor:
        # The CPU has no delay to hide: it looks for the bad tensor only if there is one.
        if finite.device.type == "cpu" and finite:
            return torch.tensor(FINE)
        bad = self.session.least(first_bad(loss, gradients))
        if self.scale is not None:
            bad = torch.where(loss.isfinite() & self.scale.can_shrink, RESCALED, bad)
        return torch.where(finite, FINE, bad)


def _places(part: Batch, settings: TrainConfig, step: int) -> dict[str, Any]:
    """Return the keywords of the loss: positions, documents and the window of this step."""
    progress, windows = step / settings.steps, settings.windows
    places: dict[str, Any] = {"positions": part.positions, "documents": part.documents}
    # A window of the whole row hides nothing, and attention is faster without one.
    if windows is not None and windows.at(progress) < part.tokens.size(1):
        places["window"] = windows.at(progress)
    return places
