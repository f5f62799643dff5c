"""The part of `Tokenizer` that cuts a text in other ways than `encode`: the n best, or one drawn.

Kudo 2018, arXiv:1804.10959, for Unigram; Provilkov et al. 2020, arXiv:1910.13267, for BPE.
"""

from collections.abc import Set
from typing import Literal

from tinylm import _rust

Special = Literal["raise", "allow", "text"] | Set[str]


class Segmentations:
    """Other segmentations of a text; `Tokenizer` inherits these methods."""

    __slots__ = ()
    _core: _rust.Tokenizer

    def n_best_encode(
        self, text: str | bytes, n: int, *, special: Special = "raise"
    ) -> list[tuple[list[int], float]]:
        """The `n` best segmentations of `text` as (ids, log probability), the best first.

        There are fewer if the text has no more, and 1,024 at most. The tokenizer must be a Unigram;
        ValueError for another one. The first one is that of `encode` (of a `.model`, but for equal
        ones). Of equal ones that comes first whose last token begins first. Kudo 2018,
        arXiv:1804.10959.
        """
        return [(ids, score) for score, ids in self._core.n_best(text, n, special)]

    def sample_encode(
        self,
        text: str | bytes,
        *,
        seed: int,
        alpha: float | None = None,
        n_best: int | None = None,
        dropout: float | None = None,
        special: Special = "raise",
    ) -> list[int]:
        """The ids of a segmentation of `text` that is drawn; equal seeds draw alike.

        A Unigram draws with a probability proportional to `exp(alpha * log probability)`, among
        all segmentations or the `n_best` best ones: `alpha=0` draws evenly, 1 (the default) by the
        model, more prefers the best one. Pass another `seed` in [0, 2**64) for each text and epoch.

        A BPE passes each merge over with the probability `dropout`, whenever it is due: 0 is
        `encode`, 1 leaves bytes or characters, 0.1 is usual. A vocabulary in tiktoken's ranks
        merges as `Tokenizer.merges` says. Special tokens are never divided.

        ValueError for a number out of range, and for a model that cannot draw so: WordPiece has
        neither probabilities nor merges. Kudo 2018, arXiv:1804.10959; Provilkov et al. 2020,
        arXiv:1910.13267.

        ```python
        >>> from tinylm import Tokenizer
        >>> tokenizer = Tokenizer.train(["low lower lowest"], vocab_size=260)
        >>> tokenizer.sample_encode("low", seed=0, dropout=1.0)
        [108, 111, 119]
        ```
        """
        if dropout is not None and (alpha is not None or n_best is not None):
            raise ValueError("dropout is for BPE, alpha and n_best for Unigram; pass one of both")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed {seed} must be from 0 to 2**64 - 1")
        alpha = 1.0 if alpha is None else alpha
        return self._core.sample(text, special, seed, alpha, n_best, dropout)
