"""Small files that are on disk whole or not at all."""

import os
from pathlib import Path


def replace(path: str | os.PathLike[str], data: bytes) -> None:
    """Put `data` in the place of the file `path`; a reader sees the old bytes or the new ones.

    Written under a temporary name, fsynced, renamed, and the folder fsynced: a crash or a loss of
    power at any instant leaves one of the two, whole. The folder must exist. Raises `OSError`.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the entries of a folder to the disk: a rename outlives a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
