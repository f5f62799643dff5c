"""Tokens in an array of NumPy as a dataset: no files, no hashes, nothing copied."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm import _rust
from tinylm.data.shards import Dataset, lengths_between

# What the fingerprint looks at: so many places, each of so many tokens.
_PLACES, _PLACE = 64, 2048


class ArrayDataset:
    """The tokens [n] as what a `Loader` reads, in all of its orders.

    An array of uint16 or uint32 is used where it lies, also a `numpy.memmap` of a file such as
    nanoGPT's `train.bin`; it must not change while it is read. Other integers are copied to one of
    the two. Documents end with `eos_id`, and the last one where the tokens end. Ids are not held
    against `vocab_size`, which is what the dtype can hold if it is not given.

    The fingerprint that a loader's state carries is made of the length and of 64 places of the
    tokens, so that an array of any size is open at once.
    """

    # What a mixture asks of its sources, and what `stats` calls them.
    tokenizer_sha256 = ""
    folder = "an array in memory"
    kind = "text"

    def __init__(
        self, tokens: NDArray[Any], *, eos_id: int | None = None, vocab_size: int | None = None
    ) -> None:
        self.array = _as_tokens(tokens)
        most = int(np.iinfo(self.array.dtype).max) + 1
        self.vocab_size = most if vocab_size is None else vocab_size
        for name, value, least in (("vocab_size", self.vocab_size, 1), ("eos_id", eos_id, 0)):
            if value is not None and not least <= value <= most - 1 + least:
                raise ValueError(
                    f"{name}={value} must be between {least} and {most - 1 + least} for tokens of "
                    f"{self.array.dtype}"
                )
        self.eos_id = eos_id
        self.n_tokens = len(self.array)
        self.tokens = _rust.Tokens.of_array(self.array)
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str:
        last = max(0, self.n_tokens - _PLACE)
        starts = np.linspace(0, last, _PLACES, dtype=np.int64)
        parts = [self.array[start : start + _PLACE] for start in starts.tolist()]
        size = np.array([self.n_tokens, self.array.itemsize], np.int64)
        seen = np.concatenate([size.view(np.uint8), *(part.view(np.uint8) for part in parts)])
        return f"{_rust.xxh3_64(seen):016x}"

    def __reduce__(self) -> tuple[Any, ...]:
        # The Rust side holds memory of this process.
        return _again, (self.array, self.eos_id, self.vocab_size)

    def read(self, start: int, n: int) -> NDArray[Any]:
        """Tokens `start` to `start + n` -> array[n], a view."""
        if start < 0 or n < 0 or start + n > self.n_tokens:
            raise ValueError(f"tokens {start} to {start + n} of a dataset of {self.n_tokens}")
        return self.array[start : start + n]

    def lengths(self) -> NDArray[np.uint32]:
        """Tokens of each document, eos included -> array[n_documents]."""
        if self.eos_id is None:
            raise ValueError("nothing marks where the documents of this array end: give eos_id")
        ends = np.flatnonzero(self.array == self.eos_id) + 1
        if self.n_tokens and (not ends.size or ends[-1] < self.n_tokens):
            ends = np.append(ends, self.n_tokens)
        return lengths_between(ends, f"is eos_id={self.eos_id} what ends documents here?")


def _as_tokens(tokens: NDArray[Any]) -> NDArray[Any]:
    if not isinstance(tokens, np.ndarray):
        raise ValueError(f"tokens must be an array of NumPy, not of {type(tokens).__name__}")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"tokens must be an array [n] of integers, not {tokens.dtype}{list(tokens.shape)}"
        )
    if tokens.dtype not in (np.uint16, np.uint32):
        low, high = (int(tokens.min()), int(tokens.max())) if tokens.size else (0, 0)
        if not 0 <= low <= high < 2**32:
            raise ValueError(f"ids {low} to {high} must be between 0 and {2**32 - 1}")
        tokens = tokens.astype(np.uint16 if high < 2**16 else np.uint32)
    # As a plain array: parts of a memmap are slow to make.
    return np.ascontiguousarray(np.asarray(tokens), tokens.dtype.newbyteorder("="))


def _again(tokens: NDArray[Any], eos_id: int | None, vocab_size: int) -> ArrayDataset:
    return ArrayDataset(tokens, eos_id=eos_id, vocab_size=vocab_size)


Source = Dataset | ArrayDataset


def reopened(source: Source) -> Source:
    """The same source for a process that was forked off: open files and locks are its parent's."""
    if isinstance(source, Dataset):
        return Dataset(source.folder, source.manifest, source.split)
    return source


def check_marks(source: Source, **settings: bool) -> None:
    """Raise ValueError for a setting that asks where documents end, if nothing says so."""
    for name, wanted in settings.items():
        if wanted and source.eos_id is None:
            raise ValueError(
                f"data.{name}: nothing marks where the documents of this text end: name an "
                "end-of-text token with tokenizer.eos (eos_id of an ArrayDataset), or set it to "
                "false"
            )
