"""What a loader has given so far."""

from typing import TypedDict

from tinylm import _rust
from tinylm.data.arrays import Source


class Given(TypedDict):
    """What one source has given, over all ranks."""

    folder: str
    rows: int
    tokens: int
    epochs: float


class Stats(TypedDict):
    """The position of a loader, and how long its consumer waited.

    `epoch` is that of the source with the fewest epochs.
    """

    epoch: int
    rows: int
    tokens: int
    batches: int
    stall_seconds: float
    sources: list[Given]


def given(dataset: Source, alone: _rust.Rows, rows: int, context_length: int) -> Given:
    """What a source gave in so many rows; `alone` are its rows without other sources."""
    return {
        "folder": str(dataset.folder),
        "rows": rows,
        "tokens": rows * context_length,
        "epochs": rows / alone.n_rows,
    }
