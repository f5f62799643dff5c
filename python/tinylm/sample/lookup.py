"""Guesses that are copied from the text itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinylm.sample.drawer import Drawer
from tinylm.sample.guesses import Proposal
from tinylm.sample.reader import Reader

# The longest end of a text that is looked up in it.
LONGEST = 6
# Tokens that are copied at once: few at first, and more after each pass that kept them all, for a
# pass over 4, 8 and 16 tokens costs as much as 1.5, 2.8 and 5.4 over one where the weights stay in
# the processor's cache (1.3M parameters), and 1.0, 1.2 and 2.2 where they do not (110M).
COPIED = (3, 7, 15)


@dataclass(frozen=True)
class LookupDraft:
    """Guesses that the text goes on as it did where its last words stood before."""

    tokens = COPIED[-1]

    def begin(self, reader: Reader, drawer: Drawer, room: int) -> "Copies":
        """See `Draft`."""
        return Copies(reader.texts, steady=drawer.config.draft_tokens is not None)


class Copies:
    """The tokens that followed the newest earlier place where a text was as at its end.

    The same as `tinylm.reference.speculation.lookup`, by chains of the places of each token. Unless
    they are `steady`, their number goes by `COPIED`. Source: Saxena 2023 (prompt lookup decoding).
    """

    def __init__(self, texts: Sequence[Sequence[int]], *, steady: bool = True) -> None:
        self.steady = steady
        self._texts: list[list[int]] = [[] for _ in texts]
        # The newest guesses, and how many passes in a row have kept them all.
        self._guesses: list[list[int]] = [[] for _ in texts]
        self._right = [0 for _ in texts]
        # The newest place of each token, and of each place the one before it with the same token.
        self._newest: list[dict[int, int]] = [{} for _ in texts]
        self._before: list[list[int]] = [[] for _ in texts]
        self.take(texts)

    def propose(self, wanted: Sequence[int]) -> Proposal:
        """See `Guesses`."""
        if not self.steady:
            most = [COPIED[min(right, len(COPIED) - 1)] for right in self._right]
            wanted = [min(both) for both in zip(wanted, most, strict=True)]
        rows = zip(self._texts, self._before, wanted, strict=True)
        self._guesses = [_copied(text, before, most) for text, before, most in rows]
        return Proposal(self._guesses)

    def take(self, tokens: Sequence[Sequence[int]]) -> None:
        """See `Guesses`."""
        passes = zip(self._right, self._guesses, tokens, strict=True)
        self._right = [
            right + 1 if ids and ids == [*new[: len(ids)]] else 0 for right, ids, new in passes
        ]
        rows = zip(self._texts, self._newest, self._before, tokens, strict=True)
        for text, newest, before, new in rows:
            for token in new:
                before.append(newest.get(token, -1))
                newest[token] = len(text)
                text.append(token)

    def keep(self, rows: Sequence[int]) -> None:
        """See `Guesses`."""
        self._texts = [[*self._texts[row]] for row in rows]
        self._newest = [{**self._newest[row]} for row in rows]
        self._before = [[*self._before[row]] for row in rows]
        self._guesses = [self._guesses[row] for row in rows]
        self._right = [self._right[row] for row in rows]


def _copied(text: list[int], before: list[int], most: int) -> list[int]:
    best, found = 0, 0
    place = before[-1]
    while place >= 0 and best < LONGEST:
        size = 1
        # Up to the first place, whose predecessor is none.
        while size < LONGEST and size <= place and text[place - size] == text[-1 - size]:
            size += 1
        if size > best:
            best, found = size, place + 1
        place = before[place]
    # What follows the place may reach the end of the text: then it goes round again.
    round_ = text[found:] if best else []
    return [round_[i % len(round_)] for i in range(most)] if round_ else []
