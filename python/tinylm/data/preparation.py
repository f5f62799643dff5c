"""A corpus and a tokenizer to a folder of shards, once: `prepare`."""

import errno
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm import disk, terminal
from tinylm.corpus import Corpus, Kind
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
    with `FileExistsError`. An interrupted run leaves no manifest, and the next one starts anew.
    A corpus with `val_fraction=1` leaves `train` empty.

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
        splits = {}
        for split, documents in (("train", corpus.train()), ("val", corpus.validation())):
            writer = SplitWriter(folder, manifest, split)
            progress = Progress(split, corpus.bytes)
            splits[split] = _write(writer, progress, documents, tokenizer, corpus.kind)
            if splits[split].documents == 0 and (split, corpus.val_fraction) != ("train", 1):
                raise ValueError(
                    f"data.val_fraction={corpus.val_fraction} leaves no document of "
                    f"data.source={corpus.source} in {split}: change the fraction or add text"
                )
        # The name alone: the path of a command says nothing about the shards.
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        manifest = replace(manifest, splits=splits, source=corpus.provenance(), command=command)
        manifest.save(folder)
        return manifest


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
    documents: Iterator[str],
    tokenizer: "Tokenizer",
    kind: Kind,
) -> Split:
    n_bytes = n_tokens = 0
    for texts, size in _batches(documents):
        if kind == "chat":
            # The marks are no text, and neither is the JSON around a turn's words.
            ids, offsets, size = chat.encode_documents(tokenizer, texts)
        else:
            ids, offsets = tokenizer.encode_batch(texts, special="text")
        writer.add(ids, offsets)
        n_bytes += size
        n_tokens += len(ids)
        progress.show(n_bytes, n_tokens)
    progress.end()
    return writer.finish(n_bytes)


def _batches(documents: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """(texts, their bytes in UTF-8), a few MiB at a time."""
    texts: list[str] = []
    size = 0
    for text in documents:
        texts.append(text)
        # `isascii` is a flag of the string; encoding only to count would copy every text.
        size += len(text) if text.isascii() else len(text.encode())
        if size >= BATCH_BYTES or len(texts) >= BATCH_DOCUMENTS:
            yield texts, size
            texts, size = [], 0
    if texts:
        yield texts, size


class Progress:
    """One live line on standard error, when that is a terminal."""

    def __init__(self, split: str, total: int) -> None:
        self._split = split
        self._total = total
        self._begin = time.perf_counter()
        self._live = terminal.watched()

    def show(self, n_bytes: int, n_tokens: int) -> None:
        """Replace the line by the current numbers; `total` bytes are in all splits together."""
        if self._live:
            rate = n_bytes / max(time.perf_counter() - self._begin, 1e-9)
            line = (
                f"prepare {self._split}: {n_bytes / 1e6:.1f} of {self._total / 1e6:.1f} MB, "
                f"{n_tokens:,} tokens, {rate / 1e6:.1f} MB/s"
            )
            terminal.draw(f"\r\x1b[K{line}")

    def end(self) -> None:
        """Leave the last line as it is."""
        if self._live:
            terminal.draw("\n")
