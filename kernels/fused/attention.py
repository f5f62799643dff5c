"""Attention, forward: tiles of queries walk over the keys that they see; no score reaches memory.

    s = scale q.k    with a soft cap c: s = c tanh(s / c)
    y = sum over the keys that a query sees of exp(s - lse) v    lse = log(sum of exp(s))

Sources: Dao et al. 2022 (FlashAttention), algorithm 1, with the order of loops of Dao 2023; Gemma
Team 2024, section 2, for the cap. Defined by `tinylm.reference.tensors.attention` with the masks of
`tinylm.mask`, held to them by the rung `attention`. Gradients: `attention_backward`.

    q, lse, y  [ rows of queries ]  one program of one head
    k, v       [ 0 | 1 | .. | n  ]  its tiles, one after the other through registers: those that all
                                    its queries see without a mask, then those on the edges

`attention_tiles` computes which tiles those are. Of each row the largest score yet, the sum and the
weighted values are kept, and rescaled when a larger score comes (Milakov and Gimelshein 2018).

All heads of a group read the same keys by index. Programs take the longest rows first, and a
section of heads at a time, whose keys and values fit the second level cache. Scores and lse are to
the base 2: exp2 is one instruction.

Cost: 4 D FLOPs per pair of a query and a key that sees it; q and y once through memory, k and v
once per section. Tried, by the offline compiler (registers, bytes spilled); speed is not measured:

- sm_90, D=128, 128 x 128, 8 warps, bfloat16 causal: 222, 0 with descriptors. On sm_80 descriptors
  become pointers that are not loaded ahead: 128 x 64 spills 108, with pointers of our own 225, 0.
- D=64, 128 x 128, 4 warps: 255, 96. 128 x 64 takes 240, 0, and two programs fit a multiprocessor.
"""

# Triton's language has no types, and torch's functions around devices few.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tinylm.kernels import config
from tinylm.kernels.attention_tiles import (
    assigned,
    key_tiles,
    load,
    product,
    row_bounds,
    visible,
)
from tinylm.kernels.config import Key, Table
from tinylm.kernels.library import LIBRARY, register
from tinylm.kernels.tanh import tanh


class Launch(NamedTuple):
    """How to launch a kernel.

    A program has `rows` queries (or keys, for their gradients) and walks over the keys (or queries)
    in tiles of `columns`, of which `stages` are in flight. With `tma` it reads through descriptors
    made on the host, else through pointers.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    tma: bool


FORWARD: Table[Launch] = (
    (Key(2, 64, (9, 0)), Launch(128, 64, warps=4, stages=3, tma=True)),
    (Key(2, 128, (9, 0)), Launch(128, 128, warps=8, stages=3, tma=True)),
    (Key(2, 256, (9, 0)), Launch(128, 32, warps=8, stages=3, tma=True)),
    (Key(2, 64, (8, 0)), Launch(128, 64, warps=8, stages=2, tma=False)),
    (Key(2, 128, (8, 0)), Launch(128, 64, warps=8, stages=2, tma=False)),
    (Key(2, 256, (8, 0)), Launch(64, 32, warps=8, stages=2, tma=False)),
    (Key(4, 64, (8, 0)), Launch(64, 32, warps=4, stages=2, tma=False)),
    (Key(4, 128, (8, 0)), Launch(32, 32, warps=8, stages=1, tma=False)),
)
# Bytes of the second level cache that the keys and values read at one time should stay in.
CACHE = 16 * 2**20
LOG2E = 1 / math.log(2)


@triton.jit
def attend(
    state,
    q,
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
    """Return total, sums and peak of the rows of q after one more tile of keys and values.

    `WHOLE`: every query sees every key of the tile.
    """
    total, sums, peak = state
    keys, past, inner, outer = numbers
    s = at[2] + tl.arange(0, BLOCK_N)
    its_keys = load(kv[0], at, keys, D, BLOCK_N, BLOCK_D, WHOLE)
    scores = product(q, its_keys.T)
    if WHOLE and outer is None:
        # One multiplication and subtraction in one instruction; right because inner >= 0.
        high = tl.maximum(peak, tl.max(scores, 1) * inner)
        weights = tl.exp2(scores * inner - high[:, None])
        fade = tl.exp2(peak - high)
    else:
        scores *= inner
        if outer is not None:
            scores = tanh(scores) * outer
        if not WHOLE:
            seen = visible(s[None, :], bounds, PREFIX)
            scores = tl.where(seen, scores, float("-inf"))
        high = tl.maximum(peak, tl.max(scores, 1))
        # A query that has seen no key yet: -inf less -inf would be NaN.
        pivot = tl.where(high == float("-inf"), 0.0, high)
        weights = tl.exp2(scores - pivot[:, None])
        fade = tl.exp2(peak - pivot)
    values = load(kv[1], at, keys, D, BLOCK_N, BLOCK_D, WHOLE)
    if past is not None and not WHOLE:
        # Places after the row's last query hold anything, also NaN, and 0 NaN = NaN.
        values = tl.where(s[:, None] < keys, values, 0.0)
    total = product(weights.to(values.dtype), values, total * fade[:, None])
    return total, sums * fade + tl.sum(weights, 1), high


@triton.jit(do_not_specialize=["rows", "heads", "group", "queries", "all_keys", "section"])
def forward_kernel(
    q,
    k,
    v,
    y,
    lse,
    first,
    end,
    prefix,
    past,
    window,
    inner,
    outer,
    rows,
    heads,
    group,
    queries,
    all_keys,
    section,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of queries of one head a program; y [B, T, H, D] and lse [B, H, T] are contiguous."""
    tiles = tl.cdiv(queries, BLOCK_M)
    index, row = assigned(tiles, rows, section)
    # The last tile first: a causal one has the most to do.
    m = ((tiles - 1 - index) * BLOCK_M).to(tl.int32)
    b, h = row // heads, (row % heads).to(tl.int32)
    inner = tl.full((), inner, tl.float32)
    if outer is not None:
        outer = tl.full((), outer, tl.float32)
    keys, place = all_keys, all_keys - queries
    if past is not None:
        place = tl.minimum(tl.load(past + b).to(tl.int32), place)
        keys = place + queries
    p0 = place + m
    length = prefix
    if prefix is not None:
        length = tl.minimum(tl.load(prefix + b).to(tl.int32), keys)
    mask = (first, end, all_keys)
    start, gap, low, all_low, all_high, high = key_tiles(
        b, p0, tl.minimum(p0 + BLOCK_M, keys) - 1, keys, mask, length, window, CAUSAL, BLOCK_N
    )
    bounds = row_bounds(b, p0 + tl.arange(0, BLOCK_M), keys, mask, length, window, CAUSAL)
    head, entry = h // group, b.to(tl.int32)
    x = load(q, (entry, h, m), queries, D, BLOCK_M, BLOCK_D, False)
    state = (
        tl.zeros((BLOCK_M, BLOCK_D), tl.float32),
        tl.zeros((BLOCK_M,), tl.float32),
        tl.full((BLOCK_M,), float("-inf"), tl.float32),
    )
    kv, numbers = (k, v), (keys, past, inner, outer)
    PREFIX: tl.constexpr = prefix is not None
    for n in tl.range(all_low, all_high, BLOCK_N):
        at = (entry, head, n)
        state = attend(state, x, kv, at, bounds, numbers, D, BLOCK_N, BLOCK_D, PREFIX, True)
    whole = all_high - all_low
    for n in tl.range(start, high - whole - (low - gap), BLOCK_N):
        n += tl.where(n >= gap, low - gap, 0)
        n += tl.where(n >= all_low, whole, 0)
        at = (entry, head, n)
        state = attend(state, x, kv, at, bounds, numbers, D, BLOCK_N, BLOCK_D, PREFIX, False)
    total, sums, peak = state
    # 0 for a query that has seen no key.
    sums = tl.where(sums == 0.0, 1.0, sums)
    t = m.to(tl.int64) + tl.arange(0, BLOCK_M)
    tl.store(lse + row * queries + t, peak + tl.log2(sums), mask=t < queries)
    d = tl.arange(0, BLOCK_D)[None, :]
    spot = ((b * queries + t) * heads + h)[:, None] * D + d
    inside = (t < queries)[:, None] & (d < D)
    tl.store(y + spot, (total / sums[:, None]).to(y.dtype.element_ty), mask=inside)


def find(name: str, table: Table[Launch], q: Tensor) -> Launch:
    """Return the table's row for q, with tiles no longer than need be; raise ValueError if none."""
    capability = config.device_of(q.device).capability
    launch = config.find(table, q.dtype, q.size(-1), capability)
    if launch is not None:
        return launch
    narrow = max(key.size for key, _ in table if key.itemsize == 4)
    raise ValueError(
        f"{name}: no kernel for {q.dtype} of head size {q.size(-1)} on {q.device}; float16 and "
        f"bfloat16 have one up to {config.largest(table)}, float32 up to {narrow}, from compute "
        "capability 8.0"
    )


def fitted(launch: Launch, rows: int, columns: int, *, half: bool) -> Launch:
    """`launch` with tiles no longer than short sequences need.

    `half`: with half the columns, for the sake of what needs many registers, which would spill: a
    soft cap, and values that a past hides.
    """
    most = launch.columns // 2 if half else launch.columns
    return launch._replace(
        rows=min(launch.rows, max(16, triton.next_power_of_2(rows))),
        columns=max(16, min(most, triton.next_power_of_2(columns))),
    )


def readable(x: Tensor) -> Tensor:
    """x, or a copy of it that TMA can read: everything but the last axis in steps of 16 bytes."""
    unit = 16 // x.element_size()
    steps = all(
        n == 1 or (s > 0 and s % unit == 0) for n, s in zip(x.shape[:-1], x.stride(), strict=False)
    )
    if steps and x.stride(-1) == 1 and x.data_ptr() % 16 == 0:
        return x
    width = -(-x.size(-1) // unit) * unit
    copy = torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    return copy[..., : x.size(-1)].copy_(x)


def argument(x: Tensor, rows: int, tma: bool) -> Any:
    """What `load` reads tiles of `rows` rows of x from."""
    if not tma:
        return (x, *x.stride()[:-1])
    unit = 16 // x.element_size()
    # The step of an axis of one place does not matter, but it must be a valid one.
    steps = [unit if n == 1 else s for n, s in zip(x.shape[:-1], x.stride(), strict=False)]
    width = max(16, triton.next_power_of_2(x.size(-1)))
    return TensorDescriptor(x, list(x.shape), [*steps, 1], [1, 1, rows, width])


def section(rows: int, group: int, size: int) -> int:
    """How many rows, in whole groups, share the cache if a group reads `size` bytes."""
    return min(rows, group * max(1, CACHE // size))


def curve(scale: float, softcap: float | None) -> tuple[float, float | None]:
    """What to multiply q.k by, and the tanh of that, to have scores to the base 2."""
    return (scale * LOG2E, None) if softcap is None else (scale / softcap, softcap * LOG2E)


def check(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor | None,
    end: Tensor | None,
    prefix: Tensor | None,
    past: Tensor | None,
    window: int | None,
    softcap: float | None,
) -> None:
    """Raise ValueError for what the kernels would read past the end of, or misread."""

    def wrong(text: str) -> None:
        raise ValueError(f"{name}: {text}")

    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape:
        wrong(
            f"q {list(q.shape)} must be [B, H, T, D], and k {list(k.shape)} and v {list(v.shape)} "
            "[B, K, S, D]"
        )
    batch, heads, queries, size = q.shape
    if k.size(0) != batch or k.size(3) != size or size == 0:
        wrong(f"q {list(q.shape)} and k {list(k.shape)} must agree in B and D, and D be at least 1")
    if heads % max(1, k.size(1)) or (heads and not k.size(1)):
        wrong(f"{heads} query heads cannot share {k.size(1)} key heads; use a divisor of {heads}")
    if queries > k.size(2):
        wrong(f"T={queries} queries stand at the last places of S={k.size(2)} keys; T must be <= S")
    if k.dtype != q.dtype or v.dtype != q.dtype:
        wrong(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; cast them to one dtype")
    if (first is None) != (end is None):
        wrong("first and end are the two halves of Mask.bounds(): give both or neither")
    shapes = {"first": (batch, k.size(2)), "end": (batch, k.size(2))}
    for title, x in {"first": first, "end": end, "prefix": prefix, "past": past}.items():
        if x is None:
            continue
        if x.shape != shapes.get(title, (batch,)):
            wrong(f"{title} {list(x.shape)} must be {list(shapes.get(title, (batch,)))}")
        if title in shapes and x.dtype != torch.int32:
            wrong(f"{title} is {x.dtype}; it must be int32")
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            wrong(f"{title} is {x.dtype}; it must be an integer dtype")
    for title, x in {
        "k": k,
        "v": v,
        "first": first,
        "end": end,
        "prefix": prefix,
        "past": past,
    }.items():
        if x is not None and x.device != q.device:
            wrong(f"q is on {q.device} and {title} on {x.device}; move one of them")
    if window is not None and window < 1:
        wrong(f"window={window}: must be at least 1, the query's own key")
    if softcap is not None and not softcap > 0:
        wrong(f"softcap={softcap}: must be over 0; None leaves the scores as they are")


def bounded(window: int | None, keys: int) -> int | None:
    """The window, unless it hides nothing."""
    return None if window is None or window >= keys else window


def flat(x: Tensor | None) -> Tensor | None:
    """The numbers of a mask in the order of their places."""
    return None if x is None else x.contiguous()


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor | None,
    end: Tensor | None,
    prefix: Tensor | None,
    past: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """q [B, H, T, D], k and v [B, K, S, D] to y, as q, and lse [B, H, T] float32, to the base 2.

    Query t is at place S - T + t, or past[b] + t with `past` [B] int. `first` and `end` are
    `Mask.bounds()`, `prefix` [B] int, `causal` and `window` the other fields of a `Mask`. q, k and
    v have any strides; where TMA cannot read them they are copied. y is a view of [B, T, H, D].
    Raises ValueError if shapes or dtypes do not fit, or no row of the table covers them.
    """
    check("attention", q, k, v, first, end, prefix, past, window, softcap)
    (batch, heads, queries, size), keys = q.shape, k.size(2)
    half = softcap is not None or past is not None
    launch = fitted(find("attention", FORWARD, q), queries, keys, half=half)
    y = torch.empty((batch, queries, heads, size), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, queries), dtype=torch.float32, device=q.device)
    if q.numel() == 0:
        return y.transpose(1, 2), lse
    # The kernel's short cut needs scores that grow with q.k.
    x = readable(-q if scale < 0 else q)
    inner, outer = curve(abs(scale), softcap)
    group = heads // k.size(1)
    with torch.cuda.device_of(q):
        forward_kernel[(triton.cdiv(queries, launch.rows) * batch * heads,)](
            argument(x, launch.rows, launch.tma),
            argument(readable(k), launch.columns, launch.tma),
            argument(readable(v), launch.columns, launch.tma),
            y,
            lse,
            flat(first),
            flat(end),
            flat(prefix),
            flat(past),
            bounded(window, keys),
            inner,
            outer,
            batch * heads,
            heads,
            group,
            queries,
            keys,
            section(batch * heads, group, 2 * keys * size * q.element_size()),
            D=size,
            CAUSAL=causal,
            BLOCK_M=launch.rows,
            BLOCK_N=launch.columns,
            BLOCK_D=max(16, triton.next_power_of_2(size)),
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    return y.transpose(1, 2), lse


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each row of the table, for the offline compiler."""
    for size, dtype in rows_of(FORWARD, capability):
        title = f"D={size} {str(dtype).removeprefix('torch.')}"
        q, k = (torch.zeros(1, 512, n, size, dtype=dtype).transpose(1, 2) for n in (4, 2))
        span, row = torch.zeros(1, 512, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
        masked = functools.partial(forward, q, k, k, span, span, row)
        yield f"{title} masked", functools.partial(masked, None, False, 100, 0.1, None)
        if dtype == torch.float32:
            continue
        yield f"{title} capped", functools.partial(masked, row, False, 100, 0.1, 30.0)
        rest: Any = (None, None, None, None, True, None, 0.1, None)
        yield title, functools.partial(forward, q, k, k, *rest)
        if size == 128:
            short = (q[:, :, :16], k[:, :, :16], k[:, :, :16])
            yield f"{title} short", functools.partial(forward, *short, *rest)


def rows_of(table: Table[Launch], capability: tuple[int, int]) -> Iterator[tuple[int, torch.dtype]]:
    """The head size and the dtype of each row of a table that this GPU takes."""
    for key, launch in table:
        dtype = torch.float32 if key.itemsize == 4 else torch.bfloat16
        if config.find(table, dtype, key.size, capability) is launch:
            yield key.size, dtype


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    first, end, prefix, past, _, window, _, softcap = rest
    check("attention", q, k, v, first, end, prefix, past, window, softcap)
    batch, heads, queries, size = q.shape
    y = q.new_empty((batch, queries, heads, size)).transpose(1, 2)
    return y, q.new_empty((batch, heads, queries), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, first, end, prefix, past, *ctx.settings = inputs
    if past is not None:
        raise NotImplementedError(
            "attention's kernel has no gradient with past=; train without a cache, or use no_grad"
        )
    y, lse = output
    ctx.save_for_backward(q, k, v, y, lse, first, end, prefix)
    ctx.mark_non_differentiable(lse)


def _gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.tinylm.attention_backward(dy, *ctx.saved_tensors, *ctx.settings)
    return *gradients, *[None] * 8


register(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? first, Tensor? end, Tensor? prefix, "
    "Tensor? past, bool causal, int? window, float scale, float? softcap) -> (Tensor, Tensor)",
    forward,
    _fake,
)
torch.library.register_autograd("tinylm::attention", _gradients, setup_context=_save, lib=LIBRARY)
