"""A whole transformer on single numbers: lists of `Value`, a loss, every gradient.

Here nothing is hidden in an array operation: a vector is a list, a matrix a list of rows, and
each formula is a comprehension over their elements. The operations bear the names that they
have in `arrays`, `tensors` and `tinylm.ops`; `loss_and_gradients` is a training step without
its optimizer and takes the same arguments in every medium. Derivatives come from `autograd`.

Cost: one Python object per number. One step of one layer at D = 8 on 10 tokens makes 10,000 of
them in a tenth of a second. Sources of the formulas: see `arrays`.
"""

import math
from typing import Any

from .autograd import Value, backward, dot, total

Vector = list[Value]
Matrix = list[Vector]

IGNORED = -100


def linear(x: Vector, weight: Matrix, bias: Vector | None = None) -> Vector:
    """y_o = sum over i of W_oi x_i + b_o."""
    y = [dot(row, x) for row in weight]
    return y if bias is None else add(y, bias)


def add(x: Vector, y: Vector) -> Vector:
    """x_i + y_i."""
    return [a + b for a, b in zip(x, y, strict=True)]


def rms_norm(x: Vector, weight: Vector, eps: float) -> Vector:
    """x_i / sqrt(mean over j of x_j^2 + eps) * w_i."""
    scale = (dot(x, x) / len(x) + eps) ** -0.5
    return [a * scale * w for a, w in zip(x, weight, strict=True)]


def layer_norm(x: Vector, weight: Vector, bias: Vector, eps: float) -> Vector:
    """(x_i - mean) / sqrt(variance + eps) * w_i + b_i."""
    mean = total(x) / len(x)
    centred = [a - mean for a in x]
    scale = (dot(centred, centred) / len(x) + eps) ** -0.5
    return [c * scale * w + b for c, w, b in zip(centred, weight, bias, strict=True)]


def rope(x: Vector, position: int, theta: float) -> Vector:
    """Turn each pair (x_i, x_{i + half}) by the angle position * theta^(-i / half)."""
    half = len(x) // 2
    angle = [position * theta ** (-i / half) for i in range(half)]
    first = [x[i] * math.cos(angle[i]) - x[i + half] * math.sin(angle[i]) for i in range(half)]
    second = [x[i + half] * math.cos(angle[i]) + x[i] * math.sin(angle[i]) for i in range(half)]
    return first + second


def softmax(x: Vector) -> Vector:
    """e^x_i / sum over j of e^x_j; the largest x is taken off first, so that no e^x overflows."""
    largest = max(a.data for a in x)
    powers = [(a - largest).exp() for a in x]
    scale = total(powers) ** -1.0
    return [p * scale for p in powers]


def attention(q: Vector, keys: Matrix, values: Matrix) -> Vector:
    """softmax over s of (q . k_s / sqrt(head)), then the v_s in these shares; one query."""
    weights = softmax([dot(q, k) / math.sqrt(len(q)) for k in keys])
    return [dot(weights, column) for column in zip(*values, strict=True)]


def gelu(x: Value) -> Value:
    """x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return x * 0.5 * (1.0 + ((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)).tanh())


def relu2(x: Value) -> Value:
    """max(x, 0)^2."""
    return x.relu() ** 2


def silu(x: Value) -> Value:
    """x sigmoid(x), with sigmoid(x) = (1 + tanh(x / 2)) / 2, which cannot overflow."""
    return x * 0.5 * (1.0 + (x * 0.5).tanh())


def swiglu(gate: Vector, up: Vector) -> Vector:
    """silu(gate_i) up_i."""
    return [silu(g) * u for g, u in zip(gate, up, strict=True)]


def cross_entropy(logits: Matrix, targets: list[int]) -> Value:
    """Mean of log(sum over j of e^z_j) - z_target over the rows whose target is not -100."""
    losses = []
    for z, target in zip(logits, targets, strict=True):
        if target != IGNORED:
            largest = max(a.data for a in z)
            losses.append(total((a - largest).exp() for a in z).log() + largest - z[target])
    return total(losses) / len(losses)


class Transformer:
    """GPT-2 or Llama on lists: `weights` by the names of `Model.named_parameters()`.

    `architecture` is "llama3" (RMSNorm, RoPE, SwiGLU, no bias) or "gpt2" (LayerNorm, learned
    positions, GELU, biases). Without `head.weight` the head is the embedding.
    """

    def __init__(
        self,
        weights: dict[str, Any],
        *,
        architecture: str,
        n_heads: int,
        n_kv_heads: int,
        rope_theta: float = 10000.0,
        norm_eps: float = 1e-5,
    ) -> None:
        self.weights = weights
        self.llama = {"llama3": True, "gpt2": False}[architecture]
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.rope_theta, self.norm_eps = rope_theta, norm_eps

    def linear(self, name: str, x: Vector) -> Vector:
        """The product `name`, with its bias where it has one."""
        return linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name: str, x: Vector) -> Vector:
        """The norm `name` of the architecture's kind."""
        weight = self.weights[f"{name}.weight"]
        if self.llama:
            return rms_norm(x, weight, self.norm_eps)
        return layer_norm(x, weight, self.weights[f"{name}.bias"], self.norm_eps)

    def heads(self, name: str, x: Vector, n_heads: int, position: int | None = None) -> Matrix:
        """The product `name` of x, cut into heads, turned by `position` where one is given."""
        y = self.linear(name, x)
        size = len(y) // n_heads
        cut = [y[i * size : (i + 1) * size] for i in range(n_heads)]
        if position is None or not self.llama:
            return cut
        return [rope(head, position, self.rope_theta) for head in cut]

    def attention(self, name: str, rows: Matrix) -> Matrix:
        """Each row of a text attends to itself and to those before it; query head h reads key
        and value head h // (n_heads / n_kv_heads)."""
        group = self.n_heads // self.n_kv_heads
        keys: list[Matrix] = [[] for _ in range(self.n_kv_heads)]
        values: list[Matrix] = [[] for _ in range(self.n_kv_heads)]
        mixed = []
        for position, x in enumerate(rows):
            q = self.heads(f"{name}.q", x, self.n_heads, position)
            k = self.heads(f"{name}.k", x, self.n_kv_heads, position)
            v = self.heads(f"{name}.v", x, self.n_kv_heads)
            for h in range(self.n_kv_heads):
                keys[h].append(k[h])
                values[h].append(v[h])
            read = [attention(q[h], keys[h // group], values[h // group]) for h in range(len(q))]
            mixed.append(self.linear(f"{name}.o", [a for head in read for a in head]))
        return mixed

    def feedforward(self, name: str, x: Vector) -> Vector:
        """down(silu(gate x) * up x), or down(gelu(up x))."""
        up = self.linear(f"{name}.up", x)
        inner = swiglu(self.linear(f"{name}.gate", x), up) if self.llama else [gelu(a) for a in up]
        return self.linear(f"{name}.down", inner)

    def block(self, name: str, rows: Matrix) -> Matrix:
        """x + attention(norm(x)), then x + feedforward(norm(x))."""
        normed = [self.norm(f"{name}.attention_norm", x) for x in rows]
        mixed = self.attention(f"{name}.attention", normed)
        rows = [add(x, y) for x, y in zip(rows, mixed, strict=True)]
        normed = [self.norm(f"{name}.feedforward_norm", x) for x in rows]
        fed = [self.feedforward(f"{name}.feedforward", x) for x in normed]
        return [add(x, y) for x, y in zip(rows, fed, strict=True)]

    def logits(self, tokens: list[int]) -> Matrix:
        """One text of T tokens to T rows of V logits."""
        rows = [self.weights["embedding.weight"][token] for token in tokens]
        if not self.llama:
            rows = [
                add(x, p) for x, p in zip(rows, self.weights["position.table.weight"], strict=False)
            ]
        layer = 0
        while f"blocks.{layer}.attention.q.weight" in self.weights:
            rows = self.block(f"blocks.{layer}", rows)
            layer += 1
        head = self.weights.get("head.weight", self.weights["embedding.weight"])
        return [linear(self.norm("norm", x), head) for x in rows]


def loss_and_gradients(
    weights: dict[str, Any], tokens: list[list[int]], targets: list[list[int]], **shape: Any
) -> tuple[float, dict[str, Any]]:
    """Mean nats over the targets that are not -100, and its gradient by every weight.

    `weights` are nested lists of floats, `tokens` and `targets` B rows of T ids, `shape` the
    keywords of `Transformer`; the gradients are nested as the weights are.
    """
    model = Transformer({name: wrap(weight) for name, weight in weights.items()}, **shape)
    logits = [z for text in tokens for z in model.logits(text)]
    loss = cross_entropy(logits, [target for text in targets for target in text])
    backward(loss)
    return loss.data, {name: gradients(weight) for name, weight in model.weights.items()}


def wrap(weight: Any) -> Any:
    """Nested lists of floats to the same lists of `Value`."""
    return [wrap(w) for w in weight] if isinstance(weight, list) else Value(weight)


def gradients(weight: Any) -> Any:
    """Nested lists of `Value` to the same lists of their gradients."""
    return [gradients(w) for w in weight] if isinstance(weight, list) else weight.gradient
