"""Scores of several texts: each by itself, and of all of them together."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tinylm.evaluate.scoring import Scores

if TYPE_CHECKING:
    from tinylm.data import Dataset


def score_each(
    datasets: "Mapping[str, Dataset]",
    score: "Callable[[Dataset, int | None], Scores]",
    max_tokens: int | None = None,
) -> tuple[Scores, dict[str, Scores]]:
    """The scores of all datasets together, and of each by its name; none by name if there is one.

    `score` scores one, or so many tokens of it. Of `max_tokens` each gets its share by its size.
    """
    if len(datasets) == 1:
        return score(next(iter(datasets.values())), max_tokens), {}
    total = sum(dataset.n_tokens for dataset in datasets.values())
    found = {}
    for name, dataset in datasets.items():
        most = None if max_tokens is None else max(1, max_tokens * dataset.n_tokens // total)
        found[name] = score(dataset, most)
    return together([*found.values()]), found


def together(parts: list[Scores]) -> Scores:
    """The scores of texts as of one text: every token and every byte counts alike."""
    tokens, n_bytes = sum(part.tokens for part in parts), sum(part.bytes for part in parts)
    nats = sum(part.loss * part.tokens for part in parts)
    mean = nats / tokens
    return Scores(
        loss=mean,
        # exp overflows above 709 nats.
        perplexity=math.exp(mean) if not mean > 709 else math.inf,
        bits_per_byte=nats / math.log(2) / n_bytes if n_bytes else math.inf,
        tokens=tokens,
        bytes=n_bytes,
    )
