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

from tinylm.mask import CAUSAL, Mask

# torch's own default for a target that does not count; the loader pads with the same number.
IGNORED = -100
# Dense masks of more cells than this are made for a few rows at a time: 64 MiB of bools, and
# four times that where torch turns them into float32.
MASK_CELLS = 2**26


# Cached so that a missing kernel is looked for, and warned of, once per process.
@functools.cache
def _kernels() -> ModuleType | None:
    """`tinylm.kernels`; None, with one warning, if triton or the link to its folder is missing."""
    try:
        from tinylm import kernels
    except ImportError as error:
        warnings.warn(f"torch runs in place of the fused kernels: {error}", stacklevel=5)
        return None
    return kernels


def kernel_for(
    operation: str, size: int, *tensors: Tensor, compiled: bool = False
) -> Callable[..., Tensor] | None:
    """The kernel of an operation where one can run, else None: the torch form runs.

    A kernel runs on CUDA tensors of a dtype and a `size` (D, or a head's) that its table in
    `tinylm.kernels` covers. Under torch.compile a memory-bound operation takes the torch form,
    which the compiler fuses with its neighbours; a compute-bound one says `compiled=True` and
    stays a kernel, which the compiler calls without a graph break.
    """
    if not all(tensor.is_cuda for tensor in tensors):
        return None
    if torch.compiler.is_compiling() and not compiled:
        return None
    dtypes = tuple(tensor.dtype for tensor in tensors)
    if not _covered(operation, size, dtypes, tensors[0].device):
        return None
    # The registered operator and not the Python function behind it: the compiler can put only the
    # operator into a graph.
    kernel: Callable[..., Tensor] = getattr(torch.ops.tinylm, operation)
    return kernel


# Without this decorator the compiler would trace into the import and the tables of the kernels.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _covered(
    operation: str, size: int, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> bool:
    """Whether a kernel covers these; a compiled graph asks once, when it is traced."""
    kernels = _kernels()
    return kernels is not None and bool(kernels.covers(operation, size, dtypes, device))


def _wide(x: Tensor) -> Tensor:
    """x in float32 or, where it is wider already, in its own dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x [..., in], weight [out, in], bias [out] to [..., out].

    Every product with a weight goes through here, including that of the head. A format of
    weights with fewer bits needs a branch only here.
    """
    return F.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; x [..., D], weight [D].

    Source: Zhang and Sennrich 2019, equation 4.
    """
    kernel = kernel_for("rms_norm", weight.size(-1), x, weight)
    if kernel is not None:
        return kernel(x, weight, eps)
    wide = _wide(x)
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    # Rounded before the product with the weight, as transformers' Llama does. A float32 weight must
    # not widen the result, which is bfloat16 under autocast.
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


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | Tensor = CAUSAL,
    past: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(head)) v with a mask; q [B, H, T, head], k and v [B, K, S, head].

    The last query is at the last key. With `past` [B] int, the first query of row b follows
    past[b] keys. `mask` is a `Mask`, or a boolean tensor that broadcasts to [B, H, T, S], true
    where the query may look. No boolean tensor is made where torch needs none.
    Source: Vaswani et al. 2017, equation 1.
    """
    window = mask.window if isinstance(mask, Mask) and not mask.per_row else None
    if window is not None and past is None and q.size(2) == 1:
        # A lone last query looks at the last keys of its window: the others are left out.
        k, v = k[:, :, -window:], v[:, :, -window:]
    queries, keys = q.size(2), k.size(2)
    dense, causal = None, False
    if isinstance(mask, Tensor):
        dense = mask
    # A single last query sees every key, so it needs no mask either.
    elif past is None and mask.simple(keys) and (queries in (1, keys) or not mask.causal):
        # torch's `is_causal` puts the first query at the first key: right only without a cache.
        causal = mask.causal and queries == keys
    else:
        # One row at least, even if its mask passes the limit: a row cannot be cut further.
        rows = max(1, MASK_CELLS // (queries * keys))
        # A mask that all rows share is made once, however many rows there are: cutting would save
        # nothing.
        if q.size(0) > rows and (mask.per_row or past is not None):
            return _attention_by_rows(q, k, v, mask, past, dropout, rows)
        dense = mask.dense(queries, keys, past=past, device=q.device)
    grouped = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=dense, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )


def _attention_by_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    past: Tensor | None,
    dropout: float,
    rows: int,
) -> Tensor:
    """`attention`, a few rows of the batch at a time, so that their dense masks stay small."""
    parts = []
    for first in range(0, q.size(0), rows):
        some = slice(first, first + rows)
        theirs = None if past is None else past[some]
        own = mask.rows(some)
        parts.append(attention(q[some], k[some], v[some], mask=own, past=theirs, dropout=dropout))
    return torch.cat(parts)


def manual_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | Tensor = CAUSAL,
    past: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`attention` written out: all B H T S weights are in memory, to be read and changed."""
    if isinstance(mask, Mask):
        mask = mask.dense(q.size(2), k.size(2), past=past, device=q.device)
    group = q.size(1) // k.size(1)
    # Real copies, where torch's own attention only indexes: this form is for reading, not for
    # speed.
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    # A `Mask` always shows a query its own key, so no row is all -inf, which would give nan.
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
    # bfloat16 keeps 8 significant bits, too few for a sum over a vocabulary.
    flat = _wide(logits.reshape(-1, logits.size(-1)))
    return F.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED)


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropy` of the logits x W^T, which need not all exist at once.

    x [..., D], weight [V, D], targets [...] int64; a scalar, float32 at least.
    """
    # A function of its own although it has one line: a kernel that fuses head and loss belongs here
    # (docs/design.md, Planned).
    return cross_entropy(linear(x, weight), targets)
