"""The compiled half of TinyLM; checked against the binary by `mypy.stubtest`."""

import os
from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Rows",
    "ShardWriter",
    "Stream",
    "Tokens",
    "__version__",
    "build_profile",
    "xxh3_64",
]

__version__: str
build_profile: str

# The dataloader

@final
class ShardWriter:
    """Documents to shards."""

    def __new__(
        cls,
        folder: str | os.PathLike[str],
        *,
        split: str,
        vocab_size: int,
        eos_id: int,
        shard_tokens: int,
        tokenizer_sha256: bytes,
    ) -> ShardWriter: ...
    def add(self, ids: NDArray[np.uint32], offsets: NDArray[np.int64]) -> None:
        """Append the documents `ids[offsets[k]:offsets[k + 1]]`, each ended by eos."""

    def finish(self) -> list[tuple[str, int, int, int, list[int], list[int]]]:
        """(name, tokens, documents, header hash, block hashes, hashes of the lengths) a shard."""

@final
class Tokens:
    """Shards, as (path, tokens, header hash, block hashes), read as one array."""

    def __new__(
        cls, shards: Sequence[tuple[os.PathLike[str], int, int, list[int]]], itemsize: int
    ) -> Tokens: ...
    @property
    def n_tokens(self) -> int: ...
    def read(self, start: int, n: int) -> NDArray[Any]:
        """Tokens `start` to `start + n` as uint16 or uint32."""

    def verify(self, shard: int, block: int) -> None:
        """Read and hash one block."""

@final
class Rows:
    """The rows of a dataset in their order."""

    def __new__(
        cls,
        tokens: Tokens,
        *,
        order: str,
        seed: int,
        context_length: int,
        stride: int,
        mask_after: int | None,
    ) -> Rows: ...
    @property
    def n_rows(self) -> int: ...
    def start(self, epoch: int, i: int) -> int:
        """The token at which row `i` of `epoch` begins."""

    def row(self, epoch: int, i: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(tokens[T], targets[T]) of one row."""

    def stream(
        self,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        first_row: int,
        end_row: int | None,
        threads: int,
        prefetch: int,
        dtype: str,
    ) -> Stream:
        """Start the threads that make the batches from `first_row` on."""

@final
class Stream:
    """Batches made ahead by threads."""

    def next(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """The next (tokens[B, T], targets[B, T]); None at the end."""

    def close(self) -> None:
        """End the threads."""

def xxh3_64(data: bytes) -> int:
    """The hash of one block, as the manifest holds it."""
