"""A corpus and a tokenizer to a folder of shards, once: `prepare`."""

import errno
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinylm import corpus
from tinylm.data.manifest import NAME, Manifest, Split
from tinylm.data.shards import Dataset, SplitWriter, Vocabulary, empty_manifest, remove_leftovers

PROCESSED = Path("data/processed")

# Text handed to the tokenizer at once: enough for all its threads, little beside the shards.
BATCH_BYTES = 4 << 20
BATCH_DOCUMENTS = 4096

_OURS = re.compile(r"[A-Za-z0-9_]+-\d{5}\.(bin|doc)(\.part)?|manifest\.json\.part")


class Encoder(Vocabulary, Protocol):
    """What `prepare` needs of a tokenizer."""

    def encode_batch(
        self, texts: list[str], *, special: Any = ...
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...


class Settings(Protocol):
    """The fields of `config.DataConfig` that say which text, where to, and how it is cut."""

    @property
    def source(self) -> str: ...
    @property
    def folder(self) -> str | None: ...
    @property
    def val_fraction(self) -> float: ...


def default_folder(data: Settings, tokenizer: Vocabulary) -> Path:
    """`data.folder`, or the folder named after the source and the tokenizer."""
    if data.folder is not None:
        return Path(data.folder)
    return PROCESSED / f"{corpus.source_name(data.source)}-{tokenizer.sha256[:8]}"


def prepare(data: Settings, tokenizer: Encoder, folder: str | Path | None = None) -> Manifest:
    """Text to the splits `train` and `val` in `folder` (default: `default_folder`).

    Special tokens in the text are text; every document ends with eos. A folder that holds this
    very text, tokenizer and fraction is used as it is; one that holds anything else is refused
    with FileExistsError. An interrupted run leaves no manifest, and the next one starts anew.
    `val_fraction=1` leaves `train` empty.
    """
    folder = default_folder(data, tokenizer) if folder is None else Path(folder)
    text = corpus.open(data.source, val_fraction=data.val_fraction)
    source = {**text.provenance(), "val_fraction": data.val_fraction}
    if (folder / NAME).exists():
        return _reuse(folder, source, tokenizer)
    _claim(folder)
    splits = {}
    for split, documents in (("train", text.train()), ("val", text.validation())):
        splits[split] = _write(folder, split, documents, tokenizer, text.bytes)
        if splits[split].documents == 0 and (split, data.val_fraction) != ("train", 1):
            raise ValueError(
                f"data.val_fraction={data.val_fraction} leaves no document of "
                f"data.source={data.source} in {split}: change the fraction or add text"
            )
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    manifest = replace(empty_manifest(tokenizer), splits=splits, source=source, command=command)
    manifest.save(folder)
    return manifest


def _reuse(folder: Path, source: dict[str, Any], tokenizer: Vocabulary) -> Manifest:
    manifest = Manifest.load(folder)
    for name in ("fingerprint", "val_fraction"):
        if manifest.source.get(name) != source[name]:
            found, wanted = manifest.source.get(name), source[name]
            raise _occupied(folder, f"shards of another text ({name} {found}, not {wanted})")
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise _occupied(folder, "shards of another tokenizer")
    for split in ("train", "val"):
        Dataset(folder, manifest, split)
    return manifest


def _claim(folder: Path) -> None:
    """Make the folder empty, unless it holds something that is not ours to remove."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if not _OURS.fullmatch(path.name):
            raise _occupied(folder, f"{path.name}, which is no shard")
    remove_leftovers(folder)


def _occupied(folder: Path, content: str) -> FileExistsError:
    problem = f"the folder holds {content}: name another data.folder or remove it"
    return FileExistsError(errno.EEXIST, problem, str(folder))


def _write(
    folder: Path, split: str, documents: Iterator[str], tokenizer: Encoder, total: int
) -> Split:
    writer = SplitWriter(folder, tokenizer, split)
    progress = Progress(split, total)
    n_bytes = n_tokens = 0
    for texts, size in _batches(documents):
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
        self._live = sys.stderr.isatty()

    def show(self, n_bytes: int, n_tokens: int) -> None:
        """Replace the line by the current numbers; `total` bytes are in all splits together."""
        if self._live:
            rate = n_bytes / max(time.perf_counter() - self._begin, 1e-9)
            line = (
                f"prepare {self._split}: {n_bytes / 1e6:.1f} of {self._total / 1e6:.1f} MB, "
                f"{n_tokens:,} tokens, {rate / 1e6:.1f} MB/s"
            )
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the last line as it is."""
        if self._live:
            print(file=sys.stderr, flush=True)
