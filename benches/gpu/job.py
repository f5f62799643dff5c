"""What the process of a section says to the runner: a line of JSON per event.

    if job.begin(family, at, name):
        job.row(family, at, name, ms=0.12)

A line also says how long the runner shall wait for the next. Imports no torch, so that a test
can have processes that start in a moment.
"""

import json
from typing import IO, Any, NamedTuple

# Seconds without a line after which a process hangs.
PATIENCE = 20
# Seconds for what compiles with torch.compile first, or makes large inputs.
LONG_PATIENCE = 120

At = dict[str, int | str]


class Order(NamedTuple):
    """What the runner wants: a module of a section, and what of it is done already."""

    module: str
    dry: bool
    # Families, labels and names of the rows that an earlier process finished or hung at.
    done: list[list[str]]
    # Copy bandwidth in GB/s and matrix product in TFLOP/s of this run; empty before `ceilings`.
    ceilings: dict[str, float]


def label(at: At) -> str:
    """The sizes of a case in one line: `rows=32768 width=4096`."""
    return " ".join(f"{key}={value}" for key, value in at.items())


class Job:
    """The order of a process, and the lines that it sends."""

    def __init__(self, order: Order, lines: IO[str]) -> None:
        self.order, self.lines = order, lines

    def send(self, **line: Any) -> None:
        """One line, at once."""
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()

    def begin(self, family: str, at: At, name: str, patience: float = PATIENCE) -> bool:
        """Announce a row; False if an earlier process was done with it or hung at it."""
        key = [family, label(at), name]
        if key in self.order.done:
            return False
        self.send(begin=key, patience=patience)
        return True

    def close(self, family: str, at: At, name: str) -> None:
        """Take back what was begun and has no row of its own."""
        self.send(close=[family, label(at), name])

    def waits(self, patience: float = PATIENCE) -> None:
        """Say that the process is alive and how long the next step may take."""
        self.send(patience=patience)

    def row(self, family: str, at: At, name: str, **figures: Any) -> None:
        """Report the figures of a row."""
        self.send(row={"family": family, "at": at, "name": name, **figures})
