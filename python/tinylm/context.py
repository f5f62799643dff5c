"""What a block needs besides the hidden vectors: positions, mask and cache.

The model makes one `Context` per forward pass and hands it to every block. If a layer needs
something else, add a field here instead of a keyword in every signature on the way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.mask import CAUSAL, Mask

# q, k, v and the keywords of `ops.attention`; `Callable` has no way to name keywords.
Attend = Callable[..., Tensor]


@dataclass(frozen=True)
class CacheStats:
    """What a cache stores, and what that costs.

    `tokens` are counted in every row, `places` are those that rows own, each once however many
    rows share it. Of `asked` tokens that were about to be read, `found` were there already.
    """

    tokens: int
    places: int
    bytes: int
    empty: int = 0
    asked: int = 0
    found: int = 0

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes of all that is stored by the number of tokens; 0 without tokens."""
        return self.bytes / self.tokens if self.tokens else 0.0

    @property
    def hit_rate(self) -> float:
        """Return the share of the tokens asked for that were there already."""
        return self.found / self.asked if self.asked else 0.0

    @property
    def waste(self) -> float:
        """Return the share of the places that rows own in which no token is."""
        return self.empty / self.places if self.places else 0.0


# Protocols, not base classes: the model and the cache need not import each other, and a test can
# bring a cache of its own.
class Cache(Protocol):
    """What the model asks of a cache; `tinylm.cache` has several.

    A cache attends: it stores the keys and values of the new tokens and answers their queries.
    So only the cache knows how they are stored (in one buffer, in blocks, in fewer bits).
    """

    # Tokens in each row, on the host, and the most of them.
    ends: list[int]
    longest: int
    # Whether tokens that are read as filling and cut off again leave a row as it was.
    pads: bool

    @property
    def lengths(self) -> Tensor:
        """`ends` on the device [B] int64."""

    @property
    def streams(self) -> bool:
        """Whether rows may grow past the length that the cache was built for."""

    @property
    def at_once(self) -> int:
        """The most tokens of a pass."""

    def reserve(self, tokens: int) -> None:
        """Raise `ValueError` unless `tokens` more fit in every row."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: "Context") -> Tensor:
        """q [B, H, T, head], k and v [B, K, T, head] of new tokens to y [B, H, T, head].

        Every layer of a forward pass calls this once; `lengths` changes in `advance` alone.
        """

    def advance(self, tokens: int) -> None:
        """Count `tokens` more in every row: the forward pass that brought them is over."""

    def truncate(self, lengths: Tensor) -> None:
        """Keep the first lengths[b] tokens of row b; lengths [B] int, at most those there are."""

    def clear(self, rows: Sequence[int] | None = None) -> None:
        """Forget every token, or those of some rows."""

    def wipe(self, rows: Sequence[int]) -> None:
        """Clear rows whose numbers may not be finite, so that other rows never meet these."""

    def before(self, slot: int, x: Tensor) -> Tensor:
        """x [B, T, W] of new tokens to x of the tokens before them; zeros before the first.

        Each `tinylm.layers.Before` of the model has a slot of its own.
        """

    def select(self, rows: Tensor) -> Self:
        """A cache of the sequences `rows` [N] int64 of this one; a row may come several times."""

    def rows(self, index: Sequence[int]) -> Self:
        """A view of some rows: what is read into it is read into this cache."""

    def fork(self, row: int, to: Sequence[int]) -> None:
        """Let the empty rows `to` go on from the tokens of `row`."""

    @property
    def total(self) -> int:
        """The number of blocks of a cache whose rows share a budget; 0 if they own their places."""

    @property
    def free(self) -> int:
        """The number of blocks that a row can have now."""

    def needed(self, row: int, tokens: int) -> int:
        """How many of `free` are taken if `tokens` more come to `row`."""

    def needed_for(self, length: int) -> int:
        """How many blocks an empty row takes for `length` tokens."""

    def match(self, row: int, ids: Sequence[int]) -> int:
        """Give the empty `row` what is stored of a beginning of `ids`; the number of its tokens.

        At most all but one: the last must be read for its logits.
        """

    def note(self, row: int, ids: Sequence[int]) -> None:
        """`row` begins with these ids, which `match` may then find."""

    def stats(self) -> CacheStats:
        """What is stored, and what that costs."""


class EarlierState(NamedTuple):
    """The state that decoding keeps per token for a part that looks one token back.

    A dtype of None is that of the model.
    """

    width: int
    dtype: torch.dtype | None


class DecodeState(NamedTuple):
    """The state that decoding keeps per token for an attention layer, and how the layer attends."""

    heads: int
    size: int
    attend: Attend


class Left:
    """What the blocks of a pass leave: losses of their own, and tensors for others, by name.

    A plain class: FSDP hands each block copies of all dataclasses, lists and dicts that it gets, in
    which what the block adds would be lost.
    """

    def __init__(self, shared: Mapping[str, Tensor] | None = None) -> None:
        self.losses: list[Tensor] = []
        self.shared: dict[str, Tensor] = {**(shared or {})}


@dataclass(frozen=True)
class Context:
    """One forward pass as its blocks see it.

    The position module counts by `positions` [T] or [B, T] int64. They may restart inside a
    row if `mask.documents` keeps its texts apart. `rotate` turns queries and keys
    [B, H, T, head] by them. With a `cache` the tokens follow those in it. A layer that has a loss
    of its own (a router's balance, say) appends the scalar to `losses`; `Model.loss` adds them.
    """

    positions: Tensor
    rotate: Callable[[Tensor], Tensor]
    mask: Mask = CAUSAL
    cache: Cache | None = None
    # The ids [B, T] int64, for layers that look up rows; None if a caller begins with vectors.
    tokens: Tensor | None = None
    # Whether the backward pass computes each block again instead of keeping what it needs.
    again: bool = False
    # The number of blocks that the pass goes through, from the first; None is all of them.
    layers: int | None = None
    # The dataclass is frozen, this is not: layers add to it during the pass.
    left: Left = field(default_factory=Left)

    @property
    def losses(self) -> list[Tensor]:
        """The losses that layers have of their own."""
        return self.left.losses

    @property
    def shared(self) -> dict[str, Tensor]:
        """What one block leaves for the others, by name."""
        return self.left.shared

    def ids(self, setting: str) -> Tensor:
        """The token ids [B, T]; `ValueError` for a caller that began with vectors."""
        if self.tokens is None:
            raise ValueError(
                f"model.{setting} looks up token ids: begin at Model.forward or Model.loss, or "
                f"give Model.context the tokens="
            )
        return self.tokens

    def before(self, slot: int, x: Tensor) -> Tensor:
        """x [B, T, W] of these tokens to x of the tokens before them, inside each document.

        The first token of a document, and of a row, gets zeros.
        """
        if self.cache is not None:
            return self.cache.before(slot, x)
        shifted = F.pad(x[:, :-1], (0, 0, 1, 0))
        documents = self.mask.documents
        if documents is None:
            return shifted
        inside = F.pad(documents[:, 1:] == documents[:, :-1], (1, 0))
        return shifted * inside[..., None].to(x.dtype)

    def within(self, window: int) -> "Context":
        """This context with attention to the newest `window` tokens at most."""
        narrow = window if self.mask.window is None else min(window, self.mask.window)
        return replace(self, mask=replace(self.mask, window=narrow))


class Decodes(Protocol):
    """What a cache needs to know of a model."""

    @property
    def context_length(self) -> int:
        """The most tokens of a row."""

    @property
    def weight(self) -> Tensor:
        """A tensor of the dtype and device that the model computes in."""

    @property
    def moved_back(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What moves keys [B, K, S, head] to positions that are by [B] lower.

        None if positions do not enter by the rotation of keys, or not at all.
        """

    def earlier_states(self) -> Sequence[EarlierState]:
        """The state of each slot of `Cache.before`, in order."""

    def decode_states(self) -> Sequence[DecodeState]:
        """The decode state of every attention layer, in order."""
