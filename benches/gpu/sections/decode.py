"""One new token per row over a long cache: contiguous, in blocks, and in 8 bits.

The calls are captured in a CUDA graph, as a decoding loop captures them.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benches.gpu.case import BF16, Case, Contest, Place
from tinylm.ops.quant import dequantise_int8, quantise_int8

HEADS, KV_HEADS, SIZE, PAGE = 32, 8, 128, 64


def cases(place: Place) -> Iterator[Case]:
    """A lone row of 32k tokens, 32 rows of 4k, and 8 of 32k: caches of 0.13 to 1.07 GB."""
    for rows, tokens in place.sized(((1, 32768), (32, 4096), (8, 32768)), ((2, 128),)):
        for kind, bits in (("contiguous", 16), ("paged", 16), ("int8", 8)):
            size = place.sized(SIZE, 16)
            cache = 2 * rows * place.sized(KV_HEADS, 2) * tokens * size * bits // 8
            at = {"rows": rows, "tokens": tokens, "cache_mb": round(cache / 1e6)}
            yield Case(
                f"decode {kind}", at, lambda b=rows, s=tokens, n=kind: decode(place, b, s, n)
            )


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first row in float64: q [H, 1, D], k and v [K, S, D] to [H, 1, D]."""
    grouped = q.double().unflatten(0, (len(k), -1))[..., 0, :]
    scores = grouped @ k.double().mT / math.sqrt(q.size(-1))
    return (scores.softmax(-1) @ v.double()).flatten(0, 1)[:, None]


def decode(place: Place, rows: int, tokens: int, kind: str) -> Contest:
    """Reads every key and value once, and the scales of those in int8."""
    heads, kv_heads, size = place.sized((HEADS, KV_HEADS, SIZE), (4, 2, 16))
    page = place.sized(PAGE, 16)
    q = place.randn(rows, heads, 1, size)
    k, v = (place.randn(rows, kv_heads, tokens, size) for _ in range(2))
    past = torch.full((rows,), tokens - 1, device=place.device)
    scale = 1 / math.sqrt(size)
    first = (k[0], v[0])
    stored, table = (k, v, None, None), None
    moved = 2 * k.numel() * k.itemsize
    if kind == "int8":
        (k8, k_scale), (v8, v_scale) = quantise_int8(k), quantise_int8(v)
        stored = (k8, v8, k_scale, v_scale)
        first = (dequantise_int8(k8[0], k_scale[0]), dequantise_int8(v8[0], v_scale[0]))
        moved = 2 * (k8.numel() + 4 * k_scale.numel())
    if kind == "paged":
        # Blocks [N, K, page, D] in any order, as after many requests that came and went.
        blocks = tokens // page
        order = torch.randperm(rows * blocks, device=place.device)
        table = order.int().view(rows, blocks)

        def in_blocks(x: Tensor) -> Tensor:
            parts = x.unflatten(2, (blocks, page)).transpose(1, 2).flatten(0, 1)
            return torch.empty_like(parts).index_copy_(0, order, parts)

        stored = (in_blocks(k), in_blocks(v), None, None)
    cached_k, cached_v, scale_k, scale_v = stored

    def ours() -> Tensor:
        return torch.ops.tinylm.decode_attention(
            q, cached_k, cached_v, past, table, scale_k, scale_v, None, scale, None
        )

    contenders = {"tinylm": ours}
    if kind != "paged":
        assert k.dtype == BF16
        contenders["SDPA"] = lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return Contest(
        contenders,
        lambda: exact(q[0], *first),
        # torch reads the numbers before they were rounded to 8 bits.
        1e-2 if kind != "int8" else 2e-2,
        pick=lambda y: y[0],
        bytes=moved,
        graph=True,
    )
