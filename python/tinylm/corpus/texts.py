"""One file of text: inspected once, then read as documents any number of times."""

import codecs
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from tinylm.corpus import tables
from tinylm.corpus.archives import is_archive, opened
from tinylm.corpus.chats import FIELD as MESSAGES
from tinylm.corpus.chats import conversations, has_chats
from tinylm.corpus.documents import Kind, Parts, Reread
from tinylm.corpus.kinds import HEAD, NoTextError, has_rows, refuse_foreign, refuse_zeros
from tinylm.corpus.reading import TEXT, Reading
from tinylm.corpus.remembered import remembered
from tinylm.corpus.rows import begins_with_rows, rows
from tinylm.corpus.separators import USUAL, Marks, separated

# Files may be larger than memory: only a document is ever held whole.
BLOCK = 1 << 20

# What decides the split of a document: bytes of its content, or the name of its file.
Wanted = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Text:
    """A file that `inspect` has read to its end and found to be text.

    `label` is its name in the corpus. `mark` is what divides it into documents, None if it is one
    document or has rows, whose texts are in `field`. `begin` is the place of the first byte: after
    a byte order mark, which neither `size` nor the hash takes in. Places and sizes are those of
    what an archive unpacks to. `stamp` tells whether it was changed since.
    """

    path: Path
    label: bytes
    begin: int
    size: int
    sha256: str
    has_rows: bool
    mark: str | None
    notes: tuple[str, ...]
    stamp: tuple[int, ...]
    # Its rows are conversations.
    has_chats: bool = False
    field: str = TEXT

    @property
    def is_one_document(self) -> bool:
        """Whether the file is one document, whose split its name decides."""
        return not self.has_rows and self.mark is None

    @property
    def digest(self) -> str:
        """A hash of the text and of how it is divided."""
        if self.is_one_document:
            return self.sha256
        kind = "rows" if self.field == TEXT else f"rows of {self.field}"
        kind = "chats" if self.has_chats else kind
        how = kind if self.has_rows else f"mark {self.mark}"
        return hashlib.sha256(f"{self.sha256} {how}".encode()).hexdigest()

    def streams(self, wanted: Wanted) -> Iterator[tuple[bool, Parts]]:
        """Each document in parts, after whether its label or content is `wanted`.

        Of a file that is one document no part is above 1 MiB, and it is not opened before the
        first is asked for. Raises `ValueError` if the file was changed after it was inspected: its
        hash, by which shards are found again, would be that of another text.
        """
        if self.is_one_document:
            yield wanted(self.label), self.parts(self.begin, self.begin + self.size)
            return
        with self.unchanged():
            if self.mark is None:
                texts = rows(self.path, self.field)
                if self.has_chats:
                    texts = conversations(self.path)
                documents: Iterator[bytes] = (text.encode() for text in texts)
            else:
                documents = separated(blocks(self.path, self.begin), self.mark.encode())
            for data in documents:
                yield wanted(data), [data]

    def parts(self, begin: int, end: int) -> Parts:
        """The text from byte `begin` to `end`, up to 1 MiB at a time."""
        return Reread(partial(self._parts, begin, end))

    def _parts(self, begin: int, end: int) -> Iterator[bytes]:
        with self.unchanged(), opened(self.path) as file:
            skip(file, begin)
            for at in range(begin, end, BLOCK):
                yield file.read(min(BLOCK, end - at))

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


def blocks(path: Path, begin: int = 0) -> Iterator[bytes]:
    """The bytes of a file from `begin` on, 1 MiB at a time."""
    with opened(path) as file:
        skip(file, begin)
        while block := file.read(BLOCK):
            yield block


def skip(file: BinaryIO, count: int) -> None:
    """Go on to byte `count` of a file that was just opened."""
    if file.seekable():
        file.seek(count)
        return
    while count > 0:
        count -= len(file.read(min(count, BLOCK))) or count


def inspect(path: Path, label: bytes, how: Reading, sha256: str | None = None) -> Text:
    """As `_inspect`, or what was found of the very file before (`corpus.remembered`)."""

    def find() -> dict[str, Any]:
        text = asdict(_inspect(path, label, how, sha256))
        del text["path"], text["label"]
        return text

    found = remembered(path, [how.separator, how.text_field], find)
    # JSON has lists alone.
    lists = {name: tuple(found[name]) for name in ("notes", "stamp")}
    return Text(path=path, label=label, **{**found, **lists})


def _inspect(path: Path, label: bytes, how: Reading, sha256: str | None) -> Text:
    """Read a file through once: hash it, see that it is text, look for marks between documents.

    `sha256` is its hash where the caller knows it. Raises `NoTextError` for what is no text,
    `ValueError` for a damaged archive, and `OSError`. Rows are checked when they are read, because
    that takes longer.
    """
    # Before the first byte is read: a change while it is hashed counts as one after it.
    stamp = _stamp(path)
    if tables.is_table(path):
        return _table(path, label, how, stamp)
    if is_archive(path):
        # The hash is of the text: packed or not, equal texts are equal corpora.
        sha256 = None
    is_rows, separator = has_rows(path), how.separator
    mark = None if separator == "off" or is_rows else USUAL if separator == "auto" else separator
    digest = hashlib.sha256()
    # Incremental: a character may lie on the border of two blocks.
    utf8 = codecs.getincrementaldecoder("utf-8")()
    marks = None if mark is None else Marks(mark.encode())
    begin = at = _begin(path)
    for block in blocks(path, begin):
        if at == begin:
            refuse_foreign(path, block[:HEAD])
            if is_rows:
                # Further on, the error of the row names its line.
                refuse_zeros(path, block[:HEAD], at)
        if sha256 is None:
            digest.update(block)
        if not is_rows:
            refuse_zeros(path, block, at)
            _check_utf8(utf8, block, path, at)
            if at == begin:
                refuse_rows(path, block, how.text_field)
        if marks is not None:
            marks.add(block)
        at += len(block)
    if at == begin:
        raise NoTextError(f"{path}: is empty", "empty")
    if not is_rows:
        _check_utf8(utf8, b"", path, at)
    found, notes = _mark(marks, mark, separator, path)
    size, sha256 = at - begin, sha256 or digest.hexdigest()
    chats = is_rows and has_chats(path, how.text_field)
    field = how.text_field
    return Text(path, label, begin, size, sha256, is_rows, found, notes, stamp, chats, field)


def _table(path: Path, label: bytes, how: Reading, stamp: tuple[int, ...]) -> Text:
    """A parquet file, hashed as it is: its values are decoded when they are read."""
    field = how.text_field
    chats = has_chats(path, field)
    found = tables.shape(path, MESSAGES if chats else field)
    if not chats and field not in found.columns:
        raise ValueError(
            f'{path}: has no column "{field}" (its columns: {", ".join(found.columns)}): name the '
            f"one with the text in data.text_field"
        )
    if found.rows == 0:
        raise NoTextError(f"{path}: is empty", "empty")
    digest = hashlib.sha256()
    for block in blocks(path):
        digest.update(block)
    sha256 = digest.hexdigest()
    return Text(path, label, 0, found.bytes, sha256, True, None, (), stamp, chats, field)


def refuse_rows(path: Path, block: bytes, field: str = TEXT) -> None:
    """Raise `NoTextError` if a file that is not named so begins with rows of JSON."""
    if begins_with_rows(block, field):
        raise NoTextError(
            f'{path}: its lines are JSON objects with a field "text" or "messages", which are read '
            f"as rows only in a file named so: rename it to end in .jsonl",
            "rows of JSON not named .jsonl",
        )


def _begin(path: Path) -> int:
    """The place of the first byte of text: a UTF-8 byte order mark is none."""
    with opened(path) as file:
        return len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0


def _check_utf8(decoder: codecs.IncrementalDecoder, block: bytes, path: Path, at: int) -> str:
    # Bytes of a character that began in the block before; they stand before `at`.
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final=not block)
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
    # Quoted, because a named mark may be blank.
    written = mark if separator == "auto" else repr(mark)
    # A program or a paper that mentions the mark is one document.
    if separator == "auto" and not marks.at_a_border:
        return None, (
            f"{name}: {mark} {where} inside of lines and is read as text; "
            f"data.separator='{mark}' ends documents there",
        )
    blank = f"; {marks.blank:,} empty documents are left out" if marks.blank else ""
    off = "; data.separator=off reads it as text" if separator == "auto" else ""
    return mark, (f"{name}: {written} {where} and ends documents{blank}{off}",)


def unused(texts: Sequence[Text], how: Reading, source: str) -> tuple[str, ...]:
    """What to tell the user of a named separator that ends no document, or a field of no row."""
    notes, separator = [], how.separator
    if how.text_field != TEXT and not any(text.has_rows for text in texts):
        notes.append(
            f"data.source={shown(source)}: data.text_field={how.text_field} names a field of rows, "
            f"and there are none"
        )
    if separator in ("auto", "off"):
        return tuple(notes)
    named = f"data.source={shown(source)}: data.separator={separator!r}"
    if any(text.has_rows for text in texts):
        notes.append(f"{named} is read as text in rows: each row is a document already")
    files = [text for text in texts if not text.has_rows]
    if files and not any(text.mark for text in files):
        shell = r"; in a shell, $'\n\n' is two line breaks" if "\\" in separator else ""
        each = "the text is" if len(files) == 1 else f"each of {len(files):,} texts is"
        notes.append(
            f"{named} stands nowhere: {each} one document; other values are auto and off{shell}"
        )
    return tuple(notes)


def kind_of(texts: Sequence[Text], source: str) -> Kind:
    """Whether the texts of a source are conversations; `ValueError` where only some are."""
    chats = [text for text in texts if text.has_chats]
    if chats and len(chats) < len(texts):
        other = next(text for text in texts if not text.has_chats)
        raise ValueError(
            f"data.source={shown(source)} holds conversations ({shown(str(chats[0].path))}) and "
            f"text ({shown(str(other.path))}): put them into two folders and train on one at a time"
        )
    return "chat" if chats else "text"


def shown(name: str) -> str:
    """A name on one line, also one with line breaks or with bytes that are no UTF-8."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with the content of a file."""
    now = path.stat()
    # Not the hash: reading a corpus a second time only to compare would double the work.
    return now.st_ino, now.st_size, now.st_mtime_ns
