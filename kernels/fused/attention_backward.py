"""Attention, backward: dk and dv from tiles of keys, dq from tiles of queries; no sum is shared.

    A = exp(s - lse)    dv = A^T dy    ds = A (dy v^T - delta)    delta = sum over D of y dy
    dq = scale ds k     dk = scale ds^T q    with a soft cap ds is times 1 - (s / c)^2

Source: Dao 2023 (FlashAttention-2), algorithm 2; the masks and the tiles are those of `attention`.

    delta_kernel    y.dy of each query, read by the other two

    keys_kernel     queries of head 0 | of head 1 | ...          a program: `rows` keys of one key
      n0 .. n1      [ whole | whole | ... then edge | edge ]     head, over the queries of its group
                          -> dk, dv in registers

    queries_kernel  keys, as forward: whole tiles, then edges    a program: `rows` queries of a head
      p0 .. p1            -> dq in registers

A key is seen by one interval of queries, also with a prefix: a key of the prefix is seen by its
whole document. Each program owns what it writes, so nothing is added in memory: no atomics, no
copies of k and v for the heads of a group, and the same bits every time. The price is that scores
and dy v^T are computed twice.

Cost: 14 D FLOPs per pair of a query and a key that sees it, where a kernel that adds dq up with
atomics has 10 D. q, k, v and dy pass through memory once per section (see `attention`), y once.
Tried, by the offline compiler (registers, bytes spilled); speed is not measured:

- sm_90, D=128, dk and dv: 128 keys x 32 queries, 8 warps, 3 stages 230, 0; 128 x 64 spilled 168.
- dq: 128 x 128 is 255, 24; 128 x 64 172, 0. D=64 with a soft cap: 128 x 64 spills 364, 128 x 32
  none, so a cap halves the tiles that a loop walks over. On sm_90 dq of 128 x 64 on 4 warps
  spills 20 with triton 3.6; 128 x 32 takes 190.
- D=256, dk and dv: with descriptors 64 keys x 16 queries are 251, 0 but spill 8 with a soft cap,
  64 x 32 spill 48; 32 x 16 through pointers are 178, 0.
"""

# Triton's language has no types, and torch's functions around devices few.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import functools
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.kernels import attention
from tinylm.kernels.attention import (
    Launch,
    argument,
    bounded,
    curve,
    find,
    fitted,
    flat,
    readable,
    rows_of,
    section,
)
from tinylm.kernels.attention_tiles import (
    assigned,
    document,
    key_tiles,
    load,
    product,
    row_bounds,
    visible,
)
from tinylm.kernels.config import Key, Table
from tinylm.kernels.library import LIBRARY, register
from tinylm.kernels.tanh import tanh

# Of dk and dv: `rows` keys, which walk over queries. Of dq: `rows` queries, which walk over keys.
KEYS: Table[Launch] = (
    (Key(2, 64, (9, 0)), Launch(128, 64, warps=8, stages=2, tma=True)),
    (Key(2, 128, (9, 0)), Launch(128, 32, warps=8, stages=3, tma=True)),
    (Key(2, 64, (8, 0)), Launch(64, 32, warps=4, stages=2, tma=False)),
    (Key(2, 128, (8, 0)), Launch(64, 64, warps=8, stages=2, tma=False)),
    (Key(2, 256, (8, 0)), Launch(32, 16, warps=8, stages=2, tma=False)),
    (Key(4, 64, (8, 0)), Launch(32, 32, warps=4, stages=1, tma=False)),
    (Key(4, 128, (8, 0)), Launch(16, 16, warps=4, stages=1, tma=False)),
)
QUERIES: Table[Launch] = (
    (Key(2, 64, (9, 0)), Launch(128, 32, warps=4, stages=3, tma=True)),
    (Key(2, 128, (9, 0)), Launch(128, 64, warps=8, stages=2, tma=True)),
    (Key(2, 256, (9, 0)), Launch(64, 32, warps=8, stages=2, tma=True)),
    (Key(2, 64, (8, 0)), Launch(128, 64, warps=8, stages=2, tma=False)),
    (Key(2, 128, (8, 0)), Launch(128, 64, warps=8, stages=2, tma=False)),
    (Key(2, 256, (8, 0)), Launch(64, 16, warps=8, stages=2, tma=False)),
    (Key(4, 64, (8, 0)), Launch(32, 32, warps=4, stages=1, tma=False)),
    (Key(4, 128, (8, 0)), Launch(16, 16, warps=4, stages=1, tma=False)),
)
NAME = "attention_backward"
# Rows of y and dy in a program that multiplies them.
ROWS = 64


@triton.jit
def queries_seeing(bounds, s, window, CAUSAL: tl.constexpr):
    """Narrow the bounds of documents to the places of the queries that see the keys s."""
    lower, upper = bounds
    if CAUSAL:
        lower = tl.maximum(lower, s)
    elif window is not None:
        lower = tl.maximum(lower, s - window + 1)
    if window is not None:
        upper = tl.minimum(upper, s + window)
    return lower, upper


@triton.jit
def query_tiles(
    b, n0, n1, keys, place, mask, prefix, window, CAUSAL: tl.constexpr, BLOCK: tl.constexpr
):
    """Return the queries that see the keys at places n0 to n1, in tiles of `BLOCK` queries.

    low .. high: some query of the tile sees some key. all_low .. all_high, part of it: every
    query sees every key. The first query is at `place`.
    """
    lowest, all_highest = document(b, n0, keys, mask)
    all_lowest, highest = document(b, n1, keys, mask)
    low, all_high = queries_seeing((lowest, all_highest), n0, window, CAUSAL)
    all_low, high = queries_seeing((all_lowest, highest), n1, window, CAUSAL)
    if prefix is not None:
        # All the document sees a key of the prefix.
        low = tl.where(n0 < prefix, lowest, low)
        high = tl.where(n0 < prefix, highest, high)
        all_low = tl.where(n1 < prefix, all_lowest, all_low)
        all_high = tl.where(n1 < prefix, all_highest, all_high)
    low = tl.maximum(low - place, 0)
    low -= low % BLOCK
    high = tl.maximum(high - place, low) + BLOCK - 1
    high -= high % BLOCK
    all_low = tl.maximum(all_low - place, 0) + BLOCK - 1
    all_low -= all_low % BLOCK
    all_high = tl.maximum(all_high - place, 0)
    all_high -= all_high % BLOCK
    none = all_high <= all_low
    return low, tl.where(none, low, all_low), tl.where(none, low, all_high), high


@triton.jit
def slopes(left, right, level, inner, outer):
    """Return exp2(scores - level) and, with a soft cap, the slope of the cap at the scores."""
    scores = product(left, right.T) * inner
    bend = scores
    if outer is not None:
        bent = tanh(scores)
        scores = bent * outer
        bend = 1.0 - bent * bent
    return tl.exp2(scores - level), bend


@triton.jit(do_not_specialize=["rows", "heads", "queries"])
def delta_kernel(
    dy,
    y,
    delta,
    rows,
    heads,
    queries,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """delta [B, H, T] float32 = y.dy."""
    index, row = assigned(tl.cdiv(queries, BLOCK_M), rows, 1)
    m = (index * BLOCK_M).to(tl.int32)
    b, h = row // heads, row % heads
    slope = load(dy, (b, h, m), queries, D, BLOCK_M, BLOCK_D, False).to(tl.float32)
    out = load(y, (b, h, m), queries, D, BLOCK_M, BLOCK_D, False).to(tl.float32)
    t = m + tl.arange(0, BLOCK_M)
    tl.store(delta + row * queries + t, tl.sum(slope * out, 1), mask=t < queries)


@triton.jit
def add_queries(
    sums,
    its,
    tiles,
    at,
    row,
    bounds,
    numbers,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Return dk / scale and dv of a tile of keys after one more tile of queries.

    Everything but q and dy is transposed: a row per key.
    """
    dk, dv = sums
    its_keys, values = its
    q, dy, lse, delta = tiles
    queries, place, inner, outer = numbers
    t = at[2] + tl.arange(0, BLOCK_M)
    # Queries past the last have q = dy = 0, and infinity here makes their weights 0.
    level = tl.load(lse + row + t, mask=t < queries, other=float("inf"))
    x = load(q, at, queries, D, BLOCK_M, BLOCK_D, WHOLE)
    weights, bend = slopes(its_keys, x, level[None, :], inner, outer)
    if not WHOLE:
        seen = visible(place + t[None, :], bounds, False)
        weights = tl.where(seen, weights, 0.0)
    slope = load(dy, at, queries, D, BLOCK_M, BLOCK_D, WHOLE)
    dv = product(weights.to(slope.dtype), slope, dv)
    mean = tl.load(delta + row + t, mask=t < queries, other=0.0)
    dscores = product(values, slope.T) - mean[None, :]
    dscores *= weights
    if outer is not None:
        dscores *= bend
    dk = product(dscores.to(x.dtype), x, dk)
    return dk, dv


@triton.jit(do_not_specialize=["rows", "kv_heads", "group", "queries", "keys", "section"])
def keys_kernel(
    q,
    k,
    v,
    dy,
    lse,
    delta,
    dk,
    dv,
    first,
    end,
    prefix,
    window,
    scale,
    inner,
    outer,
    rows,
    kv_heads,
    group,
    queries,
    keys,
    section,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of keys of one key head a program, which walks over the queries of all its heads.

    dk and dv [B, S, K, D] are contiguous.
    """
    index, row = assigned(tl.cdiv(keys, BLOCK_N), rows, section)
    n = (index * BLOCK_N).to(tl.int32)
    b, head = row // kv_heads, (row % kv_heads).to(tl.int32)
    inner = tl.full((), inner, tl.float32)
    if outer is not None:
        outer = tl.full((), outer, tl.float32)
    place = keys - queries
    length = prefix
    if prefix is not None:
        length = tl.load(prefix + b).to(tl.int32)
    mask = (first, end, keys)
    last = tl.minimum(n + BLOCK_N, keys) - 1
    low, all_low, all_high, high = query_tiles(
        b, n, last, keys, place, mask, length, window, CAUSAL, BLOCK_M
    )
    s = n + tl.arange(0, BLOCK_N)
    real = tl.minimum(s, keys - 1)[:, None]
    whole_document = document(b, real, keys, mask)
    lower, upper = queries_seeing(whole_document, real, window, CAUSAL)
    if prefix is not None:
        lower = tl.where(real < length, whole_document[0], lower)
        upper = tl.where(real < length, whole_document[1], upper)
    entry = b.to(tl.int32)
    its_keys = load(k, (entry, head, n), keys, D, BLOCK_N, BLOCK_D, False)
    values = load(v, (entry, head, n), keys, D, BLOCK_N, BLOCK_D, False)
    sums = (tl.zeros((BLOCK_N, BLOCK_D), tl.float32), tl.zeros((BLOCK_N, BLOCK_D), tl.float32))
    # Head after head the tiles that need no mask, then head after head those that do. One loop
    # over heads and tiles keeps its loads in flight from one head to the next.
    h0, row0 = head.to(tl.int64) * group, row * group * queries
    whole = all_high - all_low
    length_of_head = tl.maximum(whole, 1)
    its, tiles, bounds = (its_keys, values), (q, dy, lse, delta), (lower, upper)
    numbers = (queries, place, inner, outer)
    for j in tl.range(0, (whole.to(tl.int64) * group).to(tl.int32), BLOCK_M):
        g = (j // length_of_head).to(tl.int64)
        at = (entry, (h0 + g).to(tl.int32), all_low + j % length_of_head)
        start = row0 + g * queries
        sums = add_queries(sums, its, tiles, at, start, bounds, numbers, D, BLOCK_M, BLOCK_D, True)
    edge = high - low - whole
    length_of_head = tl.maximum(edge, 1)
    for j in tl.range(0, (edge.to(tl.int64) * group).to(tl.int32), BLOCK_M):
        g = (j // length_of_head).to(tl.int64)
        m = low + j % length_of_head
        m += tl.where(m >= all_low, whole, 0)
        at = (entry, (h0 + g).to(tl.int32), m)
        start = row0 + g * queries
        sums = add_queries(sums, its, tiles, at, start, bounds, numbers, D, BLOCK_M, BLOCK_D, False)
    dkeys, dvalues = sums
    d = tl.arange(0, BLOCK_D)[None, :]
    spot = ((b * keys + s) * kv_heads + head)[:, None] * D + d
    inside = (s < keys)[:, None] & (d < D)
    dkeys *= tl.full((), scale, tl.float32)
    tl.store(dk + spot, dkeys.to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + spot, dvalues.to(dv.dtype.element_ty), mask=inside)


@triton.jit
def add_keys(
    dq,
    its,
    kv,
    at,
    bounds,
    numbers,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PREFIX: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Return dq / scale of a tile of queries after one more tile of keys."""
    x, slope, level, mean = its
    keys, inner, outer = numbers
    its_keys = load(kv[0], at, keys, D, BLOCK_N, BLOCK_D, WHOLE)
    weights, bend = slopes(x, its_keys, level[:, None], inner, outer)
    if not WHOLE:
        s = at[2] + tl.arange(0, BLOCK_N)[None, :]
        weights = tl.where(visible(s, bounds, PREFIX), weights, 0.0)
    values = load(kv[1], at, keys, D, BLOCK_N, BLOCK_D, WHOLE)
    dscores = product(slope, values.T) - mean[:, None]
    dscores *= weights
    if outer is not None:
        dscores *= bend
    return product(dscores.to(its_keys.dtype), its_keys, dq)


@triton.jit(do_not_specialize=["rows", "heads", "group", "queries", "keys", "section"])
def queries_kernel(
    q,
    k,
    v,
    dy,
    lse,
    delta,
    dq,
    first,
    end,
    prefix,
    window,
    scale,
    inner,
    outer,
    rows,
    heads,
    group,
    queries,
    keys,
    section,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of queries of one head a program; dq [B, T, H, D] is contiguous."""
    tiles = tl.cdiv(queries, BLOCK_M)
    index, row = assigned(tiles, rows, section)
    m = ((tiles - 1 - index) * BLOCK_M).to(tl.int32)
    b, h = row // heads, (row % heads).to(tl.int32)
    inner = tl.full((), inner, tl.float32)
    if outer is not None:
        outer = tl.full((), outer, tl.float32)
    p0 = keys - queries + m
    length = prefix
    if prefix is not None:
        length = tl.minimum(tl.load(prefix + b).to(tl.int32), keys)
    mask = (first, end, keys)
    start, gap, low, all_low, all_high, high = key_tiles(
        b, p0, tl.minimum(p0 + BLOCK_M, keys) - 1, keys, mask, length, window, CAUSAL, BLOCK_N
    )
    bounds = row_bounds(b, p0 + tl.arange(0, BLOCK_M), keys, mask, length, window, CAUSAL)
    head, entry = h // group, b.to(tl.int32)
    x = load(q, (entry, h, m), queries, D, BLOCK_M, BLOCK_D, False)
    slope = load(dy, (entry, h, m), queries, D, BLOCK_M, BLOCK_D, False)
    t = m.to(tl.int64) + tl.arange(0, BLOCK_M)
    level = tl.load(lse + row * queries + t, mask=t < queries, other=float("inf"))
    mean = tl.load(delta + row * queries + t, mask=t < queries, other=0.0)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    its, kv, numbers = (x, slope, level, mean), (k, v), (keys, inner, outer)
    PREFIX: tl.constexpr = prefix is not None
    for n in tl.range(all_low, all_high, BLOCK_N):
        at = (entry, head, n)
        total = add_keys(total, its, kv, at, bounds, numbers, D, BLOCK_N, BLOCK_D, PREFIX, True)
    whole = all_high - all_low
    for n in tl.range(start, high - whole - (low - gap), BLOCK_N):
        n += tl.where(n >= gap, low - gap, 0)
        n += tl.where(n >= all_low, whole, 0)
        at = (entry, head, n)
        total = add_keys(total, its, kv, at, bounds, numbers, D, BLOCK_N, BLOCK_D, PREFIX, False)
    d = tl.arange(0, BLOCK_D)[None, :]
    spot = ((b * queries + t) * heads + h)[:, None] * D + d
    total *= tl.full((), scale, tl.float32)
    inside = (t < queries)[:, None] & (d < D)
    tl.store(dq + spot, total.to(dq.dtype.element_ty), mask=inside)


def check(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, *mask: Any) -> None:
    """Raise ValueError for what the kernels would read past the end of, or misread."""
    first, end, prefix, window, softcap = mask
    attention.check(NAME, q, k, v, first, end, prefix, None, window, softcap)
    for title, x in {"dy": dy, "y": y}.items():
        if x.shape != q.shape or x.dtype != q.dtype:
            raise ValueError(
                f"{NAME}: {title} is {list(x.shape)} {x.dtype}; it must be as q, {list(q.shape)} "
                f"{q.dtype}"
            )
    if lse.shape != q.shape[:3] or lse.dtype != torch.float32:
        raise ValueError(
            f"{NAME}: lse is {list(lse.shape)} {lse.dtype}; it must be {list(q.shape[:3])} float32"
        )


def backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    lse: Tensor,
    first: Tensor | None,
    end: Tensor | None,
    prefix: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv, in the shapes and dtypes of q, k and v, as views of [B, T or S, heads, D]."""
    check(dy, q, k, v, y, lse, first, end, prefix, window, softcap)
    (batch, heads, queries, size), (_, kv_heads, keys, _) = q.shape, k.shape
    dq, dk, dv = (
        torch.empty(
            (x.size(0), x.size(2), x.size(1), x.size(3)), dtype=x.dtype, device=x.device
        ).transpose(1, 2)
        for x in (q, k, v)
    )
    if q.numel() == 0:
        return dq, dk.zero_(), dv.zero_()
    of_keys = fitted(find(NAME, KEYS, q), keys, queries, half=softcap is not None)
    of_queries = fitted(find(NAME, QUERIES, q), queries, keys, half=softcap is not None)
    lse = lse.contiguous()
    delta = torch.empty((batch, heads, queries), dtype=torch.float32, device=q.device)
    dy, q, k, v, y = (readable(x) for x in (dy, q, k, v, y))
    inner, outer = curve(scale, softcap)
    group = heads // kv_heads
    width = max(16, triton.next_power_of_2(size))
    fields = (flat(first), flat(end), flat(prefix), bounded(window, keys))
    size_of_group = 2 * group * queries * size * q.element_size()

    def read(launch: Launch, m: int, n: int) -> tuple[Any, ...]:
        lengths = ((q, m), (k, n), (v, n), (dy, m))
        return tuple(argument(x, length, launch.tma) for x, length in lengths)

    def blocks(launch: Launch, m: int, n: int) -> dict[str, Any]:
        return {
            "D": size,
            "CAUSAL": causal,
            "BLOCK_M": m,
            "BLOCK_N": n,
            "BLOCK_D": width,
            "num_warps": launch.warps,
            "num_stages": launch.stages,
        }

    with torch.cuda.device_of(q):
        delta_kernel[(triton.cdiv(queries, ROWS) * batch * heads,)](
            argument(dy, ROWS, False),
            argument(y, ROWS, False),
            delta,
            batch * heads,
            heads,
            queries,
            D=size,
            BLOCK_M=ROWS,
            BLOCK_D=width,
        )
        keys_kernel[(triton.cdiv(keys, of_keys.rows) * batch * kv_heads,)](
            *read(of_keys, of_keys.columns, of_keys.rows),
            lse,
            delta,
            dk,
            dv,
            *fields,
            scale,
            inner,
            outer,
            batch * kv_heads,
            kv_heads,
            group,
            queries,
            keys,
            section(batch * kv_heads, 1, size_of_group),
            **blocks(of_keys, of_keys.columns, of_keys.rows),
        )
        queries_kernel[(triton.cdiv(queries, of_queries.rows) * batch * heads,)](
            *read(of_queries, of_queries.rows, of_queries.columns),
            lse,
            delta,
            dq,
            *fields,
            scale,
            inner,
            outer,
            batch * heads,
            heads,
            group,
            queries,
            keys,
            section(batch * heads, group, 2 * keys * size * q.element_size()),
            **blocks(of_queries, of_queries.rows, of_queries.columns),
        )
    return dq, dk, dv


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each row of the tables, for the offline compiler."""
    for size, dtype in rows_of(KEYS, capability):
        title = f"D={size} {str(dtype).removeprefix('torch.')}"
        q, k = (torch.zeros(1, 512, n, size, dtype=dtype).transpose(1, 2) for n in (4, 2))
        tensors = (q, q, k, k, q, torch.zeros(1, 4, 512))
        bounds, row = torch.zeros(1, 512, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
        masked = (*tensors, bounds, bounds, row, False, 100, 0.1)
        plain = (*tensors, None, None, None, True, None, 0.1, None)
        yield f"{title} masked", functools.partial(backward, *masked, None)
        if dtype == torch.float32:
            continue
        yield f"{title} capped", functools.partial(backward, *masked, 30.0)
        if size <= 128:
            yield title, functools.partial(backward, *plain)


def _fake(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    first, end, prefix, _, window, _, softcap = rest
    check(dy, q, k, v, y, lse, first, end, prefix, window, softcap)
    return tuple(
        x.new_empty((x.size(0), x.size(2), x.size(1), x.size(3))).transpose(1, 2) for x in (q, k, v)
    )


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> NoReturn:
    raise NotImplementedError(
        "attention's kernel has no second derivative; take ops.manual_attention for "
        "create_graph=True"
    )


register(
    "attention_backward(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor y, Tensor lse, "
    "Tensor? first, Tensor? end, Tensor? prefix, bool causal, int? window, float scale, "
    "float? softcap) -> (Tensor, Tensor, Tensor)",
    backward,
    _fake,
)
torch.library.register_autograd("tinylm::attention_backward", _no_second_derivative, lib=LIBRARY)
