"""The compiled half of TinyLM; checked against the binary by `mypy.stubtest`."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "BLOCK_BYTES",
    "HEADER_BYTES",
    "DecodeStream",
    "KeyValues",
    "Merges",
    "Model",
    "Network",
    "Rows",
    "ShardWriter",
    "Stream",
    "TokenIds",
    "Tokenizer",
    "Tokens",
    "WordCounts",
    "__version__",
    "build_profile",
    "byte_tokens",
    "count_note",
    "every_split",
    "is_every_split",
    "join_counts",
    "merge_ids",
    "normalise",
    "read_merges",
    "read_ranks",
    "source_seed",
    "train_unigram",
    "xxh3_64",
]

__version__: str
build_profile: str

# tokenizer

@final
class Model:
    """How pieces become tokens; a tokenizer is made of it and of the tokens.

    Ids are those of the tokens; `scores` are in the order of the tokens.
    """

    @staticmethod
    def bpe(merges: list[tuple[int, int]] | None, *, whole_pieces: bool) -> Model: ...
    @staticmethod
    def char_bpe(
        merges: list[tuple[int, int]] | None,
        *,
        scores: list[float] | None = None,
        unknown: int | None = None,
        fuse_unknown: bool = False,
        byte_fallback: bool = False,
        whole_pieces: bool = False,
        prefix: str = "",
        suffix: str = "",
        frozen: list[int] | None = None,
    ) -> Model: ...
    @staticmethod
    def unigram(
        scores: list[float],
        *,
        unknown: int | None = None,
        byte_fallback: bool = False,
        float32: bool = False,
    ) -> Model: ...
    @staticmethod
    def wordpiece(*, unknown: int, prefix: str = "##", longest: int = 100) -> Model: ...

def train_unigram(
    counts: WordCounts,
    vocab_size: int,
    min_frequency: int,
    required: list[bytes] | None,
    scripts: bool,
    progress: Callable[[int, int], object] | None,
    blocked: set[bytes] | None = None,
) -> tuple[list[bytes], list[float]]: ...

@final
class Tokenizer:
    """A vocabulary with its merges, pattern and added tokens; immutable.

    Each of `added_tokens` is (content, id, special, late): a special one is guarded by `special=`,
    a late one is looked for only where no token that is not late was found.

    `stages` are normalizers and pre-tokenizers as `tinylm.tokenizer.steps` gives them, whether the
    model takes characters, bytes without a token, and (id, single_word, lstrip, rstrip) of added
    tokens. `surfaces` are how tokens look in a text and at its beginning, by their ids, and a
    character with how many of it the beginning loses.
    """

    def __new__(
        cls,
        tokens: dict[bytes, int] | TokenIds,
        model: Model,
        pattern: str,
        added_tokens: list[tuple[str, int, bool, bool]],
        stages: tuple[
            Sequence[dict[str, Any]],
            Sequence[dict[str, Any]],
            bool,
            bytes,
            list[tuple[int, bool, bool, bool]],
        ]
        | None = None,
        surfaces: tuple[list[tuple[int, bytes]], list[tuple[int, bytes]], tuple[str, int] | None]
        | None = None,
    ) -> Tokenizer: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def pattern(self) -> str: ...
    def encode(self, text: str | bytes, special: str | Iterable[str]) -> list[int]: ...
    def encode_array(
        self, text: str | bytes, special: str | Iterable[str], dtype: DTypeLike
    ) -> NDArray[np.uint32] | NDArray[np.uint16]:
        """The ids as uint32 or uint16; ValueError if the vocabulary has greater ones."""

    def encode_offsets(
        self, text: str | bytes, special: str | Iterable[str]
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids, and for each the stretch [n, 2] of `text` that it comes of."""

    def encode_batch(
        self, texts: list[str | bytes], special: str | Iterable[str], dtype: DTypeLike
    ) -> tuple[NDArray[np.uint32] | NDArray[np.uint16], NDArray[np.int64]]: ...
    def sample(
        self,
        text: str | bytes,
        special: str | Iterable[str],
        seed: int,
        alpha: float,
        n_best: int | None,
        dropout: float | None,
    ) -> list[int]:
        """The ids of a segmentation drawn with `seed`: `dropout` for a BPE, else for a Unigram."""

    def n_best(
        self, text: str | bytes, n: int, special: str | Iterable[str]
    ) -> list[tuple[float, list[int]]]:
        """The scores and ids of the `n` best segmentations by a Unigram, the best first."""

    def cut(self, text: str | bytes, special: str | Iterable[str]) -> int | None:
        """A byte offset up to which the ids of `text` do not depend on what may follow it."""

    def count(self, text: str | bytes, special: str | Iterable[str]) -> int: ...
    def decode(self, ids: Iterable[int] | NDArray[np.integer[Any]], errors: str) -> str: ...
    def decode_bytes(self, ids: Iterable[int] | NDArray[np.integer[Any]]) -> bytes: ...
    def decode_batch(
        self, rows: Iterable[Iterable[int] | NDArray[np.integer[Any]]], errors: str
    ) -> list[str]: ...

def normalise(text: str, normalizers: Sequence[dict[str, Any]]) -> str:
    """A text after some normalizers, as `tinylm.tokenizer.steps` gives them."""

def byte_tokens(vocab: dict[str, int]) -> dict[bytes, int] | None:
    """The bytes of tokens written in GPT-2's alphabet, with their ids; None if one is not."""

@final
class Merges:
    """The merges of a tokenizer.json, without an object for each."""

    @property
    def joined(self) -> bool:
        """Whether each is one string with a space between its tokens."""

    def to_list(self) -> list[Any]:
        """The list in the file."""

    def using(self, texts: Sequence[str]) -> list[str]:
        """Which of `texts` a merge takes or makes."""

    def __len__(self) -> int: ...

def read_merges(document: bytes) -> tuple[Merges, int, int] | None:
    """The merges of a document, and from and to which byte they stand; None if there are none, or
    if they are not plain."""

def merge_ids(merges: list[Any] | Merges, vocab: dict[str, int]) -> list[tuple[int, int]] | None:
    """The ids of the two tokens of each merge; None if one is no merge of two tokens of `vocab`."""

def every_split(tokens: dict[bytes, int] | TokenIds) -> list[tuple[int, int]]:
    """All pairs of tokens that make a token, by its id, then theirs: ranks written as merges."""

def is_every_split(
    merges: list[Any] | Merges, vocab: dict[str, int], tokens: dict[bytes, int] | TokenIds
) -> bool:
    """Whether `merge_ids(merges, vocab) == every_split(tokens)`."""

@final
class TokenIds:
    """Tokens and their ids as a file has them, without an object for each."""

    def dict(self) -> dict[bytes, int]:
        """The ids by the bytes of their tokens; of two equal tokens the last."""

    def __len__(self) -> int: ...

def read_ranks(data: bytes) -> TokenIds | None:
    """The tokens and ranks in a file of tiktoken, or None if it is not as tiktoken writes them."""

@final
class DecodeStream:
    """Tokens to text one at a time, never half a character."""

    def __new__(cls, tokenizer: Tokenizer) -> DecodeStream: ...
    def push(self, id: int) -> str: ...
    def finish(self) -> str: ...

@final
class WordCounts:
    """How often each piece stands in a corpus, and the training on it."""

    def __new__(cls, pattern: str, special_tokens: list[str], threads: int) -> WordCounts: ...
    def add(self, texts: list[str | bytes]) -> None:
        """Adds the pieces of `texts`, each a document of its own."""

    def cut(self, text: str | bytes) -> int | None:
        """A byte offset at which `text` may be cut: its parts count like the whole."""

    def train(
        self,
        kind: str,
        vocab_size: int,
        min_frequency: int,
        ties: str,
        progress: Callable[[int, int], object] | None,
        max_token_length: int | None = None,
        blocked: tuple[list[bytes], list[tuple[bytes, bytes]]] = ...,
        characters: list[bytes] | None = None,
    ) -> tuple[list[bytes], list[tuple[int, int]]]:
        """The tokens by id and the pairs of ids that merge, in order.

        `kind` is "bpe" for merges, "whole" for the most frequent pieces as they stand. `blocked`
        are tokens and pairs that are never made. With `characters` merges begin with those;
        `vocab_size` then counts the 256 bytes and no special tokens.
        """

    def alphabet(self, initial: list[str], coverage: float, limit: int) -> list[tuple[str, int]]:
        """The characters that are tokens, and how often each was counted."""

    @property
    def memory(self) -> int: ...
    def spill(self, folder: str | os.PathLike[str], name: str, note: str) -> list[Path]:
        """Writes what was counted to new files of `folder`, and forgets it; their paths."""

    def load(self, path: str | os.PathLike[str]) -> None:
        """Adds the counts in a file."""

def join_counts(paths: list[Path], note: str, out: str | os.PathLike[str]) -> tuple[int, int]:
    """Joins files of counts into `out`; the numbers of distinct pieces and of all."""

def count_note(path: str | os.PathLike[str]) -> str:
    """The note of a file of counts."""

# The dataloader

HEADER_BYTES: int
"""Bytes of a shard before its first token."""
BLOCK_BYTES: int
"""Bytes of tokens, or of lengths of documents, under one hash."""

_Places: TypeAlias = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
_Arrays: TypeAlias = tuple[NDArray[Any], NDArray[Any], _Places | None]

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

    def add_part(self, ids: NDArray[np.uint32]) -> None:
        """Append ids to the document in work, or begin one."""

    def end_document(self) -> None:
        """End the document in work with eos; without a part it is empty."""

    def finish(self) -> list[tuple[str, int, int, int, list[int], list[int]]]:
        """(name, tokens, documents, header hash, block hashes, hashes of the lengths) a shard."""

@final
class Tokens:
    """Shards read as one array.

    A shard is (path, tokens, byte of the first token, header hash, block hashes). A file that
    another program wrote has None for the hashes: its tokens are taken as they are.
    """

    def __new__(
        cls,
        shards: Sequence[tuple[os.PathLike[str], int, int, int | None, list[int] | None]],
        itemsize: int,
    ) -> Tokens: ...
    @staticmethod
    def of_array(array: NDArray[Any]) -> Tokens:
        """The tokens of an array [n] of uint16 or uint32, which must not change meanwhile."""

    @property
    def n_tokens(self) -> int: ...
    def read(self, start: int, n: int) -> NDArray[Any]:
        """Tokens `start` to `start + n` as uint16 or uint32."""

    def verify(self, shard: int, block: int) -> None:
        """Read and hash one block."""

@final
class Rows:
    """The rows of a dataset, or of several, in their order."""

    def __new__(
        cls,
        tokens: Tokens,
        *,
        order: str,
        seed: int,
        context_length: int,
        stride: int,
        mask_after: int | None,
        mask_at: int | None = None,
    ) -> Rows: ...
    @staticmethod
    def packed(
        tokens: Tokens,
        lengths: NDArray[np.uint32],
        *,
        order: str,
        seed: int,
        context_length: int,
        mask_at: int | None,
        limits: tuple[int, int, int, int] | None = None,
    ) -> Rows:
        """Rows of whole documents of these lengths, eos included."""

    @staticmethod
    def mixed(
        sources: Sequence[Rows], stages: Sequence[tuple[int, Sequence[int]]], *, seed: int
    ) -> Rows:
        """Rows of several sources; a stage is its first row and the shares, 2^32 together."""

    def counts(self, i: int) -> list[int]:
        """The rows that each source gives before row `i`, epochs counted through."""

    @property
    def n_rows(self) -> int: ...
    @property
    def filled(self) -> tuple[int, int]:
        """(inputs of one epoch that are no padding, the most pieces of a row).

        Of a mixture those of one epoch of each source together.
        """

    def pieces(self, epoch: int, i: int) -> list[tuple[int, int, int]]:
        """(source, the first input's place in it, inputs) of each piece of a row."""

    def row(self, epoch: int, i: int) -> _Arrays:
        """(tokens[T], targets[T], (positions[T], documents[T], ends[P]) or None), int64."""

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
        every: int = 1,
        memory: Sequence[NDArray[Any]] | None = None,
    ) -> Stream:
        """Start the threads that make the batches from `first_row` on, each `every`-th.

        Arrays of `memory` [n] are given away: batches are made in them.
        """

@final
class Stream:
    """Batches made ahead by threads."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows B, row length T, ends per row P), the last 0 if every row is one piece."""

    def next(self) -> NDArray[Any] | None:
        """The memory of the next batch [n], or None at the end.

        Tokens [B, T], targets and, of packed rows, positions, documents and ends [B, P] lie in it
        one after the other. It is filled again when no array of it is left.
        """

    def close(self) -> None:
        """End the threads."""

def source_seed(seed: int, source: int) -> int:
    """The seed of the order of one source of a mixture."""

def xxh3_64(data: bytes | NDArray[np.uint8]) -> int:
    """The hash of one block, as the manifest holds it. An array is [N] and contiguous."""

# Inference

_Part: TypeAlias = tuple[
    str,
    Sequence[NDArray[np.float32] | tuple[NDArray[np.int8], NDArray[np.float32]]],
    NDArray[np.float32] | None,
]

@final
class Network:
    """The weights of a dense transformer, packed once for decoding on the CPU."""

    def __new__(
        cls, shape: dict[str, Any], parts: Iterable[_Part], *, weights: str, simd: str
    ) -> Network: ...
    @property
    def bytes(self) -> int:
        """Bytes of weights that a step reads."""

    @property
    def simd(self) -> str:
        """The instruction set that it runs on."""

@final
class KeyValues:
    """Pages of 16 tokens' keys and values, and the passes that read more tokens into them.

    Threads may share it: they wait for each other without the GIL. `RuntimeError` for a signal
    handler that runs within a pass of this cache.
    """

    def __new__(cls, network: Network, pages: int) -> KeyValues: ...
    @property
    def bytes(self) -> int:
        """Bytes of the pages that have had a token."""

    def grow(self, more: int) -> None:
        """Add pages; `ValueError` for more than int32 can number."""

    def copy(self, source: int, to: int) -> None:
        """Make page `to` a copy of page `source`."""

    def read(
        self,
        table: NDArray[np.int32],
        runs: Sequence[tuple[int, int, int]],
        tokens: Sequence[int],
        wanted: Sequence[int],
        *,
        vocab_size: int,
        layers: int,
        threads: int,
    ) -> NDArray[np.float32]:
        """Read the tokens of all runs: logits [W, V] after the wanted ones.

        A run is (row of the table of pages, tokens that stay, new ones).
        """

    def draw(
        self,
        table: NDArray[np.int32],
        runs: Sequence[tuple[int, int, int]],
        tokens: Sequence[int],
        wanted: Sequence[int],
        *,
        temperatures: Sequence[float],
        numbers: Sequence[float],
        vocab_size: int,
        missing: Sequence[int],
        layers: int,
        threads: int,
    ) -> list[int | None]:
        """As `read`, but a token drawn after each; None where its logits are not finite."""
