"""A flat folder of files that is on disk either whole or not at all.

    with whole(folder) as draft:
        draft.add("config.json", [b"{}"])
    verify(folder)

A draft is written beside the folder, `.NAME.tinylm-draft-*`: every file, and then
MANIFEST.json, which holds their sizes and hashes, is written and fsynced; then the draft itself
is fsynced, renamed to its final name, and the parent fsynced. A folder in the way is renamed to
`.NAME.tinylm-aside-*` and removed last, so that at every instant the old or the new one is
there, whole. The writer holds a lock on both, which ends with its process, however it ends:
a folder without a lock is left over from a dead writer, and `recover` clears it away.

The hash is SHA-256: it is in the standard library, processors have instructions for it (1 to
2 GB/s per core), and the Hugging Face Hub shows the same number for each file.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tinylm import disk

MANIFEST = "MANIFEST.json"
# Both names begin with a dot, so no listing of checkpoints takes them for one.
DRAFT, ASIDE = ".tinylm-draft-", ".tinylm-aside-"
# Bytes handed to the system at once: small enough that Ctrl-C is answered soon.
CHUNK = 16 << 20


class Draft:
    """The files of a folder in the making."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}

    def add(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write and fsync one file, piece by piece; an `OSError` carries its name.

        The hash is that of the pieces, not of what the disk made of them.
        """
        self.files[name] = _write(self.folder / name, pieces)

    def add_written(self, name: str, write: Callable[[Path], Any]) -> None:
        """Let `write(path)` write one file, then fsync it."""
        path = self.folder / name
        write(path)
        disk.sync(path)
        # Hashed from the disk, unlike `add`: this writer hands out no pieces.
        self.files[name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}


@contextmanager
def whole(folder: Path) -> Iterator[Draft]:
    """A draft that becomes `folder`, or takes its place, when the block ends without an error."""
    _make(folder.parent)
    # Leftovers go first: they may hold the space that this write needs.
    recover(folder.parent)
    with ExitStack() as stack:
        path, handle = _draft(folder, stack)
        try:
            draft = Draft(path)
            yield draft
            _write(path / MANIFEST, [_manifest(draft.files)])
            with disk.naming(path):
                # The folder's own entries: without this the files may be whole and their names
                # lost.
                os.fsync(handle)
            _swap(path, folder)
        except BaseException:
            # The error that brought you here matters more than one of the clearing up.
            with suppress(OSError):
                shutil.rmtree(path)
            raise


def verify(folder: str | Path) -> None:
    """Read every file of `folder` and compare it with MANIFEST.json; files beside it are ignored.

    Raises `ValueError` naming the file, what was expected and what was found.
    """
    folder = Path(folder)
    check(folder, read_manifest(folder))


def check(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """`verify` for some of the files, given with their sizes and hashes."""
    # Hashing leaves the interpreter's lock: the two large files go side by side.
    with ThreadPoolExecutor(max_workers=4) as pool:
        # Without `list` an error inside a thread would go unseen.
        list(pool.map(lambda name: _check(folder / name, files[name]), files))


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """{file: {"bytes", "sha256"}} of a folder; `ValueError` where MANIFEST.json is not whole."""
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))
    path = folder / MANIFEST
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{path}: missing, so {folder.name} was never finished or its manifest was removed: "
            f"checkpoint.load({str(folder)!r}) reads its model all the same"
        ) from None
    try:
        files: dict[str, dict[str, Any]] = json.loads(found)["files"]
        # A name with a slash would read outside the folder.
        whole = _manifest(files) == found and all(Path(name).name == name for name in files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path}: does not match its own hash: it was changed or is torn; "
            f"if the other files are right, remove it"
        )
    return files


def restore(folder: Path) -> None:
    """Put `folder` back where a writer that was to replace it died between its two renames."""
    if folder.exists():
        return
    for aside in sorted(folder.parent.glob(f".{folder.name}{ASIDE}*")):
        # If the writer lives, it holds this lock and is about to rename: hands off.
        with suppress(OSError), _locked(aside):
            os.rename(aside, folder)
            return


def recover(parent: Path) -> None:
    """Clear away what dead writers left in `parent`; folders that live ones hold stay."""
    for path in sorted(parent.glob(f".*{ASIDE}*")):
        restore(parent / path.name[1:].rpartition(ASIDE)[0])
    # Only after all that can be put back is back.
    for mark in (ASIDE, DRAFT):
        for path in sorted(parent.glob(f".*{mark}*")):
            # What cannot be removed, held or not, is no reason to fail: it is only in the way.
            with suppress(OSError), _locked(path):
                shutil.rmtree(path)


def remove(folder: Path) -> None:
    """Delete a folder; if this is cut short, the rest counts as a dead writer's draft.

    The lock goes with the folder through its rename: under its new name it looks like a draft,
    and another process's `recover` deletes drafts that nobody holds.
    """
    with _locked(folder):
        doomed = folder.parent / f".{folder.name}{DRAFT}{secrets.token_hex(4)}"
        os.rename(folder, doomed)
        # The rename must be on disk before the first file goes: a loss of power then leaves a whole
        # checkpoint or a draft, never half a checkpoint.
        disk.sync(folder.parent)
        # rmtree names a file without its folder.
        with disk.naming(doomed):
            shutil.rmtree(doomed)


def _draft(folder: Path, stack: ExitStack) -> tuple[Path, int]:
    """A new folder beside `folder`, locked until `stack` closes, and its handle."""
    while True:
        path = folder.parent / f".{folder.name}{DRAFT}{secrets.token_hex(4)}"
        with disk.naming(path):
            os.mkdir(path)
        # The `recover` of another process may see the folder before it is locked, and delete it.
        with suppress(BlockingIOError, FileNotFoundError):
            handle = stack.enter_context(_locked(path))
            if path.exists():
                return path, handle


def _swap(draft: Path, folder: Path) -> None:
    with ExitStack() as stack:
        aside = None
        if folder.exists():
            stack.enter_context(_locked(folder))
            aside = folder.parent / f".{folder.name}{ASIDE}{secrets.token_hex(4)}"
            # Set aside first: a rename cannot replace a folder that holds files.
            os.rename(folder, aside)
        try:
            os.rename(draft, folder)
        except BaseException:
            if aside is not None:
                with suppress(OSError):
                    os.rename(aside, folder)
            raise
        disk.sync(folder.parent)
        if aside is not None:
            with disk.naming(aside):
                shutil.rmtree(aside)


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write and fsync a new file; returns its entry for the manifest."""
    size, digest = 0, hashlib.sha256()
    with disk.naming(path):
        # O_EXCL: a name that is written twice in one draft is an error of the caller.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            for piece in pieces:
                size += len(piece)
                digest.update(piece)
                left = memoryview(piece)
                while left:
                    left = left[os.write(handle, left[:CHUNK]) :]
            os.fsync(handle)
        finally:
            os.close(handle)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _check(path: Path, expected: dict[str, Any]) -> None:
    try:
        # The size first: it costs nothing, and it says more of a torn file than a hash does.
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise ValueError(
                f"{path}: expected {expected['bytes']} bytes, found {size}: {_way_out(path)}"
            )
        digest = _digest(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: missing, {MANIFEST} lists it: {_way_out(path)}") from None
    if digest != expected["sha256"]:
        raise ValueError(
            f"{path}: expected sha256 {expected['sha256']}, found {digest}: {_way_out(path)}"
        )


def _way_out(path: Path) -> str:
    """What to do about a file that is not as it was saved."""
    return (
        f"it changed after it was saved; if that was you, remove {path.with_name(MANIFEST)} "
        f"or call checkpoint.load({str(path.parent)!r}, verify=False)"
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(files: dict[str, dict[str, Any]]) -> bytes:
    """The bytes of MANIFEST.json: one spelling only, closed by a hash of the rest."""
    content: dict[str, Any] = {"files": files, "version": 1}
    content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps(content, indent=1).encode() + b"\n"


def _make(folder: Path) -> None:
    """`mkdir -p` whose folders outlive a loss of power."""
    if folder.is_dir():
        return
    _make(folder.parent)
    # Another process may have made it a moment ago.
    with suppress(FileExistsError):
        os.mkdir(folder)
    disk.sync(folder.parent)


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold `folder` and yield its handle; `BlockingIOError` where another writer holds it."""
    # The lock is on the folder itself: it follows a rename, and there is no lock file to clear
    # away.
    handle = os.open(folder, os.O_RDONLY)
    try:
        with disk.naming(folder):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    finally:
        os.close(handle)
