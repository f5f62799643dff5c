"""How a run is reported: a live line, metrics.jsonl, loss.png.

A tracker receives each record, a flat dictionary of numbers with the keys of
metrics.jsonl: step tokens loss lr grad_norm tokens_per_second mfu memory_bytes seconds, and on
evaluation val_loss and bits_per_byte.

A tracker watches a run and never ends it: if one raises, `Trackers` warns once and trains on.
"""

import json
import shutil
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from tinylm import disk

Record = dict[str, float]
# Records that the time left is computed from; an older one would weigh under 1% of the newest.
REMEMBERED = 100


class Tracker(Protocol):
    """What the loop calls. `steps` is the length of the run, `folder` its home."""

    def __init__(self, folder: Path, steps: int) -> None: ...

    def log(self, record: Record) -> None:
        """Take one record; cheap, called every few steps."""

    def say(self, text: str) -> None:
        """Print or keep a few words that are not a record."""

    def close(self) -> None:
        """Finish: nothing is logged afterwards."""


class Console:
    """One live line on a terminal; on a pipe a plain line every ten seconds."""

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, folder: Path, steps: int, out: TextIO | None = None) -> None:
        self.steps = steps
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self.printed = 0.0
        self.paces: deque[float] = deque(maxlen=REMEMBERED)

    def log(self, record: Record) -> None:
        """Redraw the live line; an evaluation leaves a line of its own."""
        if "val_loss" in record:
            self.say(
                f"step {record['step']:.0f}: validation loss {record['val_loss']:.4f}, "
                f"{record['bits_per_byte']:.4f} bits per byte"
            )
        if "loss" not in record:
            return
        line = status(record, self.steps, self._pace(record))
        now = time.monotonic()
        if self.live:
            # One column less: a line that fills the last column wraps on some terminals.
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[K{line[:width]}")
        elif now - self.printed >= self.SECONDS_BETWEEN_LINES:
            self.printed = now
            self._write(f"{line}\n")

    def _pace(self, record: Record) -> float:
        """Recent seconds per step; 0 until one is known."""
        if record.get("seconds_per_step"):
            self.paces.append(record["seconds_per_step"])
        # The last record alone would jump: steps wait for whatever else the machine does.
        return smooth([*self.paces], 0.95)[-1] if self.paces else 0.0

    def say(self, text: str) -> None:
        """Print `text` above the live line."""
        self._write(("\r\x1b[K" if self.live else "") + text + "\n")

    def close(self) -> None:
        """Leave the live line behind."""
        if self.live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        try:
            self.out.write(text)
        except UnicodeEncodeError:
            # A sample may hold any character, and an ASCII console shows it as its number.
            encoding = self.out.encoding
            self.out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self.out.flush()


def status(record: Record, steps: int, pace: float) -> str:
    """The live line: step, loss, rates, and the time left at `pace` seconds per step."""
    left = f"{_clock((steps - record['step']) * pace)} left" if pace else ""
    return (
        f"step {record['step']:.0f}/{steps}  loss {record['loss']:.3f}  lr {record['lr']:.1e}  "
        f"{_short(record['tokens_per_second'])} tok/s  MFU {record['mfu']:.0%}  "
        f"{_short(record['memory_bytes'])}B  {left}"
    )


class Jsonl:
    """metrics.jsonl: one line of JSON per record, flushed at once."""

    def __init__(self, folder: Path, steps: int) -> None:
        # Appended to, because a resumed run goes on in the same file.
        self.file = (folder / "metrics.jsonl").open("a", encoding="utf-8")

    def log(self, record: Record) -> None:
        """Append the record."""
        kept = {key: value for key, value in record.items() if key != "seconds_per_step"}
        self.file.write(json.dumps(kept) + "\n")
        # A run that is killed keeps its records.
        self.file.flush()

    def say(self, text: str) -> None:
        """Words are not metrics."""

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class Plot:
    """loss.png, drawn anew from metrics.jsonl at each evaluation and at the end."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder

    def log(self, record: Record) -> None:
        """Redraw where there is something new to see."""
        if "val_loss" in record:
            plot(self.folder)

    def say(self, text: str) -> None:
        """Words are not drawn."""

    def close(self) -> None:
        """Draw the whole run."""
        plot(self.folder)


TRACKERS: dict[str, Any] = {"console": Console, "jsonl": Jsonl, "plot": Plot}


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
                warn(f"{name} failed, and the run goes on: {_in_words(error)}")


def warn(text: str) -> None:
    """Issue a warning that cannot raise: not under `-W error`, not on a closed standard error."""
    try:
        warnings.warn(text, stacklevel=3)
    except Exception:
        with suppress(Exception):
            print(f"warning: {text}", file=sys.stderr)


def _in_words(error: Exception) -> str:
    """An exception in one line: an `OSError` by its file, another by its type."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def read_metrics(folder: Path) -> list[Record]:
    """The records of metrics.jsonl in order; a line that is no record is passed over."""
    return [record for record in _lines(folder / "metrics.jsonl") if record is not None]


def _lines(path: Path) -> list[Record | None]:
    """The record of each line of a file; None for a torn one."""
    # Bytes, for a torn line need not be UTF-8.
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [_record(line) for line in lines]


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], int | float) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def rewind_metrics(folder: Path, step: int) -> int:
    """Drop the records after `step`, which a resumed run writes again, and all torn lines.

    Returns the number of torn lines. A crash leaves one at most, at the end.
    """
    path = folder / "metrics.jsonl"
    lines = _lines(path)
    if lines:
        kept = [record for record in lines if record is not None and record["step"] <= step]
        disk.replace(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    return lines.count(None)


def plot(folder: Path) -> None:
    """metrics.jsonl to loss.png: losses above, learning rate and gradient norm below."""
    # matplotlib takes half a second to import, and a run without the plot never needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    records = read_metrics(folder)
    train = [r for r in records if "loss" in r]
    scored = [r for r in records if "val_loss" in r]
    if not train:
        return
    figure = Figure(figsize=(9, 6), dpi=130, layout="constrained")
    # Not pyplot: it keeps figures in a global list and may want a display.
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = [r["step"] for r in train]
    losses = [r["loss"] for r in train]
    above.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="training")
    # Smoothed from both ends: from one alone, the line would lag behind the losses it is made of.
    ends = zip(smooth(losses), smooth(losses[::-1])[::-1], strict=True)
    middle = [(one + other) / 2 for one, other in ends]
    above.plot(steps, middle, color="tab:blue", linewidth=1.8, label="training, smoothed")
    if scored:
        xs, ys = [r["step"] for r in scored], [r["val_loss"] for r in scored]
        above.plot(xs, ys, "o-", color="tab:orange", markersize=5, label="validation")
        last = scored[-1]
        above.annotate(
            f"{last['val_loss']:.3f} nats per token\n{last['bits_per_byte']:.3f} bits per byte",
            (last["step"], last["val_loss"]),
            xytext=(-8, 24),
            textcoords="offset points",
            ha="right",
            arrowprops={"arrowstyle": "-", "color": "gray"},
        )
    above.set_ylabel("loss, nats per token")
    above.set_title(f"{folder.name}: {train[-1]['tokens'] / 1e6:.2f} million tokens")
    above.legend(frameon=False)
    below.plot(steps, [r["lr"] for r in train], color="tab:green")
    below.set_ylabel("learning rate", color="tab:green")
    below.set_xlabel("step")
    norms = below.twinx()
    norms.plot(steps, [r["grad_norm"] for r in train], color="tab:gray", alpha=0.6, linewidth=1)
    norms.set_ylabel("gradient norm", color="tab:gray")
    norms.set_yscale("log")
    # Plain numbers: matplotlib would write a tick between powers as 4 x 10^0.
    norms.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    norms.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    norms.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (above, below):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    with disk.replacing(folder / "loss.png") as file:
        figure.savefig(file, format="png")


def smooth(values: list[float], weight: float = 0.7) -> list[float]:
    """Exponential mean, corrected for its start so that it begins at the first value."""
    smoothed, mean, total = [], 0.0, 0.0
    for value in values:
        mean = weight * mean + (1 - weight) * value
        total = weight * total + (1 - weight)
        smoothed.append(mean / total)
    return smoothed


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
