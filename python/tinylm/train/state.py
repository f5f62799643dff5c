"""What a run needs, beside its weights and moments, to go on from a checkpoint bit for bit.

It stands in state.json as `State.content()` writes it and is read by `load_state`. A new part of
the state is one more field here: `added`, with the value that a checkpoint from before it means.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from tinylm import checkpoint
from tinylm.checkpoint import Training
from tinylm.checkpoint.state import (
    FACTOR,
    LOSS,
    OBJECT,
    SECONDS,
    TEXT,
    WHOLE,
    Rule,
    check,
    whole,
)

# torch takes any number of threads and ends the process at a senseless one.
MOST_THREADS = 4096


def kept(rule: Rule, default: Any = MISSING) -> Any:
    """A field that every checkpoint has; `rule` says what it may hold."""
    return field(default=default, metadata={"rule": rule, "added": False})


def added(rule: Rule, default: Any = None) -> Any:
    """A field that checkpoints of earlier versions lack: they go on with `default`.

    None is not written, so a run that does not use the part writes the state of before it.
    """
    return field(default=default, metadata={"rule": rule, "added": True})


@dataclass
class Progress:
    """The counters of a run.

    `step` and `tokens` count what was read, skipped batches too; `seconds` is the time of the
    steps. `best_loss` is the lowest validation loss so far, at `best_step` (-1: none yet), and
    `without_better` the evaluations since. Of the batches whose loss or gradients were not finite,
    `skipped` counts the last ones in a row and `skipped_in_all` all.
    """

    step: int = kept(WHOLE, 0)
    tokens: int = kept(WHOLE, 0)
    seconds: float = kept(SECONDS, 0.0)
    best_loss: float = kept(LOSS, math.inf)
    best_step: int = kept(whole(-1), -1)
    without_better: int = kept(WHOLE, 0)
    skipped: int = kept(WHOLE, 0)
    skipped_in_all: int = added(WHOLE, 0)

    def state(self) -> dict[str, Any]:
        """Return the counters for JSON, where a best loss that does not exist yet is None."""
        best = self.best_loss if math.isfinite(self.best_loss) else None
        return {**vars(self), "best_loss": best}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Progress":
        """Return the progress that `state` describes."""
        best = math.inf if state["best_loss"] is None else state["best_loss"]
        return cls(**{**state, "best_loss": best})


@dataclass(kw_only=True)
class State:
    """Everything that the loop needs to go on, beside weights and moments.

    | field       | what it holds                                                           |
    |-------------|-------------------------------------------------------------------------|
    | loader      | the position in the data (`Loader.state`)                               |
    | threads     | the number of threads, by which sums were split on the CPU              |
    | torch       | the version of torch that computed the steps                            |
    | steps       | the length of the run when it was saved                                 |
    | scale       | the scale of a float16 loss (`LossScale.state`)                         |
    | window      | the steps since the last record (`Window.state`)                        |
    | cut         | how far the rows after `loader` were used, if cut (`Cuts.state`)        |
    | compiled    | 1 if the loss was compiled                                              |
    | micro_batch | the rows per forward pass                                               |
    """

    progress: Progress = kept(OBJECT)
    loader: dict[str, Any] = kept(OBJECT)
    threads: int = kept(whole(1, MOST_THREADS))
    torch: str | None = added(TEXT)
    steps: int | None = added(WHOLE)
    scale: dict[str, Any] | None = added(OBJECT)
    window: dict[str, Any] | None = added(OBJECT)
    cut: dict[str, int] | None = added(OBJECT)
    compiled: int | None = added(whole(0, 1))
    micro_batch: int | None = added(whole(1))

    def content(self) -> dict[str, Any]:
        """Return what state.json holds."""
        used = {key: value for key, value in vars(self).items() if value is not None}
        return {**used, "progress": self.progress.state()}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "State":
        """Return the state that `content` describes, which `load_state` must have checked."""
        return cls(**{**content, "progress": Progress.of(content["progress"])})


# The rules of the parts that other modules write.
LOADER = {"rows": WHOLE}
SCALE = {"value": FACTOR, "good": WHOLE}
WINDOW = {
    "losses": SECONDS,
    "norm": SECONDS,
    "seconds": SECONDS,
    "counted": WHOLE,
    "steps": WHOLE,
    "tokens": WHOLE,
}
CUT = {"length": whole(1), "used": whole(1), "batch": whole(1), "steps": whole(1)}


def load_state(folder: Path, share: tuple[int, int] = (0, 1)) -> Training:
    """The training state of a checkpoint that was verified, fit for `Trainer.restore`.

    `share` is (rank, world) where each process takes its rows of the optimizer's tensors.
    `ValueError` names the file and the key that is missing, wrong or unknown.
    """
    path = folder / "state.json"
    training = checkpoint.load_training(folder, verify=False, share=share)
    state = training.state
    _check(path, state, State, "state.")
    progress = state["progress"]
    _check(path, progress, Progress, "state.progress.")
    for key, value in (("step", training.step), ("tokens", training.tokens)):
        if progress[key] != value:
            raise ValueError(
                f"{path}: state.progress.{key}={progress[key]} and {key}={value} differ: one of "
                f"them was edited; take another checkpoint"
            )
    check(path, state["loader"], LOADER, "state.loader.")
    if "scale" in state:
        check(path, state["scale"], SCALE, "state.scale.")
    if "window" in state:
        check(path, state["window"], WINDOW, "state.window.")
    if "cut" in state:
        check(path, state["cut"], CUT, "state.cut.")
    return training


def _check(path: Path, content: Mapping[str, Any], kind: type, inside: str) -> None:
    """Check each key of `content` by the fields of `kind`, and that no other is there."""
    known: dict[str, Field[Any]] = {part.name: part for part in fields(kind)}
    for key in content:
        if key not in known:
            raise ValueError(
                f"{path}: {inside}{key}: this TinyLM knows no such key: resume with the one that "
                f"saved it"
            )
    rules = {
        key: part.metadata["rule"]
        for key, part in known.items()
        if key in content or not part.metadata["added"]
    }
    check(path, content, rules, inside)
