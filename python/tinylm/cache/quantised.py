"""Caches that keep keys and values in fewer bits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from tinylm.cache.base import Base, Earlier
from tinylm.cache.contiguous import Contiguous
from tinylm.context import Attend, CacheStats, Context, DecodeState
from tinylm.ops import attention, decode_attention, dequantise_int8, quantise_int8
from tinylm.ops.attentions import DECODE_QUERIES
from tinylm.ops.ranges import Ranged, dequantise_range, empty_range, quantise_range


class Int8(Contiguous):
    """Keys and values in int8, each token with a scale of its own in every head.

    The new tokens of a pass are stored before they are looked at, so how a text is cut into passes
    changes nothing, `truncate` takes back any number of tokens, and the buffers are those that the
    kernel of `ops.decode_attention` reads. Memory: 2 L B K max_length (head + 4) bytes. Source:
    Dettmers et al. 2022, section 2.1 (vector-wise quantisation).
    """

    kind, stored = "int8", torch.int8

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
        shapes = [x.shape[:3] for x in self.k]
        like: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        self.k_scale = [torch.ones(shape, **like) for shape in shapes]
        self.v_scale = [torch.ones(shape, **like) for shape in shapes]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Store k and v [B, K, T, head] and let q [B, H, T, head] look at all: y as q."""
        tokens, attend, filled = k.size(2), self.states[layer].attend, []
        for (_, buffers), x in zip(self._named(), _in_eights(k, v), strict=True):
            self._put(buffers[layer], x)
            filled.append(self._filled(buffers[layer], tokens))
        keys, values, k_scale, v_scale = filled
        past, mask = self._past(), context.mask
        if _by_kernel(attend, q):
            return decode_attention(
                q, keys, values, past, k_scale=k_scale, v_scale=v_scale, window=mask.window
            )
        wide = torch.promote_types(q.dtype, torch.float32)
        keys = dequantise_int8(keys, k_scale.to(wide)).to(q.dtype)
        values = dequantise_int8(values, v_scale.to(wide)).to(q.dtype)
        return attend(q, keys, values, mask=mask, past=past)

    def _named(self) -> tuple[tuple[str, list[Tensor]], ...]:
        return *super()._named(), ("k_scale", self.k_scale), ("v_scale", self.v_scale)


def _by_kernel(attend: Attend, q: Tensor) -> bool:
    """Whether a few queries are on a GPU, where a kernel reads int8 as it is stored."""
    return attend is attention and q.is_cuda and q.size(2) <= DECODE_QUERIES


def _in_eights(k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """k and v in int8, and their scales."""
    keys, k_scale = quantise_int8(k.detach())
    values, v_scale = quantise_int8(v.detach())
    return keys, values, k_scale, v_scale


class Packed(NamedTuple):
    """A layer's keys in groups [B, K, N, G, head] and values [B, K, N G, head], in few bits.

    `ends` [B] are the tokens of each row of the buffers that are packed, a multiple of G. The
    tails [B, K, 2 tail + G - 1, head] hold the tokens after those.
    """

    keys: Ranged
    values: Ranged
    tail_keys: Tensor
    tail_values: Tensor
    ends: list[int]

    def buffers(self) -> tuple[Tensor, ...]:
        """Every tensor; the first axis of each is the row."""
        return *self.keys.tensors(), *self.values.tensors(), self.tail_keys, self.tail_values


class Span(NamedTuple):
    """Rows that have the same numbers of tokens and of packed tokens.

    `rows` are theirs in this cache or view, `places` in the buffers.
    """

    rows: slice
    places: slice | Tensor
    end: int
    packed: int


class Grouped(Base):
    """All but the newest tokens in 4 or 8 bits: keys per channel, values per token.

    A channel of a key shares its scale with the `group` tokens of a group, for a few channels are
    large in all tokens; a token's value shares it along the head. When a pass begins, the tokens
    before it are packed in whole groups, but for the newest `tail` and those that fill no group
    yet. The tokens of a pass see each other as they are: a prompt that is read at once is attended
    to as without a cache, and later tokens see of it what is packed.

    A pass of up to `tail` tokens that is taken back at once leaves no trace. Further back,
    `truncate` leaves the numbers as their bits say, and they are rounded again when their group is
    packed again. A pass of more than `tail` tokens that an error ends half-way leaves the cache
    unfit: clear it. Memory: bits / 8 bytes per number and 4 shared by a group or a head, and 2 tail
    + group - 1 tokens in full. Attention reads floats, which are made for one layer at a time: the
    kernel of decoding wants a scale per token, and the keys have one per channel. Defined by
    `tinylm.reference.caches.quantised_attention`.
    Source: Liu et al. 2024 (KIVI, arXiv 2402.02750), section 3.2.
    """

    kind = "int4"

    def __init__(
        self, *arguments: Any, bits: int = 4, group: int = 32, tail: int = 16, **named: Any
    ) -> None:
        super().__init__(*arguments, bits=bits, group=group, tail=tail, **named)
        if bits not in (4, 8) or group < 2 or group % 2 or tail < 0:
            raise ValueError(
                f"bits={bits}, group={group}, tail={tail}: must be 4 or 8, an even number, and a "
                f"number of at least 0"
            )
        odd = [state.size for state in self.states if state.size % 2]
        if bits == 4 and odd:
            raise ValueError(f"cache=int4: the head size {odd[0]} is odd: take int8")
        self.bits, self.group, self.tail = bits, group, tail
        rows = len(self.ends)
        like: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        self.places = [*range(rows)]
        groups = max(0, self.max_length - tail) // group
        held = min(self.max_length, 2 * tail + group - 1)
        self.layers = []
        for state in self.states:
            own, size = (rows, state.heads), state.size
            tails = tuple(torch.zeros((*own, held, size), **like) for _ in range(2))
            keys = empty_range((*own, groups, group, size), -2, bits, self.device)
            values = empty_range((*own, groups * group, size), -1, bits, self.device)
            self.layers.append(Packed(keys, values, tails[0], tails[1], [0] * rows))
        self.earlier = Earlier(self.earlier_states, rows, self.max_length, **like)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Store k and v [B, K, T, head] and let q [B, H, T, head] look at all: y as q."""
        state, tokens = self.states[layer], k.size(2)
        for span in self._spans(layer):
            self._pack_tail(layer, span)
        spans = self._spans(layer)
        keys, values = self._floats(layer, spans, self.longest + tokens)
        for span in spans:
            new = slice(span.end, span.end + tokens)
            keys[span.rows, :, new], values[span.rows, :, new] = k[span.rows], v[span.rows]
        past = {"past": self.lengths} if self.ragged else {}
        y = state.attend(q, keys.to(q.dtype), values.to(q.dtype), mask=context.mask, **past)
        for span in spans:
            self._keep(layer, span, keys[span.rows], values[span.rows], span.end + tokens)
        return y

    def _spans(self, layer: int) -> list[Span]:
        """The rows by their lengths: one span where all are alike."""
        packed = self.layers[layer].ends
        lengths = [(end, packed[place]) for end, place in zip(self.ends, self.places, strict=True)]
        if len(set(lengths)) == 1:
            return [Span(slice(None), self.some, *lengths[0])]
        return [
            Span(slice(row, row + 1), slice(place, place + 1), *lengths[row])
            for row, place in enumerate(self.places)
        ]

    def _floats(self, layer: int, spans: Sequence[Span], end: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, end, head] of what is stored, in the cache's dtype."""
        state, held = self.states[layer], self.layers[layer]
        shape = (len(self.ends), state.heads, end, state.size)
        # Zeros, for a mask multiplies what it hides by 0, and 0 times nan is nan.
        keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        most = max((span.packed for span in spans), default=0)
        if most:
            some, groups = self.some, most // self.group
            grouped = self._grouped(keys[:, :, :most])
            dequantise_range(held.keys[some, :, :groups], -2, self.bits, grouped)
            stored = held.values[some, :, :most]
            dequantise_range(stored, -1, self.bits, values[:, :, :most])
        for span in spans:
            rest, count = slice(span.packed, span.end), span.end - span.packed
            keys[span.rows, :, rest] = held.tail_keys[span.places, :, :count]
            values[span.rows, :, rest] = held.tail_values[span.places, :, :count]
        return keys, values

    def _grouped(self, keys: Tensor) -> Tensor:
        """A view [B, K, N, G, head] of keys [B, K, N G, head]."""
        return keys.view(*keys.shape[:2], -1, self.group, keys.size(-1))

    def _pack(self, layer: int, span: Span, keys: Tensor, values: Tensor) -> None:
        """Pack the floats [b, K, N G, head] of whole groups, which follow those that are packed."""
        held, places, end = self.layers[layer], span.places, span.packed + keys.size(2)
        groups = slice(span.packed // self.group, end // self.group)
        held.keys[places, :, groups] = quantise_range(self._grouped(keys), -2, self.bits)
        held.values[places, :, span.packed : end] = quantise_range(values, -1, self.bits)
        for place in self.places[span.rows]:
            held.ends[place] = end

    def _pack_tail(self, layer: int, span: Span) -> None:
        """Pack the groups of the tail that are older than the newest `tail` tokens."""
        held, count = self.layers[layer], span.end - span.packed
        full = (count - self.tail) // self.group * self.group
        if full > 0:
            tails = [x[span.places, :, :count].clone() for x in (held.tail_keys, held.tail_values)]
            self._pack(layer, span, *(x[:, :, :full] for x in tails))
            held.tail_keys[span.places, :, : count - full] = tails[0][:, :, full:]
            held.tail_values[span.places, :, : count - full] = tails[1][:, :, full:]

    def _keep(self, layer: int, span: Span, keys: Tensor, values: Tensor, end: int) -> None:
        """Store the floats of a span, now of `end` tokens, in the tail, if they fit into it."""
        held, first = self.layers[layer], span.packed
        full = max(0, (end - first - 2 * self.tail) // self.group * self.group)
        if full:
            self._pack(layer, span, *(x[:, :, first : first + full] for x in (keys, values)))
        # What the tail had already need not be written again, if it did not move.
        start, packed = (first if full else span.end) + full, first + full
        held.tail_keys[span.places, :, start - packed : end - packed] = keys[:, :, start:end]
        held.tail_values[span.places, :, start - packed : end - packed] = values[:, :, start:end]

    def before(self, slot: int, x: Tensor) -> Tensor:
        """Store x [B, T, W] of the new tokens, and return x of the tokens before them."""
        return self.earlier.before(slot, x, self, equal=not self.ragged)

    def rows(self, index: Sequence[int]) -> Self:
        """Return a view of some rows: what is read into it is read into this cache."""
        view = super().rows(index)
        view.places = [self.places[row] for row in index]
        return view

    def select(self, rows: Tensor) -> Self:
        """A cache of the sequences `rows` [N] int64 of this one; a row may repeat."""
        taken, numbers = self._like(rows.numel()), self.numbers[rows]
        for mine, theirs in zip(taken.layers, self.layers, strict=True):
            for to, of in zip(mine.buffers(), theirs.buffers(), strict=True):
                to.copy_(of[numbers])
            mine.ends[:] = [theirs.ends[place] for place in numbers.tolist()]
        taken.earlier.copy(numbers, self.earlier, self.longest, taken.numbers)
        taken._set([self.ends[row] for row in rows.tolist()])
        return taken

    def _fork(self, row: int, to: Sequence[int]) -> None:
        source, target = self.numbers[[row]], self.numbers[[*to]]
        for held in self.layers:
            for x in held.buffers():
                x[target] = x[source]
            for place in to:
                held.ends[self.places[place]] = held.ends[self.places[row]]
        self.earlier.copy(source, self.earlier, self.ends[row], target)

    def stats(self) -> CacheStats:
        """Return what is stored and what it costs; an unfilled place is waste."""
        stored = [x for held in self.layers for x in held.buffers()] + self.earlier.buffers
        bytes = sum(x[self.some].numel() * x.itemsize for x in stored)
        tokens, places = sum(self.ends), len(self.ends) * self.max_length
        return CacheStats(tokens=tokens, places=places, bytes=bytes, empty=places - tokens)

    def tensors(self) -> dict[str, Tensor]:
        """Return every buffer, and the packed tokens [B] of each layer."""
        found = {}
        for layer, held in enumerate(self.layers):
            for number, x in enumerate(held.buffers()):
                found[f"{number}.{layer}"] = x[self.some]
            found[f"packed.{layer}"] = torch.tensor([held.ends[place] for place in self.places])
        return found | self.earlier.tensors(self)

    def restore(self, tensors: Mapping[str, Tensor], ends: Sequence[int]) -> None:
        """Take over the `tensors` of another cache, whose rows had `ends` tokens."""
        for layer, held in enumerate(self.layers):
            for number, x in enumerate(held.buffers()):
                x.copy_(tensors[f"{number}.{layer}"])
            held.ends[:] = tensors[f"packed.{layer}"].tolist()
        self.earlier.restore(tensors)
        self._set([*ends])

    def _cut(self, ends: list[int]) -> None:
        """Unpack what is left of a group that is cut."""
        for state, held in zip(self.states, self.layers, strict=True):
            for place, end in zip(self.places, ends, strict=True):
                if held.ends[place] <= end:
                    continue
                group = end // self.group
                first = group * self.group
                keys = held.tail_keys.new_empty(state.heads, self.group, state.size)
                values = torch.empty_like(keys)
                dequantise_range(held.keys[place, :, group], -2, self.bits, keys)
                some = slice(first, first + self.group)
                dequantise_range(held.values[place, :, some], -1, self.bits, values)
                held.tail_keys[place, :, : end - first] = keys[:, : end - first]
                held.tail_values[place, :, : end - first] = values[:, : end - first]
                held.ends[place] = first
        self._count(ends)
