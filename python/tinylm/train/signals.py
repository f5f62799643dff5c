"""SIGINT, SIGTERM and SIGHUP during a run: the step in progress ends, and the run is saved."""

import contextlib
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from tinylm.commands import INTERRUPTED, TERMINATED


class Interrupted(KeyboardInterrupt):
    """A signal ended a run: `checkpoint` holds its last step, `code` is the exit code.

    130 after Ctrl-C. 75 after SIGTERM and SIGHUP (the terminal is gone): nobody asked this run to
    end, and a scheduler starts it again.
    """

    def __init__(self, checkpoint: Path, number: int) -> None:
        super().__init__(f"saved {checkpoint}")
        self.checkpoint = checkpoint
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED


class Signals(AbstractContextManager["Signals"]):
    """Inside, SIGINT, SIGTERM and SIGHUP are answered on standard error and noted in `received`.

    A second SIGINT raises `KeyboardInterrupt` at once. Outside the main thread, which alone may
    handle signals, nothing changes. A SIGHUP that the caller ignores, as `nohup` does, stays so.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> "Signals":
        # Elsewhere than in the main thread signals are the caller's.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            # A step can hold 30 s of compiling: without an answer people press again.
            answer(number)
        self.received = number


def answer(number: int) -> None:
    """Say on standard error what a signal will do; safe inside a signal handler."""
    words = "stopping after this step"
    if number == signal.SIGINT:
        words += "; once more stops at once, unsaved"
    # os.write, for print may be what the signal interrupted, and that is an error in itself. On
    # a terminal the cursor stands behind the live line.
    line = "\n" * os.isatty(2) + words + "\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
