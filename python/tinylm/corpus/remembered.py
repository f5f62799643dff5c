"""What was found of large files, kept in a folder that processes share and that outlives a start.

    with remembering(Path("out/jobs/found"), rank=0, world=2):
        text = corpus.open("texts", val_fraction=0.01)

A text is read through and hashed before it is read to be encoded. Processes that prepare it
together begin at different files, and each takes over what the others have found meanwhile: they
read it once together and not once each. A start after a crash reads nothing of it again.

A file counts as the same while its name, inode, size and time of change are; what is kept has a
checksum, and what is damaged or cannot be kept is found anew.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylm import disk

# Below this a file is hashed faster than an entry for it is made.
LEAST = 1 << 20
# Changes with the meaning of what is kept.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Memory:
    """A folder of entries, and which of `world` processes this one is."""

    home: Path
    rank: int
    world: int

    def find(self, what: list[Any], find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is kept under `what`, or else what `find` finds, which is kept."""
        key = hashlib.sha256(json.dumps([VERSION, *what]).encode()).hexdigest()
        path = self.home / f"{key[:32]}.json"
        try:
            entry = json.loads(path.read_bytes())
            if entry["checksum"] == _checksum(key, entry["found"]):
                return dict(entry["found"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        found = find()
        # A disk that is full or that may not be written to costs the memory and not the work.
        with suppress(OSError):
            self.home.mkdir(parents=True, exist_ok=True)
            entry = {"found": found, "checksum": _checksum(key, found)}
            disk.replace(path, json.dumps(entry).encode())
        return found


_MEMORY: ContextVar[Memory | None] = ContextVar("memory", default=None)


@contextmanager
def remembering(home: Path, *, rank: int = 0, world: int = 1) -> Iterator[None]:
    """Inside, what is found of large files is kept in `home`, which is made if need be."""
    token = _MEMORY.set(Memory(home, rank, world))
    try:
        yield
    finally:
        _MEMORY.reset(token)


def order(n: int) -> Iterator[int]:
    """The numbers of n files, from the one at which this process begins."""
    memory = _MEMORY.get()
    first = 0 if memory is None else memory.rank * n // memory.world
    return ((first + k) % n for k in range(n))


def remembered(
    path: Path, settings: list[Any], find: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `find` finds of a file, which may be kept from an earlier call or another process.

    `settings` are what the answer depends on beside the file. It consists of what JSON has.
    """
    memory, entry = _MEMORY.get(), path.stat()
    if memory is None or entry.st_size < LEAST:
        return find()
    name = os.fsencode(path).hex()
    return memory.find([name, entry.st_ino, entry.st_size, entry.st_mtime_ns, *settings], find)


def _checksum(key: str, found: dict[str, Any]) -> str:
    return hashlib.sha256(f"{key} {json.dumps(found, sort_keys=True)}".encode()).hexdigest()
