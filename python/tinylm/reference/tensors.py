"""The operations of a transformer and its whole loss in torch, from primitives alone.

The forward formulas of `arrays`, on tensors: +, *, @, exp, tanh, sums. Torch records the graph, so
no gradient is written here; `smallest` shows how that works, and
`arrays` what it finds. `tinylm.ops` calls the fused form of each of these, and must equal it.

Any float dtype, on any device. As in `ops`, statistics (means, softmax, the loss) are taken in
float32 where the dtype is narrower, and in float64 where it is float64: `wide`. So one function
serves twice: in float64 as the truth, in float32 or bfloat16 as the error to expect of a
straightforward computation, against which kernels are measured.

Cost: every line is a pass over memory; attention holds all B H T S weights. Sources: see
`arrays`, whose shapes these are.
"""

import math
from typing import Any

import torch
from torch import Tensor

# A target with this id is not scored: torch's own mark.
IGNORED = -100


def wide(x: Tensor) -> Tensor:
    """x in float32, or float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b; x [..., in], weight [out, in], bias [out]."""
    y = x @ weight.T
    return y if bias is None else y + bias


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """y = the rows of `weight` [V, D] that `tokens` [...] name."""
    return weight[tokens]


def softmax(x: Tensor) -> Tensor:
    """y_i = e^x_i / sum over j of e^x_j, over the last axis."""
    # Detached: softmax is the same whatever is subtracted, so no gradient belongs to it.
    powers = (x - x.detach().amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def silu(x: Tensor) -> Tensor:
    """y = x sigmoid(x), with sigmoid(x) = (1 + tanh(x / 2)) / 2."""
    return (wide(x) * 0.5 * (1 + (wide(x) * 0.5).tanh())).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """y = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    z = wide(x)
    return (0.5 * z * (1 + (math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)).tanh())).to(
        x.dtype
    )


def relu2(x: Tensor) -> Tensor:
    """y = max(x, 0)^2."""
    positive = x * (x > 0)
    return positive * positive


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """y = silu(gate) * up."""
    return silu(gate) * up


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * w, over the last axis."""
    z = wide(x)
    # Rounded before the weight multiplies, as Llama does it; LayerNorm rounds once, at the end.
    scaled = z / ((z * z).mean(-1, keepdim=True) + eps).sqrt()
    return scaled.to(x.dtype) * weight.to(x.dtype)


def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """s = x + branch in their common dtype, and y = rms_norm(s)."""
    total = x + branch
    return total, rms_norm(total, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """y = (x - mean) / sqrt(variance + eps) * w + b, over the last axis."""
    z = wide(x)
    centred = z - z.mean(-1, keepdim=True)
    scaled = centred / ((centred * centred).mean(-1, keepdim=True) + eps).sqrt() * wide(weight)
    return (scaled if bias is None else scaled + wide(bias)).to(x.dtype)


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """s = x + branch in their common dtype, and y = layer_norm(s)."""
    total = x + branch
    return total, layer_norm(total, weight, bias, eps)


def rotary_angles(length: int, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [length, head_size / 2] of position * theta^(-2 i / head_size), float64."""
    # In float64: in float32 the angle of a late position loses its last digits.
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.arange(length)[:, None] * frequency
    return angle.cos(), angle.sin()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (a, b) = (x_i, x_{i + head/2}) by its position's angle; x [B, H, T, head]."""
    half = x.shape[-1] // 2
    a, b = wide(x[..., :half]), wide(x[..., half:])
    # The angles take the dtype of the wide x and not x's own: bfloat16 has 8 bits.
    cos, sin = cos.to(a), sin.to(a)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def norm_rope(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """`rope` of each head's `rms_norm` (QK-norm); weight [head], or None for ones."""
    gain = torch.ones(x.shape[-1], device=x.device) if weight is None else weight
    return rope(rms_norm(x, gain, eps), cos, sin)


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """Boolean [T, S], true where the query may look; the last query is at the last key."""
    position = torch.arange(keys - queries, keys, device=device)
    return position[:, None] >= torch.arange(keys, device=device)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """y = softmax(scale q k^T) v, causal unless `mask` says where to look.

    q [B, H, T, head], k and v [B, K, S, head]; query head h reads key and value head
    h // (H / K). `mask` broadcasts to [B, H, T, S] and has a true in each row. `scale` is
    1 / sqrt(head) by default. With `softcap` c, a score s becomes c tanh(s / c).
    """
    if mask is None:
        mask = causal_mask(q.shape[2], k.shape[2], q.device)
    if scale is None:
        scale = 1 / math.sqrt(q.shape[-1])
    # Query heads in groups [B, K, H / K, T, head], all of a group against one key head.
    group = q.shape[1] // k.shape[1]
    grouped = q.reshape(q.shape[0], k.shape[1], group, *q.shape[2:])
    scores = wide(grouped @ k[:, :, None].transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    # Back to one axis of heads, as the mask has it.
    scores = scores.reshape(*q.shape[:3], k.shape[2])
    weights = softmax(torch.where(mask, scores, -math.inf)).to(q.dtype)
    return (weights.reshape(*grouped.shape[:4], k.shape[2]) @ v[:, :, None]).reshape(q.shape)


def cross_entropy(
    logits: Tensor, targets: Tensor, *, z_loss: float = 0.0, softcap: float | None = None
) -> Tensor:
    """Mean over the targets that are not -100 of log(sum over j of e^z_j) - z_target, in nats.

    With `softcap` c, z = c tanh(logit / c). `z_loss` times the mean of log(sum of e^z_j)^2 over
    the same targets is added.
    """
    scored = targets != IGNORED
    z = wide(logits[scored])
    if softcap is not None:
        z = softcap * (z / softcap).tanh()
    # Subtracting the largest logit changes no loss, and no power overflows.
    peak = z.detach().amax(-1, keepdim=True)
    z = z - peak
    rows = torch.arange(len(z), device=z.device)
    log_sum = z.exp().sum(-1).log()
    squares = (log_sum + peak[:, 0]) * (log_sum + peak[:, 0])
    return (log_sum - z[rows, targets[scored]]).mean() + z_loss * squares.mean()


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """`cross_entropy` of the logits x W^T; x [..., D], weight [V, D], targets [...]."""
    return cross_entropy(linear(x, weight), targets, z_loss=z_loss, softcap=softcap)


def logits(
    weights: dict[str, Tensor],
    tokens: Tensor,
    *,
    architecture: str,
    n_heads: int,
    n_kv_heads: int,
    rope_theta: float = 10000.0,
    norm_eps: float = 1e-5,
    mask: Tensor | None = None,
) -> Tensor:
    """tokens [B, T] to logits [B, T, V]: a whole transformer.

    `weights` by the names of `Model.named_parameters()`; `architecture` is "llama3" (RMSNorm,
    RoPE, SwiGLU, no bias) or "gpt2" (LayerNorm, learned positions, GELU, biases). Without
    `head.weight` the head is the embedding. `mask` as in `attention`.
    """
    llama = {"llama3": True, "gpt2": False}[architecture]

    def product(name: str, x: Tensor) -> Tensor:
        return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        if llama:
            return rms_norm(x, weights[f"{name}.weight"], norm_eps)
        return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], norm_eps)

    def split(x: Tensor, heads: int) -> Tensor:
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    x = embedding(tokens, weights["embedding.weight"])
    angles = rotary_angles(tokens.shape[1], x.shape[-1] // n_heads, rope_theta)
    if not llama:
        x = x + weights["position.table.weight"][: tokens.shape[1]]
    for layer in range(sum(name.endswith("attention.q.weight") for name in weights)):
        name = f"blocks.{layer}.attention"
        normed = norm(f"{name}_norm", x)
        q = split(product(f"{name}.q", normed), n_heads)
        k = split(product(f"{name}.k", normed), n_kv_heads)
        v = split(product(f"{name}.v", normed), n_kv_heads)
        if llama:
            q, k = rope(q, *angles), rope(k, *angles)
        mixed = attention(q, k, v, mask=mask).transpose(1, 2).reshape(x.shape)
        x = x + product(f"{name}.o", mixed)

        name = f"blocks.{layer}.feedforward"
        normed = norm(f"{name}_norm", x)
        up = product(f"{name}.up", normed)
        inner = swiglu(product(f"{name}.gate", normed), up) if llama else gelu(up)
        x = x + product(f"{name}.down", inner)
    # A tied model has no head of its own.
    head = weights.get("head.weight", weights["embedding.weight"])
    return linear(norm("norm", x), head)


def loss_and_gradients(
    weights: dict[str, Tensor],
    tokens: Tensor,
    targets: Tensor,
    *,
    documents: Tensor | None = None,
    **shape: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean nats over the targets [B, T] that are not -100, and its gradient by every weight.

    `documents` [B, T] numbers the document of each token: a token looks only inside its own.
    `shape` are the keywords of `logits`.
    """
    mask = None
    if documents is not None:
        # A number that comes back after another begins a new document: count the changes.
        runs = (documents.diff(dim=1, prepend=documents[:, :1]) != 0).cumsum(1)
        same = runs[:, None, :, None] == runs[:, None, None, :]
        mask = same & causal_mask(tokens.shape[1], tokens.shape[1], tokens.device)
    # Leaves of their own: the caller's tensors keep no graph and no gradient.
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    loss = cross_entropy(logits(leaves, tokens, mask=mask, **shape), targets)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), dict(zip(leaves, gradients, strict=True))
