"""The live line of a run on a terminal, or a line every few seconds on a pipe."""

import shutil
import sys
import time
from collections import deque
from pathlib import Path
from typing import TextIO

from tinylm.track.tracker import Record, smooth

# Records that the time left is computed from; an older one would weigh under 1% of the newest.
REMEMBERED = 100


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


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
