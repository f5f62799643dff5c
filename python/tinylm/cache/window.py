"""The newest tokens in a ring, and a few of the first, however long the text grows."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from tinylm.cache.base import Base
from tinylm.config.sample import WINDOW_SLACK
from tinylm.context import CacheStats, Context, DecodeState

# Places beyond the window: as many tokens can be taken back, and read at once by a layer.
SLACK = WINDOW_SLACK


class Window(Base):
    """The first `first` tokens of a row and the newest `budget - first`; the others are forgotten.

    A query sees what full attention would see behind the same mask: of the keys up to its own the
    newest `budget - first`, and the `first` ones. A window of the model hides keys as ever.

    Token p < first has place p, and any other place first + (p - first) % ring, with a ring of
    `budget - first + SLACK` places. Up to SLACK tokens can be taken back; `ValueError` for more,
    because what the window would show again is gone.

    Where a text passes `max_length`, its positions move back by a multiple of the ring: the keys
    of the ring are rotated by that many places less, and the first keep theirs. So positions stay
    below `max_length`, distances inside the window stay as they are, and the first tokens come
    nearer, to where the model has seen such distances. That needs positions by rotation, or none
    (`streams`). Source: Xiao et al. 2024 (StreamingLLM), section 3.2, where they move at every
    token.
    """

    kind = "window"

    def __init__(
        self,
        states: Sequence[DecodeState],
        batch_size: int,
        max_length: int,
        *,
        budget: int,
        first: int = 4,
        **named: Any,
    ) -> None:
        if not 0 <= first < budget:
            raise ValueError(
                f"cache=window: budget={budget} tokens must be more than the first {first}, which "
                f"are kept besides the newest"
            )
        super().__init__(states, batch_size, max_length, budget=budget, first=first, **named)
        self.first, self.window = first, budget - first
        # A text that fits never wraps round.
        self.ring = min(self.window + SLACK, max(1, max_length - first))
        like: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        shapes = [(batch_size, state.heads, first + self.ring, state.size) for state in states]
        self.k = [torch.zeros(shape, **like) for shape in shapes]
        self.v = [torch.zeros(shape, **like) for shape in shapes]
        self.earlier = [
            torch.zeros(
                (batch_size, first + self.ring, kept.width),
                dtype=kept.dtype or self.dtype,
                device=self.device,
            )
            for kept in self.earlier_states
        ]
        # The most tokens that each row of the buffers had: older ones than a ring are lost.
        self.tops = [0] * batch_size

    @property
    def at_once(self) -> int:
        """The most tokens of a pass: those that there is room for where positions move back."""
        return self._spare if self.streams else self.max_length

    @property
    def streams(self) -> bool:
        """Whether rows may grow past `max_length`."""
        movable = self.model is not None and self.model.moved_back is not None
        return movable and self._spare >= SLACK

    @property
    def _spare(self) -> int:
        """The room for tokens where positions have just moved back."""
        return self.max_length - self.first - self.window - self.ring

    def reserve(self, tokens: int) -> None:
        """Move positions back if `tokens` more would pass `max_length`; `Full` if they cannot."""
        if self.longest + tokens > self.max_length and self.streams:
            self._move_back(tokens)
        super().reserve(tokens)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Store k and v [B, K, T, head] and let q [B, H, T, head] look at the window."""
        tokens, window = k.size(2), context.mask.window
        # More would overwrite what the first of them still sees.
        step = tokens if self.longest + tokens <= self.first + self.ring else SLACK + 1
        keys, values = self.k[layer], self.v[layer]
        numbers, attend = self.numbers[:, None], self.states[layer].attend
        parts = []
        for start in range(0, tokens, step):
            some = slice(start, min(start + step, tokens))
            places, seen = self._plan(some.start, some.stop, window)
            keys[numbers, :, places] = k[:, :, some].transpose(1, 2).to(keys.dtype)
            values[numbers, :, places] = v[:, :, some].transpose(1, 2).to(values.dtype)
            filled = (self.some, slice(None), slice(seen.size(-1)))
            parts.append(attend(q[:, :, some], keys[filled], values[filled], mask=seen))
        return torch.cat(parts, 2)

    def before(self, slot: int, x: Tensor) -> Tensor:
        """Store x [B, T, W] of the new tokens, and return x of the tokens before them."""
        rows, x = self.earlier[slot], x.to(self.earlier[slot].dtype)
        last = rows[self.numbers, self._places((self.lengths - 1).clamp(min=0))]
        last = last.masked_fill((self.lengths == 0)[:, None], 0)
        start = self.lengths[:, None]
        # Where a ring would be written twice in one go, nobody says which of both stays.
        for new in torch.split(x, self.ring, 1):
            places = self._places(start + torch.arange(new.size(1), device=x.device))
            rows[self.numbers[:, None], places] = new
            start = start + new.size(1)
        return torch.cat((last[:, None], x[:, :-1]), 1)

    def select(self, rows: Tensor) -> Self:
        """A cache of the sequences `rows` [N] int64, in that order; a row may repeat."""
        taken = self._like(rows.numel())
        chosen: list[int] = rows.tolist()
        for mine, theirs in zip(self._buffers(), taken._buffers(), strict=True):
            theirs.copy_(mine[self.numbers[rows]])
        taken.tops = [self.tops[self.index[row]] for row in chosen]
        taken._set([self.ends[row] for row in chosen])
        return taken

    def _fork(self, row: int, to: Sequence[int]) -> None:
        source = self.index[row]
        for x in self._buffers():
            x[self.numbers[[*to]]] = x[[source]]
        for other in to:
            self.tops[self.index[other]] = self.tops[source]

    def stats(self) -> CacheStats:
        """Return what is stored and what it costs; `tokens` are those that are still held."""
        held = self.first + self.ring
        tokens, places = sum(min(end, held) for end in self.ends), len(self.ends) * held
        bytes = sum(x[self.some].numel() * x.itemsize for x in self._buffers())
        return CacheStats(tokens=tokens, places=places, bytes=bytes, empty=places - tokens)

    def tensors(self) -> dict[str, Tensor]:
        """Return the rows of every buffer, and how far each row ever got."""
        tops = torch.tensor([self.tops[number] for number in self.index])
        stored = {f"{i}": x[self.some] for i, x in enumerate(self._buffers())}
        return {"tops": tops, **stored}

    def restore(self, tensors: Mapping[str, Tensor], ends: Sequence[int]) -> None:
        """Take over the `tensors` of another cache, whose rows had `ends` tokens."""
        for i, x in enumerate(self._buffers()):
            x.copy_(tensors[f"{i}"])
        self.tops = tensors["tops"].tolist()
        self._set([*ends])

    def advance(self, tokens: int) -> None:
        """Count `tokens` more in every row."""
        super().advance(tokens)
        self._plans: dict[tuple[int, int, int | None], tuple[Tensor, Tensor]] = {}
        for number, end in zip(self.index, self.ends, strict=True):
            self.tops[number] = max(self.tops[number], end)

    def _set(self, ends: list[int]) -> None:
        super()._set(ends)
        self._plans = {}

    def _cut(self, ends: list[int]) -> None:
        """Leave the first `ends` tokens of the rows, unless that shows what is gone."""
        for number, old, new in zip(self.index, self.ends, ends, strict=True):
            top = self.tops[number]
            lost = top - self.ring
            if 0 < new < old and lost > self.first and lost > new - self.window + 1:
                raise ValueError(
                    f"cache=window: {old} tokens cannot be cut to {new}, because the window then "
                    f"shows tokens that are gone: take back at most {SLACK}"
                )
        for number, new in zip(self.index, ends, strict=True):
            self.tops[number] = self.tops[number] if new else 0
        super()._cut(ends)

    def _places(self, p: Tensor) -> Tensor:
        """The places of the tokens p of a row."""
        return torch.where(p < self.first, p, self.first + (p - self.first) % self.ring)

    def _plan(self, start: int, stop: int, window: int | None) -> tuple[Tensor, Tensor]:
        """The places [B, t] of the new tokens start to stop - 1, and which keys they see.

        The second is [B, 1, t, S]. All layers of a pass share both.
        """
        key = (start, stop, window)
        if key not in self._plans:
            first, ring = self.first, self.ring
            p = self.lengths[:, None] + torch.arange(start, stop, device=self.device)
            places = self._places(p)
            slot = torch.arange(min(first + ring, self.longest + stop), device=self.device)
            # The token in each place: the newest that belongs there, or none, below 0 or to come.
            last = p[:, -1:]
            token = slot + ring * torch.div(last - slot, ring, rounding_mode="floor")
            token = torch.where(slot < first, slot, torch.where(token < first, -1, token))
            behind = p[:, :, None] - token[:, None]
            near = (behind < self.window) | (token < first)[:, None]
            seen = (behind >= 0) & (token >= 0)[:, None] & near
            if window is not None:
                seen &= behind < window
            self._plans[key] = places, seen[:, None]
        return self._plans[key]

    def _move_back(self, tokens: int) -> None:
        """Lower the positions of the rows that `tokens` more would bring past `max_length`."""
        ends, by, rows = [*self.ends], [], []
        for row, (number, end) in enumerate(zip(self.index, self.ends, strict=True)):
            if end + tokens > self.max_length:
                back = (end - self.first - self.window) // self.ring * self.ring
                ends[row], self.tops[number] = end - back, self.tops[number] - back
                by.append(back)
                rows.append(number)
        index, back_by = (torch.tensor(x, device=self.device) for x in (rows, by))
        for keys in self.k:
            keys[index, :, self.first :] = self.model.moved_back(
                keys[index, :, self.first :], back_by
            )
        self._count(ends)

    def _buffers(self) -> list[Tensor]:
        return [*self.k, *self.v, *self.earlier]
