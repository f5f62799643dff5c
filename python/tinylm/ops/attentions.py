"""Attention, by the fastest way that can express the mask, or spelled out."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.mask import CAUSAL, Mask
from tinylm.ops import choice, spelled
from tinylm.ops.dtypes import product_dtype, widened

# Dense masks of more cells than this are made for a few rows at a time: 64 MiB of bools, and
# four times that where torch turns them into float32.
MASK_CELLS = 2**26
# Decoding is for this many queries at most, over this many keys at least. Not measured: fewer keys
# leave no work to split, and more queries fill the tiles of the other kernels.
DECODE_QUERIES, DECODE_KEYS = 8, 1024

Backend = Literal["auto", "triton", "hopper", "sdpa"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | Tensor = CAUSAL,
    scale: float | None = None,
    softcap: float | None = None,
    past: Tensor | None = None,
    dropout: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(scale q k^T) v with a mask; q [B, H, T, head], k and v [B, K, S, head].

    The last query is at the last key. With `past` [B] int, the first query of row b follows
    past[b] keys. `mask` is a `Mask`, or a boolean tensor that broadcasts to [B, H, T, S], true
    where the query may look. `scale` is 1 / sqrt(head) by default. With `softcap` c, a score s
    becomes c tanh(s / c). Which kernel computes it follows from `backend` (see `kernels_to_try`);
    torch does if none can. On a CPU auto takes the products of `spelled` where they are faster. No
    boolean tensor is made where torch needs none.
    Sources: Vaswani et al. 2017, equation 1; Gemma Team 2024 (Gemma 2), section 2 for the cap.
    """
    if isinstance(mask, Mask) and dropout == 0.0:
        found = _by_kernel(q, k, v, mask, scale, softcap, past, backend)
        if found is not None:
            return found
        if backend == "auto" and softcap is None and past is None:
            found = _spelled_out(q, k, v, mask, scale)
            if found is not None:
                return found
    if softcap is not None or (scale is not None and scale <= 0):
        # torch's attention has no cap, and multiplies the -inf of hidden keys by the scale.
        return manual_attention(
            q, k, v, mask=mask, scale=scale, softcap=softcap, past=past, dropout=dropout
        )
    return _by_torch(q, k, v, mask, scale, past, dropout)


def kernels_to_try(
    backend: Backend,
    mask: Mask,
    queries: int,
    keys: int,
    *,
    softcap: float | None,
    past: bool,
    gradients: bool,
) -> list[str]:
    """The kernels that may compute attention on a GPU, the best first; torch if none covers it.

    | mask                                            | auto   | triton | hopper         | sdpa  |
    |-------------------------------------------------|--------|--------|----------------|-------|
    | causal with as many queries as keys, or full    | torch  | triton | hopper, triton | torch |
    | one query after a cache                         | torch  | triton | hopper, triton | torch |
    | several queries after a cache                   | triton | triton | hopper, triton | torch |
    | window, documents, prefix, cap, a past per row  | triton | triton | triton         | torch |

    auto takes torch where torch needs no tensor of bools: there its flash attention and cuDNN are
    faster on an H100 than a portable kernel (Shah et al. 2024, figure 5). Few queries over many
    keys try the decoding kernel first, unless the mask has documents or a prefix. No kernel is for
    tensors on the CPU, a mask that is a tensor, dropout, or more queries than keys; decoding and
    `past` have no gradients.
    """
    if backend == "sdpa" or (past and gradients) or queries > keys:
        return []
    simple = not past and mask.simple(keys)
    few = queries <= DECODE_QUERIES and keys >= DECODE_KEYS
    found = []
    if few and mask.causal and not mask.per_row and not gradients:
        found.append("decode_attention")
    if backend == "hopper" and simple and softcap is None:
        found.append("attention_hopper")
    if backend != "auto" or softcap is not None or _needs_bools(mask, queries, keys, past):
        found.append("attention")
    return found


def _needs_bools(mask: Mask, queries: int, keys: int, past: bool) -> bool:
    """Whether torch can express a mask only as a tensor of bools."""
    if past or mask.per_row:
        return True
    # torch's `is_causal` puts the first query at the first key: right only without a cache. A lone
    # last query sees every key, or after a cut those of its window, so it needs no mask.
    return not (queries == 1 or (mask.simple(keys) and (queries == keys or not mask.causal)))


def _by_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    scale: float | None,
    softcap: float | None,
    past: Tensor | None,
    backend: Backend,
) -> Tensor | None:
    """`attention` by the first kernel that covers these tensors, or None."""
    if q.numel() == 0 or k.shape != v.shape:
        return None
    # Under autocast torch's attention casts, and so must a kernel.
    dtype = product_dtype(q)
    if any(product_dtype(x) != dtype for x in (k, v)):
        return None
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if past is not None:
        past = past.long()
    gradients = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    names = kernels_to_try(
        backend,
        mask,
        q.size(2),
        k.size(2),
        softcap=softcap,
        past=past is not None,
        gradients=gradients,
    )
    for name in names:
        kernel = choice.kernel_for(name, q.size(-1), q, k, v, compiled=True)
        if kernel is None:
            continue
        if name == "decode_attention":
            return kernel(q, k, v, past, None, None, None, mask.window, scale, softcap)
        if name == "attention_hopper":
            # It finds the largest score before it scales.
            if scale > 0:
                return kernel(q, k, v, mask.causal, scale)[0]
            continue
        first, end = (None, None) if mask.documents is None else mask.bounds()
        prefix, causal, window = mask.prefix, mask.causal, mask.window
        return kernel(q, k, v, first, end, prefix, past, causal, window, scale, softcap)[0]
    return None


def _spelled_out(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float | None) -> Tensor | None:
    """`attention` by products on a CPU, or None where that is not faster or cannot be."""
    dtype = product_dtype(q)
    if not q.is_cpu or k.shape != v.shape or choice.forward_mode():
        return None
    if any(product_dtype(x) != dtype for x in (k, v)):
        return None
    gradients = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if not spelled.pays(q, k, mask, gradients=gradients):
        return None
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    return spelled.causal_attention(q, k, v, mask, scale)


def _by_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Tensor,
    scale: float | None,
    past: Tensor | None,
    dropout: float,
) -> Tensor:
    """`attention` without a cap, by torch."""
    window = mask.window if isinstance(mask, Mask) and not mask.per_row else None
    if window is not None and past is None and q.size(2) == 1:
        k, v = k[:, :, -window:], v[:, :, -window:]
    queries, keys = q.size(2), k.size(2)
    dense, causal = None, False
    if isinstance(mask, Tensor):
        dense = mask
    elif not _needs_bools(mask, queries, keys, past is not None):
        causal = mask.causal and queries == keys
    else:
        # One row at least, even if its mask passes the limit: a row cannot be cut further.
        rows = max(1, MASK_CELLS // max(1, queries * keys))
        # A mask that all rows share is made once, however many rows there are: cutting would save
        # nothing.
        if q.size(0) > rows and (mask.per_row or past is not None):
            return _by_rows(q, k, v, mask, scale, past, dropout, rows)
        dense = mask.dense(queries, keys, past=past, device=q.device)
    grouped = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=dense,
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=grouped,
    )


def _by_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    scale: float | None,
    past: Tensor | None,
    dropout: float,
    rows: int,
) -> Tensor:
    """`_by_torch`, a few rows of the batch at a time, so that their dense masks stay small."""
    parts = []
    for first in range(0, q.size(0), rows):
        some = slice(first, first + rows)
        theirs = None if past is None else past[some]
        own = mask.rows(some)
        parts.append(_by_torch(q[some], k[some], v[some], own, scale, theirs, dropout))
    return torch.cat(parts)


def manual_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | Tensor = CAUSAL,
    scale: float | None = None,
    softcap: float | None = None,
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
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    scores = widened(q @ k.transpose(-2, -1) * scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # A `Mask` always shows a query its own key, so no row is all -inf, which would give nan.
    weights = torch.softmax(scores.masked_fill(~mask, -math.inf), -1)
    return F.dropout(weights.to(q.dtype), dropout) @ v
