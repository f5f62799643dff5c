"""The compiled half of TinyLM; checked against the binary by `mypy.stubtest`."""

from collections.abc import Callable, Iterable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = ["DecodeStream", "Tokenizer", "WordCounts", "__version__", "build_profile"]

__version__: str
build_profile: str

# tokenizer

@final
class Tokenizer:
    """A vocabulary with its merges, pattern and special tokens; immutable."""

    def __new__(
        cls,
        tokens: dict[bytes, int],
        merges: list[tuple[int, int]] | None,
        whole_pieces: bool,
        pattern: str,
        special_tokens: dict[str, int],
    ) -> Tokenizer: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def pattern(self) -> str: ...
    def encode(self, text: str | bytes, special: str | Iterable[str]) -> list[int]: ...
    def encode_array(
        self, text: str | bytes, special: str | Iterable[str]
    ) -> NDArray[np.uint32]: ...
    def encode_batch(
        self, texts: list[str | bytes], special: str | Iterable[str]
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
    def cut(self, text: str | bytes, special: str | Iterable[str]) -> int | None:
        """A byte offset up to which the ids of `text` do not depend on what may follow it."""

    def count(self, text: str | bytes, special: str | Iterable[str]) -> int: ...
    def decode(self, ids: Iterable[int] | NDArray[np.integer[Any]], errors: str) -> str: ...
    def decode_bytes(self, ids: Iterable[int] | NDArray[np.integer[Any]]) -> bytes: ...

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
    ) -> tuple[list[bytes], list[tuple[int, int]]]:
        """The tokens by id and the pairs of ids that merge, in order.

        `kind` is "bpe" for merges, "whole" for the most frequent pieces as they stand.
        """
