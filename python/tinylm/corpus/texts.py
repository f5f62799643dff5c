"""One file of text: inspected once, then read as documents any number of times."""

import codecs
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinylm.corpus.documents import decode
from tinylm.corpus.kinds import HEAD, NoTextError, has_rows, refuse_foreign
from tinylm.corpus.rows import rows
from tinylm.corpus.separators import USUAL, Marks, separated

# Files may be larger than memory: only a document is ever held whole.
BLOCK = 1 << 20

# What decides the split of a document: bytes of its content, or the name of its file.
Wanted = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Text:
    """A file that `inspect` has read to its end and found to be text.

    `label` is its name in the corpus. `mark` is what divides it into documents, None if it is one
    document or has rows. `stamp` tells whether it was changed since.
    """

    path: Path
    label: bytes
    size: int
    sha256: str
    has_rows: bool
    mark: str | None
    notes: tuple[str, ...]
    stamp: tuple[int, ...]

    @property
    def is_one_document(self) -> bool:
        """Whether the file is one document, whose split its name decides."""
        return not self.has_rows and self.mark is None

    @property
    def digest(self) -> str:
        """A hash of the text and of how it is divided."""
        if self.is_one_document:
            return self.sha256
        how = "rows" if self.has_rows else f"mark {self.mark}"
        return hashlib.sha256(f"{self.sha256} {how}".encode()).hexdigest()

    def documents(self, wanted: Wanted) -> Iterator[str]:
        """The documents whose label or content is `wanted`, one at a time.

        Raises `ValueError` if the file was changed after it was inspected: its hash, by which
        shards are found again, would be that of another text.
        """
        # A file of the other split is not even opened.
        if self.is_one_document and not wanted(self.label):
            return
        with self.unchanged():
            yield from self._documents(wanted)

    def _documents(self, wanted: Wanted) -> Iterator[str]:
        if self.has_rows:
            yield from (text for text in rows(self.path) if wanted(text.encode()))
        elif self.mark is not None:
            for data in separated(blocks(self.path), self.mark.encode()):
                if wanted(data):
                    yield decode(data, self.path)
        else:
            yield decode(self.path.read_bytes(), self.path)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Raise `ValueError` at the end of the block, or in place of its error, after a change."""
        try:
            yield
        except ValueError:
            # A file that is being written may be torn anywhere: that is the cause to name.
            self._check()
            raise
        self._check()

    def _check(self) -> None:
        if _stamp(self.path) != self.stamp:
            raise ValueError(
                f"{self.path}: changed while it was being read: wait for its writer, then give "
                f"the command again"
            )


def blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, 1 MiB at a time."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def inspect(path: Path, label: bytes, separator: str, sha256: str | None = None) -> Text:
    """Read a file through once: hash it, see that it is text, look for marks between documents.

    `sha256` is its hash where the caller knows it. Raises `NoTextError` for what is no text, and
    `OSError`. Rows are checked when they are read, because that takes longer.
    """
    # Before the first byte is read: a change while it is hashed counts as one after it.
    stamp = _stamp(path)
    is_rows = has_rows(path)
    mark = None if separator == "off" or is_rows else USUAL if separator == "auto" else separator
    digest = hashlib.sha256()
    # Incremental: a character may lie on the border of two blocks.
    utf8 = codecs.getincrementaldecoder("utf-8")()
    marks = None if mark is None else Marks(mark.encode())
    at = 0
    for block in blocks(path):
        if at == 0:
            refuse_foreign(path, block[:HEAD])
        if sha256 is None:
            digest.update(block)
        if not is_rows:
            _check_utf8(utf8, block, path, at)
        if marks is not None:
            marks.add(block)
        at += len(block)
    if at == 0:
        raise NoTextError(f"{path}: is empty", "empty")
    if not is_rows:
        _check_utf8(utf8, b"", path, at)
    found, notes = _mark(marks, mark, separator, path)
    return Text(path, label, at, sha256 or digest.hexdigest(), is_rows, found, notes, stamp)


def _check_utf8(decoder: codecs.IncrementalDecoder, block: bytes, path: Path, at: int) -> None:
    # Bytes of a character that began in the block before; they stand before `at`.
    pending = len(decoder.getstate()[0])
    try:
        decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        raise NoTextError(
            f"{path}: byte {at - pending + error.start} is not UTF-8: convert the file "
            f"(iconv -t UTF-8) or leave it out",
            "not UTF-8",
        ) from None


def _mark(
    marks: Marks | None, mark: str | None, separator: str, path: Path
) -> tuple[str | None, tuple[str, ...]]:
    """The mark that divides the file, if one does, and what to tell the user of it."""
    if marks is None or mark is None or marks.count == 0:
        return None, ()
    marks.end()
    name, where = shown(str(path)), f"stands {marks.count:,} times"
    # A program or a paper that mentions the mark is one document.
    if separator == "auto" and not marks.at_a_border:
        return None, (
            f"{name}: {mark} {where} inside of lines and is read as text; "
            f"data.separator='{mark}' ends documents there",
        )
    blank = f"; {marks.blank:,} empty documents are left out" if marks.blank else ""
    off = "; data.separator=off reads it as text" if separator == "auto" else ""
    return mark, (f"{name}: {shown(mark)} {where} and ends documents{blank}{off}",)


def shown(name: str) -> str:
    """A name on one line, also one with line breaks or with bytes that are no UTF-8."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with the content of a file."""
    now = path.stat()
    # Not the hash: reading a corpus a second time only to compare would double the work.
    return now.st_ino, now.st_size, now.st_mtime_ns
