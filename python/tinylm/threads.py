"""How torch's threads wait for each other, on a machine that is shared and on one that is not.

Between two parallel loops, the OpenMP threads of torch spin: they ask again and again whether the
next loop is there. Alone on the machine that is fastest, since waking a sleeping thread takes
longer than most loops. Beside other work it is slow, since a thread that spins uses up the time
in which its core could run the thread that all wait for.

libgomp, the OpenMP library of torch on Linux, has a rule for this: while a process has more
OpenMP threads than the machine has cores, they spin 100 times instead of 300,000 before they
sleep (GCC's manual of libgomp, GOMP_SPINCOUNT). `sharing` uses that rule. It watches how long the
threads of this process wait for a core, and while that is long, it keeps enough sleeping OpenMP
threads for the rule to hold. Results do not change: no loop is split in another way.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TASKS = Path("/proc/self/task")
MAPS = Path("/proc/self/maps")
# A user who sets one of these has chosen how threads wait.
CHOSEN_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
ADAPTIVE = "adaptive"
# Seconds between two looks at the threads of this process.
PERIOD = 0.25
# Seconds per second that the threads wait for a core, together: from BUSY on the machine counts
# as shared, and below FREE for CALM looks in a row it no longer does. A training alone on two cores
# waits about 0.02, beside one busy process 0.4 to 0.6 (docs/log.md, 2026-11-27).
BUSY, FREE, CALM = 0.10, 0.03, 8


@contextmanager
def sharing(threads: int) -> Iterator["Watch | None"]:
    """Inside, torch's `threads` threads spin only while no other process needs their cores.

    Gives the watch that sees to it, or None where `policy` is not "adaptive". Call it after torch
    is imported.
    """
    library = libgomp()
    if library is None or policy(threads) != ADAPTIVE:
        yield None
        return
    watch = Watch(library)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def policy(threads: int) -> str:
    """How `threads` threads wait: "adaptive", the user's own setting, or OpenMP's "default".

    The default stays with one thread, and where torch does not use libgomp or the system does not
    count how long threads wait (it does on Linux).
    """
    here = threads > 1 and libgomp() is not None and waited() is not None
    return chosen() or (ADAPTIVE if here else "default")


def chosen() -> str:
    """The user's own settings of how threads wait, as `NAME=value`; empty if there is none."""
    return " ".join(f"{name}={os.environ[name]}" for name in CHOSEN_BY if os.environ.get(name))


def libgomp() -> Path | None:
    """The libgomp that torch uses in this process; None if it uses another library."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return None
    loaded = {Path(line.split(maxsplit=5)[5]) for line in lines if "libgomp" in line}
    # Other packages bring a libgomp of their own; torch's loops run in the one beside it.
    return next((p for p in sorted(loaded) if "torch" in p.parts or len(loaded) == 1), None)


def waited() -> float | None:
    """Seconds that the threads of this process have waited for a core; None if nobody counts."""
    total = 0
    try:
        for task in TASKS.iterdir():
            try:
                # Nanoseconds on a core, nanoseconds ready without one, number of turns.
                total += int((task / "schedstat").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # The thread has ended since.
    except (OSError, IndexError, ValueError):
        return None
    return total / 1e9


class Crowd:
    """Sleeping OpenMP threads, one more than the machine has cores, until `leave` is called."""

    def __init__(self, library: Path) -> None:
        self._library, self._leave = library, threading.Event()
        ready = threading.Event()
        self._host = threading.Thread(target=self._stay, args=(ready,), daemon=True)
        self._host.start()
        ready.wait()

    def _stay(self, ready: threading.Event) -> None:
        # A parallel loop that does nothing: each thread calls free(NULL). Its threads then sleep
        # until the thread that asked for them, this one, ends.
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        parallel = ctypes.CDLL(str(self._library)).GOMP_parallel
        parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        parallel.restype = None
        parallel(nothing, None, (os.cpu_count() or 1) + 1, 0)
        ready.set()
        self._leave.wait()

    def leave(self) -> None:
        """End the threads; libgomp counts them no longer when this returns."""
        self._leave.set()
        self._host.join()


class Watch(threading.Thread):
    """Looks at how long the process waits for cores and lets a `Crowd` come and go."""

    def __init__(self, library: Path) -> None:
        super().__init__(name="tinylm-threads", daemon=True)
        self.library = library
        self.crowd: Crowd | None = None
        # How often the machine became shared, for whoever asks.
        self.times = 0
        self._end = threading.Event()

    def run(self) -> None:
        """Look every `PERIOD` seconds until `stop` is called."""
        before, calm = waited(), 0
        while not self._end.wait(PERIOD):
            now = waited()
            if now is None or before is None:
                break
            # Threads that have ended take their account with them: then the sum goes down.
            share, before = max(now - before, 0.0) / PERIOD, now
            if share >= BUSY:
                calm = 0
                if self.crowd is None:
                    self.crowd = Crowd(self.library)
                    self.times += 1
            elif share < FREE and self.crowd is not None:
                calm += 1
                if calm >= CALM:
                    self._disperse()
        self._disperse()

    def stop(self) -> None:
        """End the watch, and the crowd with it."""
        self._end.set()
        self.join()

    def _disperse(self) -> None:
        if self.crowd is not None:
            self.crowd.leave()
            self.crowd = None
