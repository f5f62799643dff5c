"""A corpus and a tokenizer to a folder of shards, once: `prepare`."""

import errno
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm import disk, terminal
from tinylm.corpus import Corpus, Kind
from tinylm.corpus import open as open_corpus
from tinylm.data.manifest import NAME, Manifest, Split
from tinylm.data.shards import Dataset, SplitWriter, empty_manifest, remove_leftovers
from tinylm.tokenizer import chat

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Text handed to the tokenizer at once: enough for all its threads, little beside the shards.
BATCH_BYTES = 4 << 20
BATCH_DOCUMENTS = 4096

# Versions before the locks left their unfinished manifest under this name.
_OLD_PART = f"{NAME}.part"
_OURS = re.compile(rf"[A-Za-z0-9_]+-\d{{5}}\.(bin|doc)(\.part)?|{re.escape(NAME)}(\.part)?")


def prepare(corpus: Corpus, tokenizer: "Tokenizer", folder: str | Path) -> Manifest:
    """Text to the splits `train` and `val` in `folder`.

    Special tokens in the text are text; every document ends with eos. Of a chat corpus the turns
    stand between the tokenizer's marks (`tokenizer.chat`). A folder that holds this
    very text, tokenizer and fraction is used as it is; one that holds anything else is refused
    with `FileExistsError`. A run that fails or is interrupted takes its files away; what a killed
    one leaves has no manifest, and the next run starts anew. A corpus with `val_fraction=1` leaves
    `train` empty, one with 0 `val`.

    Memory is a few dozen megabytes beside the tokenizer, also for a text of one document: it is
    encoded in parts, by all cores, with the same ids as in the whole. A document between marks or
    in a row is held whole, and so is each with a tokenizer whose `chunks` are whole texts.

    While another process prepares the same folder, this one says so on standard error, waits, and
    then uses what the other has made. Raises `BlockingIOError` if this very thread has an open
    `ShardWriter` in the folder, for which it would wait for ever.
    """
    folder = Path(folder)
    if (folder / NAME).exists():
        # Without the lock: a manifest is written last, so what it names is finished.
        return _reuse(folder, corpus, tokenizer)
    # Before the folder is made: a tokenizer without eos must leave nothing behind.
    manifest = empty_manifest(tokenizer)
    _make(folder)
    with disk.Lock(folder, advice="close its writer first", wait=True):
        if (folder / NAME).exists():
            # Again, under the lock: the process that this one waited for may have made it.
            return _reuse(folder, corpus, tokenizer)
        disk.remove_parts(folder)
        (folder / _OLD_PART).unlink(missing_ok=True)
        remove_leftovers(folder)
        try:
            splits = _write_splits(corpus, tokenizer, folder, manifest)
        except BaseException:
            # Ctrl-C too: shards without a manifest are of no use to anybody.
            remove_leftovers(folder)
            raise
        # The name alone: the path of a command says nothing about the shards.
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        manifest = replace(manifest, splits=splits, source=corpus.provenance(), command=command)
        manifest.save(folder)
        return manifest


def encode_file(
    path: str | PathLike[str],
    folder: str | Path,
    tokenizer: "Tokenizer",
    *,
    separator: str = "auto",
) -> Manifest:
    """A text file, a `.jsonl` or a folder of both to the split `train` in `folder`, all of it.

    As `prepare` with nothing held out: documents, memory, errors and interrupts are the same.
    """
    text = open_corpus(os.fspath(path), val_fraction=0, separator=separator)
    return prepare(text, tokenizer, folder)


def _write_splits(
    corpus: Corpus, tokenizer: "Tokenizer", folder: Path, manifest: Manifest
) -> dict[str, Split]:
    splits = {}
    for split in ("train", "val"):
        writer = SplitWriter(folder, manifest, split)
        progress = Progress(split, corpus.bytes)
        documents = corpus.streams(split == "val")
        splits[split] = _write(writer, progress, documents, tokenizer, corpus.kind)
        may_be_empty = (split, corpus.val_fraction) in (("train", 1), ("val", 0))
        if splits[split].documents == 0 and not may_be_empty:
            raise ValueError(
                f"data.val_fraction={corpus.val_fraction} leaves no document of "
                f"data.source={corpus.source} in {split}: change the fraction or add text"
            )
    return splits


def _reuse(folder: Path, corpus: Corpus, tokenizer: "Tokenizer") -> Manifest:
    manifest = Manifest.load(folder)
    source = corpus.provenance()
    # The source may be another path: equal text gives equal shards.
    for name in ("fingerprint", "val_fraction"):
        if manifest.source.get(name) != source[name]:
            found, wanted = manifest.source.get(name), source[name]
            raise _occupied(folder, f"shards of another text ({name} {found}, not {wanted})")
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise _occupied(folder, "shards of another tokenizer")
    # Opening checks the files' sizes and headers: shards that are damaged are not used again.
    for split in ("train", "val"):
        Dataset(folder, manifest, split)
    return manifest


def _make(folder: Path) -> None:
    """Make the folder, unless it is there and holds something that is not ours to remove."""
    folder.mkdir(parents=True, exist_ok=True)
    # Sorted: the file that an error names must not depend on the disk.
    for path in sorted(folder.iterdir()):
        if not (_OURS.fullmatch(path.name) or disk.is_leftover(path)):
            raise _occupied(folder, f"{path.name}, which is no shard")


def _occupied(folder: Path, content: str) -> FileExistsError:
    problem = f"the folder holds {content}: name another data.folder or remove it"
    return FileExistsError(errno.EEXIST, problem, str(folder))


def _write(
    writer: SplitWriter,
    progress: "Progress",
    documents: Iterator[Iterable[str]],
    tokenizer: "Tokenizer",
    kind: Kind,
) -> Split:
    for batch in _batches(documents):
        if not isinstance(batch, list):
            for chunk in tokenizer.chunks(batch, special="text", size=BATCH_BYTES):
                # A batch of one text, because a batch is encoded by all cores.
                ids, _ = tokenizer.encode_batch([chunk], special="text")
                writer.add_part(ids)
                progress.add(len(chunk), len(ids))
            writer.end_document()
            continue
        if kind == "chat":
            # The marks are no text, and neither is the JSON around a turn's words.
            ids, offsets, size = chat.encode_documents(tokenizer, batch)
        else:
            ids, offsets = tokenizer.encode_batch(batch, special="text")
            size = sum(map(_size, batch))
        writer.add(ids, offsets)
        progress.add(size, len(ids))
    return writer.finish(progress.end())


def _batches(documents: Iterable[Iterable[str]]) -> Iterator[list[str] | Iterator[str]]:
    """Some texts of a few MiB together, or the parts of one that is longer."""
    texts: list[str] = []
    size = 0
    for document in documents:
        parts = iter(document)
        first, length = [], 0
        for part in parts:
            first.append(part)
            length += _size(part)
            if length >= BATCH_BYTES:
                break
        if (rest := next(parts, None)) is not None:
            if texts:
                yield texts
            texts, size = [], 0
            yield chain(first, [rest], parts)
            continue
        texts.append("".join(first))
        size += length
        if size >= BATCH_BYTES or len(texts) >= BATCH_DOCUMENTS:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def _size(text: str) -> int:
    """The bytes of a text in UTF-8."""
    # `isascii` is a flag of the string; encoding only to count would copy every text.
    return len(text) if text.isascii() else len(text.encode())


class Progress:
    """One live line on standard error, when that is a terminal."""

    def __init__(self, split: str, total: int) -> None:
        self._split = split
        self._total = total
        self._begin = time.perf_counter()
        self._live = terminal.watched()
        self._bytes = self._tokens = 0

    def add(self, n_bytes: int, n_tokens: int) -> None:
        """Count on, and replace the line; `total` bytes are in all splits together."""
        self._bytes += n_bytes
        self._tokens += n_tokens
        if self._live:
            n_bytes, n_tokens = self._bytes, self._tokens
            rate = n_bytes / max(time.perf_counter() - self._begin, 1e-9)
            line = (
                f"prepare {self._split}: {n_bytes / 1e6:.1f} of {self._total / 1e6:.1f} MB, "
                f"{n_tokens:,} tokens, {rate / 1e6:.1f} MB/s"
            )
            terminal.draw(f"\r\x1b[K{line}")

    def end(self) -> int:
        """Leave the last line as it is; the bytes of all texts."""
        if self._live:
            terminal.draw("\n")
        return self._bytes
