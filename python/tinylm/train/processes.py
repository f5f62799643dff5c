"""The processes of a run, as torchrun starts them: the place of this one, a watch on the others.

torchrun tells each process its place by environment variables. Nothing here imports torch, so a
command that was started wrongly fails at once.
"""

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tinylm.commands import tell
from tinylm.config import ConfigError, Run

START = "torchrun --nproc-per-node N -m tinylm.train distributed.mode=ddp"
NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How often a process looks for the others, and how long it then waits for its own error, which
# says more: that of a collective whose other side is gone.
SECONDS_BETWEEN_LOOKS, SECONDS_TO_FAIL = 1.0, 5.0


@dataclass(frozen=True)
class Place:
    """Process `rank` of `world`, number `local` of `beside` on its machine; alone in mode none."""

    rank: int = 0
    local: int = 0
    world: int = 1
    mode: str = "none"
    beside: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether the run has no other process to talk to."""
        return self.mode == "none"


def place(run: Run, environment: Mapping[str, str] = os.environ) -> Place:
    """The place of this process in a run.

    Raises `ConfigError` if `distributed.mode` does not fit how the process was started, if
    `train.device` names one GPU for all, or if the rows of a batch cannot be spread evenly.
    """
    mode = run.distributed.mode
    world = environment.get("WORLD_SIZE", "1")
    if mode == "none":
        if world != "1":
            raise ConfigError(
                f"distributed.mode=none in one of {world} processes (WORLD_SIZE), which would all "
                f"train the same run: add distributed.mode=ddp or fsdp, or start without torchrun"
            )
        return Place()
    missing = [name for name in NEEDED if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"distributed.mode={mode} and no {missing[0]} in the environment: start it with "
            f"{START.replace('ddp', mode)}"
        )
    if run.train.device.startswith("cuda:"):
        raise ConfigError(
            f"train.device={run.train.device}: with distributed.mode={mode} each process takes the "
            f"GPU of its own number: set train.device=cuda, and choose the GPUs by "
            f"CUDA_VISIBLE_DEVICES"
        )
    rank, local, processes = (int(environment[name]) for name in NEEDED[:3])
    beside = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    found = Place(rank, local, processes, mode, beside)
    for rows in run.train.batch_sizes.values:
        if rows % found.world:
            raise ConfigError(
                f"train.batch_size={rows}: must be a multiple of the {found.world} processes, "
                f"which share the rows of a batch"
            )
        own, micro = rows // found.world, run.train.micro_rows or rows
        if own % min(micro, own):
            raise ConfigError(
                f"train.micro_batch_size={micro}: must divide the {own} rows of each of the "
                f"{found.world} processes (batch_size={rows})"
            )
    return found


class Watch(AbstractContextManager["Watch"]):
    """Inside, this process ends with code 1 if one of `others` on this machine dies, or one fails.

    `others` is {rank: process id}. `failure` returns the error of a process on any machine, or "".
    Without it a process whose other side is gone can wait for a collective until its time limit.
    An error of its own comes first if it comes within a few seconds.
    """

    def __init__(self, others: Mapping[int, int], failure: Callable[[], str] = str) -> None:
        self._others, self._failure = others, failure
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="tinylm-watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def dead(self, seconds: float = 0.0) -> str | None:
        """The first of the others that failed or ended, in words, if one does within `seconds`."""
        tries = 1 + round(seconds / 0.1)
        for _ in range(tries):
            if told := self._failure():
                return told
            for rank, process in self._others.items():
                if not is_alive(process):
                    return f"rank {rank} (process {process}) has ended"
            if tries > 1:
                self._over.wait(0.1)
        return None

    def _look(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            found = self.dead()
            if found is not None and not self._over.wait(SECONDS_TO_FAIL):
                tell(f"error: {found}, so this run cannot go on")
                with suppress(OSError, ValueError):
                    sys.stdout.flush()
                # The main thread may be inside a collective, which no exception reaches.
                os._exit(1)


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs; one that has ended does not, also if not reaped."""
    with suppress(OSError, IndexError):
        # Field 3 of /proc/N/stat, after the name in brackets, which may hold spaces.
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
