"""What speculation asks of a draft: guesses over growing texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tinylm.sample.drawer import Drawer
from tinylm.sample.exits import EarlyExit
from tinylm.sample.reader import Reader


@dataclass(frozen=True)
class Proposal:
    """The guesses for each text, and the distribution that each was drawn from.

    `distributions[t]` [R, V] are those of guess t. None: the guesses are sure (copied, or the
    likeliest), so that the model keeps what it would have taken itself.
    """

    tokens: list[list[int]]
    distributions: list[Tensor] | None = None


class Guesses(Protocol):
    """The guesses over some growing texts, one row each."""

    def propose(self, wanted: Sequence[int]) -> Proposal:
        """At most wanted[r] next tokens of text r, as a function of that text alone."""

    def take(self, tokens: Sequence[Sequence[int]]) -> None:
        """Each text has grown by these tokens, one at least, whatever was proposed."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these texts alone, in this order."""


class Draft(Protocol):
    """A way to guess; `tokens` is a good number of guesses at once for it."""

    tokens: int

    def begin(self, reader: Reader, drawer: Drawer, room: int) -> Guesses:
        """Guesses over the texts of `reader`, each of which grows by at most `room` tokens."""


# What makes several tokens of one pass, or a token of a part of one.
Ahead = Draft | EarlyExit
