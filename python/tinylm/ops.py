"""The tensor operations of the model, in torch; the only place where a kernel is chosen.

Shapes use B = batch, T = time (queries), S = keys seen, H = heads, K = key and value heads,
D = d_model, V = vocabulary. Statistics are taken in float32 whatever the dtype of the input.
"""

import functools
import math
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


@functools.cache
def _kernels() -> ModuleType | None:
    """`tinylm.kernels`, or None, said once, where triton or the link to its folder is missing."""
    try:
        from tinylm import kernels
    except ImportError as error:
        warnings.warn(f"torch runs in place of the fused kernels: {error}", stacklevel=4)
        return None
    return kernels


def fused(operation: str, size: int, *tensors: Tensor) -> Callable[..., Tensor] | None:
    """The kernel of a memory-bound operation where it can run, else None: the torch form runs.

    It runs on CUDA tensors of a dtype and a `size` (D, or a head's) that the table
    `kernels.config` covers, and not under torch.compile, which fuses the torch form with its
    neighbours and cannot look into a kernel.
    """
    if torch.compiler.is_compiling() or not all(tensor.is_cuda for tensor in tensors):
        return None
    kernels = _kernels()
    if kernels is None or not kernels.config.covers(operation, size, *tensors):
        return None
    kernel: Callable[..., Tensor] = getattr(torch.ops.tinylm, operation)
    return kernel


def _wide(x: Tensor) -> Tensor:
    """x in float32 or, where it is wider already, in its own dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; x [..., D], weight [D].

    Source: Zhang and Sennrich 2019, equation 4.
    """
    kernel = fused("rms_norm", weight.size(-1), x, weight)
    if kernel is not None:
        return kernel(x, weight, eps)
    wide = _wide(x)
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return scaled.to(x.dtype) * weight.to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; x [..., D].

    Source: Ba et al. 2016, equation 4.
    """
    bias = None if bias is None else bias.to(x.dtype)
    return F.layer_norm(x, (x.size(-1),), weight.to(x.dtype), bias, eps)


def rotary_angles(length: int, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [length, head_size / 2] of position times frequency, float32.

    Frequency i is theta^(-2 i / head_size). Source: Su et al. 2021, equation 15.
    """
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + head/2}) by its position's angle.

    x [B, H, T, head], cos and sin [T, head / 2]. The pairing of halves is the one of Llama's
    weights in transformers, so they load without a permutation.
    """
    first, second = _wide(x).chunk(2, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return turned.to(x.dtype)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Boolean [T, S], true where the query may look; the last query is at the last key."""
    position = torch.arange(keys - queries, keys, device=device)
    return position[:, None] >= torch.arange(keys, device=device)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(head)) v, causal; q [B, H, T, head], k and v [B, K, S, head].

    The last query stands at the last key. `mask` (boolean, broadcast to [B, H, T, S], true
    where the query may look) replaces the causal rule. Source: Vaswani et al. 2017, equation 1.
    """
    queries, keys = q.size(2), k.size(2)
    if mask is None and 1 < queries < keys:
        mask = causal_mask(queries, keys, q.device)
    # torch's `is_causal` puts the first query at the first key: right only without a cache.
    causal = mask is None and queries == keys
    grouped = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )


def manual_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """`attention` spelled out: all B H T S weights stand in memory, to be read and changed."""
    if mask is None:
        mask = causal_mask(q.size(2), k.size(2), q.device)
    group = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    weights = torch.softmax(_wide(scores).masked_fill(~mask, -math.inf), -1)
    return F.dropout(weights.to(q.dtype), dropout) @ v


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) with the tanh approximation, as GPT-2 computes it; any shape."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2, elementwise. Source: So et al. 2021, section 3.2."""
    return F.relu(x).square()


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise. Source: Shazeer 2020, equation 6."""
    return F.silu(gate) * up


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] in nats over the targets that are not -100.

    logits [..., V] of any float dtype, targets [...] int64; a scalar, float32 at least.
    """
    flat = _wide(logits.reshape(-1, logits.size(-1)))
    return F.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED)
