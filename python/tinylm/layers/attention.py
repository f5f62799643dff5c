"""Attention over the tokens before, in heads."""

from torch import Tensor, nn

from tinylm import ops
from tinylm.config import ModelConfig
from tinylm.context import Attend, Context, DecodeState
from tinylm.layers.linear import Linear


class Attention(nn.Module):
    """x [B, T, D] to the same shape: H query heads over K key and value heads.

    K = H is multi-head, K = 1 multi-query, between them grouped-query attention (Ainslie et
    al. 2023). Its decode state is one key and one value of [K, head] per token. A cache knows
    the layer by `layer`, its number among the blocks.
    """

    def __init__(
        self, config: ModelConfig, *, layer: int, bias: bool, attend: Attend = ops.attention
    ) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.n_heads, config.kv_heads
        self.head_size, self.dropout = config.head_size, config.dropout
        self.attend = attend
        outside, inside = self.heads * self.head_size, self.kv_heads * self.head_size
        # Three matrices and not one: Muon orthogonalises each by itself, and Llama's files have
        # three.
        self.q = Linear(config.d_model, outside, bias=bias)
        self.k = Linear(config.d_model, inside, bias=bias)
        self.v = Linear(config.d_model, inside, bias=bias)
        self.o = Linear(outside, config.d_model, bias=bias, branch=True)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape; it also looks at the cache in `context`, if any."""
        q = context.rotate(self._split(self.q(x), self.heads))
        k = context.rotate(self._split(self.k(x), self.kv_heads))
        v = self._split(self.v(x), self.kv_heads)
        if context.cache is not None:
            mixed = context.cache.attend(self.layer, q, k, v, context)
        else:
            # Only without a cache: a cache is for decoding, and dropout there would change the
            # text.
            dropout = self.dropout if self.training else 0.0
            mixed = self.attend(q, k, v, mask=context.mask, dropout=dropout)
        joined: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return joined

    def flops(self, context_length: int) -> int:
        """Operations of the two products with keys and values.

        The half that a causal mask hides is counted too, as nanoGPT does.
        """
        # Two products of 2 operations per number, and the backward pass does twice the work of the
        # forward pass: 2 * 2 * 3.
        return 12 * self.heads * self.head_size * context_length

    def decode_state(self) -> DecodeState:
        """Heads and size of the key, and of the value, that decoding keeps per token."""
        return DecodeState(self.kv_heads, self.head_size, self.attend)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.head_size).transpose(1, 2)
