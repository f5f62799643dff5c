"""Which keys a query may look at, as a value: what attention reads in place of a tensor of bools.

    CAUSAL = Mask()
    Mask(window=256)                  # causal, and no further back than 256 keys
    Mask(documents=documents)         # causal, and inside one document
    Mask(prefix=lengths)              # the first keys of a row are seen by all, the rest causal

A dense mask of B rows of T tokens takes B T T bytes: 2 GiB for 32 rows of 8,192. The fields say
the same in B T numbers at most. `ops.attention` and the kernels read the fields; `dense` is for
`attention=manual` and for masks that no kernel covers. Defined by `tinylm.reference.masks`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """Query p sees key s when every field that is set allows it; p and s count from 0 in a row.

    | field     | allows                                                               |
    |-----------|----------------------------------------------------------------------|
    | causal    | s <= p                                                               |
    | window    | p - s < window, and without `causal` also s - p < window             |
    | prefix    | s < prefix of the row, whatever `causal` and `window` say            |
    | documents | no document begins between s and p: nothing sees outside its own      |

    `documents` is [B, S] int, a number per key. A document is a run of equal numbers: a number that
    comes back after another begins a new document. `prefix` is [B] int, a length per row.
    """

    causal: bool = True
    window: int | None = None
    documents: Tensor | None = None
    prefix: Tensor | None = None
    # What `bounds` returns, if it has been computed.
    spans: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: must be at least 1, the query's own key")

    def simple(self, keys: int) -> bool:
        """Whether `causal` is all there is to say of `keys` keys: nothing else hides one."""
        return not self.per_row and (self.window is None or self.window >= keys)

    @property
    def per_row(self) -> bool:
        """Whether the rows of a batch have masks of their own."""
        return self.documents is not None or self.prefix is not None

    def rows(self, some: slice) -> "Mask":
        """The mask of some rows of the batch."""
        documents = None if self.documents is None else self.documents[some]
        prefix = None if self.prefix is None else self.prefix[some]
        spans = None if self.spans is None else (self.spans[0][some], self.spans[1][some])
        return Mask(self.causal, self.window, documents, prefix, spans)

    def dense(
        self, queries: int, keys: int, *, past: Tensor | None = None, device: torch.device
    ) -> Tensor:
        """Boolean [T, S], or [B, 1, T, S] where rows differ: true where the query may look.

        The queries are the last T of the S tokens. With `past` [B] int, the queries of row b follow
        past[b] keys, and no query sees a place of the row after its last query.
        """
        s = torch.arange(keys, device=device)
        # Without `past` the queries are the last of the keys, not the first: a cache comes before
        # them.
        p = torch.arange(keys - queries, keys, device=device)[:, None]
        if past is not None:
            p = past[:, None, None, None] + torch.arange(queries, device=device)[:, None]
        # [T or 1, 1] or [B, 1, 1, 1]: the place of each row's last token.
        # Places after it hold what a truncated or a fixed cache left there, so no field may show
        # them.
        present = s <= p[..., -1:, :]
        # `p >= 0` is true everywhere: it gives the shape without hiding a key.
        seen = present & (s <= p if self.causal else p >= 0)
        if self.window is not None:
            seen = seen & ((p - s).abs() < self.window)
        if self.prefix is not None:
            # Before `documents`, which may still hide a key of the prefix; after `window`, which
            # may not.
            seen = seen | (present & (s < self.prefix[:, None, None, None]))
        if self.documents is not None:
            first, end = self.bounds()
            rows = self.documents.size(0)
            places = p.reshape(-1, queries).expand(rows, queries)
            first, end = (x.gather(1, places)[:, None, :, None] for x in (first, end))
            seen = seen & (s >= first) & (s < end)
        return seen

    def with_spans(self) -> "Mask":
        """The same mask, which keeps its `bounds`: the layers of a model share one mask."""
        if self.documents is None:
            return self
        return Mask(self.causal, self.window, self.documents, self.prefix, self.bounds())

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The first place of each token's document, and the place after its last; [B, S] int32.

        Two numbers per token say all that `documents` says, and grow from left to right, so that
        a kernel can skip the keys before and after a block of queries.
        """
        if self.spans is not None:
            return self.spans
        if self.documents is None:
            raise ValueError("bounds: the mask has no documents")
        rows, keys = self.documents.shape
        place = torch.arange(keys, dtype=torch.int32, device=self.documents.device)
        place = place.expand(rows, keys)
        begins = torch.ones_like(self.documents, dtype=torch.bool)
        begins[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
        first = torch.where(begins, place, 0).cummax(1).values
        # A document ends where the next begins; the last of a row ends with the row.
        ends = torch.ones_like(begins)
        ends[:, :-1] = begins[:, 1:]
        end = torch.where(ends, place + 1, keys).flip(1).cummin(1).values.flip(1)
        return first, end


CAUSAL = Mask()
