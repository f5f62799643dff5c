"""Caches that keep less than was read: fewer bits, or fewer tokens. What attention then sees.

One row of a text: q [H, N, D], k and v [K, N, D] of all its tokens, read in `pieces` of so many
tokens, to y [H, N, D]. Query heads in groups of H / K share a key head.

A range in few bits:  x = zero + scale n,  n a whole number in 0 .. 2^bits - 1
    zero = min x, scale = (max x - min x) / (2^bits - 1) over the numbers that share them, float16
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinylm.reference.tensors import softmax, wide

LARGEST = torch.finfo(torch.float16).max


def ranged(x: Tensor, dim: int, bits: int) -> Tensor:
    """x as it comes back from `bits` bits; the numbers along `dim` share their scale and zero.

    Numbers past the range of float16 end at it. A range that has nan or inf comes back as nan.
    Source: Liu et al. 2024 (KIVI, arXiv 2402.02750), section 3.1, equation 1.
    """
    levels = 2**bits - 1
    low, high = wide(x).amin(dim, keepdim=True), wide(x).amax(dim, keepdim=True)
    zero = low.clamp(-LARGEST, LARGEST).half()
    scale = ((high.clamp(-LARGEST, LARGEST) - zero) / levels).half()
    whole = torch.zeros_like(wide(x))
    whole = torch.where(scale > 0, ((wide(x) - zero) / scale).round().clamp(0, levels), whole)
    finite = x.isfinite().all(dim, keepdim=True)
    return torch.where(finite, zero + scale.to(whole) * whole, torch.nan).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """One query [D] over the keys and values [N, D] in the places `seen`: y [D] and the weights."""
    weights = softmax(wide(k[list(seen)] @ q) * q.shape[-1] ** -0.5).to(q.dtype)
    return weights @ v[list(seen)], weights


def quantised_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pieces: Sequence[int],
    *,
    bits: int,
    group: int,
    tail: int,
    window: int | None = None,
) -> Tensor:
    """Attention over a cache that packs all but the newest tokens; y as q.

    Before each piece the oldest tokens are packed, in whole groups of `group`, so that at least
    `tail` stay as they are. A key channel shares its range with the `group` tokens of a group, a
    token's value with the channels of a head. The tokens of a piece see each other as they are.
    Source: Liu et al. 2024 (KIVI, arXiv 2402.02750), section 3.2.
    """
    y, keys, values, read, packed = torch.zeros_like(q), k.clone(), v.clone(), 0, 0
    group_size = q.shape[0] // k.shape[0]
    for piece in pieces:
        while packed + group <= read - tail:
            some = slice(packed, packed + group)
            keys[:, some] = ranged(k[:, some], 1, bits)
            values[:, some] = ranged(v[:, some], 2, bits)
            packed += group
        for t in range(read, read + piece):
            first = 0 if window is None else max(0, t - window + 1)
            for head in range(q.shape[0]):
                own = head // group_size
                y[head, t], _ = attend(q[head, t], keys[own], values[own], range(first, t + 1))
        read += piece
    return y


def evicting_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pieces: Sequence[int],
    *,
    kind: str,
    budget: int,
    recent: int,
    pool: int = 1,
    layer: int = 0,
    seed: int = 0,
) -> Tensor:
    """Attention over a cache that keeps at most `budget` tokens per key head; y as q.

    A key head that holds more before a piece first drops to `budget`: it keeps its newest
    `recent` tokens, and of the others those of the highest score. Equal scores favour the older.

    - `random`: `drawn`, a number that says nothing of the text.
    - `h2o`: the weights that all queries so far gave the token, added up.
    - `snapkv`: the weights that the newest `recent` queries give it, added up, and averaged with
      its neighbours', `pool` in all, of those held.

    Weights are added over the query heads that share the key head. Sources: Zhang et al. 2023
    (H2O, arXiv 2306.14048), algorithm 1; Li et al. 2024 (SnapKV, arXiv 2404.14469), section 4.
    """
    y, group_size = torch.zeros_like(q), q.shape[0] // k.shape[0]
    for own in range(k.shape[0]):
        heads = range(own * group_size, (own + 1) * group_size)
        held: list[int] = []
        sums = torch.zeros(q.shape[1], dtype=torch.float64)
        read = 0

        def weights_of(queries: range, held: list[int], own: int, heads: range) -> Tensor:
            """What these queries give to each token, added up."""
            found = torch.zeros(q.shape[1], dtype=torch.float64)
            for t in queries:
                seen = [s for s in held if s <= t]
                for head in heads:
                    found[seen] += attend(q[head, t], k[own], v[own], seen)[1]
            return found

        for piece in pieces:
            if len(held) > budget:
                older, newest = held[: len(held) - recent], held[len(held) - recent :]
                if kind == "random":
                    score = [float(drawn(s, own, layer, seed)) for s in older]
                elif kind == "h2o":
                    score = sums[older].tolist()
                else:
                    asked = range(max(0, read - recent), read)
                    found = weights_of(asked, held, own, heads)[older].tolist()
                    score = pooled(found, pool)
                order = sorted(range(len(older)), key=lambda i: (-score[i], i))
                held = [older[i] for i in sorted(order[: budget - recent])] + newest
            held += range(read, read + piece)
            new = range(read, read + piece)
            for t in new:
                for head in heads:
                    seen = [s for s in held if s <= t]
                    y[head, t], _ = attend(q[head, t], k[own], v[own], seen)
            sums += weights_of(new, held, own, heads)
            read += piece
    return y


def pooled(scores: list[float], size: int) -> list[float]:
    """The mean of each score and its neighbours, `size` (odd) in all; fewer at the ends."""
    reach = size // 2
    windows = [scores[max(0, i - reach) : i + reach + 1] for i in range(len(scores))]
    return [sum(window) / size for window in windows]


def drawn(place: int, head: int, layer: int, seed: int) -> int:
    """A number below 2^24 for a token: the same in every row, another for each head and layer."""
    x = seed % 2**32
    for word in (layer, head, place):
        # Steele et al. 2014's kind of mixer, of 32 bits.
        x = (x + word + 0x9E3779B9) % 2**32
        for _ in range(2):
            x = ((x ^ (x >> 16)) * 0x45D9F3B) % 2**32
        x ^= x >> 16
    return x >> 8
