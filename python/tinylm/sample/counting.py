"""Which tokens each text has, and how often: what the penalties are about."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinylm.config import SampleConfig


def counts_tokens(config: SampleConfig) -> bool:
    """Return whether a config has a penalty, so that the tokens of a text must be counted."""
    penalties = (config.frequency_penalty, config.presence_penalty)
    return config.repetition_penalty != 1 or any(penalties)


class Counts:
    """`seen` [R, V] bool, the tokens of prompt and continuation, and `counts` [R, V] float32, how
    often the continuation has each. Both are None until `want`, because they are large.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device
        self.seen: Tensor | None = None
        self.counts: Tensor | None = None

    def want(self, rows: int) -> range:
        """Have this many rows from now on; the ones that are new, to be `set`."""
        had = 0 if self.seen is None else self.seen.size(0)
        if self.seen is None or self.counts is None or had < rows:
            shape = (rows - had, self.vocab_size)
            seen = torch.zeros(shape, dtype=torch.bool, device=self.device)
            counts = torch.zeros(shape, device=self.device)
            self.seen = seen if self.seen is None else torch.cat((self.seen, seen))
            self.counts = counts if self.counts is None else torch.cat((self.counts, counts))
        return range(had, rows)

    def of(self, index: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Both, of some rows."""
        if self.seen is None or self.counts is None:
            return None, None
        return self.seen[index], self.counts[index]

    def add(self, ids: Tensor, rows: Sequence[int] | None = None) -> None:
        """Count one more token [R] per row, or of those of `rows` alone."""
        if self.seen is None or self.counts is None:
            return
        if rows is not None:
            index = torch.tensor([*rows], dtype=torch.int64, device=self.device)
            self.seen[index, ids[index]] = True
            self.counts[index, ids[index]] += 1
        else:
            self.seen.scatter_(1, ids[:, None], True)
            self.counts.scatter_add_(1, ids[:, None], torch.ones_like(self.counts[:, :1]))

    def set(self, row: int, prompt: Sequence[int], drawn: Sequence[int]) -> None:
        """Count the tokens of one row anew."""
        if self.seen is not None and self.counts is not None:
            self.counts[row] = torch.bincount(self._known(drawn), minlength=self.vocab_size)
            self.seen[row] = self.counts[row] > 0
            self.seen[row, self._known(prompt)] = True

    def _known(self, ids: Sequence[int]) -> Tensor:
        """Those ids that have a logit: a padded model reads others too."""
        known = [id for id in ids if id < self.vocab_size]
        return torch.tensor(known, dtype=torch.int64, device=self.device)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        if self.seen is not None and self.counts is not None:
            index = torch.tensor([*rows], dtype=torch.int64, device=self.device)
            self.seen, self.counts = self.seen[index], self.counts[index]
