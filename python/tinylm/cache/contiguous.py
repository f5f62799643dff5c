"""Keys and values in one buffer per layer, filled from the left."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from tinylm.cache.base import Base, Earlier
from tinylm.context import CacheStats, Context, DecodeState


class Contiguous(Base):
    """A buffer [B, K, max_length, head] of keys and one of values per layer, filled from the left.

    Rows of equal length attend over the filled part and need no mask. With `fixed`, attention runs
    over the whole buffer behind a mask: no shape ever changes, which is what a compiled step of
    decoding needs. Memory: 2 L B K head max_length numbers, and B W max_length per slot of
    `before`. Appending past `max_length` raises `Full`.
    """

    kind = "contiguous"
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
        keys, values = self._filled(self.k[layer], tokens), self._filled(self.v[layer], tokens)
        attend = self.states[layer].attend
        return attend(q, keys, values, mask=context.mask, past=self._past())

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

    def select(self, rows: Tensor) -> Self:
        """A cache of the sequences `rows` [N] int64 of this one, in that order; a row may repeat.

        Repeat a row to continue one prompt in several ways; leave out the rows that are finished.
        Only the filled part is copied.
        """
        taken = self._like(rows.numel())
        taken._copy(self.numbers[rows], self, self.longest, taken.numbers)
        taken._set([self.ends[row] for row in rows.tolist()])
        return taken

    def fork(self, row: int, to: Sequence[int]) -> None:
        """Copy the tokens of `row` to the empty rows `to`."""
        self._empty(to)
        end = self.ends[row]
        self._copy(self.numbers[[row]], self, end, self.numbers[[*to]])
        self._count([end if other in to else own for other, own in enumerate(self.ends)])

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
