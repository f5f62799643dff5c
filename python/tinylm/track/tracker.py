"""The interface of a tracker, and functions that trackers share."""

import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Protocol

Record = dict[str, float]


class Tracker(Protocol):
    """What the loop calls. `steps` is the length of the run, `folder` its home."""

    def __init__(self, folder: Path, steps: int) -> None: ...

    def log(self, record: Record) -> None:
        """Take one record; cheap, called every few steps."""

    def say(self, text: str) -> None:
        """Print or keep a few words that are not a record."""

    def close(self) -> None:
        """Finish: nothing is logged afterwards."""


def smooth(values: list[float], weight: float = 0.7) -> list[float]:
    """Exponential mean, corrected for its start so that it begins at the first value."""
    smoothed, mean, total = [], 0.0, 0.0
    for value in values:
        mean = weight * mean + (1 - weight) * value
        total = weight * total + (1 - weight)
        smoothed.append(mean / total)
    return smoothed


def warn(text: str) -> None:
    """Issue a warning that cannot raise: not under `-W error`, not on a closed standard error."""
    try:
        warnings.warn(text, stacklevel=3)
    except Exception:
        with suppress(Exception):
            print(f"warning: {text}", file=sys.stderr)


def in_words(error: Exception) -> str:
    """An exception in one line: an `OSError` by its file, another by its type."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
