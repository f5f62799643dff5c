"""Trackers of other tools: TensorBoard, Trackio, Weights & Biases.

Each is an extra of the package (`pip install 'tinylm[tensorboard]'`) and is imported only if it is
named. It works in a thread of its own: the steps never wait for it. None needs a network.
"""

import importlib.util
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinylm import config
from tinylm.track.records import read_metrics
from tinylm.track.tracker import Record

PROJECT = "tinylm"


class ThreadedTracker(ABC):
    """A tracker in a thread: `log` hands the record over and returns.

    `start` runs in the thread and returns the two functions that take a record and that finish.
    Their errors are raised by the next call of the tracker, in the thread of the run.
    """

    # Records that may wait. A tool that falls further behind loses the next ones, and says so.
    WAITING = 10_000
    # Seconds that the end of a run waits for what is still to be written.
    PATIENCE = 30.0

    def __init__(self, package: str) -> None:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"{package} is not installed: pip install 'tinylm[{package}]', or {package} alone"
            )
        self._records: queue.Queue[Record | None] = queue.Queue(self.WAITING)
        self._problems: queue.SimpleQueue[Exception] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tinylm-{package}", daemon=True)
        self._thread.start()

    @abstractmethod
    def start(self) -> tuple[Callable[[Record], Any], Callable[[], Any]]:
        """Import the tool and begin its run; returns its `log` and its `finish`."""

    def log(self, record: Record) -> None:
        """Hand the record over; raises what went wrong with an earlier one."""
        self._raise()
        if self._thread.is_alive():
            self._records.put_nowait(record)

    def say(self, text: str) -> None:  # noqa: B027 (the tools take metrics alone)
        """Words are not metrics."""

    def close(self) -> None:
        """Write what is left; raises what went wrong, or if that takes too long."""
        if self._thread.is_alive():
            self._records.put(None, timeout=self.PATIENCE)
            self._thread.join(self.PATIENCE)
            if self._thread.is_alive():
                raise TimeoutError(f"not finished within {self.PATIENCE:.0f} s of the end")
        self._raise()

    def _raise(self) -> None:
        if not self._problems.empty():
            raise self._problems.get()

    def _work(self) -> None:
        try:
            log, finish = self.start()
        except Exception as error:
            self._problems.put(error)
            return
        while (record := self._records.get()) is not None:
            self._try(log, record)
        self._try(finish)

    def _try(self, action: Callable[..., Any], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:
            self._problems.put(error)


class TensorBoard(ThreadedTracker):
    """Event files in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.step = folder, _last_step(folder)
        super().__init__("tensorboard")

    def start(self) -> tuple[Callable[[Record], Any], Callable[[], Any]]:
        """Open a file; in one of a resumed run, what came after its checkpoint is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        purge = None if self.step is None else int(self.step) + 1
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge)

        def log(record: Record) -> None:
            for key, value in _metrics(record).items():
                writer.add_scalar(key, value, int(record["step"]))
            writer.flush()

        return log, writer.close


class Trackio(ThreadedTracker):
    """A run of the project "tinylm" in Trackio's own folder on this machine: `trackio show`."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        super().__init__("trackio")

    def start(self) -> tuple[Callable[[Record], Any], Callable[[], Any]]:
        """Begin a run, or go on with the one of a resumed run."""
        import trackio

        resume = "never" if _last_step(self.folder) is None else "allow"
        run = trackio.init(
            PROJECT,
            name=self.folder.name,
            config=_settings(self.folder),
            resume=resume,
            embed=False,
            # The record has what is known of the device.
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return lambda record: run.log(_metrics(record), step=int(record["step"])), run.finish


class Wandb(ThreadedTracker):
    """A run of the project "tinylm", in the run's folder; `wandb sync` uploads it.

    It is offline unless the environment says `WANDB_MODE=online`.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        super().__init__("wandb")

    def start(self) -> tuple[Callable[[Record], Any], Callable[[], Any]]:
        """Begin a run, or go on with the one of a resumed run."""
        import os

        import wandb

        mark = self.folder / "wandb-id"
        if not mark.is_file():
            mark.write_text(os.urandom(8).hex())
        run = wandb.init(
            project=PROJECT,
            name=self.folder.name,
            # W&B joins the parts of a run that was stopped and resumed by their common id.
            id=mark.read_text(),
            resume="allow",
            dir=str(self.folder),
            config=_settings(self.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(console="off", silent=True),
        )
        return lambda record: run.log(_metrics(record), step=int(record["step"])), run.finish


def _metrics(record: Record) -> Record:
    """The numbers of a record that a tool plots over its step."""
    return {key: value for key, value in record.items() if key not in ("step", "seconds_per_step")}


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder` by their keys."""
    return config.flat(config.load(folder / "config.yaml"))


def _last_step(folder: Path) -> float | None:
    """The step of the last record that a resumed run kept; None for a new run."""
    records = read_metrics(folder)
    return records[-1]["step"] if records else None
