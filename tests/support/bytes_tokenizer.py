"""A tokenizer of bytes with the documented interface, and datasets, for tests of what follows."""

import hashlib
from typing import Any

import numpy as np

from tinylm.data import Dataset, ShardWriter

VOCAB = 60_000


class Bytes:
    """Ids 0..255 are bytes, the last id is eos; ids between are unused."""

    def __init__(self, vocab_size: int = 257) -> None:
        self.vocab_size = vocab_size
        self.eos_id: int | None = vocab_size - 1
        self.special_tokens: dict[str, int] = {}
        self.sha256 = hashlib.sha256(f"bytes {vocab_size}".encode()).hexdigest()

    def encode_batch(self, texts: list[bytes], *, special: Any = "raise"):
        assert special == "text"
        pieces = [np.frombuffer(text, np.uint8) for text in texts]
        offsets = np.cumsum([0, *(piece.size for piece in pieces)], dtype=np.int64)
        return np.concatenate(pieces).astype(np.uint32), offsets

    def decode_bytes(self, ids: Any) -> bytes:
        return bytes(id for id in np.asarray(ids).tolist() if id < 256)


def counting(folder, n_tokens):
    """A dataset whose token number k is k (modulo the vocabulary)."""
    with ShardWriter(folder, tokenizer=Bytes(VOCAB), shard_tokens=10**8) as writer:
        writer.add(np.arange(n_tokens - 1) % (VOCAB - 1), n_bytes=1)
    return Dataset.open(folder)


def take(loader, n):
    with loader:
        return [next(loader) for _ in range(n)]


def flat(batches):
    return [(batch.tokens.tolist(), batch.targets.tolist()) for batch in batches]
