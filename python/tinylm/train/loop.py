"""Batches to weights: the optimizer steps of a run, with what is watched and saved on the way."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tinylm import checkpoint, device, evaluate
from tinylm.config import Run
from tinylm.data import Loader
from tinylm.data.cutting import Cuts
from tinylm.model import Model, inference
from tinylm.tokenizer import Tokenizer
from tinylm.track import Record, Trackers
from tinylm.train import finetuning, prompts
from tinylm.train.callbacks import Callbacks, Event, Moment
from tinylm.train.clock import Clock
from tinylm.train.folder import add_sample, write_json
from tinylm.train.nonfinite import NonFiniteError
from tinylm.train.session import Session
from tinylm.train.signals import Interrupted, Signals
from tinylm.train.state import Progress, State
from tinylm.train.step import Step, Stepper
from tinylm.train.texts import Validation
from tinylm.train.tracing import Tracer
from tinylm.train.window import Window

# Validation tokens scored during a run, at most; the end scores them all.
WATCHED_TOKENS = 1_000_000
# Tokens of the validation text that go through the model together. 512 of them take 1.8 times as
# long per token in bfloat16 on a CPU, and more than these gain nothing (3 layers of width 64).
SCORED_TOGETHER = 4096
# Lines of a sample that the console shows; samples.txt has it whole.
SHOWN_LINES = 6


@dataclass
class Trainer:
    """One run in progress: `train` takes it from `progress.step` to the end or to a signal."""

    run: Run
    folder: Path
    model: Model
    tokenizer: Tokenizer
    loader: Loader
    validation: Validation
    stepper: Stepper
    session: Session
    peak: float
    prompt: str
    compiled: bool
    trackers: Trackers = field(default_factory=Trackers)
    callbacks: Callbacks = field(default_factory=Callbacks)
    clock: Clock = field(default_factory=Clock)
    progress: Progress = field(default_factory=Progress)
    # The last step whose checkpoint is on the disk, and the last that was handed to the writer.
    # With ddp only the first process knows `saved` by itself: `known` is what all have agreed on.
    saved: int = -1
    written: int = -1
    known: int = -1
    ended: bool = False
    writer: checkpoint.Writer = field(init=False)
    window: Window = field(init=False)
    tracer: Tracer = field(init=False)
    # The last scores of each of several texts.
    each: dict[str, evaluate.Scores] = field(default_factory=dict)
    # Steps of this process.
    taken: int = 0
    # The step of the last checkpoint for which the callbacks were called.
    _told: int = -1
    cuts: Cuts = field(init=False)

    def __post_init__(self) -> None:
        self.window = self._window()
        self.tracer = Tracer(
            self.run.profile, self.folder, self.model, self.stepper, self.trackers.guard
        )
        self.writer = checkpoint.Writer(background=self.run.checkpoint.background)
        self.cuts = Cuts(self.loader, self.run.train)

    def train(self) -> None:
        """Step to the end or to early stopping; a signal saves and raises `Interrupted`."""
        self.model.train()
        finetuning.set_share(self.model, self.run.train, self.progress.step)
        self.tell("on_start")
        # Left in the opposite order: a second Ctrl-C also ends the waiting for a checkpoint.
        with Signals() as signals, self.writer, self.tracer:
            received, ends = self._agree(signals)
            while self.progress.step < self.run.train.steps and not ends:
                first = "first step" if "first step" not in self.clock.spent else "steps"
                try:
                    with self.clock(first), self.tracer.step():
                        record = self.window.add(self.step(), self.cuts.length)
                except RuntimeError as error:
                    if signals.received != signal.SIGINT or self.session.world > 1:
                        raise
                    # A terminal sends Ctrl-C to the C++ compiler too, which a step may need.
                    self.trackers.say("the step was stopped as well: nothing of it is saved")
                    raise KeyboardInterrupt from error
                self.taken += 1
                self.writer.check()
                with self.window.paused():
                    self.tell("on_step", record=record)
                    self.after_step()
                    received, ends = self._agree(signals)
                    self.tell_saved()
                # Of several processes each must leave at the same step: the wish of this callback
                # is then heard after the next one.
                ends = ends or (self.ended and self.session.world == 1)
                if received and not ends:
                    path = self.save()
                    self.writer.wait()
                    # Nobody leaves before the checkpoint of all is there.
                    self._agree(signals)
                    raise Interrupted(path, received)
            # Before the end is scored: what is trained is not lost to what comes after.
            self.save()
            if not self.taken and self.session.leads:
                # Resumed at its end: a kill right after the last save left the older checkpoints.
                self._after(self.saved)()
        self._agree(signals)
        self.tell_saved()

    def _agree(self, signals: Signals) -> tuple[int, bool]:
        """The signal that any process has received, and whether the run is to end; `known` as well.

        A signal may reach one process a step before another, and a callback may end the run in one
        of them: all stop at the same step.
        """
        received, ends, self.known = self.session.most(
            signals.received or 0, self.ended, self.saved
        )
        return received, bool(ends)

    def tell(
        self,
        moment: Moment,
        *,
        record: Record | None = None,
        scores: evaluate.Scores | None = None,
        path: Path | None = None,
    ) -> None:
        """Call the callbacks of this moment."""
        event = Event(moment, self, record=record, scores=scores, path=path)
        self.callbacks.call(event, self.trackers.guard)

    def tell_saved(self) -> None:
        """Call the callbacks of a checkpoint, if there is a new one on the disk."""
        if self.known != self._told:
            self._told = self.known
            self.tell("on_checkpoint", path=checkpoint.path_of(self.folder, self.known))

    def step(self) -> Step:
        """One optimizer step over one global batch."""
        with self.tracer.range("data"):
            batch = self.cuts.take(self.progress.step)
        step = self.stepper(batch, self.progress)
        finetuning.set_share(self.model, self.run.train, self.progress.step)
        self.settle()
        return step

    def settle(self, *, wait: bool = False) -> None:
        """Count and report the steps that were not finite, of those that the host knows by now.

        With `wait` it waits until it knows all. Raises `NonFiniteError` with what to change.
        """
        try:
            self.stepper.settle(self.progress, wait=wait)
        except NonFiniteError as error:
            self.writer.settle()
            # Others than the first process may know of an older one than the newest.
            saved = max(self.saved, self.known)
            sound = f"step {saved} is saved" if saved >= 0 else "no checkpoint is saved yet"
            if saved < 0 and not self.session.leads:
                sound = "the first process says which checkpoint is the newest"
            advice = "lower optim.lr or optim.matrix_lr"
            if self.run.train.nonfinite == "stop":
                advice += ", or set train.nonfinite=skip to pass over such batches"
            raise NonFiniteError(f"{error}; {sound}; {advice}") from None

    def after_step(self) -> None:
        """Evaluate, sample and save where it is time; end the run if patience has run out."""
        run, step = self.run, self.progress.step
        due = run.evaluate.every and step % run.evaluate.every == 0
        if due and step < run.train.steps:
            self.watch()
            # Before the save: a run killed after it resumes here, and draws no sample of this step.
            with self.trackers.guard("sample"):
                self.show_sample()
            if self.progress.best_step == step:
                self.save()
            patience = run.evaluate.patience
            if patience is not None and self.progress.without_better >= patience:
                self.trackers.say(f"no better validation loss in {patience} evaluations: stopping")
                self.ended = True
                return
        every = run.checkpoint.every
        if every and step % every == 0:
            self.save()

    def score(
        self, *, max_tokens: int | None = None, dtype: torch.dtype | None = None
    ) -> evaluate.Scores:
        """Score the validation text, or its first `max_tokens`, and log the result."""
        with self.clock("evaluation"):
            scores, self.each = evaluate.score_each(
                self.validation.datasets,
                lambda dataset, most: evaluate.evaluate(
                    self.model,
                    dataset,
                    tokenizer=self.tokenizer,
                    batch_size=max(1, SCORED_TOGETHER // self.model.context_length),
                    max_tokens=most,
                    dtype=dtype,
                    loss=self.run.data.loss,
                    share=(self.session.rank, self.session.world),
                    add=self.session.sum if self.session.world > 1 else None,
                ),
                max_tokens,
            )
        self.trackers.log(
            {
                "step": self.progress.step,
                "tokens": self.progress.tokens,
                "val_loss": scores.loss,
                "perplexity": scores.perplexity,
                "bits_per_byte": scores.bits_per_byte,
                "seconds": self.progress.seconds,
                **{f"bits_per_byte/{name}": s.bits_per_byte for name, s in self.each.items()},
            }
        )
        self.tell("on_eval", scores=scores)
        return scores

    @property
    def watched(self) -> int:
        """How many tokens are scored during the run, if the validation text has as many."""
        return min(WATCHED_TOKENS, self.run.evaluate.max_tokens or WATCHED_TOKENS)

    def watch(self) -> None:
        """Score as much of the validation text as a run can afford; keep count of the best.

        If scoring fails, the run goes on without this score. With `evaluate.patience` the scores
        decide when it ends: then it is saved, and the error is raised.
        """
        # Without patience a score decides nothing, so a failure of it must not end the run.
        if self.run.evaluate.patience is None:
            with self.trackers.guard("validation"):
                self.keep_best(self.score(max_tokens=self.watched, dtype=self.session.dtype))
            return
        try:
            scores = self.score(max_tokens=self.watched, dtype=self.session.dtype)
        except Exception:
            self.save()
            raise
        self.keep_best(scores)

    def keep_best(self, scores: evaluate.Scores) -> None:
        """Note whether these scores are the best so far, also in best.json."""
        progress = self.progress
        if scores.loss < progress.best_loss:
            progress.best_loss, progress.best_step = scores.loss, progress.step
            progress.without_better = 0
            with self.trackers.guard("best.json"):
                self.write_best(scores.bits_per_byte)
        else:
            progress.without_better += 1

    def write_best(self, bits_per_byte: float | None) -> None:
        """Write best.json: the best step so far, its scores and its checkpoint."""
        if not self.session.leads:
            return
        progress = self.progress
        best = {
            "step": progress.best_step,
            "val_loss": progress.best_loss,
            "bits_per_byte": bits_per_byte,
            "checkpoint": str(checkpoint.path_of(Path(), progress.best_step)),
        }
        write_json(self.folder / "best.json", best)

    def show_sample(self) -> None:
        """Continue the prompt: all of it to samples.txt, its first lines to the trackers."""
        # Once around all tokens: the sampler's own change of mode, per token, is then free.
        with self.clock("samples"), inference(self.model):
            text = prompts.continued(
                self.run, self.validation.first, self.model, self.tokenizer, self.prompt
            )
        # Every process has drawn the same words: under FSDP a pass takes all of them.
        if not self.session.leads:
            return
        add_sample(self.folder, self.progress.step, text)
        shown = text.splitlines()[:SHOWN_LINES]
        self.trackers.say("\n".join(f"    | {line}" for line in shown))

    def save(self) -> Path:
        """Write a checkpoint of this moment; returns its path.

        With `checkpoint.background` it is on the disk when `writer.wait` returns. The oldest
        checkpoints are deleted after that.
        """
        # Only weights whose steps were all checked are saved, with the skipped ones counted.
        self.settle(wait=True)
        step = self.progress.step
        path = checkpoint.path_of(self.folder, step)
        if step in (self.saved, self.written):
            return path
        training = checkpoint.Training(
            step=step,
            tokens=self.progress.tokens,
            optimizer=self.stepper.optimizer.state(),
            state=self.state().content(),
        )
        shards = self.stepper.spread.shards
        with self.clock("saving"):
            if shards is not None:
                shards.save(path, self.model, self.tokenizer, training)
                self.saved = step
            elif self.session.leads:
                taken = checkpoint.content(self.model, self.tokenizer, training=training)
                self.writer.write(path, taken, then=self._after(step))
        if shards is not None and self.session.leads:
            self._after(step)()
        self.written = step
        return path

    def _after(self, step: int) -> Callable[[], None]:
        """Return what to call once the checkpoint of `step` is on the disk."""
        run, keep, best = self.folder.absolute(), self.run.checkpoint.keep, self.progress.best_step

        def note_and_purge() -> None:
            # Noted before the purge: if that fails, this checkpoint is saved all the same.
            self.saved = step
            checkpoint.purge(run, keep=keep, also_keep={best})

        return note_and_purge

    def state(self) -> State:
        """All that the run needs to go on from here, beside weights and moments."""
        scale = self.stepper.scale
        place, cut = self.cuts.state()
        return State(
            progress=self.progress,
            loader=place,
            cut=cut,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            steps=self.run.train.steps,
            scale=None if scale is None else scale.state(),
            window=self.window.state(),
            compiled=int(self.compiled),
            micro_batch=self.run.train.micro_rows,
        )

    def _window(self) -> Window:
        return Window(
            self.run,
            self.progress,
            self.session.device,
            self.trackers.log,
            flops=self.model.flops_per_token,
            peak=self.peak,
            roles=() if self.stepper.norms is None else self.stepper.norms.names,
        )

    def restore(self, training: checkpoint.Training) -> None:
        """Take over the state of a checkpoint whose weights the model already has."""
        state = State.of(training.state)
        self.progress = state.progress
        self.saved = self.written = self.known = self._told = self.progress.step
        self.window = self._window()
        if state.window is not None:
            self.window.restore(state.window)
        patience, length = self.run.evaluate.patience, state.steps or training.step
        # It stopped early and was killed before its results were there.
        out_of_patience = patience is not None and self.progress.without_better >= patience
        self.ended = out_of_patience and self.run.train.steps <= length
        self.stepper.optimizer.load_state(training.optimizer)
        self.cuts.restore(state.loader, state.cut)
        if self.stepper.scale is not None and state.scale is not None:
            self.stepper.scale.load_state(state.scale)
        given, began = torch.get_num_threads(), state.threads
        if self.session.world > 1:
            # Each process has the threads that it was given: others would take them from its
            # neighbours.
            began = given
        if self.session.device.type == "cpu" and began != given:
            self.session.say(
                f"threads: {began}, as this run began, and not the {given} offered now: with "
                f"another number its weights would differ in the last digits"
            )
        device.keep_threads(self.session.device, began)
        saved_by = state.torch or torch.__version__
        if saved_by != torch.__version__:
            self.session.say(
                f"saved by torch {saved_by}, this is {torch.__version__}: the run goes on, but its "
                f"weights may differ in the last digits from those of an uninterrupted one"
            )
