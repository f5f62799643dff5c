"""The tokens that a cache with eviction holds in one layer."""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.ops.dtypes import widened

# Attention weights that are made at once to be added up: 64 MiB in float32.
WEIGHTS = 2**24


@dataclass
class Held:
    """The tokens that a layer holds in S places per row and key head, and queries to judge by.

    `place` [B, K, S] int32 is where in the text a token of k and v [B, K, S, head] stands, and
    `score` [B, K, S] float32 what a kind knows of it. `asked` [B, A] int32 is where the queries
    q [B, H, A, head] stand. Along S and A, what is unused has place -1 and comes first; the others
    ascend.
    """

    k: Tensor
    v: Tensor
    place: Tensor
    score: Tensor
    q: Tensor
    asked: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; the first axis of each is the row."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def rows(self, some: slice | Tensor) -> "Held":
        """Some rows."""
        return Held(**{name: x[some] for name, x in self.tensors().items()})

    def pick(self, order: Tensor) -> "Held":
        """The tokens number `order` [B, K, N] of each row and key head."""
        wide = order[..., None].expand(-1, -1, -1, self.k.size(-1))
        k, v = self.k.gather(2, wide), self.v.gather(2, wide)
        place, score = self.place.gather(2, order), self.score.gather(2, order)
        return replace(self, k=k, v=v, place=place, score=score)

    def newest(self, queries: int) -> "Held":
        """The newest so many queries."""
        first = max(0, self.asked.size(1) - queries)
        return replace(self, q=self.q[:, :, first:], asked=self.asked[:, first:])

    def until(self, ends: Tensor) -> "Held":
        """Without the tokens and queries of each row at and after ends [B]."""
        gone, late = self.place >= ends[:, None, None], self.asked >= ends[:, None]
        place, asked = self.place.masked_fill(gone, -1), self.asked.masked_fill(late, -1)
        # Only what comes last goes: what stays, in its order, moves behind the unused.
        order = (place >= 0).to(torch.uint8).argsort(dim=2, stable=True)
        asking = (asked >= 0).to(torch.uint8).argsort(dim=1, stable=True)
        wide = asking[:, None, :, None].expand_as(self.q)
        q, asked = self.q.gather(2, wide), asked.gather(1, asking)
        return replace(self, place=place, q=q, asked=asked).pick(order)

    def padded(self, places: int, queries: int) -> "Held":
        """With as many unused places and queries in front as make these numbers of them."""
        more, others = places - self.place.size(2), queries - self.asked.size(1)
        return Held(
            F.pad(self.k, (0, 0, more, 0)),
            F.pad(self.v, (0, 0, more, 0)),
            F.pad(self.place, (more, 0), value=-1),
            F.pad(self.score, (more, 0)),
            F.pad(self.q, (0, 0, others, 0)),
            F.pad(self.asked, (others, 0), value=-1),
        )

    def weights(self, window: int | None) -> Tensor:
        """What the queries give to each token, added over them and their heads; [B, K, S]."""
        rows, heads, places = self.place.shape
        q = widened(self.q).reshape(rows, heads, -1, *self.q.shape[2:])
        k = widened(self.k)[:, :, None]
        found = k.new_zeros(rows, heads, places)
        size = max(1, WEIGHTS // max(1, q[:, :, :, :1, :1].numel() * places))
        for part, asked in zip(
            torch.split(q, size, 3), torch.split(self.asked, size, 1), strict=True
        ):
            seen = visible(self.place, asked, window)[:, :, None]
            scores = part @ k.transpose(-1, -2) * part.size(-1) ** -0.5
            # A query that sees nothing, an unused one, gives nan for 0 / 0.
            shares = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
            found += shares.sum((2, 3))
        return found


def visible(place: Tensor, asked: Tensor, window: int | None) -> Tensor:
    """Which tokens [B, K, S] each query [B, A] sees: [B, K, A, S]."""
    behind = asked[:, None, :, None] - place[:, :, None]
    seen = (behind >= 0) & (place >= 0)[:, :, None]
    return seen if window is None else seen & (behind < window)
