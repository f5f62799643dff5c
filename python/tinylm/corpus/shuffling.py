"""The documents of a corpus in an order drawn from a seed: `data.shuffle_documents=SEED`.

A document's place is a hash of the seed and of its number in the corpus, so the order depends on
nothing else. The documents are written once to files in a temporary folder (TMPDIR), each to the
bucket that its hash falls into, and a bucket is sorted when it is read. A file that is one document
is not copied; its bucket names it, and it is read in parts.

Memory is that of one bucket: 64 MiB up to a text of 1 TiB, and beyond that a 16,384th of the text,
because there are at most 16,384 buckets.
"""

import hashlib
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tinylm import disk
from tinylm.corpus.documents import Corpus, Parts, Reread, Section

# Text of a bucket, in the mean, and the most buckets.
BUCKET = 64 << 20
MOST = 1 << 14
# What waits in memory to be written: of the most buckets each then gets 4 KiB at a time.
WAITING = 64 << 20
_HEADER = 17


@dataclass(slots=True)
class _Bucket:
    """A file of documents, and those that can be read where they are, after key and split."""

    path: Path
    large: list[tuple[bytes, bool, Parts]]


class Shuffled:
    """Sections whose documents are put into another order, in sections of their own."""

    def __init__(self, sections: Sequence[Section], seed: int) -> None:
        self._sections, self._seed = sections, seed
        self._bytes = sum(section.bytes for section in sections)
        self._number = min(MOST, max(1, -(-self._bytes // BUCKET)))
        self._lock = threading.Lock()
        self._buckets: list[_Bucket] = []

    def sections(self) -> tuple[Section, ...]:
        """One for each bucket; the first that is read makes all of them."""
        share, rest = divmod(self._bytes, self._number)
        return tuple(
            Section(share + (number < rest), partial(self._documents, number))
            for number in range(self._number)
        )

    def _documents(self, number: int) -> Iterator[tuple[bool, Parts]]:
        with self._lock:
            if not self._buckets:
                folder = tempfile.mkdtemp(prefix="tinylm-shuffle-")
                # When the corpus is no more, or the interpreter ends; also after an error.
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                self._buckets = self._write(Path(folder))
        bucket = self._buckets[number]
        for _, held_out, document in sorted(_read(bucket), key=lambda found: found[0]):
            yield held_out, document

    def _write(self, folder: Path) -> list[_Bucket]:
        """Every document to the bucket of its key."""
        buckets = [_Bucket(folder / f"{n:05}", []) for n in range(self._number)]
        waiting: list[list[bytes]] = [[] for _ in buckets]
        size = 0
        for number, (held_out, document) in enumerate(self._every()):
            key = self._key(number)
            at = int.from_bytes(key, "big") * self._number >> 64
            if isinstance(document, Reread):
                buckets[at].large.append((key, held_out, document))
                continue
            waiting[at].append(_record(key, held_out, document))
            # What Python adds to each is more than a short document.
            size += sys.getsizeof(waiting[at][-1])
            if size >= WAITING:
                _append(buckets, waiting)
                size = 0
        _append(buckets, waiting)
        return buckets

    def _every(self) -> Iterator[tuple[bool, Parts]]:
        for section in self._sections:
            yield from section.documents()

    def _key(self, number: int) -> bytes:
        """Where document `number` of the corpus goes: 64 bits; equal ones keep their order."""
        return hashlib.blake2b(f"{self._seed} {number}".encode(), digest_size=8).digest()


def _record(key: bytes, held_out: bool, document: Parts) -> bytes:
    data = b"".join(document)
    return b"".join((key, bytes([held_out]), len(data).to_bytes(8, "big"), data))


def _append(buckets: Sequence[_Bucket], waiting: Sequence[list[bytes]]) -> None:
    """Write what waits to the files of the buckets, one after another.

    None stays open, so their number has nothing to do with how many files a process may open.
    """
    for bucket, records in zip(buckets, waiting, strict=True):
        # A file also for a bucket that gets nothing: it is read like the others.
        with disk.naming(bucket.path), bucket.path.open("ab") as file:
            file.writelines(records)
        records.clear()


def _read(bucket: _Bucket) -> Iterator[tuple[bytes, bool, Parts]]:
    """Everything in a bucket, in the order in which it was put in."""
    yield from bucket.large
    with bucket.path.open("rb") as file:
        while header := file.read(_HEADER):
            size = int.from_bytes(header[9:], "big")
            yield header[:8], bool(header[8]), [file.read(size)]


def shuffled(corpus: Corpus) -> Corpus:
    """The documents in the order of the corpus' seed, if it has one."""
    seed = corpus.reading.shuffle_documents
    if seed is None:
        return corpus
    content = f"{corpus.fingerprint} shuffled {seed}"
    return replace(
        corpus,
        sections=Shuffled(corpus.sections, seed).sections(),
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
    )
