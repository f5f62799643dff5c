"""The parts of a transformer block, and the registries that name them.

A part declares the role of each of its own parameters (`roles`), from which the optimizer's
groups follow, the floating-point operations of its products (`flops`), from which the model's
utilisation follows, and how its weights start (`start`). To add one, assign it:
`NORMS["mine"] = Mine`, in a module that the run names in `imports`.

| role      | parameters                       | moved by (optim.name=muon) | decayed |
|-----------|----------------------------------|----------------------------|---------|
| embedding | token and position tables        | AdamW                      | no      |
| head      | an untied output matrix          | AdamW                      | no      |
| matrix    | every matrix between those two   | Muon                       | yes     |
| gain      | norm weights and all biases      | AdamW                      | no      |
| scalar    | single learned numbers           | AdamW                      | no      |
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tinylm import ops
from tinylm.config import ModelConfig, Role, choose
from tinylm.context import Attend, Context, DecodeState


class Linear(nn.Linear):
    """x [..., in] to x W^T + b [..., out]; `branch` marks the last product of a residual branch."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, role: Role = "matrix", branch: bool = False
    ) -> None:
        # torch calls `reset_parameters` in here. Its own version would draw from the global
        # generator and so move the caller's random numbers.
        super().__init__(inputs, outputs, bias=bias)
        self.roles: dict[str, Role] = {"weight": role, "bias": "gain"}
        # Zero for the last product of a branch: every block begins as the identity. Zero for an
        # untied head: the first loss is log(vocab_size), whatever the seed. Both can leave zero,
        # because the gradient of a matrix depends on its input and not on its value.
        self.deviation = 0.0 if branch or role == "head" else 0.6 / math.sqrt(inputs)

    def reset_parameters(self) -> None:
        """Leave the new weights as they are: `start` draws them, from a generator of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        return ops.linear(x, self.weight, self.bias)

    def start(self, generator: torch.Generator) -> None:
        """Draw the starting weights, in place."""
        self.weight.normal_(0.0, self.deviation, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    def flops(self, context_length: int) -> int:
        """Forward 2, backward 4 operations per weight and token."""
        return 6 * self.in_features * self.out_features


# Declares no `flops`: looking up a row multiplies nothing.
class Embedding(nn.Embedding):
    """Ids [...] to rows [..., D]."""

    roles: ClassVar[dict[str, Role]] = {"weight": "embedding"}

    def reset_parameters(self) -> None:
        """Leave the new weights as they are: `start` draws them, from a generator of its own."""

    def start(self, generator: torch.Generator) -> None:
        """Draw the starting weights, in place."""
        self.weight.normal_(0.0, 0.02, generator=generator)


class TiedHead(nn.Module):
    """x [..., D] to logits [..., V] by the rows of an embedding, which stays the embedding's."""

    def __init__(self, embedding: Embedding) -> None:
        super().__init__()
        # In a tuple: a module that is an attribute would be saved and counted a second time.
        self._embedding = (embedding,)

    @property
    def weight(self) -> Tensor:
        """The embedding's weight [V, D]."""
        # Read through the module each time: a move to another device may replace the parameter.
        return self._embedding[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to [..., V]."""
        return ops.linear(x, self.weight)

    def flops(self, context_length: int) -> int:
        """Operations of the product; looking up rows costs none."""
        return 6 * self.weight.numel()


class RMSNorm(nn.Module):
    """`ops.rms_norm` with a learned weight [D]; it has no bias, whatever `bias` says."""

    roles: ClassVar[dict[str, Role]] = {"weight": "gain"}

    def __init__(self, width: int, *, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to the same shape."""
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """x + branch and its norm, both [..., D]."""
        return ops.add_rms_norm(x, branch, self.weight, self.eps)


class LayerNorm(nn.Module):
    """`ops.layer_norm` with a learned weight [D] and, with `bias`, a learned bias [D]."""

    roles: ClassVar[dict[str, Role]] = {"weight": "gain", "bias": "gain"}

    def __init__(self, width: int, *, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to the same shape."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """x + branch and its norm, both [..., D]."""
        return ops.add_layer_norm(x, branch, self.weight, self.bias, self.eps)


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is one of `kinds` and no more, so that its weights say all that it does.

    A subclass or an instance may have a `forward` of its own, and hooks may change its output.
    """
    own = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    return type(module) in kinds and not own and not module._backward_hooks


def add_and_norm(norm: nn.Module, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """x + branch and `norm` of it, both [..., D]; one pass over memory if the norm has a kernel."""
    if is_plain(norm, RMSNorm, LayerNorm):
        total_and_normed: tuple[Tensor, Tensor] = norm.add(x, branch)  # type: ignore[operator]
        return total_and_normed
    total = x + branch
    return total, norm(total)


class Rope(nn.Module):
    """Position as a rotation of queries and keys; adds nothing to the stream."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.head_size % 2:
            raise ValueError(
                f"model.position=rope needs an even head size, d_model / n_heads is "
                f"{config.head_size}: change one of them"
            )
        angles = ops.rotary_angles(config.context_length, config.head_size, config.rope_theta)
        for name, tensor in zip(("cos", "sin"), angles, strict=True):
            # They follow from the settings, so no checkpoint holds them. As buffers they still move
            # with the model.
            self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rope":
        # A model in bfloat16 keeps its angles in float32: at position 300 they would be off by one.
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.cos.dtype.itemsize < cos.dtype.itemsize:
            self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)
        return self

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, T, D], as it is: this part adds nothing."""
        return x

    def rotation(self, positions: Tensor) -> Callable[[Tensor], Tensor]:
        """The function that turns x [B, H, T, head] at `positions` [T] or [B, T]."""
        # Looked up once for all layers, queries and keys.
        cos, sin = self.cos[positions], self.sin[positions]
        # Positions per row need an axis that all heads share.
        if positions.dim() > 1:
            cos, sin = cos[:, None], sin[:, None]
        return partial(ops.rope, cos=cos, sin=sin)


class Learned(nn.Module):
    """Position as a learned vector added to the stream, as in GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = Embedding(config.context_length, config.d_model)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, T, D] plus the table's rows at `positions` [T] or [B, T]."""
        rows: Tensor = self.table(positions)
        # Vectors of a caller that begins at `hidden` may have another dtype; the sum must keep it.
        return x + rows.to(x.dtype)

    def rotation(self, positions: Tensor) -> Callable[[Tensor], Tensor]:
        """The function that leaves queries and keys as they are."""
        return identity


class NoPosition(nn.Module):
    """No positions: only the causal mask tells tokens apart (Kazemnejad et al. 2023)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, T, D], as it is: this part adds nothing."""
        return x

    def rotation(self, positions: Tensor) -> Callable[[Tensor], Tensor]:
        """The function that leaves queries and keys as they are."""
        return identity


def identity(x: Tensor) -> Tensor:
    """x: the rotation by no angle."""
    return x


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


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); x [B, T, D], inner width F."""

    def __init__(self, config: ModelConfig, *, bias: bool) -> None:
        super().__init__()
        width = config.feedforward_width
        self.gate = Linear(config.d_model, width, bias=bias)
        self.up = Linear(config.d_model, width, bias=bias)
        self.down = Linear(width, config.d_model, bias=bias, branch=True)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape."""
        out: Tensor = self.down(ops.swiglu(self.gate(x), self.up(x)))
        return out


class MLP(nn.Module):
    """down(activation(up(x))); x [B, T, D], inner width F."""

    def __init__(
        self, config: ModelConfig, *, bias: bool, activation: Callable[[Tensor], Tensor] = ops.gelu
    ) -> None:
        super().__init__()
        self.activation = activation
        self.up = Linear(config.d_model, config.feedforward_width, bias=bias)
        self.down = Linear(config.feedforward_width, config.d_model, bias=bias, branch=True)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape."""
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


# A module named in `imports` may add to these tables, so they are read when a model is built and
# never copied.
NORMS: dict[str, Any] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}
POSITIONS: dict[str, Any] = {"rope": Rope, "learned": Learned, "none": NoPosition}
FEEDFORWARDS: dict[str, Any] = {
    "swiglu": SwiGLU,
    "mlp": MLP,
    "relu2": partial(MLP, activation=ops.relu2),
}
ATTENTIONS: dict[str, Any] = {
    "auto": Attention,
    "triton": partial(Attention, attend=partial(ops.attention, backend="triton")),
    "hopper": partial(Attention, attend=partial(ops.attention, backend="hopper")),
    "sdpa": partial(Attention, attend=partial(ops.attention, backend="sdpa")),
    "manual": partial(Attention, attend=ops.manual_attention),
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)); x [B, T, D]."""

    def __init__(self, config: ModelConfig, *, layer: int) -> None:
        super().__init__()
        chosen = config.components()
        bias = chosen["bias"]
        norm = choose(NORMS, "model.norm", chosen["norm"])
        attention = choose(ATTENTIONS, "model.attention", config.attention)
        feedforward = choose(FEEDFORWARDS, "model.feedforward", chosen["feedforward"])
        self.attention_norm = norm(config.d_model, eps=config.norm_eps, bias=bias)
        self.attention = attention(config, layer=layer, bias=bias)
        self.feedforward_norm = norm(config.d_model, eps=config.norm_eps, bias=bias)
        self.feedforward = feedforward(config, bias=bias)
        # One module for both branches: dropout has no state.
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape."""
        branch = self.dropout(self.attention(self.attention_norm(x), context))
        x, normed = add_and_norm(self.feedforward_norm, x, branch)
        out: Tensor = x + self.dropout(self.feedforward(normed, context))
        return out
