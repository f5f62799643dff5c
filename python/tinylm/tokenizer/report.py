"""How tokenizers do on files: the figures of `stats`, and where two of them cut differently."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinylm import terminal
from tinylm.tokenizer.shown import ends, escaped
from tinylm.tokenizer.tokenizer import Tokenizer

# Read and encoded at once: little memory, and a line of progress that moves.
BLOCK = 1 << 22


def blocks(path: str) -> Iterator[bytes]:
    """The bytes of a file in parts, with a line of progress where somebody watches a long one."""
    size = Path(path).stat().st_size
    live = terminal.watched() and size > 8 * BLOCK
    done = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block
            done += len(block)
            if live:
                terminal.draw(f"\r\x1b[K{path}: {done / 1e6:,.0f} of {size / 1e6:,.0f} MB")
    if live:
        terminal.draw("\r\x1b[K")


@dataclass
class Stats:
    """What a tokenizer makes of some text, added up."""

    bytes: int = 0
    words: int = 0
    # By id: how many tokens.
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def tokens(self) -> int:
        """All tokens."""
        return int(self.counts.sum())

    @property
    def used(self) -> int:
        """How many of the vocabulary's tokens there are."""
        return int(np.count_nonzero(self.counts))

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(self.bytes + other.bytes, self.words + other.words, self.counts + other.counts)


def measure(tokenizer: Tokenizer, path: str) -> Stats:
    """The figures of one file, which need not be text; special tokens in it are text."""
    found = Stats(counts=np.zeros(tokenizer.vocab_size, np.int64))
    in_word = False
    for chunk in tokenizer.chunks(blocks(path), special="text", size=BLOCK):
        ids, _ = tokenizer.encode_batch([chunk], special="text")
        found.bytes += len(chunk)
        found.counts += np.bincount(ids, minlength=tokenizer.vocab_size)
        # A word may go on over the border of two chunks.
        found.words += len(chunk.split()) - (in_word and not chunk[:1].isspace() and chunk != b"")
        in_word = bool(chunk) and not chunk[-1:].isspace()
    return found


def row(name: str, stats: Stats, lengths: NDArray[np.int64]) -> tuple[str, ...]:
    """The figures as `HEAD` names them; `lengths` are the bytes of each token by id."""
    tokens = max(1, stats.tokens)
    single = int(stats.counts[lengths == 1].sum())
    return (
        name,
        str(stats.bytes),
        str(stats.tokens),
        f"{stats.bytes / tokens:.3f}",
        f"{stats.tokens / max(1, stats.words):.3f}",
        f"{single / tokens:.1%}",
        f"{stats.used / max(1, int((lengths > 0).sum())):.1%}",
    )


HEAD = ("file", "bytes", "tokens", "bytes/token", "tokens/word", "of one byte", "vocabulary used")


def lengths_of(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """The bytes of each token by its id; 0 for ids without a token."""
    lengths = np.zeros(tokenizer.vocab_size, np.int64)
    for id, token in tokenizer.vocab.items():
        lengths[id] = len(token)
    return lengths


def longest(tokenizer: Tokenizer, stats: Stats, number: int) -> list[str]:
    """The longest tokens that occur, with how often; and some that do not."""
    vocab = tokenizer.vocab
    used = sorted(np.flatnonzero(stats.counts).tolist(), key=lambda id: (-len(vocab[id]), id))
    shown = [f"{repr(vocab[id])[1:]} ({stats.counts[id]})" for id in used[:number]]
    special = {*tokenizer.special_tokens.values()}
    never = [id for id in vocab if stats.counts[id] == 0 and id not in special]
    rare = sorted(never, key=lambda id: (-len(vocab[id]), id))[:number]
    some = f", such as {' '.join(repr(vocab[id])[1:] for id in rare)}" if rare else ""
    return [
        f"longest tokens: {' '.join(shown) or 'none'}",
        f"never used: {len(never)} of {len(vocab) - len(special)} tokens{some}",
    ]


def inline(data: bytes) -> str:
    """Bytes on one line, line breaks escaped too."""
    return escaped(data).replace("\n", "")


@dataclass
class Comparison:
    """What several tokenizers make of one file: tokens of each, and where they differ."""

    size: int
    tokens: list[int]
    # Whether the ids of each are those of the first.
    same: list[bool]
    # Stretches that are cut differently, each as every tokenizer cuts it.
    apart: Counter[tuple[tuple[bytes, ...], ...]]


def compare(tokenizers: Sequence[Tokenizer], path: str) -> Comparison:
    """All of them on one file; special tokens in it are text."""
    data = b"".join(blocks(path))
    encoded = [tokenizer.encode_offsets(data, special="text") for tokenizer in tokenizers]
    first = encoded[0][0]
    return Comparison(
        len(data),
        [len(ids) for ids, _ in encoded],
        [bool(np.array_equal(ids, first)) for ids, _ in encoded],
        apart(data, [ends(offsets) for _, offsets in encoded]),
    )


def apart(data: bytes, cuts: Sequence[NDArray[np.int64]]) -> Counter[tuple[tuple[bytes, ...], ...]]:
    """The shortest stretches that begin and end together and are cut differently, with their
    number."""
    common = cuts[0]
    for other in cuts[1:]:
        common = np.intersect1d(common, other, assume_unique=True)
    # Between common places: only where some tokenizer has a place that not all have.
    own = np.unique(np.concatenate([np.setdiff1d(cut, common) for cut in cuts]))
    number = np.unique(np.searchsorted(common, own))
    found: Counter[tuple[tuple[bytes, ...], ...]] = Counter()
    for at in number.tolist():
        start = int(common[at - 1]) if at else 0
        stop = int(common[at]) if at < len(common) else len(data)
        found[tuple(_cut(data, start, stop, cut) for cut in cuts)] += 1
    return found


def _cut(data: bytes, start: int, stop: int, cuts: NDArray[np.int64]) -> tuple[bytes, ...]:
    inner = cuts[np.searchsorted(cuts, start, "right") : np.searchsorted(cuts, stop)]
    return tuple(data[a:b] for a, b in pairwise([start, *inner.tolist(), stop]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of columns; the first is aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for cells in [head, *rows]:
        aligned = [cells[0].ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        yield "  ".join(aligned)
