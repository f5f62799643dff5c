"""Caches that keep less than was read: from one query at a time to the kinds of `tinylm.cache`."""

import numpy as np
import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung, near
from tinylm import cache, ops
from tinylm.context import Context, DecodeState
from tinylm.mask import Mask
from tinylm.ops import ranges
from tinylm.reference import caches
from tinylm.reference.decoding import decode_attention
from tinylm.reference.quant import quantise_int8


def drawn(shape, seed, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def spread(rows, half, width, bits, dim, dtype, seed):
    """Numbers of many sizes; some ranges have one number alone, nan, inf, or leave float16."""
    x = drawn((rows, 2 * half, width), seed, dtype)
    x = x * 10.0 ** torch.arange(-3, rows - 3, dtype=dtype)[:, None, None]
    special = {0: 0.5, 1: torch.nan, 2: torch.inf, 3: 1e5}
    for row, value in special.items():
        if row < rows and (seed + row) % 3 == 0:
            x[row] = value if row == 0 else x[row]
            x[row, 0, 0] = value
    return x if dim == 1 else x.transpose(1, 2)


def back_by_definition(rows, half, width, bits, dim, dtype, seed):
    x = spread(rows, half, width, bits, dim, dtype, seed)
    return [caches.ranged(x, dim, bits).double().numpy()]


def back_from_bits(rows, half, width, bits, dim, dtype, seed):
    x = spread(rows, half, width, bits, dim, dtype, seed)
    stored = ranges.quantise_range(x, dim, bits)
    assert stored.packed.numel() == x.numel() * bits // 8
    return [ranges.dequantise_range(stored, dim, bits, torch.empty_like(x)).double().numpy()]


def same_or_nan(slow, fast):
    return all(
        np.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True)
        for a, b in zip(slow, fast, strict=True)
    )


PIECES = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def text(shape, pieces, seed):
    """q, k and v of two rows [2, heads, N, size], large enough that attention is not even."""
    heads, shared, size = shape
    tokens = sum(pieces)
    q = 2 * drawn((2, heads * shared, tokens, size), seed)
    k, v = (drawn((2, heads, tokens, size), seed + part) for part in (1, 2))
    return q, k, v


def by_definition(attention, shape, pieces, seed, **options):
    """y [2, H, N, size], a row at a time."""
    rows = zip(*text(shape, pieces, seed), strict=True)
    return [torch.stack([attention(*row, pieces, **options) for row in rows]).numpy()]


def by_cache(kind, shape, pieces, seed, *, layer=0, window=None, **options):
    """y [2, H, N, size] of a cache that reads both rows at once."""
    q, k, v = text(shape, pieces, seed)
    states = [DecodeState(shape[0], shape[2], ops.attention)] * (layer + 1)
    made = {"earlier": (), "dtype": q.dtype, "device": q.device}
    held = cache.KINDS[kind](states, 2, q.size(2), **made, **options)
    context = Context(torch.empty(0), lambda x: x, Mask(window=window), held)
    found, start = [], 0
    for piece in pieces:
        new = slice(start, start + piece)
        held.reserve(piece)
        found.append(held.attend(layer, q[:, :, new], k[:, :, new], v[:, :, new], context))
        held.advance(piece)
        start += piece
    return [torch.cat(found, 2).numpy()]


def quantised(shape, pieces, seed, bits, half, tail, window):
    heads, shared, width = shape
    options = {"bits": bits, "group": 2 * half, "tail": tail, "window": window}
    return (heads, shared, 2 * width), pieces, seed, options


def quantised_by_definition(*case):
    *case, options = quantised(*case)
    return by_definition(caches.quantised_attention, *case, **options)


def quantised_by_cache(*case):
    *case, options = quantised(*case)
    return by_cache("int4", *case, **options)


def eights_by_definition(shape, pieces, seed, window):
    """Every token in int8 from the beginning: where a pass ends changes nothing."""
    q, k, v = text(shape, pieces, seed)
    (k, k_scale), (v, v_scale) = quantise_int8(k), quantise_int8(v)
    named = {"k_scale": k_scale, "v_scale": v_scale, "window": window}
    return [decode_attention(q, k, v, **named).numpy()]


def eights_by_cache(shape, pieces, seed, window):
    return by_cache("int8", shape, pieces, seed, window=window)


def evicting(kind, layer, budget, recent):
    pool = {"pool": 3} if kind == "snapkv" else {}
    return {"layer": layer, "budget": budget, "recent": min(recent, budget), **pool}


def evicting_by_definition(shape, pieces, seed, kind, *rest):
    options = evicting(kind, *rest)
    return by_definition(caches.evicting_attention, shape, pieces, seed, kind=kind, **options)


def evicting_by_cache(shape, pieces, seed, kind, *rest):
    return by_cache(kind, shape, pieces, seed, **evicting(kind, *rest))


FEW = st.integers(1, 3)
SHAPES = st.tuples(FEW, FEW, FEW)
RUNGS = (
    Rung(
        "ranges in few bits",
        "tensors",
        ("tensors", "ops"),
        back_by_definition,
        back_from_bits,
        st.tuples(
            st.integers(1, 6),
            FEW,
            FEW,
            st.sampled_from((4, 8)),
            st.sampled_from((1, 2)),
            st.sampled_from((torch.float32, torch.float64)),
            SEEDS,
        ),
        lambda: (64, 16, 64, 4, 1, torch.float32, 0),
        same=same_or_nan,
    ),
    Rung(
        "a cache in few bits",
        "tensors",
        ("tensors", "cache"),
        quantised_by_definition,
        quantised_by_cache,
        st.tuples(
            SHAPES,
            PIECES,
            SEEDS,
            st.sampled_from((4, 8)),
            FEW,
            st.integers(0, 5),
            st.none() | st.integers(1, 9),
        ),
        lambda: ((2, 2, 16), [64, 1, 1, 40, 1], 0, 4, 16, 32, None),
        same=near(1e-9),
        cost=10,
    ),
    Rung(
        "a cache in int8",
        "tensors",
        ("tensors", "cache"),
        eights_by_definition,
        eights_by_cache,
        st.tuples(SHAPES, PIECES, SEEDS, st.none() | st.integers(1, 9)),
        lambda: ((2, 2, 16), [64, 1, 1, 40, 1], 0, None),
        same=near(1e-9),
        cost=10,
    ),
    Rung(
        "a cache that forgets",
        "tensors",
        ("tensors", "cache"),
        evicting_by_definition,
        evicting_by_cache,
        st.tuples(
            SHAPES,
            PIECES,
            SEEDS,
            st.sampled_from(("random", "h2o", "snapkv")),
            st.integers(0, 2),
            st.integers(1, 8),
            st.integers(1, 3),
        ),
        lambda: ((2, 2, 16), [48, 1, 1, 1, 1], 0, "snapkv", 0, 16, 4),
        same=near(1e-9),
        cost=8,
    ),
)
