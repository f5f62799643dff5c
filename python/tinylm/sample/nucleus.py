"""The nucleus of a distribution: the fewest likeliest tokens that reach a probability together.

Sorting 32 rows of 32,000 logits costs more than the model's step. But of a sorted row only two
numbers are needed: the smallest logit that is kept, and how many tokens are. On the CPU, they are
found by dividing the logits into buckets and sorting one bucket.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BUCKETS = 1024


def keep_largest(logits: Tensor, smallest: Tensor, surplus: Tensor) -> Tensor:
    """The logits [R, V] that are at least `smallest` [R, 1], all others -inf.

    Of those that equal it, the `surplus` [R, 1] ones with the greatest ids get -inf too.
    """
    below = logits < smallest
    if surplus.any():
        equal = logits == smallest
        room = equal.sum(-1, keepdim=True) - surplus
        below |= equal & (equal.cumsum(-1) > room)
    return logits.masked_fill(below, -math.inf)


def nucleus(logits: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Return the smallest logit [R, 1] of each row's nucleus, and its surplus [R, 1].

    The surplus is the number of tokens that have this logit but are not in the nucleus. `p` is
    below 1. Probabilities are added up in float64, from the largest on.
    """
    if logits.device.type != "cpu":
        return by_sorting(logits, p)
    smallest, surplus = zip(*(by_buckets(row, p) for row in logits.numpy()), strict=True)
    return (
        torch.tensor(smallest, dtype=logits.dtype)[:, None],
        torch.tensor(surplus, dtype=torch.int64)[:, None],
    )


def by_sorting(logits: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """`nucleus` by sorting all logits; the fastest way on a GPU."""
    ordered = logits.sort(dim=-1, descending=True).values
    reached = (ordered - ordered[:, :1]).exp().double().cumsum(-1)
    before = F.pad(reached[:, :-1], (1, 0))
    count = (before < p * reached[:, -1:]).sum(-1, keepdim=True)
    smallest = ordered.gather(-1, count - 1)
    return smallest, (ordered >= smallest).sum(-1, keepdim=True) - count


def by_buckets(row: NDArray[np.floating[Any]], p: float) -> tuple[float, int]:
    """`nucleus` of one row [V], without sorting more than one bucket of it."""
    largest = row.max()
    depth = largest - row
    weights = np.exp(-depth)
    total = float(weights.sum(dtype=np.float64))
    # All tokens below this weight together have less than half of the 1 - p that may be missing.
    likely = np.flatnonzero(weights >= (1 - p) * total / (2 * row.size))
    row, depth, weights = row[likely], depth[likely], weights[likely]
    span = float(depth.max())
    scale = BUCKETS / span if span > 0 else 0.0
    bucket = np.minimum(depth * scale, BUCKETS - 1).astype(np.intp)
    reached = np.bincount(bucket, weights, BUCKETS).cumsum()
    crossing = int(np.searchsorted(reached, p * total))
    if crossing == BUCKETS:
        # Only for p = 1 but for rounding: every token counts.
        return -math.inf, 0
    inside = np.sort(row[bucket == crossing])[::-1]
    before = reached[crossing - 1] if crossing else 0.0
    within = before + np.exp(inside - largest).cumsum(dtype=np.float64)
    place = min(int(np.searchsorted(within, p * total)), inside.size - 1)
    smallest = inside[place]
    return float(smallest), int(np.count_nonzero(inside >= smallest)) - place - 1
