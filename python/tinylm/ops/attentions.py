"""Attention, by the fastest way that can express the mask, or spelled out."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.mask import CAUSAL, Mask
from tinylm.ops.dtypes import widened

# Dense masks of more cells than this are made for a few rows at a time: 64 MiB of bools, and
# four times that where torch turns them into float32.
MASK_CELLS = 2**26


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
    weights = torch.softmax(widened(scores).masked_fill(~mask, -math.inf), -1)
    return F.dropout(weights.to(q.dtype), dropout) @ v
