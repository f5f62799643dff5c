"""All trackers of a run as one, and the table of their names."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinylm.track.console import Console
from tinylm.track.plotting import Plot
from tinylm.track.records import Jsonl
from tinylm.track.services import TensorBoard, Trackio, Wandb
from tinylm.track.tracker import Record, Tracker, in_words, warn

TRACKERS: dict[str, Any] = {
    "console": Console,
    "jsonl": Jsonl,
    "plot": Plot,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}


class Trackers:
    """All trackers of a run as one, none of which ends the run.

    The console is there at once, and `start` adds the others when the run has a folder. If a
    tracker raises, one warning says so and the others go on. It is called again for the next
    record: a full disk may have room by then.
    """

    def __init__(self, names: tuple[str, ...] = (), steps: int = 0) -> None:
        unknown = [name for name in names if name not in TRACKERS]
        if unknown:
            raise ValueError(f"track.names={unknown[0]}: the registry has {', '.join(TRACKERS)}")
        self.names, self.steps = names, steps
        self.each: dict[str, Tracker] = {}
        self._warned: set[str] = set()
        if "console" in names:
            self._add("console", Path())

    def start(self, folder: Path) -> None:
        """Start the trackers that write into `folder`."""
        for name in self.names:
            if name not in self.each and name not in self._warned:
                self._add(name, folder)

    def _add(self, name: str, folder: Path) -> None:
        with self.guard(name):
            self.each[name] = TRACKERS[name](folder, self.steps)

    def log(self, record: Record) -> None:
        """Pass the record to each tracker, a copy of its own."""
        self._call(lambda tracker: tracker.log({**record}))

    def say(self, text: str) -> None:
        """Pass the words to each tracker."""
        self._call(lambda tracker: tracker.say(text))

    def close(self) -> None:
        """Close each tracker."""
        self._call(lambda tracker: tracker.close())

    def _call(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in self.each.items():
            with self.guard(name):
                action(tracker)

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Inside, an exception becomes one warning that names the observer `name`.

        For whatever watches a run and cannot change its weights. `KeyboardInterrupt` passes.
        """
        try:
            yield
        except Exception as error:
            if name not in self._warned:
                self._warned.add(name)
                warn(f"{name} failed, and the run goes on: {in_words(error)}")
