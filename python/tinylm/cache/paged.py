"""Keys and values in blocks out of one pool, which rows share where they begin alike."""

import copy
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from tinylm import ops
from tinylm.cache.base import Base, Full
from tinylm.cache.blocks import Blocks
from tinylm.context import CacheStats, Context, DecodeState

# Tokens of a block. Blocks of 16 waste 0.8% of their places on texts of 100 to 1,024 tokens in and
# out, blocks of 32 1.7% (benches/bench_cache.py waste).
PAGE = 16


class Pool:
    """The memory of all blocks: what a token leaves is at `block * page + place` of each buffer.

    Keys and values are [K, total page, head] per layer: heads first, so that the blocks of a row
    are gathered by one copy. Vectors of before are [total page, W] per slot.
    """

    def __init__(self, of: Base, total: int, page: int, *, grows: bool) -> None:
        self.blocks, self.page, self.grows = Blocks(total, page), page, grows
        self.asked, self.found = 0, 0
        places = total * page
        # Zeros, as in a contiguous buffer. Memory that was never written costs nothing on a CPU.
        zeros = partial(torch.zeros, device=of.device)
        shapes = [(state.heads, places, state.size) for state in of.states]
        self.k = [zeros(shape, dtype=of.dtype) for shape in shapes]
        self.v = [zeros(shape, dtype=of.dtype) for shape in shapes]
        self.earlier = [
            zeros((1, places, kept.width), dtype=kept.dtype or of.dtype)
            for kept in of.earlier_states
        ]

    def grow(self, more: int) -> None:
        """Add blocks: every buffer is copied."""
        for buffers in (self.k, self.v, self.earlier):
            for i, x in enumerate(buffers):
                buffers[i] = torch.cat((x, x.new_zeros(x.size(0), more * self.page, x.size(2))), 1)
        self.blocks.grow(more)

    def copy(self, source: int, target: int) -> None:
        """Copy what the tokens of one block left to another."""
        for x in (*self.k, *self.v, *self.earlier):
            by_block = _by_block(x, self.page)
            by_block[:, target] = by_block[:, source]

    def bytes_per_place(self) -> int:
        """Return the bytes that one token leaves."""
        buffers = (*self.k, *self.v, *self.earlier)
        return sum(x.size(0) * x.size(2) * x.itemsize for x in buffers)


class Plan(NamedTuple):
    """Where the tokens of one pass go, and where those of its rows are.

    `table` [B, n] int32 has the blocks of each row up to its new tokens, `write` [B T] the places
    of these, `last` [B] the place of the token before them. `run` is the first place of a lone row
    whose blocks follow one another.
    """

    tokens: int
    table: Tensor
    write: Tensor
    last: Tensor
    run: int | None


class Paged(Base):
    """Blocks of `page` tokens, handed out when a row grows into them; `tokens` is the budget.

    A full block whose ids were told (`note`) is shared by every row that begins with the same ids
    (`match`), also after its own row is gone, until the block is needed. Rows that were forked or
    selected share all blocks; who writes into a shared one gets a copy first. Without a budget the
    pool grows as needed; with one, `reserve` raises `Full` and changes nothing.

    The bits are those of a contiguous cache that was read in the same parts, for heads of a
    multiple of 64 bytes: other keys are aligned in another way, and products rounded so. On a GPU
    the decode kernel reads the blocks where they are; elsewhere they are gathered, and the blocks
    of a lone row are a view if they follow one another. Source: Kwon et al. 2023 (PagedAttention).
    """

    kind = "paged"
    _planned: "Plan | None"

    def __init__(
        self,
        states: Sequence[DecodeState],
        batch_size: int,
        max_length: int,
        *,
        page: int = PAGE,
        tokens: int | None = None,
        **named: Any,
    ) -> None:
        if page < 1 or page & (page - 1):
            raise ValueError(f"page={page}: must be a power of two, such as 16 or 32")
        if tokens is not None and tokens < page:
            raise ValueError(f"tokens={tokens}: must be at least page, {page}: one block")
        super().__init__(states, batch_size, max_length, page=page, tokens=tokens, **named)
        self.page, self.width = page, -(-max_length // page)
        blocks = batch_size * self.width if tokens is None else tokens // page
        self.pool = self._pool(blocks, grows=tokens is None)
        self._begin(batch_size)

    def _pool(self, blocks: int, *, grows: bool) -> Pool:
        return Pool(self, blocks, self.page, grows=grows)

    def _begin(self, batch_size: int) -> None:
        """Start with empty rows, whose blocks go back when this cache does."""
        self.tables: list[list[int]] = [[] for _ in range(batch_size)]
        # The same as an array, and on the device; on a CPU they are one.
        self.host = np.zeros((batch_size, self.width), np.int32)
        self.table = torch.from_numpy(self.host).to(self.device)
        self._all_rows(batch_size)
        weakref.finalize(self, _release, self.pool.blocks, self.tables)

    @property
    def total(self) -> int:
        """The number of blocks in the pool."""
        return self.pool.blocks.total

    @property
    def free(self) -> int:
        """The number of blocks that a row can have now, among them those that nobody uses."""
        return self.pool.blocks.free

    def needed(self, row: int, tokens: int) -> int:
        """Return how many of `free` are taken if `tokens` more come to `row`."""
        end, own, page = self.ends[row], self.tables[self.index[row]], self.page
        more = max(0, -(-(end + tokens) // page) - len(own))
        copied = tokens and end % page and self.pool.blocks.users[own[end // page]] > 1
        return more + bool(copied)

    def needed_for(self, length: int) -> int:
        """Return how many blocks an empty row takes for `length` tokens."""
        return -(-length // self.page)

    def reserve(self, tokens: int) -> None:
        """Give every row the blocks for `tokens` more; `Full`, and no change, if there are none."""
        super().reserve(tokens)
        self._claim([(row, tokens) for row in range(len(self.ends))])

    def _claim(self, new: Sequence[tuple[int, int]]) -> None:
        """`reserve` for rows that get different numbers of tokens: (row, tokens) of each."""
        pool, blocks, page = self.pool, self.pool.blocks, self.page
        changed = []
        for row, tokens in new:
            end, own = self.ends[row], self.tables[self.index[row]]
            # Most tokens go into a block that their row has for itself already.
            some = own[end // page] if tokens and end % page else None
            alone = some is None or (blocks.users[some] == 1 and some not in blocks.content)
            if end + tokens > len(own) * page or not alone:
                changed.append((row, tokens))
        short = self._needed(changed) - blocks.free
        if short > 0 and not pool.grows:
            raise Full(
                f"{short + blocks.free} more blocks of {page} tokens are needed, and "
                f"{blocks.free} of {blocks.total} are free: clear rows or give a larger budget"
            )
        if short > 0:
            pool.grow(max(short, blocks.total // 2))
        for row, tokens in changed:
            self._extend(row, tokens)

    def match(self, row: int, ids: Sequence[int]) -> int:
        """Give the empty `row` the known blocks of a beginning of `ids`; the number of tokens."""
        self._empty([row])
        # The last token is read in any case: the logits after it are wanted.
        found = self.pool.blocks.find(ids[: min(len(ids) - 1, self.max_length)])
        self._share(row, found)
        ends = [*self.ends]
        ends[row] = held = len(found) * self.page
        self._count(ends)
        self.pool.asked, self.pool.found = self.pool.asked + len(ids), self.pool.found + held
        return held

    def note(self, row: int, ids: Sequence[int]) -> None:
        """`row` begins with these ids: its full blocks of them can be found by `match`."""
        if len(ids) > self.ends[row]:
            raise ValueError(f"note: {len(ids)} ids for row {row} of {self.ends[row]} tokens")
        full = len(ids) // self.page
        self.pool.blocks.note(self.tables[self.index[row]][:full], ids)

    def wipe(self, rows: Sequence[int]) -> None:
        """Clear rows, and put zeros where numbers may be that are not finite.

        A block that other rows use stays: what it holds, they have read.
        """
        known = self.pool.blocks
        for row in rows:
            blocks = [b for b in self.tables[self.index[row]] if known.users[b] == 1]
            for block in blocks:
                known.forget(block)
            for x in (*self.pool.k, *self.pool.v, *self.pool.earlier):
                _by_block(x, self.page)[:, blocks] = 0
        self.clear(rows)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Store k and v [B, K, T, head] and let q [B, H, T, head] look at all: y as q."""
        pool, plan, tokens = self.pool, self._plan(k.size(2)), k.size(2)
        keys, values = pool.k[layer], pool.v[layer]
        for stored, new in ((keys, k), (values, v)):
            stored.index_copy_(1, plan.write, new.transpose(0, 1).flatten(1, 2).to(stored.dtype))
        attend, mask = self.states[layer].attend, context.mask
        if ops.kernel_for_blocks(attend, q, keys):
            keys, values = (_by_block(x, self.page).transpose(0, 1) for x in (keys, values))
            return ops.decode_attention(
                q, keys, values, self.lengths, table=plan.table, window=mask.window
            )
        past = {"past": self.lengths} if self.ragged else {}
        keys, values = (self._rows_of(x, plan, self.longest + tokens) for x in (keys, values))
        return attend(q, keys, values, mask=mask, **past)

    def before(self, slot: int, x: Tensor) -> Tensor:
        """Store x [B, T, W] of the new tokens, and return x of the tokens before them."""
        plan, (rows,) = self._plan(x.size(1)), self.pool.earlier[slot]
        x = x.to(rows.dtype)
        last = rows[plan.last].masked_fill((self.lengths == 0)[:, None], 0)
        rows.index_copy_(0, plan.write, x.flatten(0, 1))
        return torch.cat((last[:, None], x[:, :-1]), 1)

    def select(self, rows: Tensor) -> Self:
        """A cache of the sequences `rows` [N] int64, in that order; no token is copied."""
        taken = copy.copy(self)
        chosen: list[int] = rows.tolist()
        taken._begin(len(chosen))
        for new, row in enumerate(chosen):
            taken._share(new, self.tables[self.index[row]][: self.needed_for(self.ends[row])])
        taken._set([self.ends[row] for row in chosen])
        return taken

    def _fork(self, row: int, to: Sequence[int]) -> None:
        for other in to:
            self._share(other, self.tables[self.index[row]][: self.needed_for(self.ends[row])])

    def stats(self) -> CacheStats:
        """Return what these rows store; a place is counted once, whoever shares it."""
        filled: dict[int, int] = {}
        for number, end in zip(self.index, self.ends, strict=True):
            for place, block in enumerate(self.tables[number]):
                here = min(self.page, max(0, end - place * self.page))
                filled[block] = max(here, filled.get(block, 0))
        places = len(filled) * self.page
        return CacheStats(
            tokens=sum(self.ends),
            places=places,
            bytes=places * self.pool.bytes_per_place(),
            empty=places - sum(filled.values()),
            asked=self.pool.asked,
            found=self.pool.found,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the keys, values and vectors of before of all rows, each in one piece."""
        plan, end = self._plan(0), self.longest
        return {name: self._rows_of(x, plan, end) for name, x in self._named()}

    def restore(self, tensors: Mapping[str, Tensor], ends: Sequence[int]) -> None:
        """Take over the `tensors` of another cache, whose rows had `ends` tokens."""
        longest = max(ends, default=0)
        self.reserve(longest)
        write = self._plan(longest).write
        for name, x in self._named():
            x.index_copy_(1, write, tensors[name].transpose(0, 1).flatten(1, 2).to(x))
        self._set([longest] * len(ends))
        self._cut([*ends])

    def advance(self, tokens: int) -> None:
        """Count `tokens` more in every row."""
        super().advance(tokens)
        self._planned = None

    def _set(self, ends: list[int]) -> None:
        super()._set(ends)
        self._planned = None

    def _cut(self, ends: list[int]) -> None:
        """Leave the first `ends` tokens of the rows; blocks without a token go back."""
        for number, end in zip(self.index, ends, strict=True):
            _drop(self.pool.blocks, self.tables[number], self.needed_for(end))
        super()._cut(ends)

    def _share(self, row: int, blocks: Sequence[int]) -> None:
        """Let the empty `row` use these blocks, too."""
        number = self.index[row]
        # Blocks that were reserved and never filled.
        _drop(self.pool.blocks, self.tables[number], 0)
        for block in blocks:
            self.pool.blocks.share(block)
        self._append(number, blocks)

    def _append(self, number: int, blocks: Sequence[int]) -> None:
        own = self.tables[number]
        if blocks:
            self._write(number, len(own), blocks)
            own += blocks

    def _write(self, number: int, place: int, blocks: Sequence[int]) -> None:
        """Put blocks into the table of a row, from a place on."""
        some = np.s_[number, place : place + len(blocks)]
        self.host[some] = blocks
        if self.device.type != "cpu":
            self.table[some] = torch.from_numpy(self.host[some]).to(self.device)

    def _needed(self, new: Iterable[tuple[int, int]]) -> int:
        """Return how many blocks are taken if tokens come to rows: (row, tokens) of each."""
        count, page, users = 0, self.page, self.pool.blocks.users
        writers: dict[int, int] = {}
        for row, tokens in new:
            end, own = self.ends[row], self.tables[self.index[row]]
            count += max(0, -(-(end + tokens) // page) - len(own))
            if tokens and end % page and users[block := own[end // page]] > 1:
                writers[block] = writers.get(block, 0) + 1
        # Who writes into a shared block copies it, but for the last who is left with it.
        return count + sum(min(number, users[block] - 1) for block, number in writers.items())

    def _extend(self, row: int, tokens: int) -> None:
        """Give a row blocks of its own for `tokens` more."""
        end, number, blocks = self.ends[row], self.index[row], self.pool.blocks
        own = self.tables[number]
        if tokens and end % self.page:
            place = end // self.page
            written = own[place]
            if blocks.users[written] > 1:
                own[place] = blocks.take()
                self.pool.copy(written, own[place])
                blocks.release(written)
                self._write(number, place, own[place : place + 1])
            else:
                blocks.forget(written)
            self._planned = None
        more = self.needed_for(end + tokens) - len(own)
        if more > 0:
            self._append(number, [blocks.take() for _ in range(more)])
            self._planned = None

    def _plan(self, tokens: int) -> Plan:
        """Where `tokens` more of each row go; made once per pass, as all layers share it."""
        if self._planned is not None and self._planned.tokens == tokens:
            return self._planned
        count = self.needed_for(self.longest + tokens)
        table, page = self.table[self.some, :count], self.page

        def places(positions: Tensor) -> Tensor:
            return table.gather(1, positions // page) * page + positions % page

        new = self.lengths[:, None] + torch.arange(tokens, device=self.device)
        last = (self.lengths - 1).clamp(min=0)[:, None] if count else new[:, :0]
        run = None
        if len(self.index) == 1 and count:
            own = self.tables[self.index[0]]
            if own[:count] == [*range(own[0], own[0] + count)]:
                run = own[0] * page
        self._planned = Plan(tokens, table, places(new).flatten(), places(last).flatten(), run)
        return self._planned

    def _rows_of(self, stored: Tensor, plan: Plan, end: int) -> Tensor:
        """The first `end` places of all rows, in one piece: [B, K, end, head]."""
        if plan.run is not None:
            return stored[None, :, plan.run : plan.run + end]
        rows, count = plan.table.shape
        blocks = _by_block(stored, self.page).index_select(1, plan.table.flatten())
        return blocks.view(-1, rows, count * self.page, stored.size(2)).transpose(0, 1)[:, :, :end]

    def _named(self) -> Iterable[tuple[str, Tensor]]:
        pool = self.pool
        for name, each in (("k", pool.k), ("v", pool.v), ("earlier", pool.earlier)):
            yield from ((f"{name}.{i}", x) for i, x in enumerate(each))


def _by_block(x: Tensor, page: int) -> Tensor:
    """The places [K, total page, head] of a buffer, by block: [K, total, page, head]."""
    return x.view(x.size(0), -1, page, x.size(2))


def _drop(blocks: Blocks, table: list[int], keep: int) -> None:
    """Let go of all but the first `keep` blocks of a row."""
    # The last first: what is let go first is needed first, and a text's beginning is worth most.
    while len(table) > keep:
        blocks.release(table.pop())


def _release(blocks: Blocks, tables: list[list[int]]) -> None:
    """Let go of the blocks of all rows."""
    for table in tables:
        _drop(blocks, table, 0)
