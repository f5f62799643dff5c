"""Batches to weights: the optimizer steps of a run, with what is watched and saved on the way."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from tinylm import checkpoint, device, evaluate, optim, sample
from tinylm.config import Run
from tinylm.data import Dataset, Loader
from tinylm.model import Model
from tinylm.ops import IGNORED
from tinylm.tokenizer import Tokenizer
from tinylm.track import Trackers
from tinylm.train.folder import add_sample, write_json

# After this many steps in a row that are not finite, skipping has no prospect.
MOST_SKIPPED = 10
# Validation tokens scored during a run; the end scores them all.
WATCHED_TOKENS = 1_000_000
# Lines of a sample that the console shows; samples.txt has it whole.
SHOWN_LINES = 6


class NonFiniteError(ValueError):
    """A loss or gradient that is not finite, with the step and the first bad tensor."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C (exit code 130) or SIGTERM (75) ended a run; `checkpoint` holds its last step."""

    def __init__(self, checkpoint: Path, number: int) -> None:
        super().__init__(f"saved {checkpoint}")
        self.checkpoint = checkpoint
        self.code = 75 if number == signal.SIGTERM else 130


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimizer's state, all that it is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = -1
    without_better: int = 0
    skipped: int = 0


@dataclass
class Trainer:
    """One run in progress: `train` takes it from `progress.step` to the end or to a signal."""

    run: Run
    folder: Path
    model: Model
    tokenizer: Tokenizer
    loader: Loader
    validation: Dataset
    optimizer: optim.Optimizer
    device: torch.device
    dtype: torch.dtype
    peak: float
    loss: Callable[[Tensor, Tensor], Tensor]
    prompt: str
    trackers: Trackers = field(default_factory=Trackers)
    progress: Progress = field(default_factory=Progress)
    saved: int = -1
    signal: int | None = None

    def train(self) -> None:
        """Step to the end or to early stopping; a signal saves and raises `Interrupted`."""
        self.model.train()
        window = Window(self)
        while self.progress.step < self.run.train.steps:
            try:
                loss, norm = self.step()
            except RuntimeError as error:
                if self.signal != signal.SIGINT:
                    raise
                # A terminal sends Ctrl-C to the C++ compiler too, and a step needs what it makes.
                self.trackers.say("the step was stopped as well: nothing of it is saved")
                raise KeyboardInterrupt from error
            window.add(loss, norm)
            with window.paused():
                ended = self.after_step()
            if ended:
                break
            if self.signal is not None:
                raise Interrupted(self.save(), self.signal)
        # Before the end is scored: what is trained is not lost to what comes after.
        self.save()

    def step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step over one global batch; its mean loss and gradient norm."""
        settings, progress = self.run.train, self.progress
        batch = next(self.loader)
        counted = (batch.targets != IGNORED).sum().clamp(min=1)
        total = torch.zeros((), device=self.device)
        for micro in range(settings.batch_size // settings.micro_batch):
            rows = slice(micro * settings.micro_batch, (micro + 1) * settings.micro_batch)
            targets = batch.targets[rows]
            # Dropout is a function of seed, step and micro-step, so a resumed run repeats it.
            torch.manual_seed(mix(settings.seed, progress.step, micro))
            with self.autocast():
                loss = self.loss(batch.tokens[rows], targets)
            # Every target of the batch weighs the same, however they fall into micro-batches.
            share = (targets != IGNORED).sum() / counted
            torch.autograd.backward(loss * share)
            total += loss.detach() * share
        norm = self.optimizer.gradient_norm()
        if torch.isfinite(total) & torch.isfinite(norm):
            rate = optim.schedule(progress.step, settings.steps, self.run.optim)
            self.optimizer.step(rate)
            progress.skipped = 0
        else:
            self._refuse(total)
        progress.step += 1
        progress.tokens += batch.tokens.numel()
        return total, norm

    def autocast(self) -> torch.autocast:
        """The context in which matrix products run in the training dtype."""
        mixed = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed)

    def after_step(self) -> bool:
        """Evaluate, sample and save where it is time; whether patience has run out."""
        run, step = self.run, self.progress.step
        due = run.evaluate.every and step % run.evaluate.every == 0
        if due and step < run.train.steps:
            self.watch()
            if self.progress.best_step == step:
                self.save()
            self.show_sample()
            patience = run.evaluate.patience
            if patience is not None and self.progress.without_better >= patience:
                self.trackers.say(f"no better validation loss in {patience} evaluations: stopping")
                return True
        every = run.checkpoint.every
        if every and step % every == 0:
            self.save()
        return False

    def score(
        self, *, max_tokens: int | None = None, dtype: torch.dtype | None = None
    ) -> evaluate.Scores:
        """Score the validation text, or its first `max_tokens`, and log the result."""
        scores = evaluate.evaluate(
            self.model,
            self.validation,
            tokenizer=self.tokenizer,
            max_tokens=max_tokens,
            dtype=dtype,
        )
        self.trackers.log(
            {
                "step": self.progress.step,
                "tokens": self.progress.tokens,
                "val_loss": scores.loss,
                "bits_per_byte": scores.bits_per_byte,
                "seconds": self.progress.seconds,
            }
        )
        return scores

    def watch(self) -> None:
        """Score as much of the validation text as a run can afford; keep count of the best."""
        self.keep_best(self.score(max_tokens=WATCHED_TOKENS, dtype=self.dtype))

    def keep_best(self, scores: evaluate.Scores) -> None:
        """Note whether these scores are the best so far, also in best.json."""
        progress = self.progress
        if scores.loss < progress.best_loss:
            progress.best_loss, progress.best_step = scores.loss, progress.step
            progress.without_better = 0
            best = {
                "step": progress.step,
                "val_loss": scores.loss,
                "bits_per_byte": scores.bits_per_byte,
                "checkpoint": str(checkpoint.path_of(Path(), progress.step)),
            }
            write_json(self.folder / "best.json", best)
        else:
            progress.without_better += 1

    def show_sample(self) -> None:
        """Continue the prompt: all of it to samples.txt, its first lines to the trackers."""
        settings = replace(self.run.sample, samples=1)
        words = "".join(sample.stream(self.model, self.tokenizer, self.prompt, settings))
        text = self.prompt + words
        add_sample(self.folder, self.progress.step, text)
        shown = text.splitlines()[:SHOWN_LINES]
        self.trackers.say("\n".join(f"    | {line}" for line in shown))

    def save(self) -> Path:
        """Write a checkpoint of this moment, read it back, then let the oldest go."""
        path = checkpoint.path_of(self.folder, self.progress.step)
        if self.saved == self.progress.step:
            return path
        state = {
            "progress": {**vars(self.progress), "best_loss": finite(self.progress.best_loss)},
            "loader": self.loader.state(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "steps": self.run.train.steps,
        }
        training = checkpoint.Training(
            step=self.progress.step,
            tokens=self.progress.tokens,
            optimizer=self.optimizer.state(),
            state=state,
        )
        checkpoint.save(path, self.model, self.tokenizer, training=training)
        best = {self.progress.best_step}
        self.saved = self.progress.step
        checkpoint.purge(self.folder, keep=self.run.checkpoint.keep, also_keep=best)
        return path

    def restore(self, training: checkpoint.Training) -> None:
        """Take over the state of a checkpoint whose weights the model already has."""
        stored = dict(training.state["progress"])
        stored["best_loss"] = math.inf if stored["best_loss"] is None else stored["best_loss"]
        self.progress = Progress(**stored)
        self.saved = self.progress.step
        self.optimizer.load_state(training.optimizer)
        self.loader.restore(training.state["loader"])
        if self.device.type == "cpu" and training.state["threads"] != torch.get_num_threads():
            # Sums split by thread: another count would end in other weights.
            torch.set_num_threads(training.state["threads"])

    def _refuse(self, loss: Tensor) -> None:
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
        step, progress = self.progress.step, self.progress
        progress.skipped += 1
        if self.run.train.nonfinite == "skip" and progress.skipped < MOST_SKIPPED:
            self.trackers.say(f"step {step}: {bad} is not finite; the batch is passed over")
            return
        sound = f"step {self.saved} is saved" if self.saved >= 0 else "no checkpoint is saved yet"
        advice = "lower optim.lr or optim.matrix_lr"
        if self.run.train.nonfinite == "stop":
            advice += ", or set train.nonfinite=skip to pass over such batches"
        raise NonFiniteError(f"step {step}: {bad} is not finite; {sound}; {advice}")

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, SIGINT or SIGTERM ends the run after its step; a second SIGINT at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            if self.signal is None:
                # A step can hold 30 s of compiling: without an answer people press again.
                answer(number)
            self.signal = number

        try:
            old = {
                number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:
            # Only the main thread may handle signals; elsewhere they are the caller's.
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class Window:
    """The steps since the last record: their mean loss and their speed."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.first = True
        self._open()

    def _open(self) -> None:
        self.losses: Tensor | None = None
        self.norm = torch.zeros(())
        self.steps = self.counted = 0
        self.tokens = self.trainer.progress.tokens
        self.start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the clock stands still: scoring and saving are not training."""
        before = time.perf_counter()
        yield
        self.start += time.perf_counter() - before

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Count one step; log a record at every `track.every`th and at the end."""
        trainer, progress = self.trainer, self.trainer.progress
        if not progress.skipped:
            self.losses = loss if self.losses is None else self.losses + loss
            self.counted += 1
            self.norm = norm
        self.steps += 1
        at_end = progress.step == trainer.run.train.steps
        due = progress.step % trainer.run.track.every == 0 or at_end or self.first
        if not due or self.losses is None:
            return
        mean = (self.losses / self.counted).item()
        passed = time.perf_counter() - self.start
        progress.seconds += passed
        speed = (progress.tokens - self.tokens) / passed
        flops = trainer.model.flops_per_token(trainer.model.config.context_length)
        rate = optim.schedule(progress.step - 1, trainer.run.train.steps, trainer.run.optim)
        trainer.trackers.log(
            {
                "step": progress.step,
                "tokens": progress.tokens,
                "loss": mean,
                "lr": rate * trainer.run.optim.lr,
                "grad_norm": self.norm.item(),
                "tokens_per_second": speed,
                "mfu": speed * flops / trainer.peak,
                "memory_bytes": device.memory_bytes(trainer.device),
                "seconds": progress.seconds,
                # The first step holds the compiler's time: it says nothing of the others.
                "seconds_per_step": 0.0 if self.first else passed / self.steps,
            }
        )
        self.first = False
        self._open()


def answer(number: int) -> None:
    """Say on standard error what a signal will do; safe inside a signal handler."""
    words = "stopping after this step"
    if number == signal.SIGINT:
        words += "; once more stops at once, unsaved"
    # os.write, for print may be what the signal interrupted, and that is an error in itself. On
    # a terminal the cursor stands behind the live line.
    line = "\n" * os.isatty(2) + words + "\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())


def mix(*numbers: int) -> int:
    """A 63-bit seed from a few integers, each change of one changing all (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def finite(number: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return number if math.isfinite(number) else None
