"""metrics.jsonl: one record of a run per line, written, read and taken back."""

import json
from pathlib import Path

from tinylm import disk
from tinylm.track.tracker import Record


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
