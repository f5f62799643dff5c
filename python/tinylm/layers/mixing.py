"""Parts that mix a vector with one that is there already: the token before's, or a block before's.

Each costs a few numbers per channel and no product. Those that look at the token before read it
from `Context.before`, so that decoding with a cache sees the same.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from tinylm.config import Role
from tinylm.context import Context, EarlierState
from tinylm.layers.linear import Embedding


class Before(nn.Module):
    """x [B, T, W] to the same vectors one token later; the first of a document gets zeros.

    Its decode state is one vector of W numbers per token, in `dtype` or, if that is None, in the
    dtype of the model. The model numbers its parts of this kind by `slot`, under which a cache
    keeps them.
    """

    slot = -1

    def __init__(self, width: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.state = EarlierState(width, dtype)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, W] of these tokens to x of those before them."""
        return context.before(self.slot, x)


class TokenShift(nn.Module):
    """x + s x_before, with a learned share s per channel, 0 at the start.

    Source: Peng et al. 2023 (RWKV), section 3.1, there with s and 1 - s.
    """

    roles: ClassVar[dict[str, Role]] = {"share": "gain"}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(width))
        self.before = Before(width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape."""
        return torch.addcmul(x, self.before(x, context), self.share.to(x.dtype))

    def start(self, generator: torch.Generator) -> None:
        """Set the starting value, in place."""
        self.share.zero_()


class KeyMix(nn.Module):
    """(1 - s) k + s k_before, with a learned share s per channel, 1/2 at the start.

    A head can copy what came after an earlier occurrence of a token only if the key of a token
    knows the token before it. That takes two layers which learn to work together, late in a short
    run; with mixed keys one layer does it, from the first hundred steps on (docs/log.md). Started
    at 0, the share gains nothing in 400 steps.
    """

    roles: ClassVar[dict[str, Role]] = {"share": "gain"}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.full((width,), 0.5))
        self.before = Before(width)

    def forward(self, k: Tensor, context: Context) -> Tensor:
        """k [B, T, K head] to the same shape."""
        return torch.lerp(k, self.before(k, context), self.share.to(k.dtype))

    def start(self, generator: torch.Generator) -> None:
        """Set the starting value, in place."""
        self.share.fill_(0.5)


class Shortcut(nn.Module):
    """a x + b x0, where x0 is what the first block read; a = 1 and b = 0 at the start.

    Source: Jordan et al. 2024 (modded-nanogpt), record 9.
    """

    roles: ClassVar[dict[str, Role]] = {"shares": "scalar"}

    def __init__(self) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape."""
        stream, first = self.shares.to(x.dtype).unbind()
        return stream * x + first * context.shared["embeddings"]

    def start(self, generator: torch.Generator) -> None:
        """Set the starting value, in place."""
        self.shares.copy_(torch.tensor([1.0, 0.0]))


class ValueResidual(nn.Module):
    """a v + b v0, where v0 are the values of the first block; a = 1 and b = 0 at the start.

    Source: Zhou et al. 2024, "Value residual learning", equation 5.
    """

    roles: ClassVar[dict[str, Role]] = {"shares": "scalar"}

    def __init__(self) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, v: Tensor, context: Context) -> Tensor:
        """v [B, T, K head] to the same shape."""
        own, first = self.shares.to(v.dtype).unbind()
        return own * v + first * context.shared["values"]

    def start(self, generator: torch.Generator) -> None:
        """Set the starting value, in place."""
        self.shares.copy_(torch.tensor([1.0, 0.0]))


class Bigrams(nn.Module):
    """x plus a learned row for the pair of each token and the one before it, 0 at the start.

    The pairs share the rows of the table by a hash. On a CPU a look-up costs nothing beside a
    product. Source: Jordan et al. (modded-nanogpt), record 62.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = Embedding(rows, width, deviation=0.0)
        self.before = Before(1, torch.int64)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape."""
        ids = context.ids("bigrams")
        earlier = self.before(ids[..., None], context)[..., 0]
        # Two odd numbers without a common factor, so that neither token alone decides the row.
        code = (earlier * 36313 + ids * 27191) % self.table.num_embeddings
        rows: Tensor = self.table(code)
        return x + rows.to(x.dtype)
