"""Files that are on disk whole or not at all, and folders that have one writer at a time.

    replace("runs/a/best.json", b"{}")
    with Lock(Path("runs/a"), advice="choose another folder"):
        ...

A lock is `flock` on the file `.lock` in the folder. The kernel lifts it when the process ends,
however it ends, so a `.lock` that a killed process left behind is in nobody's way. Readers take no
lock: `replace` gives them the old file or the new one.
"""

import errno
import fcntl
import json
import os
import re
import shlex
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

LOCK = ".lock"
# Characters of a holder's command line that a message shows.
SHOWN = 200
# What flock answers on network file systems that have no locks, or whose lock server is down.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# What `replacing` adds to a name: the process, 32 random bits, `.part`.
_PART = re.compile(r"\.\d+-[0-9a-f]{8}\.part$")


def replace(path: str | os.PathLike[str], data: bytes) -> None:
    """Put `data` in the place of the file `path`; a reader sees the old bytes or the new ones.

    Written under a name of its own, fsynced, renamed, and the folder fsynced: a crash or a loss of
    power at any instant leaves one of the two, whole. Of several writers at once, each puts its
    file there whole, and the last one's stays. The folder must exist. Raises `OSError`.
    """
    with replacing(path) as file, naming(Path(file.name)):
        file.write(data)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """`replace` for content that comes in pieces: yields a file to write it to.

    The file takes its name at the end of the block; after an exception `path` is as it was. A
    killed process leaves its part, such as `a.json.4711-0badcafe.part`, beside `path`: nobody
    reads it, and `remove_parts` clears it from folders that have a lock.

    The target of a link is replaced, and not the link. What is no regular file, such as a pipe or
    /dev/null, is written to.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        # At once, and by its own name: the rename would fail after all was written.
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    part = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with naming(path):
            file = part.open("xb")
        try:
            yield file
            with naming(part):
                file.flush()
                os.fsync(file.fileno())
        finally:
            # After a flush that failed, closing fails too, in an error without a name.
            with suppress(OSError):
                file.close()
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    sync(path.parent)


def is_leftover(path: Path) -> bool:
    """Whether the name is one that a killed process may leave: `.lock`, or a part of `replace`."""
    return path.name == LOCK or _PART.search(path.name) is not None


def remove_parts(folder: Path) -> None:
    """Remove the parts that killed processes left in `folder`; the caller holds its lock."""
    for path in folder.iterdir():
        if _PART.search(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which must be new or empty, while files are written to it.

    After an exception, Ctrl-C too, it is empty again. Raises `FileExistsError` if it holds a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder, advice="wait for it, or name another folder"):
        if not all(is_leftover(path) for path in folder.iterdir()):
            raise FileExistsError(errno.EEXIST, "the folder is not empty", str(folder))
        remove_parts(folder)
        try:
            yield
        except BaseException:
            for path in folder.iterdir():
                if not is_leftover(path):
                    path.unlink()
            raise


def sync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to the disk: a rename outlives a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give an `OSError` from a file handle the name of its file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


class Lock(AbstractContextManager["Lock"]):
    """The right to write to `folder`, which must exist, from construction to `release`.

    If another process or another `Lock` of this one holds it, the constructor raises
    `BlockingIOError`, which names the holder and ends in `advice`. With `wait` it says on standard
    error for whom it waits, and waits; Ctrl-C ends the waiting. For a `Lock` that the same thread
    made it does not wait: nobody would release it.

    Only the process that made it holds it: a child after `os.fork` does not.
    """

    def __init__(self, folder: Path, *, advice: str = "", wait: bool = False) -> None:
        self._path = folder / LOCK
        self._handle = _lock(folder, advice, wait)
        self._close = weakref.finalize(self, os.close, self._handle)
        self._file = os.fstat(self._handle)
        _HELD.add(self)
        _OWN.locks.add(self)

    def release(self) -> None:
        """Let the next one write; a second call does nothing."""
        if self._close.alive:
            # While the lock still holds: later it could be the file of the next holder. It is
            # that already if somebody removed ours by hand.
            with suppress(OSError):
                if _is(self._handle, self._path):
                    self._path.unlink()
        self._close()

    def holds(self, handle: int) -> bool:
        """Whether this is the lock on the open file `handle`."""
        return self._close.alive and os.path.samestat(self._file, os.fstat(handle))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def forget(self) -> None:
        """Close the file in a forked child; the parent's copy of it still holds the lock."""
        self._close()


def _lock(folder: Path, advice: str, wait: bool) -> int:
    """A handle of the locked file `.lock`, in which this process is entered."""
    path = folder / LOCK
    told = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                with naming(path):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                problem = f"in use by {_holder(handle)}"
                if not wait or any(lock.holds(handle) for lock in _OWN.locks):
                    text = f"{problem}: {advice}"
                    raise BlockingIOError(error.errno, text, str(folder)) from None
                if not told:
                    # Standard error may be closed, and that is no reason not to wait.
                    with suppress(OSError, ValueError):
                        print(f"{folder} is {problem}: waiting for it", file=sys.stderr, flush=True)
                    told = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                text = (
                    f"{error.strerror}: its file system has no flock; name a folder on a local disk"
                )
                raise OSError(error.errno, text, str(folder)) from None
            # A holder removes the file before it lets go: what is locked may be out of reach.
            if _is(handle, path):
                with naming(path):
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, json.dumps(_myself()).encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is(handle: int, path: Path) -> bool:
    """Whether the open file is the one that stands at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _myself() -> dict[str, Any]:
    command = shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])
    return {"process": os.getpid(), "host": os.uname().nodename, "command": command}


def _holder(handle: int) -> str:
    """Who holds a lock, in words, as its file says."""
    try:
        entry = json.loads(os.pread(handle, 1 << 20, 0))
        command = " ".join(entry["command"].split())[:SHOWN]
        return f"process {entry['process']} on {entry['host']} ({command})"
    except (ValueError, KeyError, TypeError, AttributeError):
        # It has taken the lock and not yet entered itself.
        return "another process"


class _Own(threading.local):
    """The locks that this thread made."""

    def __init__(self) -> None:
        self.locks: weakref.WeakSet[Lock] = weakref.WeakSet()


_OWN = _Own()
_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_HELD):
        lock.forget()


# Without this, a child that outlives its parent (a worker of a data loader) would go on holding
# the lock: flock belongs to the open file, which both share.
os.register_at_fork(after_in_child=_forget_all)
