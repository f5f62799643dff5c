"""Folders of text files, the standard library among them: one document per file."""

import errno
import hashlib
import os
import sysconfig
from collections.abc import Collection, Iterator
from pathlib import Path

from tinylm.corpus.documents import Corpus, decode, in_validation


def _is_text(path: Path) -> bool:
    """Binary formats have a zero byte early on; text has none."""
    with path.open("rb") as file:
        return b"\0" not in file.read(8192)


def _texts(root: Path) -> list[Path]:
    """Every visible text file below `root`, by relative path."""
    return [path for path in _walk(root, skipped=()) if _is_text(path)]


def _walk(root: Path, skipped: Collection[str]) -> list[Path]:
    """Every visible file below `root` that is not empty, by relative path."""
    found = []
    for folder, folders, names in os.walk(root):
        # Pruned in place: an installed torch has more files than the rest of the tree.
        folders[:] = [name for name in folders if name not in skipped and name[0] != "."]
        found += [Path(folder, name) for name in names if name[0] != "."]
    found = [path for path in found if path.is_file() and path.stat().st_size]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def folder(root: Path, val_fraction: float) -> Corpus:
    """The visible text files below `root`; `ValueError` if there are none."""
    files = _texts(root)
    if not files:
        raise ValueError(f"data.source={root} holds no text file")
    return _of_files(root.resolve().name, str(root), root, files, val_fraction)


def standard_library(val_fraction: float) -> Corpus:
    """The `.py` files of the standard library, without tests, installed packages and tables."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings"}
    files = [path for path in _walk(root, skipped) if path.suffix == ".py"]
    if not files:
        raise FileNotFoundError(
            errno.ENOENT,
            "this Python has no library sources: name a text with data.source=FILE",
            str(root),
        )
    return _of_files("stdlib", "stdlib", root, files, val_fraction)


def _of_files(name: str, source: str, root: Path, files: list[Path], val_fraction: float) -> Corpus:
    """One document per file."""
    labels = {path: path.relative_to(root).as_posix().encode() for path in files}
    held_out = {path for path in files if in_validation(labels[path], val_fraction)}
    rest = len(files) - len(held_out)
    for split, left in (("validation", len(held_out)), ("training", rest or val_fraction == 1)):
        if not left:
            raise ValueError(
                f"data.val_fraction={val_fraction} leaves no {split} text in the {len(files)} "
                f"files of data.source={source}: change the fraction or add files"
            )
    digest = hashlib.sha256()
    size = 0
    for path in files:
        content = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                content.update(piece)
                size += len(piece)
        digest.update(labels[path] + b"\0" + content.digest())

    def documents(validation: bool) -> Iterator[str]:
        for path in files:
            if (path in held_out) == validation:
                yield decode(path.read_bytes(), path)

    return Corpus(name, source, len(files), size, digest.hexdigest(), val_fraction, documents)
