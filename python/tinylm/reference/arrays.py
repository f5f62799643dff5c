"""The operations of a transformer on NumPy arrays, each with its gradient derived by hand.

`name(x, ...)` computes y. `name_backward(dy, x, ...)` takes dy = dL/dy, the gradient of the loss
by every element of y, and the inputs it needs. It returns dL/dx for each input that has a
gradient, in order. The recipe is dx_j = sum over i of dy_i * dy_i/dx_j, over all y_i that x_j
reaches.

Two patterns do most of the work. What is broadcast on the way forward (a weight used at every
position) is summed on the way back. A normalisation (softmax, both norms) gives g minus the part
of g along what it holds fixed: a change in that direction does nothing.

Shapes: B batch, T queries, S keys, H heads, K key and value heads, D width, V vocabulary.
Cost: that of the formulas, with all B H T S attention weights in memory. A backward function
computes again what it needs from the forward pass.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.integer]
Mask = NDArray[np.bool_]
Pair = tuple[Array, Array]
Triple = tuple[Array, Array, Array]

# A target with this id is not scored: torch's own mark.
IGNORED = -100


def total(x: Array) -> Array:
    """Sum over the last axis, which stays, with length 1."""
    # The axis stays, so that the result broadcasts against x.
    return np.asarray(x.sum(-1, keepdims=True))


def mean(x: Array) -> Array:
    """Mean over the last axis, which stays, with length 1."""
    return total(x) / float(x.shape[-1])


def over_rows(x: Array) -> Array:
    """x [..., D] summed to [D]."""
    return np.asarray(x.reshape(-1, x.shape[-1]).sum(0))


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """y = x W^T + b; x [..., in], weight [out, in], bias [out]."""
    y = x @ weight.T
    return y if bias is None else y + bias


def linear_backward(dy: Array, x: Array, weight: Array) -> Triple:
    """dx = dy W, dW = sum over rows of dy x^T, db = sum over rows of dy."""
    # Every row used one weight, so the gradients of all rows add up; one product does it.
    dweight = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return dy @ weight, dweight, over_rows(dy)


def embedding(tokens: Ids, weight: Array) -> Array:
    """y = the rows of `weight` [V, D] that `tokens` [...] name."""
    return weight[tokens]


def embedding_backward(dy: Array, tokens: Ids, weight: Array) -> Array:
    """dW_v = sum of dy over the places where v was read."""
    dweight = np.zeros_like(weight)
    # dweight[tokens] += dy would keep one gradient of a token that is read twice.
    np.add.at(dweight, tokens, dy)
    return dweight


def softmax(x: Array) -> Array:
    """y_i = e^x_i / sum over j of e^x_j, over the last axis."""
    # The same for x - c, and c = max x keeps every power at most 1.
    powers: Array = np.exp(x - x.max(-1, keepdims=True))
    return powers / total(powers)


def softmax_backward(dy: Array, x: Array) -> Array:
    """dy_i/dx_j = y_i ([i = j] - y_j), so dx = y * (dy - sum over j of dy_j y_j)."""
    y = softmax(x)
    return y * (dy - total(dy * y))


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), as (1 + tanh(x / 2)) / 2, which cannot overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def silu(x: Array) -> Array:
    """y = x sigmoid(x). Source: Elfwing et al. 2017."""
    return x * sigmoid(x)


def silu_backward(dy: Array, x: Array) -> Array:
    """With s = sigmoid(x), s' = s (1 - s): dx = dy (s + x s (1 - s))."""
    s = sigmoid(x)
    return dy * s * (1 + x * (1 - s))


# The paper fits 0.044715 so that tanh comes near the normal distribution's integral.
GELU_SCALE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def gelu(x: Array) -> Array:
    """y = x / 2 (1 + tanh u), u = sqrt(2 / pi) (x + 0.044715 x^3).

    GPT-2's approximation of x Phi(x). Source: Hendrycks and Gimpel 2016, section 2.
    """
    t: Array = np.tanh(GELU_SCALE * (x + GELU_CUBE * x * x * x))
    return 0.5 * x * (1 + t)


def gelu_backward(dy: Array, x: Array) -> Array:
    """dx = dy / 2 (1 + t + x (1 - t^2) u'), t = tanh u, u' = sqrt(2 / pi) (1 + 0.134145 x^2)."""
    t: Array = np.tanh(GELU_SCALE * (x + GELU_CUBE * x * x * x))
    slope = GELU_SCALE * (1 + 3 * GELU_CUBE * x * x)
    return 0.5 * dy * ((1 + t) + x * (1 - t * t) * slope)


def relu2(x: Array) -> Array:
    """y = max(x, 0)^2. Source: So et al. 2021, section 3.2."""
    return np.square(np.maximum(x, 0))


def relu2_backward(dy: Array, x: Array) -> Array:
    """dx = 2 max(x, 0) dy: continuous, unlike the derivative of max(x, 0)."""
    return 2 * np.maximum(x, 0) * dy


def swiglu(gate: Array, up: Array) -> Array:
    """y = silu(gate) * up. Source: Shazeer 2020, equation 6."""
    return silu(gate) * up


def swiglu_backward(dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    """The product rule: dgate = silu'(gate) (dy * up), dup = dy * silu(gate)."""
    return silu_backward(dy * up, gate), dy * silu(gate)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """y = x r * w, r = 1 / sqrt(mean(x^2) + eps). Source: Zhang and Sennrich 2019, equation 4."""
    return x / np.sqrt(mean(x * x) + eps) * weight


def rms_norm_backward(dy: Array, x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """With n = x r, g = dy * w: dx = r (g - n mean(g n)), dw = sum of dy * n; |n| is fixed."""
    # Computed again, not kept from the forward pass: a definition is short before it is fast.
    r = 1 / np.sqrt(mean(x * x) + eps)
    n, g = x * r, dy * weight
    dx = r * (g - n * mean(g * n))
    return dx, over_rows(dy * n)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """y = n * w + b, n = (x - mean) r, r = 1 / sqrt(variance + eps), over the last axis.

    Source: Ba et al. 2016, equation 4.
    """
    centred = x - mean(x)
    return centred / np.sqrt(mean(centred * centred) + eps) * weight + bias


def layer_norm_backward(dy: Array, x: Array, weight: Array, eps: float) -> Triple:
    """With g = dy * w: dx = r (g - mean(g) - n mean(g n)), dw = sum of dy * n, db = sum of dy.

    One term more than RMSNorm: the mean of n is fixed too.
    """
    centred = x - mean(x)
    r = 1 / np.sqrt(mean(centred * centred) + eps)
    n, g = centred * r, dy * weight
    dx = r * (g - mean(g) - n * mean(g * n))
    return dx, over_rows(dy * n), over_rows(dy)


def rotary_angles(length: int, head_size: int, theta: float) -> tuple[Array, Array]:
    """Cosine and sine [length, head_size / 2] of position * theta^(-2 i / head_size)."""
    # The first pair turns by one radian per position, the last by about 1 / theta: pairs for
    # near and for far positions.
    frequency = theta ** (-np.arange(0, head_size, 2) / head_size)
    angle = np.outer(np.arange(length), frequency)
    return np.cos(angle), np.sin(angle)


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Turn each pair (a, b) = (x_i, x_{i + head/2}): (a cos - b sin, b cos + a sin).

    x [B, H, T, head], cos and sin [T, head / 2]. The product of a query at t and a key at s then
    depends on t - s alone. Source: Su et al. 2021, equation 15, where neighbours make a pair;
    the halves are Llama's in transformers.
    """
    a, b = np.split(x, 2, -1)
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def rope_backward(dy: Array, cos: Array, sin: Array) -> Array:
    """A rotation's transpose is the rotation by the opposite angle."""
    return rope(dy, cos, -sin)


def causal_mask(queries: int, keys: int) -> Mask:
    """Boolean [T, S], true where the query may look; the last query is at the last key."""
    # np.tri's third argument moves the diagonal: T queries stand at the last T of S keys.
    return np.tri(queries, keys, keys - queries, dtype=bool)


def _scores(q: Array, k: Array, mask: Mask | None) -> Array:
    """q k^T / sqrt(head), -inf where the query may not look; k has as many heads as q."""
    if mask is None:
        mask = causal_mask(q.shape[2], k.shape[2])
    # e^-inf is exactly 0: a key out of sight has no share and gets no gradient.
    return np.where(mask, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), -np.inf)


def attention(q: Array, k: Array, v: Array, *, mask: Mask | None = None) -> Array:
    """y = A v, A = softmax(q k^T / sqrt(head)), causal unless `mask` says where to look.

    q [B, H, T, head], k and v [B, K, S, head]: query head h reads key and value head
    h // (H / K). `mask` broadcasts to [B, H, T, S] and has a true in each row.
    Source: Vaswani et al. 2017, equation 1; grouped heads: Ainslie et al. 2023.
    """
    # Query heads 0 to group - 1 share key head 0: `repeat` copies each head in place, where
    # np.tile would copy the row of heads.
    group = q.shape[1] // k.shape[1]
    return softmax(_scores(q, k.repeat(group, 1), mask)) @ v.repeat(group, 1)


def attention_backward(
    dy: Array, q: Array, k: Array, v: Array, *, mask: Mask | None = None
) -> Triple:
    """dv = A^T dy, dA = dy v^T, dZ by softmax; dq = dZ k / sqrt(head), dk = dZ^T q / sqrt(head).

    Z are the scores. Where the mask forbids, A and so dZ are 0. A key head that a group of
    query heads reads gets the sum of the group's gradients.
    """
    group, scale = q.shape[1] // k.shape[1], 1 / math.sqrt(q.shape[-1])
    wide_k, wide_v = k.repeat(group, 1), v.repeat(group, 1)
    scores = _scores(q, wide_k, mask)
    dv = softmax(scores).swapaxes(-1, -2) @ dy
    dscores = softmax_backward(dy @ wide_v.swapaxes(-1, -2), scores) * scale
    dq, dk = dscores @ wide_k, dscores.swapaxes(-1, -2) @ q
    # What was repeated on the way forward is summed on the way back.
    grouped = (*k.shape[:2], group, *k.shape[2:])
    return dq, dk.reshape(grouped).sum(2), dv.reshape(grouped).sum(2)


def cross_entropy(logits: Array, targets: Ids) -> float:
    """Mean over the n targets that are not -100 of log(sum over j of e^z_j) - z_target, in nats.

    logits [..., V], targets [...], one of them at least scored.
    """
    scored = targets != IGNORED
    # Subtracting the largest logit changes no loss, and no power overflows.
    z = logits[scored] - logits[scored].max(-1, keepdims=True)
    losses = np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), targets[scored]]
    return float(losses.mean())


def cross_entropy_backward(dloss: float, logits: Array, targets: Ids) -> Array:
    """dz = dloss (softmax(z) - [j = target]) / n; 0 where the target is -100."""
    scored = targets != IGNORED
    dz = np.zeros_like(logits)
    dz[scored] = softmax(logits[scored])
    dz[(*np.nonzero(scored), targets[scored])] -= 1
    # The mean is over the scored targets alone.
    return dz * (dloss / np.count_nonzero(scored))


def linear_cross_entropy(x: Array, weight: Array, targets: Ids) -> float:
    """`cross_entropy` of the logits x W^T; x [..., D], weight [V, D], targets [...]."""
    return cross_entropy(linear(x, weight), targets)


def linear_cross_entropy_backward(dloss: float, x: Array, weight: Array, targets: Ids) -> Pair:
    """dx and dW: the gradient of the logits, handed on by that of the product."""
    dz = cross_entropy_backward(dloss, linear(x, weight), targets)
    dx, dweight, _ = linear_backward(dz, x, weight)
    return dx, dweight
