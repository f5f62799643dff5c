"""Caches that keep a fixed number of tokens per key head, and forget the others for good.

What a head keeps is chosen before each pass, from what was read until then. Tokens keep their
positions: a key stays rotated as it was in the whole text.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.cache.base import Base, Earlier
from tinylm.cache.held import Held, visible
from tinylm.context import CacheStats, Context

# The newest tokens that SnapKV keeps and asks, at most, and the neighbours that it averages over.
RECENT, POOL = 32, 3


class Evicting(Base):
    """At most `budget` tokens per row, layer and key head, and those of the newest pass.

    Before a pass, a head that holds more drops to `budget`: it keeps its newest `recent` tokens,
    and of the others those of the highest `_worth`. So a prompt is attended to as without a cache,
    and cut when the next token comes, by what its end asked for. If it is read in pieces, every
    piece but the last is followed by a cut.

    `truncate` takes tokens back, but brings none back that a cut dropped: after drafts, the cache
    may hold less of the text before them. A pass that an error ends half-way leaves the cache
    unfit: clear it. Memory: budget + T places per layer, row and key head, each 2 head numbers and
    8 bytes, and the queries that a kind judges by. Defined by
    `tinylm.reference.caches.evicting_attention`.
    """

    # How many queries a kind keeps beside those of the newest pass; None: not even those.
    beside: int | None = None

    def __init__(
        self, *arguments: Any, budget: int | None, recent: int | None, **named: Any
    ) -> None:
        if budget is None:
            raise ValueError(
                f"cache={self.kind} needs a budget=: the number of tokens that a key head keeps"
            )
        recent = self._recent(budget) if recent is None else recent
        super().__init__(*arguments, budget=budget, recent=recent, **named)
        if not 1 <= recent <= budget:
            raise ValueError(
                f"budget={budget}, recent={recent}: cache={self.kind} keeps a budget of tokens, "
                f"and 1 to all of it for the newest"
            )
        self.budget, self.recent = budget, recent
        like: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        self.earlier = Earlier(self.earlier_states, len(self.ends), self.max_length, **like)
        self.layers: list[Held | None] = [None for _ in self.states]

    def _recent(self, budget: int) -> int:
        """How many of the newest tokens are kept, unless the caller says it."""
        return 1

    @abstractmethod
    def _worth(self, held: Held, window: int | None) -> Tensor:
        """What each token [B, K, S] is worth; equal ones favour the older."""

    def _first(self, layer: int, places: Tensor) -> Tensor:
        """The score of new tokens [B, K, T] float32."""
        return torch.zeros(places.shape, dtype=self._score_dtype(), device=places.device)

    def _judged(self, held: Held, window: int | None) -> Held:
        """What the queries of the newest pass say of its tokens, before the next one."""
        return held

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Store k and v [B, K, T, head] and let q [B, H, T, head] look at all: y as q."""
        state, window, whole = self.states[layer], context.mask.window, self.layers[layer]
        steps = torch.arange(k.size(2), dtype=torch.int32, device=k.device)
        asked = self.lengths.int()[:, None] + steps
        places = asked[:, None].expand(-1, state.heads, -1)
        new = Held(
            k.detach().to(self.dtype),
            v.detach().to(self.dtype),
            places,
            self._first(layer, places),
            q.detach()[:, :, : None if self.beside is not None else 0],
            asked[:, : None if self.beside is not None else 0],
        )
        if whole is None or not self.longest:
            self._store(layer, new)
            return state.attend(q, k, v, mask=context.mask)
        held = self._evict(self._judged(whole.rows(self.some), window), window)
        held = held.newest(self.beside or 0)
        both = zip(held.tensors().items(), new.tensors().values(), strict=True)
        held = Held(
            **{name: torch.cat((a, b), 1 if name == "asked" else 2) for (name, a), b in both}
        )
        self._store(layer, held)
        seen = visible(held.place, asked, window)
        seen = seen.repeat_interleave(q.size(1) // state.heads, 1)
        return state.attend(q, held.k.to(q.dtype), held.v.to(q.dtype), mask=seen)

    def _evict(self, held: Held, window: int | None) -> Held:
        """At most `budget` places of each row and key head."""
        if held.place.size(2) <= self.budget:
            return held
        newest = held.place >= (self.lengths - self.recent)[:, None, None]
        worth = self._worth(held, window).masked_fill(newest, torch.inf)
        worth = worth.masked_fill(held.place < 0, -torch.inf)
        order = worth.sort(dim=2, descending=True, stable=True).indices
        return held.pick(order[..., : self.budget].sort(2).values)

    def before(self, slot: int, x: Tensor) -> Tensor:
        """Store x [B, T, W] of the new tokens, and return x of the tokens before them."""
        return self.earlier.before(slot, x, self, equal=not self.ragged)

    def select(self, rows: Tensor) -> Self:
        """A cache of the sequences `rows` [N] int64 of this one; a row may repeat."""
        taken, numbers = self._like(rows.numel()), self.numbers[rows]
        taken.layers = [None if held is None else held.rows(numbers) for held in self.layers]
        taken.earlier.copy(numbers, self.earlier, self.longest, taken.numbers)
        taken._set([self.ends[row] for row in rows.tolist()])
        return taken

    def _fork(self, row: int, to: Sequence[int]) -> None:
        source, target = self.numbers[[row]], self.numbers[[*to]]
        for held in self.layers:
            for x in [] if held is None else held.tensors().values():
                x[target] = x[source]
        self.earlier.copy(source, self.earlier, self.ends[row], target)

    def stats(self) -> CacheStats:
        """Return what is held and what it costs; a place that no token has is waste."""
        layers = [held.rows(self.some) for held in self.layers if held is not None]
        stored = [x for held in layers for x in held.tensors().values()]
        stored += [x[self.some] for x in self.earlier.buffers]
        # Places per row, on average over layers and key heads.
        shares = sum(held.place.size(1) for held in layers) or 1
        places = sum(held.place.numel() for held in layers) // shares
        empty = sum(int((held.place < 0).sum()) for held in layers) // shares
        bytes = sum(x.numel() * x.itemsize for x in stored)
        return CacheStats(tokens=sum(self.ends), places=places, bytes=bytes, empty=empty)

    def tensors(self) -> dict[str, Tensor]:
        """Return what every layer holds."""
        return {
            f"{name}.{layer}": x
            for layer, held in enumerate(self.layers)
            if held is not None
            for name, x in held.rows(self.some).tensors().items()
        } | self.earlier.tensors(self)

    def restore(self, tensors: Mapping[str, Tensor], ends: Sequence[int]) -> None:
        """Take over the `tensors` of another cache, whose rows had `ends` tokens."""
        names = [field.name for field in fields(Held)]
        for layer in range(len(self.layers)):
            if f"k.{layer}" in tensors:
                found = {name: tensors[f"{name}.{layer}"].to(self.device) for name in names}
                self.layers[layer] = Held(**found)
        self.earlier.restore(tensors)
        self._set([*ends])

    def _cut(self, ends: list[int]) -> None:
        if not any(ends) and self.whole is None:
            self.layers = [None for _ in self.states]
        elif ends != self.ends:
            until = torch.tensor(ends, device=self.device)
            for layer, held in enumerate(self.layers):
                if held is not None:
                    self._store(layer, held.rows(self.some).until(until))
        self._count(ends)

    def _store(self, layer: int, held: Held) -> None:
        """Put what the rows of this cache, or view, hold into its place."""
        whole = self.layers[layer]
        if self.whole is None:
            self.layers[layer] = held
            return
        if whole is None:
            rows = self._rows_of_all()
            whole = Held(**{n: x.new_zeros(rows, *x.shape[1:]) for n, x in held.tensors().items()})
            whole.place.fill_(-1)
            whole.asked.fill_(-1)
        places = max(whole.place.size(2), held.place.size(2))
        queries = max(whole.asked.size(1), held.asked.size(1))
        whole, held = whole.padded(places, queries), held.padded(places, queries)
        for mine, theirs in zip(whole.tensors().values(), held.tensors().values(), strict=True):
            mine[self.some] = theirs
        self.layers[layer] = whole

    def _score_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def _rows_of_all(self) -> int:
        """How many rows there are where this is a view of some."""
        root: Base = self
        while root.whole is not None:
            root = root.whole
        return len(root.ends)


class Random(Evicting):
    """Tokens drawn by chance, the same in every row, others for each layer, head and `seed`.

    What every other choice must beat.
    """

    kind = "random"

    def __init__(
        self,
        *arguments: Any,
        budget: int | None = None,
        recent: int | None = None,
        seed: int = 0,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, budget=budget, recent=recent, seed=seed, **named)
        self.seed = seed

    def _first(self, layer: int, places: Tensor) -> Tensor:
        # `reference.caches.drawn`, in int64, where a product of 32 and 27 bits fits.
        heads = torch.arange(places.size(1), device=places.device)[:, None]
        x = torch.tensor(self.seed % 2**32, device=places.device)
        for word in (torch.tensor(layer, device=places.device), heads, places.long()):
            x = (x + word + 0x9E3779B9) % 2**32
            for _ in range(2):
                x = (x ^ (x >> 16)) * 0x45D9F3B % 2**32
            x = x ^ (x >> 16)
        return (x >> 8).to(self._score_dtype())

    def _worth(self, held: Held, window: int | None) -> Tensor:
        return held.score


class HeavyHitters(Evicting):
    """Half of the budget for the newest tokens, half for those that got the most attention so far.

    The weights of all queries are added up. Source: Zhang et al. 2023 (H2O, arXiv 2306.14048),
    algorithm 1.
    """

    kind, beside = "h2o", 0

    def __init__(
        self,
        *arguments: Any,
        budget: int | None = None,
        recent: int | None = None,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, budget=budget, recent=recent, **named)

    def _recent(self, budget: int) -> int:
        return max(1, budget // 2)

    def _judged(self, held: Held, window: int | None) -> Held:
        return replace(held, score=held.score + held.weights(window))

    def _worth(self, held: Held, window: int | None) -> Tensor:
        return held.score


class SnapKV(Evicting):
    """The tokens that the newest queries look at, and their neighbours.

    The weights of the newest `recent` queries are added up, and averaged over `pool` neighbours in
    the order of the text, so that a fact is kept whole. Source: Li et al. 2024 (SnapKV, arXiv
    2404.14469), section 4; there a prompt is cut once, here the cache before every pass.
    """

    kind = "snapkv"

    def __init__(
        self,
        *arguments: Any,
        budget: int | None = None,
        recent: int | None = None,
        pool: int = POOL,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, budget=budget, recent=recent, pool=pool, **named)
        if pool < 1 or pool % 2 == 0:
            raise ValueError(f"pool={pool}: must be odd, a token and as many before as after it")
        self.pool, self.beside = pool, self.recent

    def _recent(self, budget: int) -> int:
        return max(1, min(RECENT, budget // 4))

    def _worth(self, held: Held, window: int | None) -> Tensor:
        found = held.newest(self.recent).weights(window)
        older = held.place < (self.lengths - self.recent)[:, None, None]
        found = found * older
        return F.avg_pool1d(found, self.pool, stride=1, padding=self.pool // 2)
