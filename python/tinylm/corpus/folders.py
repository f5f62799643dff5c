"""Folders of text files, the standard library among them.

Nothing is left out in silence: `Corpus.notes` counts the files that are no text, by reason and
with an example of each.
"""

import errno
import hashlib
import os
import stat
import sysconfig
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from tinylm.corpus.documents import Corpus
from tinylm.corpus.kinds import NoTextError
from tinylm.corpus.reading import Reading
from tinylm.corpus.remembered import order
from tinylm.corpus.splits import split
from tinylm.corpus.texts import Text, inspect, kind_of, shown, unused


class Left:
    """The files that are left out: their number per reason, and one example of each."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: dict[str, list[Path]] = {}

    def add(self, path: Path, reason: str) -> None:
        """Leave out `path`."""
        self._found.setdefault(reason, []).append(path)

    def __str__(self) -> str:
        """`3 left out: 2 hidden (.git), 1 .gz data (a.gz)`, or nothing."""
        if not self._found:
            return ""
        # By name: the order in which a disk lists files must not show.
        parts = [
            f"{len(paths):,} {reason} ({shown(str(min(paths).relative_to(self._root)))})"
            for reason, paths in sorted(self._found.items())
        ]
        return f"{sum(map(len, self._found.values())):,} left out: {', '.join(parts)}"


def folder(root: Path, how: Reading) -> Corpus:
    """The visible text files below `root`; `ValueError` if there are none."""
    left = Left(root)
    paths = _walk(root, left)
    texts = _inspect(root, paths, how, left)
    if not texts:
        problem = f"data.source={shown(str(root))} holds no text file"
        raise ValueError(f"{problem}; {left}" if str(left) else problem)
    corpus = _of_texts(root.resolve().name, str(root), texts, how)
    taken = f"data.source={shown(str(root))}: {len(texts):,} files taken"
    summary = f"{taken}, {left}" if str(left) else taken
    return replace(corpus, notes=(summary, *corpus.notes))


def files(root: Path, paths: list[Path], name: str, source: str, how: Reading) -> Corpus:
    """These files below `root`; `ValueError` if none is text."""
    left = Left(root)
    texts = _inspect(root, paths, how, left)
    if not texts:
        raise ValueError(f"data.source={source} holds no text file; {left}")
    corpus = _of_texts(name, source, texts, how)
    return replace(corpus, notes=(f"{source}: {left}", *corpus.notes)) if str(left) else corpus


def standard_library(how: Reading) -> Corpus:
    """The `.py` files of the standard library, without tests, installed packages and tables."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings"}
    # A standard library is more than its sources; only of a source is it news that it is left out.
    left = Left(root)
    paths = [path for path in _walk(root, Left(root), skipped) if path.suffix == ".py"]
    texts = _inspect(root, paths, how, left)
    if not texts:
        raise FileNotFoundError(
            errno.ENOENT,
            "this Python has no library sources: name a text with data.source=FILE",
            str(root),
        )
    corpus = _of_texts("stdlib", "stdlib", texts, how)
    return replace(corpus, notes=(f"stdlib: {left}", *corpus.notes)) if str(left) else corpus


def _walk(root: Path, left: Left, skipped: Collection[str] = ()) -> list[Path]:
    """Every visible file below `root` that is not empty, by relative path."""
    found = []

    def failed(error: OSError) -> None:
        left.add(Path(str(error.filename)), "unreadable folders")

    # By default `os.walk` skips a folder that it cannot list, in silence: `failed` counts it.
    for place, folders, names in os.walk(root, onerror=failed):
        home = Path(place)
        for name in [name for name in folders if name not in skipped]:
            if name[0] == ".":
                left.add(home / name, "hidden")
            elif (home / name).is_symlink():
                # A link may lead above itself, and walking would never end.
                left.add(home / name, "linked folders")
        # Pruned in place: an installed torch has more files than the rest of the tree.
        folders[:] = [name for name in folders if name not in skipped and name[0] != "."]
        for name in names:
            reason = "hidden" if name[0] == "." else _problem(home / name)
            if reason is None:
                found.append(home / name)
            else:
                left.add(home / name, reason)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _problem(path: Path) -> str | None:
    """Why `path` cannot be read as text; None if it can."""
    try:
        entry = path.stat()
    except OSError:
        return "broken links" if path.is_symlink() else "unreadable"
    if not stat.S_ISREG(entry.st_mode):
        return "pipes or devices"
    return None if entry.st_size else "empty"


def _inspect(root: Path, paths: list[Path], how: Reading, left: Left) -> list[Text]:
    """Those of the files that are text."""
    texts: dict[int, Text] = {}
    for number in order(len(paths)):
        path = paths[number]
        # By bytes: a name need not be UTF-8, and the hash that chooses its split needs no letters.
        label = os.fsencode(path.relative_to(root).as_posix())
        try:
            texts[number] = inspect(path, label, how)
        except NoTextError as error:
            left.add(path, error.reason)
        except OSError:
            left.add(path, "unreadable")
    return [texts[number] for number in sorted(texts)]


def _of_texts(name: str, source: str, texts: list[Text], how: Reading) -> Corpus:
    digest = hashlib.sha256()
    for text in texts:
        # A zero byte ends the name, because no name holds one: two folders cannot give equal bytes.
        digest.update(text.label + b"\0" + bytes.fromhex(text.digest))
    sections, note = split(texts, how.val_fraction, source)
    notes = [*_first_of_each(texts), *unused(texts, how, source)]
    notes += [note] if note else []
    size, kind = sum(text.size for text in texts), kind_of(texts, source)
    fingerprint, files = digest.hexdigest(), len(texts)
    return Corpus(name, source, files, size, fingerprint, how, sections, tuple(notes), kind)


def _first_of_each(texts: list[Text]) -> list[str]:
    """The notes on marks of the first file that has one, and in how many others there is one."""
    noted = [text for text in texts if text.notes]
    if len(noted) < 2:
        return [note for text in noted for note in text.notes]
    return [f"{noted[0].notes[0]} ({len(noted) - 1:,} more files have it)"]
