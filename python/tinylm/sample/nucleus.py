"""The fewest tokens of a row that reach a probability together, and the k likeliest ones.

Sorting 32 rows of 32,000 logits costs more than the model's step. But of a sorted row only two
numbers are needed: the smallest logit that is kept, and how many tokens with this logit are not.
On the CPU they are found without sorting: for a probability, tokens are divided into buckets and
one bucket is sorted; for k tokens, most are left out by the maxima of blocks.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BUCKETS, BLOCK = 1024, 64
Floats = NDArray[np.floating[Any]]


def below(keys: Tensor, smallest: Tensor, surplus: Tensor) -> Tensor:
    """Which of the keys [R, V] are smaller than `smallest` [R, 1]: bool [R, V].

    Of those that equal it, the `surplus` [R, 1] ones with the greatest ids count as smaller.
    """
    found = keys < smallest
    if surplus.any():
        equal = keys == smallest
        room = equal.sum(-1, keepdim=True) - surplus
        found |= equal & (equal.cumsum(-1) > room)
    return found


def likeliest(logits: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Return the smallest logit [R, 1] of the likeliest tokens that reach p, and the surplus.

    The surplus [R, 1] is the number of tokens that have this logit but are not needed. `p` is
    below 1. Probabilities are added up in float64, from the largest on.
    """
    if logits.device.type == "cpu":
        return _by_row(lambda row: _nucleus(row, p), logits)
    ordered = logits.sort(dim=-1, descending=True).values
    return by_sorting(ordered, (ordered - ordered[:, :1]).exp(), p)


def by_sorting(ordered: Tensor, weights: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """`likeliest` of keys [R, V] that are sorted, greatest first, with their weights [R, V]."""
    reached = weights.double().cumsum(-1)
    count = (F.pad(reached[:, :-1], (1, 0)) < p * reached[:, -1:]).sum(-1, keepdim=True)
    smallest = ordered.gather(-1, count - 1)
    return smallest, (ordered >= smallest).sum(-1, keepdim=True) - count


def most_typical(keys: Tensor, shares: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """`likeliest` of other keys [R, V] than the logits, with the probabilities `shares` [R, V]."""
    if keys.device.type == "cpu":
        return _by_row(lambda row, weights: reach(row, weights, p), keys, shares)
    ordered, ids = keys.sort(dim=-1, descending=True)
    return by_sorting(ordered, shares.gather(-1, ids), p)


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k-th largest logit [R, 1] of each row, and the surplus [R, 1] as above."""
    if logits.device.type == "cpu":
        return _by_row(lambda row: _kth(row, k), logits)
    smallest = logits.topk(k).values[:, -1:]
    return smallest, (logits >= smallest).sum(-1, keepdim=True) - k


def reach(keys: Floats, weights: Floats, p: float, least: float = 0.0) -> tuple[float, int]:
    """The smallest of the greatest keys [V] whose weights [V] reach the share p, and the surplus.

    Tokens whose weight is at most `least` are left out: the others must reach p without them.
    """
    wanted = p * float(weights.sum(dtype=np.float64))
    some = np.flatnonzero(weights > least)
    keys, weights = keys[some], weights[some]
    depth = keys.max() - keys
    span = float(depth.max())
    scale = (BUCKETS - 1) / span if span > 0 else 0.0
    bucket = (depth * scale).astype(np.intp)
    reached = np.bincount(bucket, weights, BUCKETS).cumsum()
    # The last bucket in any case: but for rounding, its sum reaches every p.
    crossing = min(int(np.searchsorted(reached, wanted)), BUCKETS - 1)
    inside = np.flatnonzero(bucket == crossing)
    order = inside[np.argsort(-keys[inside], kind="stable")]
    before = reached[crossing - 1] if crossing else 0.0
    within = before + weights[order].cumsum(dtype=np.float64)
    place = min(int(np.searchsorted(within, wanted)), order.size - 1)
    smallest = keys[order[place]]
    return float(smallest), int(np.count_nonzero(keys[order] >= smallest)) - place - 1


def _nucleus(row: Floats, p: float) -> tuple[float, int]:
    weights = np.exp(row - row.max())
    # All tokens of this weight or less have at most half of the 1 - p that may be missing.
    least = (1 - p) * float(weights.sum(dtype=np.float64)) / (2 * row.size)
    return reach(row, weights, p, least)


def _kth(row: Floats, k: int) -> tuple[float, int]:
    blocks = row.size // BLOCK
    if k <= blocks:
        # The k-th largest of the blocks' maxima: at least k logits are as large.
        maxima = row[: blocks * BLOCK].reshape(blocks, BLOCK).max(1)
        row = row[np.flatnonzero(row >= np.partition(maxima, blocks - k)[blocks - k])]
    smallest = np.partition(row, row.size - k)[row.size - k]
    return float(smallest), int(np.count_nonzero(row >= smallest)) - k


def _by_row(find: Callable[..., tuple[float, int]], *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a function to the rows of some tensors [R, V], and return two tensors [R, 1]."""
    arrays = (tensor.numpy() for tensor in tensors)
    smallest, surplus = zip(*(find(*rows) for rows in zip(*arrays, strict=True)), strict=True)
    dtype = tensors[0].dtype
    return torch.tensor(smallest, dtype=dtype)[:, None], torch.tensor(surplus)[:, None]
