"""Keys and values in one buffer per layer, filled from the left."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from tinylm.cache.base import Base, Earlier
from tinylm.context import CacheStats, Context, DecodeState

# How many rows a view may span for each of its own before they are copied together. Not measured.
MOST_AMONG = 2


class Contiguous(Base):
    """A buffer [B, K, max_length, head] of keys and one of values per layer, filled from the left.

    Rows of equal length attend over the filled part and need no mask. With `fixed`, attention runs
    over the whole buffer behind a mask: no shape ever changes, which is what a compiled step of
    decoding needs. Memory: 2 L B K head max_length numbers, and B W max_length per slot of
    `before`. Appending past `max_length` raises `Full`.
    """

    kind = "contiguous"
    # In a view whose rows do not follow one another: the rows from its first to its last, and
    # where its own are among them.
    among: tuple[slice, Tensor] | None = None
    pads = True
    # The dtype of keys and values, if it is not that of the computation.
    stored: torch.dtype | None = None

    def __init__(
        self,
        states: Sequence[DecodeState],
        batch_size: int,
        max_length: int,
        *,
        fixed: bool = False,
        **named: Any,
    ) -> None:
        super().__init__(states, batch_size, max_length, fixed=fixed, **named)
        self.fixed = fixed
        shapes = [(batch_size, state.heads, max_length, state.size) for state in states]
        dtype, device = self.stored or self.dtype, self.device
        # Zeros, not what the memory held: behind a mask it is multiplied by 0, and 0 times nan is
        # nan.
        self.k = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.v = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.earlier = Earlier(
            self.earlier_states, batch_size, max_length, dtype=self.dtype, device=device
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Store k and v [B, K, T, head] and let q [B, H, T, head] look at all: y as q."""
        tokens = k.size(2)
        self._put(self.k[layer], k)
        self._put(self.v[layer], v)
        attend, past = self.states[layer].attend, self._past()
        if self.among is None:
            keys, values = self._filled(self.k[layer], tokens), self._filled(self.v[layer], tokens)
            return attend(q, keys, values, mask=context.mask, past=past)
        # Rows with few others between them: to attend for these too is faster than to copy the
        # rows together, and what comes of it is dropped.
        some, inside = self.among
        keys, values = (x[some, :, : self.longest + tokens] for x in (self.k[layer], self.v[layer]))
        wide = q.new_zeros((keys.size(0), *q.shape[1:])).index_copy(0, inside, q)
        if past is not None:
            past = past.new_zeros(keys.size(0)).index_copy(0, inside, past)
        return attend(wide, keys, values, mask=context.mask, past=past)[inside]

    def _put(self, buffer: Tensor, x: Tensor) -> None:
        """Store x [B, K, T, ...] of the new tokens in a buffer [rows, K, max_length, ...]."""
        tokens, x = x.size(2), x.to(buffer.dtype)
        # Plain slices by a number of the host: nothing waits for the device.
        if not (self.fixed or self.ragged):
            buffer[self.some, :, self.longest : self.longest + tokens] = x
            return
        # Row b's token t goes to place lengths[b] + t, in all its heads.
        places = self.lengths[:, None] + torch.arange(tokens, device=x.device)
        buffer[self.numbers[:, None], :, places] = x.transpose(1, 2)

    def _filled(self, buffer: Tensor, tokens: int) -> Tensor:
        """The part of a buffer that `tokens` new tokens of these rows may look at."""
        return buffer[self.some, :, : self.max_length if self.fixed else self.longest + tokens]

    def _past(self) -> Tensor | None:
        """The tokens before the new ones; None where rows are alike and need no mask for that."""
        return self.lengths if self.fixed or self.ragged else None

    def before(self, slot: int, x: Tensor) -> Tensor:
        """Store x [B, T, W] of the new tokens, and return x of the tokens before them."""
        return self.earlier.before(slot, x, self, equal=not (self.fixed or self.ragged))

    def rows(self, index: Sequence[int]) -> Self:
        """Return a view of some rows; those that lie close together are attended to in place."""
        view = super().rows(index)
        places = [*view.index]
        view.among = None
        if isinstance(view.some, Tensor) and not self.fixed:
            first, end = min(places), max(places) + 1
            if end - first <= MOST_AMONG * len(places):
                view.among = slice(first, end), view.numbers - first
        return view

    def wipe(self, rows: Sequence[int]) -> None:
        """Clear rows, and put zeros where numbers may be that are not finite."""
        for _, each in self._named():
            for x in each:
                x[self.numbers[[*rows]]] = 0
        self.clear(rows)

    def select(self, rows: Tensor) -> Self:
        """A cache of the sequences `rows` [N] int64 of this one, in that order; a row may repeat.

        Repeat a row to continue one prompt in several ways; leave out the rows that are finished.
        Only the filled part is copied.
        """
        taken = self._like(rows.numel())
        taken._copy(self.numbers[rows], self, self.longest, taken.numbers)
        taken._set([self.ends[row] for row in rows.tolist()])
        return taken

    def _fork(self, row: int, to: Sequence[int]) -> None:
        self._copy(self.numbers[[row]], self, self.ends[row], self.numbers[[*to]])

    def stats(self) -> CacheStats:
        """Return what is stored and what it costs; an unfilled place is waste."""
        tokens, places = sum(self.ends), len(self.ends) * self.max_length
        stored = [x for _, each in self._named() for x in each] + self.earlier.buffers
        bytes = sum(x[self.some].numel() * x.itemsize for x in stored)
        return CacheStats(tokens=tokens, places=places, bytes=bytes, empty=places - tokens)

    def tensors(self) -> dict[str, Tensor]:
        """Return the filled part of every buffer."""
        stored = {f"{n}.{i}": x for n, each in self._named() for i, x in enumerate(each)}
        filled = {name: x[self.some, :, : self.longest] for name, x in stored.items()}
        return filled | self.earlier.tensors(self)

    def restore(self, tensors: Mapping[str, Tensor], ends: Sequence[int]) -> None:
        """Take over the `tensors` of another cache, whose rows had `ends` tokens."""
        for name, each in self._named():
            for i, x in enumerate(each):
                found = tensors[f"{name}.{i}"]
                x[:, :, : found.size(2)] = found.to(x)
        self.earlier.restore(tensors)
        self._set([*ends])

    def _named(self) -> tuple[tuple[str, list[Tensor]], ...]:
        """The buffers [rows, K, max_length, ...] of every layer, by name."""
        return ("k", self.k), ("v", self.v)

    def _copy(self, rows: Tensor, source: "Contiguous", longest: int, target: Tensor) -> None:
        """Copy `longest` tokens of the rows of `source`'s buffers to rows of these."""
        for (_, mine), (_, theirs) in zip(self._named(), source._named(), strict=True):
            for to, of in zip(mine, theirs, strict=True):
                to[target, :, :longest] = of[rows, :, :longest]
        self.earlier.copy(rows, source.earlier, longest, target)
