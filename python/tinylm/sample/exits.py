"""Early exit: tokens of which the first blocks of a model are sure are taken from there.

Approximate: such a token may be another than the whole model's. What comes after it is not: the
other blocks read the tokens that they have skipped before they are asked again, all in one pass, so
their keys and values are those of plain decoding. A text is a function of its own tokens, whatever
its company. `tinylm.reference.speculation.leaves_early` is the definition.

Source: Schuster et al. 2022 (CALM), section 3.2, for the confidence; Bae et al. 2023 (FREE),
section 3.2, for the skipped blocks, which catch up together; the model is trained as in
`layers.exits`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.sample.drawer import Drawer
from tinylm.sample.reader import Reader
from tinylm.sample.stats import TRIED, Stats

# Tokens that blocks may skip before they catch up: a pass over more would hold up the text.
SKIPPED = 15


def confident(logits: Tensor, least: float) -> Tensor:
    """Whether the likeliest token of each row [R, V] has a probability of `least` or more: [R]."""
    return logits.double().softmax(-1).amax(-1) >= least


@dataclass(frozen=True)
class EarlyExit:
    """The number of the first blocks, and the probability of which their likeliest token needs."""

    layers: int
    confidence: float
    # It guesses nothing.
    tokens = 0


class Exiting:
    """Texts that grow by a token per step, with the interface of `speculation.Speculator`.

    `reader` and `drawer` hold the same texts, one row each; what the drawer has drawn and the
    reader has not read, at most one token per row, is read first. Made and used inside
    `model.inference`.
    """

    def __init__(
        self, reader: Reader, drawer: Drawer, early: EarlyExit, left: int, stats: Stats | None
    ) -> None:
        self.reader, self.drawer, self.early = reader, drawer, early
        self.left = [left] * len(reader.texts)
        self.stats = Stats(tried=TRIED) if stats is None else stats
        self.stats.what = f"tokens from the first {early.layers} blocks"
        self.unread = [[*drawn[-1:]] for drawn in drawer.drawn]
        # How many tokens of each text all blocks have read.
        self.whole = [len(text) for text in reader.texts]

    def step(self) -> list[list[int]]:
        """The next id of each row; `ValueError` where the logits are not numbers."""
        read = any(self.unread)
        if read and self.whole == [len(text) for text in self.reader.texts]:
            self.stats.try_plain(self.reader, self.unread)
        start = time.perf_counter()
        new = [[id] for id in self.drawer.draw(self._read() if read else self.reader.last)]
        self.left = [left - 1 for left in self.left]
        self.unread = new
        self.stats.seconds += time.perf_counter() - start
        self.stats.tokens += len(new) if read else 0
        return new

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        self.reader.keep(rows)
        self.drawer.keep(rows)
        self.left, self.whole = ([x[row] for row in rows] for x in (self.left, self.whole))
        self.unread = [self.unread[row] for row in rows]

    def _read(self) -> Tensor:
        """Read the newest token of each text, to the logits [R, V] of the next."""
        reader, early, stats = self.reader, self.early, self.stats
        # A window that moves on is read by all blocks.
        if min(reader.room()) < 1:
            return self._catch_up(self.unread)
        logits = reader.read(self.unread, layers=early.layers)[:, -1]
        sure = confident(logits, early.confidence)
        stats.guessed += len(sure)
        stats.kept += int(sure.sum())
        pairs = zip(reader.texts, self.whole, strict=True)
        if bool(sure.all()) and max(len(text) - whole for text, whole in pairs) <= SKIPPED:
            return logits
        return torch.where(sure[:, None], logits, self._catch_up())

    def _catch_up(self, unread: Sequence[Sequence[int]] | None = None) -> Tensor:
        """All blocks read what they have skipped, and more; the logits [R, V] after it."""
        reader = self.reader
        pairs = zip(reader.texts, self.whole, strict=True)
        tokens = [text[whole:] for text, whole in pairs]
        if unread is not None:
            tokens = [[*skipped, *new] for skipped, new in zip(tokens, unread, strict=True)]
        # What the first blocks have read they read again.
        reader.truncate(self.whole)
        logits = reader.extend(tokens)
        self.whole = [len(text) for text in reader.texts]
        self.stats.passes += len(tokens)
        return logits
