"""A corpus: the documents of a source, and how a document falls to one of its two splits."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tinylm.corpus.chats import messages_of
from tinylm.corpus.reading import Reading

Kind = Literal["text", "chat"]
# A document in parts of UTF-8 that make it together.
Parts = Iterable[bytes]


@dataclass(frozen=True, slots=True)
class Reread:
    """The parts of a document, read anew by each loop over them and not before."""

    read: Callable[[], Iterator[bytes]]

    def __iter__(self) -> Iterator[bytes]:
        return self.read()


@dataclass(frozen=True, slots=True)
class Section:
    """Documents that are read without those before them: as a rule those of one file.

    `documents` gives those of both splits in one reading, each after whether it is validation.
    A document comes in parts of UTF-8 that make it together, where a character may lie on the
    border of two: a text of one document need not fit memory. It is not read before its first part
    is asked for. `bytes` is the size of the source.
    """

    bytes: int
    # A function and not an iterator: a run reads a section several times.
    documents: Callable[[], Iterator[tuple[bool, Parts]]]
    # What filters dropped of it, where that is known of a section by itself.
    counts: Callable[[], Sequence[Any]] | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of one source.

    `fingerprint` is a hash of their content and of how it is divided into documents: equal for
    equal text, wherever it lies. `reading` are the settings. `notes` are lines for the user: what
    was left out, and how documents end. The code that opens a corpus must print them. A document
    of the kind "chat" is a conversation, as `corpus.chats` writes it.
    """

    name: str
    source: str
    files: int
    bytes: int
    fingerprint: str
    reading: Reading
    # In their order; several processes prepare different sections.
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    kind: Kind = "text"
    # What a manifest records of a download beside the settings.
    origin: Mapping[str, Any] = field(default_factory=dict)
    # What filters dropped, where there are some; the first call filters all documents.
    counts: Callable[[], Sequence[Any]] | None = None

    @property
    def val_fraction(self) -> float:
        """The share of the documents that is validation."""
        return self.reading.val_fraction

    def streams(self, validation: bool) -> Iterator[Parts]:
        """The documents of a split, each in parts of UTF-8 that make it together."""
        for section in self.sections:
            for held_out, document in section.documents():
                if held_out == validation:
                    yield document

    def train(self) -> Iterator[str]:
        """The documents to train on, one at a time."""
        return map(joined, self.streams(False))

    def validation(self) -> Iterator[str]:
        """The documents held out, one at a time."""
        return map(joined, self.streams(True))

    def training_texts(self) -> Iterator[str]:
        """What a tokenizer learns from: the documents to train on, of chats the turns' texts."""
        for document in self.train():
            if self.kind == "chat":
                yield from (turn["content"] for turn in messages_of(document))
            else:
                yield document

    def provenance(self, filtered: Sequence[Any] | None = None) -> dict[str, Any]:
        """Where the text came from and how it is cut, as a manifest records it.

        What filters dropped is part of it: pass `filtered`, or all documents are filtered that were
        not yet. The fingerprint and the fraction are attributes.
        """
        if filtered is None and self.counts is not None:
            filtered = [*map(asdict, self.counts())]
        return {
            "name": self.name,
            "source": self.source,
            "files": self.files,
            "bytes": self.bytes,
            "fingerprint": self.fingerprint,
            **self.reading.recorded(),
            # Left out for text: the manifests of before there were chats have no such key.
            **({} if self.kind == "text" else {"kind": self.kind}),
            **self.origin,
            **({} if filtered is None else {"filtered": filtered}),
        }


def joined(parts: Parts) -> str:
    """The parts of a document as one text."""
    # What was read through once is UTF-8. If it is no more, the file was changed, and that is the
    # error of whoever reads it to its end.
    return b"".join(parts).decode(errors="replace")


def in_validation(label: bytes, val_fraction: float) -> bool:
    """Whether the hash of `label`, its low 64 bits as a fraction, is below `val_fraction`.

    The high bits would serve as well, but among the files of the standard library that they hold
    out, one generated file of English prose is 70% of the text.
    """
    if val_fraction in (0, 1):
        # Without the hash, which takes as long as a sixth of encoding.
        return val_fraction == 1
    # SHA-256, because Python's own `hash` of bytes changes from process to process.
    number = int.from_bytes(hashlib.sha256(label).digest()[-8:], "big")
    return number < val_fraction * 2**64
