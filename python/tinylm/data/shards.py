"""Documents of token ids to a folder of shards, and such a folder to one array of tokens."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from tinylm import _rust, disk
from tinylm.corpus import Kind
from tinylm.data.manifest import NAME, Manifest, Shard, Split

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# As llm.c and the data sets made for it cut theirs: 200 MB of uint16.
SHARD_TOKENS = 100_000_000
BLOCK_BYTES = _rust.BLOCK_BYTES
Ids = Sequence[int] | NDArray[Any]


class SplitWriter:
    """The `.bin` and `.doc` files of one split, of the vocabulary that `manifest` names.

    Writes no manifest. The caller holds the folder's lock.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, split: str, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        # It becomes part of file names, which a manifest checks when it is read.
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise ValueError(f"split {split!r} must consist of letters, digits and _")
        if manifest.eos_id is None:
            raise ValueError(f"{folder}: documents end with an eos, and this vocabulary has none")
        # Of this split alone: another may be finished, and the manifest names its files.
        remove_leftovers(folder, split)
        self._rust = _rust.ShardWriter(
            folder,
            split=split,
            vocab_size=manifest.vocab_size,
            eos_id=manifest.eos_id,
            shard_tokens=shard_tokens,
            tokenizer_sha256=bytes.fromhex(manifest.tokenizer_sha256),
        )

    def add(self, ids: NDArray[np.uint32], offsets: NDArray[np.int64]) -> None:
        """Append the documents `ids[offsets[k]:offsets[k + 1]]`, each ended by eos."""
        self._rust.add(ids, offsets)

    def add_part(self, ids: NDArray[np.uint32]) -> None:
        """Append ids to the document in work, or begin one with them; `end_document` adds eos."""
        self._rust.add_part(ids)

    def end_document(self) -> None:
        """End the document in work; without a part it is empty."""
        self._rust.end_document()

    def finish(self, n_bytes: int | None) -> Split:
        """Finish the files, which stand for `n_bytes` of text."""
        shards = [
            Shard(name, tokens, documents, _hex(header), [*map(_hex, blocks)], [*map(_hex, sums)])
            for name, tokens, documents, header, blocks, sums in self._rust.finish()
        ]
        tokens = sum(shard.tokens for shard in shards)
        return Split(tokens, sum(shard.documents for shard in shards), n_bytes, shards)


def remove_leftovers(folder: Path, split: str = "[A-Za-z0-9_]+") -> None:
    """Remove the files of a split that an interrupted run left in `folder`."""
    pattern = re.compile(rf"{split}-\d{{5}}\.(bin|doc)(\.part)?")
    for path in folder.iterdir():
        if pattern.fullmatch(path.name):
            path.unlink()


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Documents of ids to one split of a folder, which is a dataset once `close` returns.

    Of the tokenizer it needs `vocab_size`, `eos_id`, `sha256` and, where `add` has to count text,
    `decode_bytes`. Ids at or above `vocab_size` are refused.

    A context manager: leaving it by an exception writes no manifest, and the next writer of the
    split removes the remains. Until it is closed or left, it holds the folder's lock: while
    another writer does, `BlockingIOError` says who it is.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        tokenizer: "Tokenizer",
        split: str = "train",
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self._folder = Path(folder)
        self._tokenizer = tokenizer
        self._split = split
        self._bytes = 0
        self._closed: Manifest | None = None
        # Before the folder is made: a tokenizer without eos must leave nothing behind.
        manifest = empty_manifest(tokenizer)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = disk.Lock(self._folder, advice="close that writer, or name another folder")
        try:
            disk.remove_parts(self._folder)
            self._manifest = self._existing() or manifest
            self._writer = SplitWriter(self._folder, manifest, split, shard_tokens)
        except BaseException:
            self._lock.release()
            raise

    def _existing(self) -> Manifest | None:
        """The manifest that this split joins, if the folder has one."""
        if not (self._folder / NAME).exists():
            return None
        manifest = Manifest.load(self._folder)
        if self._split in manifest.splits:
            raise ValueError(f"{self._folder} holds a split {self._split!r} already")
        if manifest.tokenizer_sha256 != self._tokenizer.sha256:
            raise ValueError(f"{self._folder} holds shards of another tokenizer")
        return manifest

    def add(self, document_ids: Ids, *, n_bytes: int | None = None) -> None:
        """Append one document and eos; `n_bytes` of text, decoded to count them when not given."""
        # Checked here and in Rust: a cast to uint32 would turn -1 into a large id.
        ids = np.asarray(document_ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError("a document must be a sequence of integers")
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self._tokenizer.vocab_size:
            raise ValueError(
                f"ids {ids.min()} to {ids.max()} of a document must be between 0 and "
                f"vocab_size - 1 = {self._tokenizer.vocab_size - 1}"
            )
        ids = np.ascontiguousarray(ids, dtype=np.uint32)
        self._writer.add(ids, np.array([0, ids.size]))
        self._bytes += len(self._tokenizer.decode_bytes(ids)) if n_bytes is None else n_bytes

    def close(self) -> Manifest:
        """Finish the last shard and write the manifest; a second call returns the same one."""
        # Only a split that finished gets here: `__exit__` passes over an exception.
        if self._closed is None:
            split = self._writer.finish(self._bytes)
            splits = {**self._manifest.splits, self._split: split}
            self._closed = replace(self._manifest, splits=splits)
            # Saved before the lock is released: the next writer must find this split.
            self._closed.save(self._folder)
            self._lock.release()
        return self._closed

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self._lock.release()


def empty_manifest(tokenizer: "Tokenizer") -> Manifest:
    """A manifest without a split; `ValueError` if the tokenizer has no eos token."""
    if tokenizer.eos_id is None:
        known = ", ".join(map(repr, tokenizer.special_tokens)) or "none"
        raise ValueError(
            "the tokenizer has no end-of-text token, which must end every document: name one with "
            f"tokenizer.eos; its special tokens: {known}"
        )
    return Manifest(
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        splits={},
    )


class Dataset:
    """One split of a folder of shards as one array of tokens; `Dataset.open` makes it.

    Sizes and headers are checked when it is opened, each 1 MiB block when it is first read.
    Picklable: it is opened again in the other process.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        part = manifest.splits.get(split)
        if part is None:
            names = ", ".join(sorted(manifest.splits))
            raise ValueError(f"{folder} has no split {split!r}; it has {names}")
        self.folder = folder
        self.manifest = manifest
        self.split = split
        self.n_tokens = part.tokens
        self.n_documents = part.documents
        self.n_bytes = part.bytes
        self.fingerprint = manifest.fingerprint(split)
        self.tokenizer_sha256 = manifest.tokenizer_sha256
        self.vocab_size = manifest.vocab_size
        self.eos_id = manifest.eos_id
        self.shards = part.shards
        # What the documents are, "text" or "chat". Shards of before there were chats do not say.
        self.kind: str = manifest.source.get("kind", "text")
        if self.kind not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise ValueError(
                f"{folder / NAME}: source.kind={self.kind!r}: this TinyLM knows {known}"
            )
        entries = [
            (
                folder / (shard.file or shard.name),
                shard.tokens,
                shard.payload,
                None if shard.header is None else _number(shard.header),
                [*map(_number, shard.blocks)],
            )
            for shard in part.shards
        ]
        # Opens every file: one that is missing fails now, not in the middle of an epoch.
        self.tokens = _rust.Tokens(entries, manifest.itemsize)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, split: str = "train") -> "Dataset":
        """The split `split` of the folder `path`; ValueError when a file is damaged."""
        return cls(Path(path), Manifest.load(path), split)

    def __reduce__(self) -> tuple[Any, ...]:
        # Handles and mapped files belong to this process.
        return Dataset, (self.folder, self.manifest, self.split)

    def read(self, start: int, n: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """Tokens `start` to `start + n` -> array[n] of uint16 or uint32, as they lie on disk."""
        if start < 0 or n < 0 or start + n > self.n_tokens:
            raise ValueError(f"tokens {start} to {start + n} of a dataset of {self.n_tokens}")
        return self.tokens.read(start, n)

    def lengths(self) -> NDArray[np.uint32]:
        """Tokens of each document, eos included -> array[n_documents], checked."""
        # Four bytes for each document: small beside the tokens, so it is read whole.
        # An empty part first, so that a split without shards gives an array of the right dtype.
        return np.concatenate([np.empty(0, np.uint32), *self.lengths_by_shard()])

    def lengths_by_shard(self) -> Iterator[NDArray[np.uint32]]:
        """As `lengths`, those of one shard at a time."""
        return (np.frombuffer(self._doc(shard), dtype="<u4") for shard in self.shards)

    def _doc(self, shard: Shard) -> bytes:
        path = (self.folder / shard.name).with_suffix(".doc")
        data = path.read_bytes()
        if len(data) != 4 * shard.documents:
            at = min(len(data), 4 * shard.documents)
            raise ValueError(
                f"{path}: corrupt at byte {at}: expected a file of {4 * shard.documents} bytes, "
                f"found {len(data)}"
            )
        for number, expected in enumerate(shard.lengths):
            at = number * BLOCK_BYTES
            found = _hex(_rust.xxh3_64(data[at : at + BLOCK_BYTES]))
            if found != expected:
                raise ValueError(
                    f"{path}: corrupt at byte {at}: block {number}: expected xxh3 {expected}, "
                    f"found {found}"
                )
        return data

    def documents(self) -> Iterator[NDArray[Any]]:
        """Each document's ids, without eos."""
        start = 0
        for length in self.lengths().tolist():
            ids = self.read(start, length)
            # Only in files of others may the last document have no eos.
            yield ids[:-1] if int(ids[-1]) == self.eos_id else ids
            start += length

    def verify(self) -> Iterator[int]:
        """Check every hash, block by block; yields the tokens checked so far."""
        done = 0
        per_block = BLOCK_BYTES // self.manifest.itemsize
        for number, shard in enumerate(self.shards):
            self._doc(shard)
            for block in range(len(shard.blocks)):
                self.tokens.verify(number, block)
                yield done + min(shard.tokens, (block + 1) * per_block)
            done += shard.tokens
        # Each file may be right by its hash and still belong to another dataset.
        if int(self.lengths().sum(dtype=np.uint64)) != self.n_tokens:
            raise ValueError(f"{self.folder}: the lengths do not add up to {self.n_tokens} tokens")


def lengths_between(ends: NDArray[np.int64], fix: str) -> NDArray[np.uint32]:
    """Tokens of each document, from where they end, as the `.doc` files hold them.

    Raises ValueError, with the `fix` at its end, for a document of 2^32 tokens or more.
    """
    lengths = np.diff(ends, prepend=0)
    most = np.iinfo(np.uint32).max
    if lengths.size and int(lengths.max()) > most:
        raise ValueError(
            f"document {int(lengths.argmax()):,} has {int(lengths.max()):,} tokens, more than "
            f"{most:,}: {fix}"
        )
    return lengths.astype("<u4")


def _hex(number: int) -> str:
    # Text, because many readers of JSON round numbers of 64 bits.
    return f"{number:016x}"


def _number(digits: str) -> int:
    return int(digits, 16)
