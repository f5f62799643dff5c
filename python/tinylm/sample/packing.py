"""Rows that read different numbers of tokens in one pass, without padding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinylm.context import Cache, Context, Left
from tinylm.mask import CAUSAL
from tinylm.model import Model


class Packed:
    """A view of a cache as one row: its parts' tokens one after the other [1, N].

    All that a block does is done token by token, but for what it asks of a cache. So a pass over
    the packed tokens is one product per weight, and here each part [R, T] meets its own rows.
    """

    def __init__(self, parts: Sequence[tuple[Cache, int]]) -> None:
        # Views of rows, and how many tokens each row gets.
        self.parts = parts
        self.sizes = [len(view.lengths) * tokens for view, tokens in parts]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """q [1, H, N, head], k and v [1, K, N, head] to y [1, H, N, head]."""
        found = []
        split = (torch.split(x, self.sizes, 2) for x in (q, k, v))
        for (view, tokens), *some in zip(self.parts, *split, strict=True):
            # [1, H, R T, head] to [R, H, T, head], and back.
            own = [x.view(x.size(1), -1, tokens, x.size(3)).transpose(0, 1) for x in some]
            y = view.attend(layer, *own, context)
            found.append(y.transpose(0, 1).flatten(1, 2)[None])
        return torch.cat(found, 2)

    def before(self, slot: int, x: Tensor) -> Tensor:
        """x [1, N, W] of new tokens to x of the tokens before them."""
        found = []
        for (view, tokens), some in zip(self.parts, torch.split(x, self.sizes, 1), strict=True):
            own = view.before(slot, some.view(-1, tokens, x.size(2)))
            found.append(own.flatten(0, 1)[None])
        return torch.cat(found, 1)


def read(model: Model, parts: Sequence[tuple[Cache, Sequence[Sequence[int]]]]) -> Tensor:
    """Read tokens [R][T] into the rows of each view, and return what the head reads [N, D].

    N counts the rows of all views, in order: each row's vector is that of its last token.
    """
    home = model.weight.device
    for view, ids in parts:
        # Before any layer stores a key: a refusal must leave the cache as it was.
        view.reserve(len(ids[0]))
    flat = [id for _, ids in parts for row in ids for id in row]
    tokens = torch.tensor([flat], device=home)
    positions = torch.cat(
        [
            (view.lengths[:, None] + torch.arange(len(ids[0]), device=home)).flatten()
            for view, ids in parts
        ]
    )[None]
    held: Any = Packed([(view, len(ids[0])) for view, ids in parts])
    rotation = model.position.rotation(positions)
    context = Context(positions, rotation, CAUSAL, held, tokens, left=Left())
    x = model.hidden(model.embed(tokens), context)[0]
    for view, ids in parts:
        view.advance(len(ids[0]))
    sizes = torch.tensor([len(row) for _, ids in parts for row in ids], device=home)
    return x[sizes.cumsum(0) - 1]
