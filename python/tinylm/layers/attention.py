"""Attention over the tokens before, in heads."""

from functools import partial

from torch import Tensor, nn

from tinylm import ops
from tinylm.config import ModelConfig
from tinylm.context import Attend, Context, DecodeState
from tinylm.layers.linear import Embedding, Linear
from tinylm.layers.mixing import KeyMix, ValueResidual
from tinylm.layers.norms import NORMS, PlainRMSNorm, RMSNorm, is_plain
from tinylm.layers.positions import Rotation


class Attention(nn.Module):
    """x [B, T, D] to the same shape: H query heads over K key and value heads.

    K = H is multi-head, K = 1 multi-query, between them grouped-query attention (Ainslie et
    al. 2023). By the settings, queries and keys are normalised (Henry et al. 2020), keys are mixed
    with those of the token before, values with those of the first block, values get a learned row
    per token, and only the newest `window` tokens are seen. Its decode state is one key and one
    value of [K, head] per token. A cache knows the layer by `layer`, its number among the blocks.
    """

    def __init__(
        self, config: ModelConfig, *, layer: int, bias: bool, attend: Attend = ops.attention
    ) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.n_heads, config.kv_heads
        self.head_size, self.dropout = config.head_width, config.dropout
        chosen = config.components()
        self.attend = attend
        outside, inside = self.heads * self.head_size, self.kv_heads * self.head_size
        # Three matrices and not one: Muon orthogonalises each by itself, and Llama's files have
        # three.
        self.q = Linear(config.d_model, outside, bias=bias)
        self.k = Linear(config.d_model, inside, bias=bias)
        self.v = Linear(config.d_model, inside, bias=bias)
        self.o = Linear(outside, config.d_model, bias=bias, branch=True)
        # A part that the settings leave out is None.
        norm = partial(NORMS[chosen["norm"]], self.head_size, eps=config.norm_eps, bias=False)
        self.q_norm: nn.Module | None = norm() if chosen["qk_norm"] else None
        self.k_norm: nn.Module | None = norm() if chosen["qk_norm"] else None
        self.key_mix = KeyMix(inside) if chosen["key_mix"] else None
        self.value_residual = ValueResidual() if chosen["value_residual"] and layer else None
        self.gives_values = chosen["value_residual"] and not layer
        self.value_embedding = None
        if layer >= config.n_layers - config.value_embeddings:
            self.value_embedding = Embedding(config.vocab_size or 0, inside, deviation=0.0)
        self.window = config.windows[layer % len(config.windows)] if config.windows else 0

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape; it also looks at the cache in `context`, if any."""
        k, v = self.k(x), self.v(x)
        if self.key_mix is not None:
            k = self.key_mix(k, context)
        q = self._turned(self._split(self.q(x), self.heads), self.q_norm, context)
        k = self._turned(self._split(k, self.kv_heads), self.k_norm, context)
        v = self._split(self._values(v, context), self.kv_heads)
        if self.window:
            context = context.within(self.window)
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

    def _turned(self, x: Tensor, norm: nn.Module | None, context: Context) -> Tensor:
        """Queries or keys [B, H, T, head], normalised if there is a norm, and rotated."""
        rotate = context.rotate
        if norm is None:
            return rotate(x)
        if isinstance(rotate, Rotation) and is_plain(norm, RMSNorm, PlainRMSNorm):
            return rotate.normed(x, getattr(norm, "weight", None), norm.eps)  # type: ignore[arg-type]
        return rotate(norm(x))

    def _values(self, v: Tensor, context: Context) -> Tensor:
        """Values [B, T, K head] with what is mixed into them."""
        if self.value_embedding is not None:
            v = v + self.value_embedding(context.ids("value_embeddings")).to(v.dtype)
        if self.gives_values:
            context.shared["values"] = v
        return v if self.value_residual is None else self.value_residual(v, context)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.head_size).transpose(1, 2)
