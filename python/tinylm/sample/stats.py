"""What guesses were worth: how many were right, and how much faster the texts were for it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tinylm.sample.reader import Reader

# Plain passes that are timed, to compare with.
TRIED = 8


@dataclass
class Stats:
    """What speculation has done so far, over all rows and calls that it was given to.

    A pass counts once for each row in it. `seconds` are those of all passes and guesses, `plain`
    those of `tried` tokens that plain passes read and took back. `what` is counted as kept.
    """

    what: str = "guesses kept"
    passes: int = 0
    tokens: int = 0
    guessed: int = 0
    kept: int = 0
    seconds: float = 0.0
    tried: int = 0
    plain: float = 0.0

    @property
    def acceptance(self) -> float:
        """The share of the guesses that was kept; 0 before the first."""
        return self.kept / self.guessed if self.guessed else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass of the model adds to a text; plain decoding adds 1."""
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def speedup(self) -> float:
        """Seconds that plain passes would have taken for as many tokens, over those taken.

        An estimate from a few passes; `benches/bench_speculation.py` measures it.
        """
        if not (self.tried and self.seconds):
            return 0.0
        return self.tokens * self.plain / self.tried / self.seconds

    def try_plain(self, reader: Reader, unread: Sequence[Sequence[int]]) -> None:
        """Time a plain pass, if few were: each text reads its newest token and takes it back."""
        # A window that moves on would be read whole.
        if self.tried >= TRIED or min(reader.room()) < 1:
            return
        lengths = [len(text) for text in reader.texts]
        start = time.perf_counter()
        reader.read(unread)
        self.plain += time.perf_counter() - start
        reader.truncate(lengths)
        self.tried += len(unread)

    def __str__(self) -> str:
        return (
            f"{self.kept} of {self.guessed} {self.what} ({self.acceptance:.0%}), "
            f"{self.tokens_per_pass:.2f} tokens per pass, about {self.speedup:.1f}x as fast"
        )
