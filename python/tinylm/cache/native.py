"""Keys and values for the native step (`rust/inference`), in blocks that Python hands out."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from tinylm import _rust
from tinylm.cache.base import Base, Full
from tinylm.cache.paged import PAGE, Paged, Pool
from tinylm.context import Context


class Pages(Pool):
    """A pool whose blocks are in Rust: they take memory when they are used."""

    def __init__(self, of: "Native", total: int, *, grows: bool) -> None:
        super().__init__(of, 0, PAGE, grows=grows)
        self.held = _rust.KeyValues(of.network, 0)
        size, heads = of.shape["head_size"], of.shape["n_layers"] * of.shape["n_kv_heads"]
        # Of float32; a value fills lines of 16 numbers.
        self.place: int = 4 * heads * (size + -(-size // 16) * 16)
        self.grow(total)

    def grow(self, more: int) -> None:
        """Add blocks."""
        self.held.grow(more)
        self.blocks.grow(more)

    def copy(self, source: int, target: int) -> None:
        """Copy what the tokens of one block left to another."""
        self.held.copy(source, target)

    def bytes_per_place(self) -> int:
        """Return the bytes that one token leaves."""
        return self.place


class Native(Paged):
    """Keys and values in the layout of the native step, which alone can read them.

    A pass is `read` or `draw`; no layer of the torch model attends here. Blocks of 16 tokens in
    float32, a panel of keys each, that rows share where they were forked or selected; with
    `shares` also where they begin alike, out of a budget of `tokens`, as in `Paged`. Without it
    each row has its places for itself. Rows of any lengths are read together.
    """

    kind = "native"
    pool: Pages

    def __init__(
        self,
        network: _rust.Network,
        shape: Mapping[str, Any],
        batch_size: int,
        max_length: int,
        *,
        shares: bool = False,
        tokens: int | None = None,
    ) -> None:
        self.network, self.shape, self.shares = network, shape, shares
        home = {"dtype": torch.float32, "device": torch.device("cpu")}
        super().__init__([], batch_size, max_length, page=PAGE, tokens=tokens, **home)

    def _pool(self, blocks: int, *, grows: bool) -> Pages:
        return Pages(self, blocks, grows=grows)

    @property
    def lengths(self) -> Tensor:  # type: ignore[override]
        """The length of each row [B] int64; made when asked for, which no pass does."""
        return torch.tensor(self.ends, dtype=torch.int64)

    def _pick(self, places: list[int]) -> None:
        # There are no buffers in torch, and to index them takes time.
        self.index = places

    def _set(self, ends: list[int]) -> None:
        self.ends = ends
        self._settle()

    def _tell(self) -> None:
        if self.whole is not None:
            for row, end in zip(self._own, self.ends, strict=True):
                self.whole.ends[row] = end
            self.whole._settle()
            self.whole._tell()

    @property
    def total(self) -> int:
        """The number of blocks that the rows share; 0 if each row owns its places."""
        return super().total if self.shares else 0

    def needed(self, row: int, tokens: int) -> int:
        """Return how many of `free` are taken if `tokens` more come to `row`."""
        return Paged.needed(self, row, tokens) if self.shares else 0

    def match(self, row: int, ids: Sequence[int]) -> int:
        """Give the empty `row` the known blocks of a beginning of `ids`; the number of tokens."""
        return super().match(row, ids) if self.shares else Base.match(self, row, ids)

    def note(self, row: int, ids: Sequence[int]) -> None:
        """`row` begins with these ids, which `match` may then find."""
        if self.shares:
            super().note(row, ids)

    def wipe(self, rows: Sequence[int]) -> None:
        """Clear rows: nobody reads places behind the end of a text."""
        self.clear(rows)

    def read(
        self,
        tokens: Sequence[Sequence[int]],
        *,
        every: bool = False,
        vocab_size: int | None = None,
        layers: int | None = None,
    ) -> Tensor:
        """More tokens of each row to the logits [R, V] after its last one.

        The numbers of new tokens may differ. With `every`, the logits after every token, row by
        row [N, V]. V is `vocab_size` or the model's; with `layers` the head reads what so many
        blocks give. float32, finite or not. Raises `ValueError` for ids outside the vocabulary, and
        `Full` for rows that do not fit, before anything is read.
        """
        runs, flat, wanted = self._reading(tokens, every)
        logits = self.pool.held.read(
            self.host,
            runs,
            flat,
            wanted,
            vocab_size=self.shape["vocab_size"] if vocab_size is None else vocab_size,
            layers=self.shape["n_layers"] if layers is None else layers,
            threads=torch.get_num_threads(),
        )
        self._count([start + count for _, start, count in runs])
        return torch.from_numpy(logits)

    def draw(
        self,
        tokens: Sequence[Sequence[int]],
        temperatures: Sequence[float],
        numbers: Sequence[float],
        *,
        every: bool = False,
        vocab_size: int | None = None,
        missing: Sequence[int] = (),
        layers: int | None = None,
    ) -> list[int | None]:
        """As `read`, then a token for each row of logits: `sample.logits.draw` of logits /
        temperature.

        Temperature 0 takes the likeliest id, the smallest of equal ones; `numbers` are in [0, 1).
        Computed in float32, summed in float64. Ids in `missing` are not drawn; if all are, or for a
        temperature or number out of range, that is a `ValueError` before anything is read. None for
        a row whose logits are not finite.
        """
        runs, flat, wanted = self._reading(tokens, every)
        drawn = self.pool.held.draw(
            self.host,
            runs,
            flat,
            wanted,
            temperatures=[*temperatures],
            numbers=[*numbers],
            vocab_size=self.shape["vocab_size"] if vocab_size is None else vocab_size,
            missing=[*missing],
            layers=self.shape["n_layers"] if layers is None else layers,
            threads=torch.get_num_threads(),
        )
        self._count([start + count for _, start, count in runs])
        return drawn

    def _reading(
        self, tokens: Sequence[Sequence[int]], every: bool
    ) -> tuple[list[tuple[int, int, int]], list[int], list[int]]:
        """The runs as Rust takes them, their tokens, and the places whose logits are wanted."""
        counts = [len(row) for row in tokens]
        if len(counts) != len(self.ends) or 0 in counts:
            raise ValueError(
                f"rows of {counts} tokens: must be {len(self.ends)} rows of one token or more"
            )
        for end, count in zip(self.ends, counts, strict=True):
            if end + count > self.max_length:
                raise Full(
                    f"{end} + {count} tokens do not fit a cache of {self.max_length}: build a "
                    f"longer one or clear it"
                )
        runs = [*zip(self.index, self.ends, counts, strict=True)]
        flat = [token for row in tokens for token in row]
        for id in (min(flat), max(flat)):
            if not 0 <= id < self.shape["vocab_size"]:
                raise ValueError(f"id {id}: the vocabulary is 0 to {self.shape['vocab_size'] - 1}")
        self._claim([*enumerate(counts)])
        if every or len(flat) == len(runs):
            return runs, flat, [*range(len(flat))]
        return runs, flat, [end - 1 for end in accumulate(counts)]

    def joined(self, views: Sequence[Any]) -> "Native":
        """A view of all rows of some views of one cache, in order."""
        assert self.whole is not None, "rows are joined again that were views of one cache"
        return self.whole.rows([row for view in views for row in view._own])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Raise `ValueError`: the keys of this cache are for the native step."""
        raise ValueError("cache=native is read by its step: give the model cache.build(...)")

    def before(self, slot: int, x: Tensor) -> Tensor:
        """Raise `ValueError`, as `attend`."""
        raise ValueError("cache=native is read by its step: give the model cache.build(...)")

    def tensors(self) -> dict[str, Tensor]:
        """Raise `ValueError`: a file of keys is for every machine, this layout for one."""
        raise ValueError("cache=native cannot be saved: use one of cache.build(...)")

    def restore(self, tensors: Mapping[str, Tensor], ends: Sequence[int]) -> None:
        """Raise `ValueError`, as `tensors`."""
        raise ValueError("cache=native cannot be loaded: use one of cache.build(...)")
