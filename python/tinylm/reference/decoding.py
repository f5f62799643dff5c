"""Attention of a few new tokens over a cache: over one buffer or blocks, in floats or in 8 bits.

The formula of `tensors.attention`, row by row. What a row's queries cannot see is not touched: a
cache may hold anything there, numbers that are not finite too.
"""

import torch
from torch import Tensor

from tinylm.reference.quant import dequantise_int8
from tinylm.reference.tensors import softmax, wide


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
    """y = softmax(cap(scale q k^T)) v, each query over the keys up to its own; y as q.

    q [B, H, T, D]: query t of row b stands at place past[b] + t; without `past`, at S - T + t.
    It sees the places up to its own, at most `window` of them. `past` [B] int. cap(x) is
    softcap tanh(x / softcap), or x; `scale` is 1 / sqrt(D) unless given.

    k and v are [B, K, S, D]. With a `table` [B, blocks] int they are [N, K, page, D], and place s
    of row b is place s % page of block table[b, s // page]. Of int8 there are scales, [B, K, S]
    or [N, K, page]: a key is its int8 numbers times its scale.

    Source: Vaswani et al. 2017, equation 1; Kwon et al. 2023, section 4 (paged attention).
    """
    rows, heads, queries, size = q.shape
    y = torch.zeros_like(q)
    for row in range(rows):
        start = k.shape[2] - queries if past is None else int(past[row])
        first = 0 if window is None else max(0, start - window + 1)
        place = torch.arange(first, start + queries, device=q.device)
        keys, values = (
            stored(x, s, row, place, table, wide(q).dtype).to(q.dtype)
            for x, s in ((k, k_scale), (v, v_scale))
        )
        # Query heads in groups [K, H / K, T, D], all of a group against one key head [S, D].
        grouped = q[row].reshape(keys.shape[0], -1, queries, size)
        scores = wide(grouped @ keys[:, None].transpose(-1, -2))
        scores = scores * (size**-0.5 if scale is None else scale)
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        ahead = torch.arange(start, start + queries, device=q.device)[:, None] - place
        seen = ahead >= 0
        if window is not None:
            seen = seen & (ahead < window)
        weights = softmax(torch.where(seen, scores, -torch.inf)).to(q.dtype)
        y[row] = (weights @ values[:, None]).reshape(heads, queries, size)
    return y


def stored(
    x: Tensor,
    scale: Tensor | None,
    row: int,
    place: Tensor,
    table: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """What a cache holds at the places of a row: [K, places, D]; 8 bits become `dtype`."""
    if table is None:
        block, within = torch.full_like(place, row), place
    else:
        page = x.shape[2]
        block, within = table[row][place // page].to(place.dtype), place % page
    # [places, K, D]: a tensor of indices on both sides of a slice goes first.
    numbers = x[block, :, within]
    if scale is not None:
        numbers = dequantise_int8(numbers, scale[block, :, within].to(dtype))
    return numbers.transpose(0, 1)
