"""One optimizer step: a batch in micro-batches, its gradients, and a check of both."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm import optim
from tinylm.config import Run
from tinylm.data import Batch
from tinylm.model import Model
from tinylm.ops import IGNORED
from tinylm.train.session import Session, Stream
from tinylm.train.window import Progress

# After this many steps in a row that are not finite, skipping has no prospect.
MOST_SKIPPED = 10


class NonFiniteError(ValueError):
    """A loss or gradient that is not finite, with the step and the first bad tensor."""


@dataclass
class Stepper:
    """Takes a model from one step to the next; `loss` is its loss, compiled or not.

    `say` prints a line for people.
    """

    run: Run
    model: Model
    loss: Callable[..., Tensor]
    optimizer: optim.Optimizer
    session: Session
    say: Callable[[str], None]

    def __call__(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """One step over one global batch, counted in `progress`; its mean loss and gradient norm.

        Raises `NonFiniteError` if they are not finite and the run does not pass over such batches.
        """
        settings = self.run.train
        # A batch without a target must divide by 1, not by 0.
        counted = (batch.targets != IGNORED).sum().clamp(min=1)
        total = torch.zeros((), device=self.session.device)
        for micro in range(settings.batch_size // settings.micro_batch):
            rows = slice(micro * settings.micro_batch, (micro + 1) * settings.micro_batch)
            part = batch.rows(rows)
            self.session.manual_seed(settings.seed, Stream.DROPOUT, progress.step, micro)
            with self.session.autocast():
                places = {"positions": part.positions, "documents": part.documents}
                loss = self.loss(part.tokens, part.targets, **places)
            # Every target of the batch weighs the same, however they fall into micro-batches.
            share = (part.targets != IGNORED).sum() / counted
            torch.autograd.backward(loss * share)
            total += loss.detach() * share
        norm = self.optimizer.gradient_norm()
        if torch.isfinite(total) & torch.isfinite(norm):
            rate = optim.schedule(progress.step, settings.steps, self.run.optim)
            self.optimizer.step(rate)
            progress.skipped = 0
        else:
            self._refuse(total, progress)
        # A skipped batch counts as a step: the schedule and the order of the data go on.
        progress.step += 1
        progress.tokens += batch.tokens.numel()
        return total, norm

    def _refuse(self, loss: Tensor, progress: Progress) -> None:
        """Leave weights and moments as if this batch had not been seen, or stop the run."""
        bad = "the loss"
        if torch.isfinite(loss):
            named = (
                f"the gradient of {name}"
                for name, p in self.model.named_parameters()
                if p.grad is not None and not torch.isfinite(p.grad).all()
            )
            bad = next(named, "the norm of the gradients")
        self.optimizer.zero_grad()
        problem = f"step {progress.step}: {bad} is not finite"
        progress.skipped += 1
        if self.run.train.nonfinite != "skip" or progress.skipped >= MOST_SKIPPED:
            raise NonFiniteError(problem)
        self.say(f"{problem}; the batch is passed over")
