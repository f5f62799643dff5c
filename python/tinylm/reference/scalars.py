"""What `smallest` leaves out on single numbers: GPT-2, and one loss for a batch of texts.

`smallest` has the numbers, the operations of Llama and its model. Here are the operations of GPT-2
in the same form, its model, and `loss_and_gradients`: a training step without its optimizer, which
takes the same arguments in every medium.

Cost: a Python object per result. One step of one layer at D = 8 on 10 tokens makes about 5,000 of
them. Sources of the formulas: see `arrays`.
"""

import math
from itertools import chain
from typing import Any

from . import smallest
from .smallest import (
    Matrix,
    Past,
    Value,
    Vector,
    Weights,
    add,
    attention,
    backward,
    cut,
    dot,
    linear,
    multi_head_attention,
    rms_norm,
    rope,
    silu,
    softmax,
    surprise,
    swiglu,
    total,
)

__all__ = [
    "add",
    "attention",
    "cross_entropy",
    "gelu",
    "layer_norm",
    "linear",
    "loss_and_gradients",
    "relu2",
    "rms_norm",
    "rope",
    "silu",
    "softmax",
    "swiglu",
]

# A target with this id is not scored: torch's own mark.
IGNORED = -100


def layer_norm(x: Vector, weight: Vector, bias: Vector, eps: float) -> Vector:
    """(x_i - mean) / sqrt(variance + eps) * w_i + b_i."""
    mean = total(x) / len(x)
    centred = [a - mean for a in x]
    scale = (dot(centred, centred) / len(x) + eps) ** -0.5
    return [c * scale * w + b for c, w, b in zip(centred, weight, bias, strict=True)]


def gelu(x: Value) -> Value:
    """x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    # The formula that GPT-2 was trained with, not the exact x Phi(x).
    return x * 0.5 * (((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)).tanh() + 1.0)


def relu2(x: Value) -> Value:
    """max(x, 0)^2, of slope 2 max(x, 0)."""
    # One operation of its own: its result and its slope are all that `Value` needs.
    positive = max(x.data, 0.0)
    return Value(positive**2, (x,), (2 * positive,))


def cross_entropy(logits: Matrix, targets: list[int]) -> Value:
    """Mean of log(sum over j of e^z_j) - z_target over the rows whose target is not -100."""
    pairs = zip(logits, targets, strict=True)
    losses = [surprise(z, target) for z, target in pairs if target != IGNORED]
    return total(losses) / len(losses)


def gpt2_logits(weights: Weights, token: int, past: Past, n_heads: int, eps: float) -> Vector:
    """As `smallest.logits`, with LayerNorm, learned positions, GELU and biases."""

    def product(name: str, x: Vector) -> Vector:
        return add(linear(x, weights[f"{name}.weight"]), weights[f"{name}.bias"])

    def norm(name: str, x: Vector) -> Vector:
        return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    position = len(past[0][0]) if past else 0
    # Learned positions are added once; RoPE turns q and k in every layer.
    x = add(weights["embedding.weight"][token], weights["position.table.weight"][position])
    size, layer = len(x) // n_heads, 0
    while f"blocks.{layer}.attention.q.weight" in weights:
        name = f"blocks.{layer}.attention"
        y = norm(f"{name}_norm", x)
        q, k, v = (cut(product(f"{name}.{part}", y), size) for part in "qkv")
        read = multi_head_attention(q, k, v, past.setdefault(layer, ([], [])))
        x = add(x, product(f"{name}.o", read))
        name = f"blocks.{layer}.feedforward"
        inner = [gelu(a) for a in product(f"{name}.up", norm(f"{name}_norm", x))]
        x = add(x, product(f"{name}.down", inner))
        layer += 1
    return linear(norm("norm", x), weights.get("head.weight") or weights["embedding.weight"])


def loss_and_gradients(
    weights: dict[str, Any],
    tokens: list[list[int]],
    targets: list[list[int]],
    *,
    architecture: str,
    n_heads: int,
    n_kv_heads: int,
    rope_theta: float = 10000.0,
    norm_eps: float = 1e-5,
) -> tuple[float, dict[str, Any]]:
    """Mean nats over the targets that are not -100, and its gradient by every weight.

    `weights` are nested lists of floats by the names of `Model.named_parameters()`, `tokens` and
    `targets` B rows of T ids. `architecture` is "llama3" or "gpt2"; n_kv_heads follows from the
    weights here, and is an argument because the other media take it. The gradients are nested as
    the weights are.
    """
    # A dictionary refuses any other name.
    llama = {"llama3": True, "gpt2": False}[architecture]
    values: Weights = {name: wrap(weight) for name, weight in weights.items()}
    logits: Matrix = []
    for text in tokens:
        # Each text begins anew: nothing of one row is seen by another.
        past: Past = {}
        for token in text:
            if llama:
                z = smallest.logits(values, token, past, n_heads, rope_theta, norm_eps)
            else:
                z = gpt2_logits(values, token, past, n_heads, norm_eps)
            logits.append(z)
    loss = cross_entropy(logits, list(chain(*targets)))
    backward(loss)
    return loss.data, {name: gradients(weight) for name, weight in values.items()}


def wrap(weight: Any) -> Any:
    """Nested lists of floats to the same lists of `Value`."""
    return [wrap(w) for w in weight] if isinstance(weight, list) else Value(weight)


def gradients(weight: Any) -> Any:
    """Nested lists of `Value` to the same lists of their gradients."""
    return [gradients(w) for w in weight] if isinstance(weight, list) else weight.gradient
