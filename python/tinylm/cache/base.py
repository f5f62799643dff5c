"""What the kinds of caches share: the length of each row, views of rows, and vectors of before."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tinylm.cache import saving
from tinylm.cache.saving import Named
from tinylm.context import CacheStats, Context, DecodeState, EarlierState


class Full(ValueError):
    """There is no room for a pass; the cache is as it was before."""


class Base(ABC):
    """Rows of tokens, each with a length; a kind adds how keys and values are stored.

    `ends` are the lengths on the host, `lengths` [B] int64 the same on the device. `index` (on
    the device `numbers` [B]) are the rows of the buffers that this cache stands for, and `some`
    picks them: all, or in a view (`rows`) some. `options` are the kind's own settings, JSON
    values, which `save` writes.
    """

    kind = ""
    # Whether tokens that are read as filling and cut off again leave a row as it was.
    pads = False
    ends: list[int]
    lengths: Tensor
    longest: int
    ragged: bool

    def __init__(
        self,
        states: Sequence[DecodeState],
        batch_size: int,
        max_length: int,
        *,
        earlier: Sequence[EarlierState] = (),
        dtype: torch.dtype,
        device: torch.device,
        **options: Any,
    ) -> None:
        self.states, self.max_length, self.earlier_states = states, max_length, earlier
        self.dtype, self.device, self.options = dtype, device, options
        # Whom the keys are of; `build` sets it, `save` asks it.
        self.model: Any = None
        self._all_rows(batch_size)

    def _all_rows(self, batch_size: int) -> None:
        """Stand for `batch_size` rows of buffers, all of them, empty."""
        self.whole: Self | None = None
        self.index: Sequence[int] = range(batch_size)
        self.some: slice | Tensor = slice(0, batch_size)
        self.numbers = torch.arange(batch_size, device=self.device)
        self._set([0] * batch_size)

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Store k and v [B, K, T, head] and let q [B, H, T, head] look at all: y as q."""

    @abstractmethod
    def before(self, slot: int, x: Tensor) -> Tensor:
        """Store x [B, T, W] of the new tokens, and return x of the tokens before them."""

    @abstractmethod
    def select(self, rows: Tensor) -> Self:
        """A cache of the sequences `rows` [N] int64 of this one, in that order; a row may repeat.

        Repeat a row to continue one prompt in several ways; leave out the rows that are finished.
        """

    @abstractmethod
    def _fork(self, row: int, to: Sequence[int]) -> None:
        """Give the empty rows `to` what is stored of `row`, in memory of their own or shared."""

    @abstractmethod
    def stats(self) -> CacheStats:
        """Return what is stored and what it costs."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what `restore` needs to make an empty cache of the same shape this one."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], ends: Sequence[int]) -> None:
        """Take over the `tensors` of another cache, whose rows had `ends` tokens."""

    def save(self, path: str | Path, tokenizer: Named | None = None) -> None:
        """Write all rows to a file, which `tinylm.cache.load` reads for the same model.

        Its header has hashes of the model and of the `tokenizer`, the dtype, and the number of
        tokens of each row. On disk whole or not at all.
        """
        if self.model is None:
            raise ValueError("save: this cache was not made by cache.build, and is of no model")
        header = {
            "kind": self.kind,
            "options": self.options,
            "max_length": self.max_length,
            "positions": self.ends,
            "dtype": str(self.dtype),
            "tokenizer": None if tokenizer is None else tokenizer.sha256,
        }
        saving.save(path, self.tensors(), header, self.model)

    def fork(self, row: int, to: Sequence[int]) -> None:
        """Let the empty rows `to` go on from the tokens of `row`."""
        self._empty(to)
        self._fork(row, to)
        end = self.ends[row]
        self._count([end if other in to else own for other, own in enumerate(self.ends)])

    def reserve(self, tokens: int) -> None:
        """Raise `Full` unless `tokens` more fit in every row."""
        if self.longest + tokens > self.max_length:
            raise Full(
                f"{self.longest} + {tokens} tokens do not fit a cache of {self.max_length}: "
                f"build a longer one or clear it"
            )

    @property
    def streams(self) -> bool:
        """Whether rows may grow past `max_length`."""
        return False

    @property
    def at_once(self) -> int:
        """The most tokens of a pass."""
        return self.max_length

    @property
    def total(self) -> int:
        """The number of blocks that the rows share; 0 if each row owns its places."""
        return 0

    @property
    def free(self) -> int:
        """The number of blocks that a row can have now."""
        return 0

    def needed(self, row: int, tokens: int) -> int:
        """Return how many of `free` are taken if `tokens` more come to `row`."""
        return 0

    def needed_for(self, length: int) -> int:
        """Return how many blocks an empty row takes for `length` tokens."""
        return 0

    def match(self, row: int, ids: Sequence[int]) -> int:
        """Give the empty `row` what is stored of a beginning of `ids`; the number of its tokens."""
        self._empty([row])
        return 0

    def note(self, row: int, ids: Sequence[int]) -> None:
        """`row` begins with these ids, which `match` may then find."""
        # A kind that finds nothing need not know them.
        return

    def advance(self, tokens: int) -> None:
        """Count `tokens` more in every row."""
        # A new tensor: one that was made in inference mode cannot be changed in place outside of
        # it.
        self.lengths = self.lengths + tokens
        self.ends = [end + tokens for end in self.ends]
        self.longest += tokens
        self._tell()

    def truncate(self, lengths: Tensor) -> None:
        """Keep the first lengths[b] tokens of row b, at most as many as it has; lengths [B] int.

        Use it to take back wrong drafts, and the padding of prompts of unequal length. Waits
        for the device. Raises `ValueError` for another number of rows or a length below 0.
        """
        wanted = lengths.tolist()
        if lengths.shape != self.lengths.shape or any(end < 0 for end in wanted):
            raise ValueError(
                f"lengths={wanted}: must be {len(self.ends)} numbers of at least 0, one per row"
            )
        self._cut([min(both) for both in zip(wanted, self.ends, strict=True)])

    def clear(self, rows: Sequence[int] | None = None) -> None:
        """Forget every token, or those of some rows; the buffers stay."""
        gone = range(len(self.ends)) if rows is None else set(rows)
        self._cut([0 if row in gone else end for row, end in enumerate(self.ends)])

    def wipe(self, rows: Sequence[int]) -> None:
        """Clear rows whose numbers may not be finite, so that other rows never meet these."""
        self.clear(rows)

    def rows(self, index: Sequence[int]) -> Self:
        """Return a view of some rows: what is read into it is read into this cache.

        It counts its rows itself: make a new one after these rows have changed in another way. A
        row may not repeat.
        """
        if len(set(index)) != len(index) or not set(index) <= set(range(len(self.ends))):
            raise ValueError(f"rows({[*index]}): must be different rows, 0 to {len(self.ends) - 1}")
        view = copy.copy(self)
        view.whole = self
        view._pick([self.index[row] for row in index])
        view._own = [*index]
        view._set([self.ends[row] for row in index])
        return view

    def _pick(self, places: list[int]) -> None:
        """Stand for these rows of the buffers."""
        self.index = places
        self.numbers = torch.tensor(places, dtype=torch.int64, device=self.device)
        first = places[0] if places else 0
        follow = places == [*range(first, first + len(places))]
        # A slice of the buffers is no copy of them.
        self.some = slice(first, first + len(places)) if follow else self.numbers

    # The rows of `whole` that a view is of.
    _own: Sequence[int] = ()

    def _empty(self, rows: Sequence[int]) -> None:
        """Raise `ValueError` unless these rows have no tokens."""
        for row in rows:
            if self.ends[row]:
                raise ValueError(f"row {row} has {self.ends[row]} tokens: clear it first")

    def _cut(self, ends: list[int]) -> None:
        """Leave the first `ends` tokens of the rows, none more than they have."""
        self._count(ends)

    def _count(self, ends: list[int]) -> None:
        """Set the lengths of the rows, here and where this is a view of."""
        self._set(ends)
        self._tell()

    def _set(self, ends: list[int]) -> None:
        self.ends = ends
        self.lengths = torch.tensor(ends, dtype=torch.int64, device=self.device)
        self._settle()

    def _settle(self) -> None:
        # Numbers of the host, so that `attend`, which runs per layer and token, need not wait for
        # the device.
        self.longest, self.ragged = max(self.ends, default=0), len(set(self.ends)) > 1

    def _tell(self) -> None:
        """Give a view's lengths to the cache that it is a view of."""
        whole = self.whole
        if whole is None:
            return
        for row, end in zip(self._own, self.ends, strict=True):
            whole.ends[row] = end
        index = torch.tensor(self._own, device=self.device)
        whole.lengths = whole.lengths.index_copy(0, index, self.lengths)
        whole._settle()
        whole._tell()

    def _like(self, batch_size: int) -> Self:
        """Return an empty cache of this kind for another number of rows."""
        made = type(self)(
            self.states,
            batch_size,
            self.max_length,
            earlier=self.earlier_states,
            dtype=self.dtype,
            device=self.device,
            **self.options,
        )
        made.model = self.model
        return made


class Earlier:
    """The vectors of the tokens so far for the parts that look one token back, in order of slots.

    A buffer [B, max_length + 1, W] per slot: place 0 holds the zeros before the first token.
    """

    def __init__(
        self,
        states: Sequence[EarlierState],
        batch_size: int,
        max_length: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.buffers = [
            torch.zeros(
                (batch_size, max_length + 1, kept.width), dtype=kept.dtype or dtype, device=device
            )
            for kept in states
        ]

    def before(self, slot: int, x: Tensor, held: Base, *, equal: bool) -> Tensor:
        """`Base.before` for the rows of `held`; `equal` says that they have one length."""
        rows, tokens = self.buffers[slot], x.size(1)
        if equal:
            start, end = held.longest, held.longest + tokens
            rows[held.some, start + 1 : end + 1] = x.to(rows.dtype)
            # A copy: the next pass writes into the buffer.
            return rows[held.some, start:end].clone()
        places = held.lengths[:, None] + torch.arange(tokens, device=x.device)
        numbers = held.numbers[:, None]
        rows[numbers, places + 1] = x.to(rows.dtype)
        return rows[numbers, places]

    def copy(self, rows: Tensor, source: "Earlier", longest: int, target: Tensor) -> None:
        """Copy the `rows` of `source`, up to `longest` tokens, to the rows `target` of this one."""
        for mine, theirs in zip(self.buffers, source.buffers, strict=True):
            mine[target, : longest + 1] = theirs[rows, : longest + 1]

    def tensors(self, held: Base) -> dict[str, Tensor]:
        """Return the filled part of the rows of `held`, by name."""
        return {
            f"earlier.{slot}": x[held.some, : held.longest + 1]
            for slot, x in enumerate(self.buffers)
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""
        for slot, x in enumerate(self.buffers):
            found = tensors[f"earlier.{slot}"]
            x[:, : found.size(1)] = found.to(x)
