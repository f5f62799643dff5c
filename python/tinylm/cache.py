"""The memory of decoding: the keys and values of the tokens so far, in every layer.

    held = build(model, batch_size=2, max_length=256)
    logits = model(prompts, cache=held)     # [B, T, V]; the next tokens follow these
    held.truncate(torch.tensor([5, 9]))     # rows may end at different places

A cache attends: the model hands it new keys, values and queries, and gets back what attention
makes of them and of all that the cache holds (`tinylm.context.Cache`).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tinylm.context import Context, Decodes, DecodeState, EarlierState


class Contiguous:
    """A buffer [B, K, max_length, head] of keys and one of values per layer, filled from the left.

    `lengths` [B] int64 is the number of tokens in each row. `longest` is the largest of them, a
    number of the host, so that nothing waits for a device. Rows of equal length attend over the
    filled part and need no mask. With `fixed`, attention runs over the whole buffer behind a mask:
    no shape ever changes, which is what a compiled step of decoding needs.
    Memory: 2 L B K head max_length numbers, and B W max_length per slot of `before`. Appending
    past `max_length` raises `ValueError`.
    """

    def __init__(
        self,
        states: Sequence[DecodeState],
        batch_size: int,
        max_length: int,
        *,
        earlier: Sequence[EarlierState] = (),
        fixed: bool = False,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.states, self.max_length, self.fixed = states, max_length, fixed
        shapes = [(batch_size, state.heads, max_length, state.size) for state in states]
        # Zeros, not what the memory held: behind a mask it is multiplied by 0, and 0 times nan is
        # nan.
        self.k = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.v = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        # One row more than tokens: place 0 holds the zeros before the first token.
        self.earlier_states = earlier
        self.earlier = [
            torch.zeros((batch_size, max_length + 1, kept.width), dtype=kept.dtype or dtype).to(
                device
            )
            for kept in earlier
        ]
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.longest, self.ragged = 0, False

    def reserve(self, tokens: int) -> None:
        """Raise `ValueError` unless `tokens` more fit in every row."""
        if self.longest + tokens > self.max_length:
            raise ValueError(
                f"{self.longest} + {tokens} tokens do not fit a cache of {self.max_length}: "
                f"build a longer one or clear it"
            )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Store k and v [B, K, T, head] and let q [B, H, T, head] look at all: y as q."""
        keys, values, tokens = self.k[layer], self.v[layer], k.size(2)
        attend, mask = self.states[layer].attend, context.mask
        # Plain slices by a number of the host: nothing waits for the device, and no mask is needed.
        if not (self.fixed or self.ragged):
            end = self.longest + tokens
            keys[:, :, self.longest : end] = k
            values[:, :, self.longest : end] = v
            return attend(q, keys[:, :, :end], values[:, :, :end], mask=mask)
        # Row b's token t goes to place lengths[b] + t, in all its heads.
        places = self.lengths[:, None] + torch.arange(tokens, device=k.device)
        index = places[:, None, :, None].expand_as(k)
        # `scatter_` refuses another dtype, where the slices above convert in silence.
        keys.scatter_(2, index, k.to(keys.dtype))
        values.scatter_(2, index, v.to(values.dtype))
        end = self.max_length if self.fixed else self.longest + tokens
        return attend(q, keys[:, :, :end], values[:, :, :end], mask=mask, past=self.lengths)

    def before(self, slot: int, x: Tensor) -> Tensor:
        """Store x [B, T, W] of the new tokens, and return x of the tokens before them."""
        rows, tokens = self.earlier[slot], x.size(1)
        if not (self.fixed or self.ragged):
            rows[:, self.longest + 1 : self.longest + 1 + tokens] = x
            # A copy: the next pass writes into the buffer.
            return rows[:, self.longest : self.longest + tokens].clone()
        places = (self.lengths[:, None] + torch.arange(tokens, device=x.device))[..., None]
        rows.scatter_(1, (places + 1).expand_as(x), x.to(rows.dtype))
        return rows.gather(1, places.expand_as(x))

    def advance(self, tokens: int) -> None:
        """Count `tokens` more in every row."""
        # A new tensor: one that was made in inference mode cannot be changed in place outside of
        # it.
        self.lengths = self.lengths + tokens
        self.longest += tokens

    def truncate(self, lengths: Tensor) -> None:
        """Keep the first lengths[b] tokens of row b, at most as many as it has; lengths [B] int.

        Use it to take back wrong drafts, and the padding of prompts of unequal length. Waits
        for the device. Raises `ValueError` for another number of rows or a length below 0.
        """
        wanted = lengths.to(self.lengths)
        if wanted.shape != self.lengths.shape or (wanted < 0).any():
            raise ValueError(
                f"lengths={wanted.tolist()}: must be {len(self.lengths)} numbers of at least 0, "
                f"one per row"
            )
        # The buffers keep the numbers beyond a row's end: the mask hides them, and the next tokens
        # overwrite them.
        self.lengths = torch.minimum(wanted, self.lengths)
        # The one place that asks the device, so that `attend`, which runs per layer and token, need
        # not.
        found = self.lengths.tolist()
        self.longest, self.ragged = max(found, default=0), len(set(found)) > 1

    def clear(self) -> None:
        """Forget every token; the buffers stay."""
        self.lengths = torch.zeros_like(self.lengths)
        self.longest, self.ragged = 0, False

    def select(self, rows: Tensor) -> "Contiguous":
        """A cache of the sequences `rows` [N] int64 of this one, in that order; a row may repeat.

        Repeat a row to continue one prompt in several ways; leave out the rows that are finished.
        Only the filled part is copied.
        """
        like = self.k[0]
        taken = Contiguous(
            self.states,
            rows.numel(),
            self.max_length,
            earlier=self.earlier_states,
            fixed=self.fixed,
            dtype=like.dtype,
            device=like.device,
        )
        for mine, theirs in zip(self.earlier, taken.earlier, strict=True):
            theirs[:, : self.longest + 1] = mine[rows, : self.longest + 1]
        for mine, theirs in zip((*self.k, *self.v), (*taken.k, *taken.v), strict=True):
            theirs[:, :, : self.longest] = mine[rows, :, : self.longest]
        taken.lengths, taken.longest = self.lengths[rows], self.longest
        if self.ragged:
            # Finds `longest` and `ragged` anew: the longest row, or all that differed, may be gone.
            taken.truncate(taken.lengths)
        return taken


def build(
    model: Decodes,
    batch_size: int,
    max_length: int,
    kind: Literal["contiguous"] = "contiguous",
    *,
    fixed: bool = False,
) -> Contiguous:
    """An empty cache for `batch_size` sequences of at most `max_length` tokens.

    `max_length` is at most the model's context length; the buffers take the dtype that the
    model computes in. `fixed` keeps every shape of a forward pass the same (see `Contiguous`).
    """
    limit = model.context_length
    if not 1 <= max_length <= limit:
        raise ValueError(f"max_length={max_length}: must be 1 to the context length, {limit}")
    if kind != "contiguous":
        raise ValueError(f"kind={kind}: the cache is contiguous")
    weight = model.weight
    dtype = weight.dtype
    if torch.is_autocast_enabled(weight.device.type):
        # Under autocast keys and values come in its dtype, not in that of the weights.
        dtype = torch.get_autocast_dtype(weight.device.type)
    return Contiguous(
        model.decode_states(),
        batch_size,
        max_length,
        earlier=model.earlier_states(),
        fixed=fixed,
        dtype=dtype,
        device=weight.device,
    )
