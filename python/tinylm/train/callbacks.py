"""Your own functions, called at the start and end of a run, after steps, scores and checkpoints.

    def on_step(event):
        if event.record and event.record["loss"] < 1.5:
            event.trainer.ended = True

    train(run, callbacks=[on_step])

A callback is a plain function named after the moment that it is called at:

| name          | when                                               | of the event              |
|---------------|----------------------------------------------------|---------------------------|
| on_start      | before the first step                              |                           |
| on_step       | after every step                                   | `record`, if it wrote one |
| on_eval       | after the validation text was scored               | `scores`                  |
| on_checkpoint | between two steps, once a checkpoint is on the disk | `path`                   |
| on_end        | after the last results; not of an interrupted run  | `scores`                  |

A module that a run names in `imports` appends its functions to `CALLBACKS`. Those are called
first, then those of `train(callbacks=)`, each in the order of the list, in the thread of the run
and while the clock of the steps stands still. Every process of a run calls them after the same
step (`event.trainer.session.rank`).

A callback watches. If it raises, one warning says so, the run goes on, and it is called again the
next time. It may set `trainer.ended`, in one process or in all, which ends the run after this step
as early stopping does, and call `trainer.save()` and `trainer.trackers.say(text)`. What it changes
of weights, optimizer or loader is its own to repeat: a resumed run no longer equals an
uninterrupted one bit for bit.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from tinylm.track import Record, Trackers

if TYPE_CHECKING:
    from tinylm.config import Run
    from tinylm.evaluate import Scores
    from tinylm.model import Model
    from tinylm.tokenizer import Tokenizer
    from tinylm.train.session import Session
    from tinylm.train.state import Progress

Moment = Literal["on_start", "on_step", "on_eval", "on_checkpoint", "on_end"]


class Running(Protocol):
    """The part of `Trainer` that is for callbacks."""

    run: "Run"
    folder: Path
    model: "Model"
    tokenizer: "Tokenizer"
    session: "Session"
    trackers: Trackers
    progress: "Progress"
    ended: bool

    def save(self) -> Path:
        """Write a checkpoint of this moment; returns where it will be."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a callback is told; `record`, `scores` and `path` as in the table above, else None."""

    moment: Moment
    trainer: Running
    record: Record | None = None
    scores: "Scores | None" = None
    path: Path | None = None

    @property
    def step(self) -> int:
        """The number of steps so far."""
        return self.trainer.progress.step


Callback = Callable[[Event], object]
# For modules that a run imports; read when a run starts.
CALLBACKS: list[Callback] = []


class Callbacks:
    """The callbacks of one run, by the moment that they are called at."""

    def __init__(self, functions: Iterable[Callback] = ()) -> None:
        """Raises `ValueError` if a function is not named after a moment."""
        self._by_moment: dict[str, list[Callback]] = {name: [] for name in get_args(Moment)}
        for function in functions:
            name = getattr(function, "__name__", repr(function))
            if name not in self._by_moment:
                raise ValueError(
                    f"callback {name}: name the function after the moment that it is called at: "
                    f"{', '.join(self._by_moment)}"
                )
            self._by_moment[name].append(function)

    def call(self, event: Event, guard: Callable[[str], AbstractContextManager[None]]) -> None:
        """Call the functions of the event's moment; inside `guard` an error is a warning."""
        for function in self._by_moment[event.moment]:
            place = f"{function.__module__}.{getattr(function, '__qualname__', event.moment)}"
            with guard(f"callback {place}"):
                function(event)
