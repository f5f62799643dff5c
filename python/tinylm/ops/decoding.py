"""Attention of a few new tokens over a cache that is stored in one buffer or in blocks."""

from collections.abc import Callable

import torch
from torch import Tensor

from tinylm.ops import choice
from tinylm.ops.attentions import DECODE_QUERIES, attention
from tinylm.ops.quant import dequantise_int8


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Tensor | None = None,
    *,
    table: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of the last T tokens of every row over all of its keys; y [B, H, T, D] as q.

    Query t of row b stands at place past[b] + t (without `past`, at S - T + t) and sees the places
    up to its own, at most `window` of them. q [B, H, T, D], past [B] int64. The scores are
    multiplied by `scale`, 1 / sqrt(D) unless given, and `softcap` c makes x of them c tanh(x / c).

    A contiguous cache is k and v [B, K, S, D], with the new keys in place. A paged one is
    [N, K, page, D] with a `table` [B, blocks] int32: place s of row b is in block
    table[b, s // page], at s % page; page is a power of two. Keys and values in int8 have scales,
    [B, K, S] or [N, K, page] (`quantise_int8` over the last axis). Places that no query sees, and
    their entries of the table, may hold anything.

    On a GPU a kernel reads each key and value once (`tinylm.kernels.decode_attention`); elsewhere,
    and where gradients are asked for, the cache is gathered and goes through torch's attention.
    Source: Vaswani et al. 2017, equation 1; Kwon et al. 2023, section 4; Dao et al. 2023
    (Flash-Decoding).
    """
    scale = q.size(-1) ** -0.5 if scale is None else scale
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
        kernel = choice.kernel_for("decode_attention", q.size(-1), q, compiled=True)
        if kernel is not None:
            return kernel(q, k, v, past, table, k_scale, v_scale, window, scale, softcap)
    rows, queries = q.size(0), q.size(2)
    page, blocks = k.size(2), 1 if table is None else table.size(1)
    place = torch.arange(page * blocks, device=q.device)
    if past is None:
        past = torch.full((rows,), page - queries, device=q.device)
    window = page * blocks if window is None else window
    # How far each place is behind each query: [B, T, S].
    behind = past[:, None, None] + torch.arange(queries, device=q.device)[:, None] - place
    seen = (behind >= 0) & (behind < window)
    present = seen.any(1)
    if table is not None:
        # An entry that no query needs may name no block.
        used = present.view(rows, blocks, page).any(2)
        table = torch.where(used, table, 0)
    k, v = (_gathered(x, s, table, q.dtype) for x, s in ((k, k_scale), (v, v_scale)))
    # A weight of 0 does not hide a NaN.
    k, v = (x.masked_fill(~present[:, None, :, None], 0) for x in (k, v))
    return attention(q, k, v, mask=seen[:, None], scale=scale, softcap=softcap)


def kernel_for_blocks(attend: Callable[..., Tensor], q: Tensor, keys: Tensor) -> bool:
    """Whether a kernel does to q [B, H, T, head] over blocks of `keys` what `attend` would do.

    `attend` is `attention`, with or without a backend; a cache gathers its blocks for any other.
    """
    given = getattr(attend, "keywords", {})
    if getattr(attend, "func", attend) is not attention or given.get("backend") == "sdpa":
        return False
    if q.size(2) > DECODE_QUERIES or q.dtype != keys.dtype:
        return False
    return choice.kernel_for("decode_attention", q.size(-1), q, compiled=True) is not None


def _gathered(x: Tensor, scale: Tensor | None, table: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The rows of a cache in one piece [B, K, S, D] of floats of `dtype`."""
    if table is not None:
        x = x[table].transpose(1, 2).flatten(2, 3)
        scale = None if scale is None else scale[table].transpose(1, 2).flatten(2)
    wide = torch.promote_types(dtype, torch.float32)
    return x if scale is None else dequantise_int8(x, scale.to(wide)).to(dtype)
