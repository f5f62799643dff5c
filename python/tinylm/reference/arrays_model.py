"""A whole transformer on arrays: the loss, and its gradient by every weight, by hand.

The chain rule for a whole network is bookkeeping. On the way forward, each operation
notes its input under its own name. On the way back, the operations run in the opposite order. Each
turns the gradient of its output into the gradient of its input, and stores those of its weights. So
every method here has a mirror image, and two rules do the rest:

    y = x + f(x)               dx = dy + f_backward(dy)     the stream carries dy past f
    a thing is used twice      its gradients add up         q, k, v read one x; a tied embedding

The formulas are those of `arrays`. Cost: the backward pass has twice the products of the
forward pass. The notes are the memory that training needs and inference does not.
"""

from typing import Any

import numpy as np

from . import arrays
from .arrays import Array, Ids, Mask


class Transformer:
    """GPT-2 or Llama on arrays: `weights` by the names of `Model.named_parameters()`.

    `architecture` is "llama3" (RMSNorm, RoPE, SwiGLU, no bias) or "gpt2" (LayerNorm, learned
    positions, GELU, biases). Without `head.weight` the head is the embedding. x, dx, y and dy
    are [B, T, D] where nothing else is said.
    """

    def __init__(
        self,
        weights: dict[str, Array],
        *,
        architecture: str,
        n_heads: int,
        n_kv_heads: int,
        rope_theta: float = 10000.0,
        norm_eps: float = 1e-5,
    ) -> None:
        self.weights = weights
        # Gradients are added to these: a tied embedding is used twice.
        self.gradients = {name: np.zeros_like(weight) for name, weight in weights.items()}
        # What each operation read, by the operation's name, for the way back.
        self.noted: dict[str, Any] = {}
        self.llama = {"llama3": True, "gpt2": False}[architecture]
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.rope_theta, self.norm_eps = rope_theta, norm_eps
        self.n_layers = sum(name.endswith("attention.q.weight") for name in weights)
        self.head = "head" if "head.weight" in weights else "embedding"

    def leave(self, name: str, *gradients: Array) -> None:
        """Add the gradients of `name`'s weight and, where it has one, bias."""
        # Not strict: an RMSNorm has no gradient for a bias.
        for part, gradient in zip(("weight", "bias"), gradients, strict=False):
            if f"{name}.{part}" in self.weights:
                self.gradients[f"{name}.{part}"] += gradient

    def linear(self, name: str, x: Array) -> Array:
        """The product `name` of x [..., in] to [..., out]."""
        self.noted[f"{name}.x"] = x
        return arrays.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def linear_backward(self, name: str, dy: Array) -> Array:
        """dy [..., out] to dx [..., in]."""
        x, weight = self.noted[f"{name}.x"], self.weights[f"{name}.weight"]
        dx, dweight, dbias = arrays.linear_backward(dy, x, weight)
        self.leave(name, dweight, dbias)
        return dx

    def norm(self, name: str, x: Array) -> Array:
        """The norm `name`, of the architecture's kind."""
        self.noted[f"{name}.x"] = x
        weight = self.weights[f"{name}.weight"]
        if self.llama:
            return arrays.rms_norm(x, weight, self.norm_eps)
        return arrays.layer_norm(x, weight, self.weights[f"{name}.bias"], self.norm_eps)

    def norm_backward(self, name: str, dy: Array) -> Array:
        """dy to dx."""
        x, weight = self.noted[f"{name}.x"], self.weights[f"{name}.weight"]
        if self.llama:
            dx, *rest = arrays.rms_norm_backward(dy, x, weight, self.norm_eps)
        else:
            dx, *rest = arrays.layer_norm_backward(dy, x, weight, self.norm_eps)
        self.leave(name, *rest)
        return dx

    def angles(self, length: int) -> tuple[Array, Array]:
        """Cosine and sine [T, head / 2] of the rotations of `length` positions."""
        # Positions have no gradient, so the angles are computed again instead of noted.
        head_size = self.weights["embedding.weight"].shape[1] // self.n_heads
        return arrays.rotary_angles(length, head_size, self.rope_theta)

    def attention(self, name: str, x: Array, mask: Mask | None) -> Array:
        """o(attention(rope(q(x)), rope(k(x)), v(x)))."""
        q = split(self.linear(f"{name}.q", x), self.n_heads)
        k = split(self.linear(f"{name}.k", x), self.n_kv_heads)
        v = split(self.linear(f"{name}.v", x), self.n_kv_heads)
        if self.llama:
            angles = self.angles(x.shape[1])
            q, k = arrays.rope(q, *angles), arrays.rope(k, *angles)
        self.noted[name] = q, k, v, mask
        return self.linear(f"{name}.o", join(arrays.attention(q, k, v, mask=mask)))

    def attention_backward(self, name: str, dy: Array) -> Array:
        """dy to dx: o, attention, rope, then the three products that read x."""
        q, k, v, mask = self.noted[name]
        mixed = split(self.linear_backward(f"{name}.o", dy), self.n_heads)
        dq, dk, dv = arrays.attention_backward(mixed, q, k, v, mask=mask)
        if self.llama:
            angles = self.angles(dy.shape[1])
            dq, dk = arrays.rope_backward(dq, *angles), arrays.rope_backward(dk, *angles)
        # q, k and v read one x, so its gradient is the sum of three.
        dx = self.linear_backward(f"{name}.q", join(dq))
        dx = dx + self.linear_backward(f"{name}.k", join(dk))
        return dx + self.linear_backward(f"{name}.v", join(dv))

    def feedforward(self, name: str, x: Array) -> Array:
        """down(silu(gate(x)) * up(x)), or down(gelu(up(x)))."""
        up = self.linear(f"{name}.up", x)
        if self.llama:
            gate = self.linear(f"{name}.gate", x)
            self.noted[name] = gate, up
            return self.linear(f"{name}.down", arrays.swiglu(gate, up))
        self.noted[name] = up
        return self.linear(f"{name}.down", arrays.gelu(up))

    def feedforward_backward(self, name: str, dy: Array) -> Array:
        """dy to dx."""
        inner = self.linear_backward(f"{name}.down", dy)
        if self.llama:
            dgate, dup = arrays.swiglu_backward(inner, *self.noted[name])
            dx = self.linear_backward(f"{name}.gate", dgate)
            return dx + self.linear_backward(f"{name}.up", dup)
        dup = arrays.gelu_backward(inner, self.noted[name])
        return self.linear_backward(f"{name}.up", dup)

    def block(self, name: str, x: Array, mask: Mask | None) -> Array:
        """x + attention(norm(x)), then x + feedforward(norm(x))."""
        normed = self.norm(f"{name}.attention_norm", x)
        x = x + self.attention(f"{name}.attention", normed, mask)
        normed = self.norm(f"{name}.feedforward_norm", x)
        return x + self.feedforward(f"{name}.feedforward", normed)

    def block_backward(self, name: str, dy: Array) -> Array:
        """dy to dx: the lines of `block` from the last to the first."""
        # Each addition passes dy on unchanged, and the branch adds its share.
        branch = self.feedforward_backward(f"{name}.feedforward", dy)
        dy = dy + self.norm_backward(f"{name}.feedforward_norm", branch)
        branch = self.attention_backward(f"{name}.attention", dy)
        return dy + self.norm_backward(f"{name}.attention_norm", branch)

    def logits(self, tokens: Ids, mask: Mask | None = None) -> Array:
        """tokens [B, T] to logits [B, T, V]; `mask` as in `arrays.attention`."""
        self.noted["tokens"] = tokens
        x = arrays.embedding(tokens, self.weights["embedding.weight"])
        if not self.llama:
            x = x + self.weights["position.table.weight"][: tokens.shape[1]]
        for layer in range(self.n_layers):
            x = self.block(f"blocks.{layer}", x, mask)
        return self.linear(self.head, self.norm("norm", x))

    def logits_backward(self, dy: Array) -> None:
        """dy [B, T, V] to `gradients`, one per weight; tokens have none."""
        dx = self.norm_backward("norm", self.linear_backward(self.head, dy))
        for layer in reversed(range(self.n_layers)):
            dx = self.block_backward(f"blocks.{layer}", dx)
        tokens, weight = self.noted["tokens"], self.weights["embedding.weight"]
        self.leave("embedding", arrays.embedding_backward(dx, tokens, weight))
        if not self.llama:
            # A row of the table serves that position in every text of the batch.
            self.gradients["position.table.weight"][: dx.shape[1]] += dx.sum(0)


def loss_and_gradients(
    weights: dict[str, Array],
    tokens: Ids,
    targets: Ids,
    *,
    documents: Ids | None = None,
    **shape: Any,
) -> tuple[float, dict[str, Array]]:
    """Mean nats over the targets [B, T] that are not -100, and its gradient by every weight.

    `documents` [B, T] numbers the document of each token: a token looks only inside its own.
    `shape` are the keywords of `Transformer`.
    """
    model = Transformer(weights, **shape)
    logits = model.logits(tokens, None if documents is None else document_mask(documents))
    model.logits_backward(arrays.cross_entropy_backward(1.0, logits, targets))
    return arrays.cross_entropy(logits, targets), model.gradients


def document_mask(documents: Ids) -> Mask:
    """Boolean [B, 1, T, T]: causal, and inside one document."""
    # The axis of heads has length 1: all heads have one mask.
    # A number that comes back after another begins a new document: count the changes.
    runs = np.cumsum(np.diff(documents, axis=1, prepend=documents[:, :1]) != 0, axis=1)
    same: Mask = runs[:, None, :, None] == runs[:, None, None, :]
    return same & arrays.causal_mask(documents.shape[1], documents.shape[1])


def split(x: Array, heads: int) -> Array:
    """[B, T, H head] to [B, H, T, head]."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def join(x: Array) -> Array:
    """[B, H, T, head] to [B, T, H head]: the inverse of `split`, and so its gradient."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
