"""loss.png while a run goes on, drawn by a process of its own."""

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from tinylm.track.tracker import Record

PACKAGES = Path(__file__).parents[2]
CODE = "import sys; from tinylm.track import drawing; drawing.serve(sys.argv[1])"


class Plot:
    """loss.png, drawn anew at each evaluation, every few seconds between them, and at the end.

    The process that draws imports matplotlib (0.6 s) and draws (0.5 s) at a low priority beside
    the steps, where a thread would hold Python's lock for as long. It takes at most `SHARE` of a
    core: after a drawing of d seconds the next one waits for d / `SHARE`.
    """

    SECONDS_BETWEEN, SHARE, PATIENCE = 10.0, 0.05, 60.0

    def __init__(self, folder: Path, steps: int) -> None:
        path = os.environ.get("PYTHONPATH")
        paths = str(PACKAGES) if not path else f"{PACKAGES}{os.pathsep}{path}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(folder.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C goes to all processes of a terminal's group, and is the run's to answer.
            process_group=0,
            env={**os.environ, "PYTHONPATH": paths, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"},
        )
        self._drawing = self._wanted = False
        self._next = time.monotonic() + self.SECONDS_BETWEEN
        self._heard = b""

    def log(self, record: Record) -> None:
        """Ask for a drawing where there is something new to see; never waits for it."""
        self._wanted = self._wanted or "val_loss" in record or time.monotonic() >= self._next
        self._listen(0.0)
        self._ask()

    def say(self, text: str) -> None:
        """Words are not drawn."""

    def close(self) -> None:
        """Wait until the whole run is drawn."""
        end = time.monotonic() + self.PATIENCE
        try:
            while self._drawing or self._wanted:
                self._ask()
                self._listen(max(0.0, end - time.monotonic()))
                if time.monotonic() >= end:
                    raise TimeoutError(f"loss.png was not drawn within {self.PATIENCE:.0f} s")
        finally:
            self._process.kill()
            self._process.communicate()

    def _ask(self) -> None:
        if self._wanted and not self._drawing:
            self._wanted, self._drawing = False, True
            assert self._process.stdin is not None
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def _listen(self, seconds: float) -> None:
        """Take in the answer to the last request if it comes within `seconds`."""
        pipe = self._process.stdout
        if not self._drawing or pipe is None or not select.select([pipe], [], [], seconds)[0]:
            return
        heard = os.read(pipe.fileno(), 2**16)
        self._heard += heard
        if heard and not self._heard.endswith(b"\n"):
            return
        answer, self._heard, self._drawing = self._heard.decode(errors="replace"), b"", False
        if not heard:
            raise RuntimeError(f"the process that draws loss.png ended ({self._process.wait()})")
        took, _, problem = answer.strip().partition(" ")
        self._next = time.monotonic() + max(self.SECONDS_BETWEEN, float(took) / self.SHARE)
        if problem:
            raise RuntimeError(problem)
