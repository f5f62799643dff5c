"""Single files: a text, whose last part is validation, or one that holds many documents."""

from collections.abc import Iterator
from pathlib import Path

from tinylm.corpus.archives import opened
from tinylm.corpus.documents import Corpus, Parts, Section
from tinylm.corpus.reading import Reading
from tinylm.corpus.splits import split
from tinylm.corpus.texts import Text, inspect, kind_of, skip, unused


def file(path: Path, name: str, source: str, how: Reading, sha256: str | None = None) -> Corpus:
    """The documents of one file; its SHA-256 is computed unless the caller knows it.

    Raises `ValueError` for a file that is no text, empty or too small to be cut.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"data.source={source} is empty")
    text = inspect(path, path.name.encode(), how, sha256)
    notes = text.notes + unused([text], how, source)
    if text.is_one_document:
        sections: tuple[Section, ...] = (_cut_in_two(text, source, how.val_fraction),)
    else:
        sections, note = split([text], how.val_fraction, source)
        notes += (note,) if note else ()
    kind = kind_of([text], source)
    return Corpus(name, source, 1, text.size, text.digest, how, sections, notes, kind)


def _cut_in_two(text: Text, source: str, val_fraction: float) -> Section:
    """The first part of a text to train on, the last to validate on."""
    begin, size, path = text.begin, text.size, text.path
    # By bytes and not by characters: the file need not be read to find the place.
    end = begin + size
    cut = _cut(path, begin + int((1 - val_fraction) * size)) if val_fraction > 0 else end
    if 0 < val_fraction < 1 and cut in (begin, end):
        raise ValueError(
            f"data.source={source} of {size} bytes is too small for "
            f"data.val_fraction={val_fraction}"
        )

    def documents() -> Iterator[tuple[bool, Parts]]:
        for validation, (first, last) in ((False, (begin, cut)), (True, (cut, end))):
            if first < last:
                yield validation, text.parts(first, last)

    return Section(size, documents)


def _cut(path: Path, at: int) -> int:
    """The start of the character that holds byte `at`."""
    with opened(path) as file:
        # A character has at most four bytes.
        first = max(0, at - 3)
        skip(file, first)
        data = file.read(at - first + 1)
    # Bytes of the form 10xxxxxx continue a character.
    while at > first and data[at - first] & 0xC0 == 0x80:
        at -= 1
    return at
