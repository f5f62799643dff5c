"""Attention of a few new queries over a long cache: split over the keys, then combined.

    y_t = sum over s of p_ts v_s    p_t = softmax over s of cap(scale q_t k_s)
    cap(x) = softcap tanh(x / softcap), or x; query t of row b stands at past_b + t and sees
    the keys at and before its place, the last `window` of them

One query has too little work for a block of queries to fill a GPU, and all its time goes into
reading K and V once. So a program takes one key head of one row, all G query heads that share
it, and a part of the keys; a second kernel adds the parts up.

    split_kernel    grid (B K, splits)                      combine_kernel    grid (B T H, D / c)

         keys of one row and key head                            splits
        |  split 0   |  split 1   |  split 2  |                 |w0|w1|w2|
        +---+---+---+----+---+---+---+---+----+                   x
    q   |   |tile   |    |   |   |   |   |    |                 +--+--+--+
   G T  |   |m, l,  |    |   |   |   |   |    |                 |y0|y1|y2|  D
   rows |   |acc ->                                             +--+--+--+
        +---+---+---+----+---+---+---+---+----+                   sum -> y
           BLOCK keys a tile: K once, V once, from the cache or from its blocks

Each part leaves its own softmax's result y_i and lse_i = log2 of its sum of exponentials, in
float32: y = sum of 2^(lse_i - max) y_i / sum of 2^(lse_i - max) (Dao et al. 2023, Flash-Decoding).
An empty part has a finite lse, so that no infinity is subtracted from another. With one split
the first kernel writes y itself, and the second is not launched.

The number of splits is a function of shapes and of the GPU (`split_count`), never of the lengths,
which only the device knows: under CUDA graphs nothing changes from token to token. Where a split
begins is decided by the row's own length, so a short row in a long cache still uses every split.
Tiles and splits do not depend on how the cache is stored: a paged cache and a contiguous one of
the same capacity give the same bits, whatever the page.

A block of a paged cache is [K, page, D]: a tile of one head is then one piece of memory, as in the
contiguous cache, which is the same thing with one block per row. Strides are free, so the view
`blocks.transpose(1, 2)` of the other layout works too. int8 keys and values have a scale per token
and head: K's multiplies the scores, V's the shares, so the numbers are only cast on the way to
the tensor cores.

Cost: 2 B K S D numbers read (plus the scales), 4 B H T S D FLOPs, and B T H splits (D + 1) 4 bytes
written and read again, a few per mille of the cache. At most `rows` query rows are in a program;
more of them read the cache again.

Tried, compiled offline for sm_90 and sm_80; no speed is measured yet:

- Three stages over a table keep one tile on its way (39 KB of shared memory at head size 128), over
  a contiguous cache two (72 KB): the compiler shares the stages out between the load of an entry
  and the load at its address. Hence 2 n - 1 stages with a table.
- One entry of the table per tile where the page is at least the tile: 150 registers; one per key,
  for smaller pages: 178. Both are in, since the tile must not depend on the page.
- 64 queries in 4 warps use warpgroup instructions and spill 8 to 800 bytes; 32 in 4 warps spill up
  to 16 with pages below a tile; 32 in 8 warps do not spill.
- int8 cast to float32 for a product without tensor cores spills 300 to 5,000 bytes; as three
  products of bfloat16 parts (`whole_dot`), exact to float32, nothing.
- float32 keys of head size 128 in 4 warps spill 496 bytes or none, depending on the other
  arguments; in 8 warps they take 58 to 116 registers.
"""

# Triton's language has no types, and torch's functions around devices few.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.kernels import config
from tinylm.kernels.config import Key, Table
from tinylm.kernels.library import LIBRARY, register
from tinylm.kernels.tanh import tanh


class Launch(NamedTuple):
    """How to launch: `block` keys a tile, at most `rows` queries a program.

    `warps` share 16 queries, `stages` - 1 tiles are on their way while one is worked on, and
    `programs` are resident on each multiprocessor.
    """

    block: int
    rows: int
    warps: int
    stages: int
    programs: int


FORWARD: Table[Launch] = (
    (Key(2, 64, (8, 0)), Launch(block=64, rows=32, warps=4, stages=3, programs=3)),
    (Key(2, 128, (8, 0)), Launch(block=64, rows=32, warps=4, stages=3, programs=2)),
    (Key(2, 256, (8, 0)), Launch(block=32, rows=32, warps=4, stages=3, programs=2)),
    (Key(4, 64, (8, 0)), Launch(block=32, rows=16, warps=4, stages=3, programs=3)),
    (Key(4, 128, (8, 0)), Launch(block=32, rows=16, warps=8, stages=3, programs=2)),
    (Key(4, 256, (8, 0)), Launch(block=16, rows=16, warps=4, stages=3, programs=2)),
)
# The most splits; tiles that a split has at least; rounds of programs that are weighed up.
MOST_SPLITS, LEAST_TILES, ROUNDS = 256, 2, 4
# Elements of partial results that a program of the combination holds.
COMBINED = 8192
# The lse of an empty part and the first pivot: below every score, but finite.
EMPTY = tl.constexpr(-3e38)
LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def whole_dot(a, n):
    """a @ n, where n are whole numbers up to 127: exact in bfloat16, which has tensor cores.

    A float32 is the sum of three bfloat16s. Numbers cast from int8 to float32 in registers would
    spill there: a product without tensor cores wants all of an operand's row in them.
    """
    if a.dtype == tl.float32:
        n = n.to(tl.bfloat16)
        high = a.to(tl.bfloat16)
        rest = a - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        result = tl.dot(low, n)
        result = tl.dot(middle, n, result)
        result = tl.dot(high, n, result)
    else:
        result = tl.dot(a, n.to(a.dtype))
    return result


# These grow from token to token: a kernel of their own for each kind of number would stop decoding.
@triton.jit(do_not_specialize=["keys", "window", "table_row"])
def split_kernel(
    q,
    k,
    v,
    past,
    table,
    k_scale,
    v_scale,
    y,
    lse,
    q_row,
    q_head,
    q_time,
    k_block,
    k_head,
    k_place,
    v_block,
    v_head,
    v_place,
    k_scale_block,
    k_scale_head,
    k_scale_place,
    v_scale_block,
    v_scale_head,
    v_scale_place,
    table_row,
    keys,
    heads,
    window,
    scale,
    softcap,
    GROUP: tl.constexpr,
    TIME: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One key head of one row, `BLOCK_ROWS` of its G T queries, and one split of its keys.

    y is [B, T, H, splits, D] and lse [B, T, H, splits], contiguous; without an lse there is one
    split, and y is the result.
    """
    # int64 before it multiplies: a cache passes 2^31 numbers.
    program = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    splits = tl.num_programs(1).to(tl.int64)
    CHUNKS: tl.constexpr = (GROUP * TIME + BLOCK_ROWS - 1) // BLOCK_ROWS
    pair = program // CHUNKS
    b, head = pair // heads, pair % heads

    # Row r is query head r // T of the group and new token r % T.
    r = (program % CHUNKS) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    real = r < GROUP * TIME
    h, t = head * GROUP + r // TIME, r % TIME
    column = tl.arange(0, BLOCK_D)
    q_at = b * q_row + h * q_head + t * q_time
    queries = tl.load(
        q + q_at[:, None] + column[None, :],
        mask=real[:, None] & (column < D)[None, :],
        other=0.0,
    )
    t = t.to(tl.int32)

    # The keys of this row that any of its queries sees, in tiles, shared out among the splits.
    # A length past the capacity is the caller's error; it must not become an address.
    here = tl.cast(keys - TIME, tl.int32) if past is None else tl.load(past + b).to(tl.int32)
    begin = tl.maximum(here - window + 1, 0)
    end = tl.minimum(here + TIME, keys)
    tile_0 = (begin // BLOCK).to(tl.int64)
    tiles = tl.maximum(tl.cdiv(end, BLOCK) - tile_0, 0)
    first = tile_0 + tiles * split // splits
    last = tile_0 + tiles * (split + 1) // splits

    factor = tl.full((), scale, tl.float32)
    cap = tl.full((), softcap, tl.float32)
    pivot = tl.full((BLOCK_ROWS,), EMPTY, tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    for tile in tl.range(first, last, num_stages=STAGES):
        # A place fits 32 bits, its address does not.
        place = tl.cast(tile * BLOCK, tl.int32) + tl.arange(0, BLOCK)
        # Memory outside holds anything, NaN too: it is not even multiplied by 0.
        inside = (place >= begin) & (place < end)
        whole = inside[:, None] & (column < D)[None, :]
        block, within = b, place.to(tl.int64)
        if table is not None:
            within = (place % PAGE).to(tl.int64)
            if PAGE >= BLOCK:
                block = tl.load(table + b * table_row + tile * BLOCK // PAGE).to(tl.int64)
            else:
                entry = table + b * table_row + place // PAGE
                block = tl.load(entry, mask=inside, other=0).to(tl.int64)

        k_at = block * k_block + head * k_head + within * k_place
        some = tl.load(k + k_at[:, None] + column[None, :], mask=whole, other=0)
        if k_scale is None:
            # Float32 products in full: the default would cut them to the 10 bits of TF32.
            scores = tl.dot(queries, some.T, input_precision="ieee") * factor
        else:
            at = block * k_scale_block + head * k_scale_head + within * k_scale_place
            sizes = tl.load(k_scale + at, mask=inside, other=0).to(tl.float32)
            scores = whole_dot(queries, some.T) * (sizes * factor)[None, :]
        if CAPPED:
            scores = cap * tanh(scores / cap)
        away = (place - here)[None, :]
        seen = (away <= t[:, None]) & (away > t[:, None] - window)
        scores = tl.where(seen, scores * LOG2_E, float("-inf"))

        above = tl.maximum(pivot, tl.max(scores, 1))
        shares = tl.exp2(scores - above[:, None])
        kept = tl.exp2(pivot - above)
        total = total * kept + tl.sum(shares, 1)
        v_at = block * v_block + head * v_head + within * v_place
        some = tl.load(v + v_at[:, None] + column[None, :], mask=whole, other=0)
        acc *= kept[:, None]
        if v_scale is None:
            acc += tl.dot(shares.to(queries.dtype), some, input_precision="ieee")
        else:
            at = block * v_scale_block + head * v_scale_head + within * v_scale_place
            sizes = tl.load(v_scale + at, mask=inside, other=0).to(tl.float32)
            # Relative to the tile's largest: a small scale times a share would be 0 in float16.
            largest = tl.maximum(tl.max(sizes, 0), 1e-37)
            weights = (shares * (sizes / largest)[None, :]).to(queries.dtype)
            acc += largest * whole_dot(weights, some)
        pivot = above

    result = acc / tl.where(total == 0, 1.0, total)[:, None]
    # y's heads are next to each other: [B, T, H].
    out = ((b * TIME + t) * heads * GROUP + h) * splits + split
    tl.store(
        y + out[:, None] * D + column[None, :],
        result.to(y.dtype.element_ty),
        mask=real[:, None] & (column < D)[None, :],
    )
    if lse is not None:
        tl.store(lse + out, tl.where(total == 0, EMPTY, pivot + tl.log2(total)), mask=real)


@triton.jit(do_not_specialize=["splits"])
def combine_kernel(
    partial,
    lse,
    y,
    splits,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some columns of one row: partial [rows, splits, D] and lse [rows, splits] to y [rows, D]."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    sizes = tl.load(lse + row * splits + split, mask=split < splits, other=EMPTY)
    weight = tl.exp2(sizes - tl.max(sizes, 0))
    at = (row * splits + split)[:, None] * D + column[None, :]
    # What has no weight is not read: the empty splits of a short row.
    needed = (split < splits) & (weight > 0)
    parts = tl.load(partial + at, mask=needed[:, None] & (column < D)[None, :], other=0.0)
    result = tl.sum(parts * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(y + row * D + column, result.to(y.dtype.element_ty), mask=column < D)


@functools.lru_cache(maxsize=4096)
def split_count(programs: int, tiles: int, slots: int) -> int:
    """Into how many parts the keys are split, from numbers of the host alone.

    `programs` would run without splits, `tiles` are in the longest row that there could be, and
    `slots` programs run at once. Returns the fewest splits that leave the fewest slots idle.
    """
    most = min(MOST_SPLITS, tiles // LEAST_TILES, ROUNDS * slots // max(programs, 1))

    def busy(splits: int) -> float:
        rounds = programs * splits / slots
        return rounds / max(math.ceil(rounds), 1)

    return max(range(1, max(most, 1) + 1), key=lambda splits: (busy(splits), -splits))


def _launch(q: Tensor) -> Launch:
    """Return the table's row for `q`; raise ValueError if no row covers it."""
    launch = config.find(FORWARD, q.dtype, q.size(-1), config.device_of(q.device).capability)
    if launch is not None:
        return launch
    limit = config.largest(FORWARD)
    if q.dtype in config.DTYPES and q.size(-1) > limit:
        raise ValueError(
            f"decode_attention: a head size of {q.size(-1)} is over the kernel's limit of {limit}; "
            "tinylm.ops.attention takes any"
        )
    raise ValueError(
        f"decode_attention: no kernel for {q.dtype} on {q.device}; "
        "float32, float16 and bfloat16 have one from compute capability 8.0"
    )


def _refuse(problem: str) -> NoReturn:
    raise ValueError(f"decode_attention: {problem}")


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Tensor | None,
    table: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    window: int | None,
) -> None:
    """Refuse what the kernel would read past the end of, or misread."""
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or k.size(3) != q.size(3):
        _refuse(
            f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}: they must be [B, H, T, D] "
            "and twice [B, K, S, D], or [N, K, page, D] with a table"
        )
    rows, heads, queries, _ = q.shape
    blocks, kv_heads, places, _ = k.shape
    if kv_heads == 0 or heads % kv_heads or queries == 0:
        _refuse(
            f"{heads} query heads, {kv_heads} key heads and {queries} new tokens: the key heads "
            "must divide the query heads, and there must be a token"
        )
    if table is None:
        if blocks != rows or places < queries:
            _refuse(
                f"k {list(k.shape)} for q {list(q.shape)}: it must have as many rows and the keys "
                "of the new tokens too, or a table must say where its blocks belong"
            )
    elif table.dim() != 2 or table.size(0) != rows or table.dtype != torch.int32 or past is None:
        _refuse(
            f"table {list(table.shape)} {table.dtype} with past {past is not None}: it must be "
            f"[{rows}, blocks] int32, and past must say how long the rows are"
        )
    elif places & (places - 1) or places == 0:
        _refuse(f"a page of {places} places: it must be a power of two")
    if past is not None and (past.shape != (rows,) or past.dtype not in (torch.int32, torch.int64)):
        _refuse(f"past {list(past.shape)} {past.dtype}: it must be [{rows}], int32 or int64")
    if window is not None and window < 1:
        _refuse(f"window={window}: it must be at least 1, the query's own key")
    for name, values, scale in (("k", k, k_scale), ("v", v, v_scale)):
        if values.dtype != (q.dtype if scale is None else torch.int8):
            _refuse(
                f"{name} is {values.dtype} {'without' if scale is None else 'with'} a scale and q "
                f"{q.dtype}: it must have q's dtype, or be int8 with a scale"
            )
        if scale is not None and (
            scale.shape != values.shape[:3] or scale.dtype not in config.DTYPES
        ):
            _refuse(
                f"{name}_scale {list(scale.shape)} {scale.dtype}: it must be "
                f"{list(values.shape[:3])}, float32, float16 or bfloat16"
            )
    others = (k, v, past, table, k_scale, v_scale)
    if any(other is not None and other.device != q.device for other in others):
        _refuse(f"q is on {q.device} and another tensor is not; move it there")


def _rows_together(x: Tensor) -> Tensor:
    """x with the numbers of its last axis side by side, copied only if need be."""
    return x if x.stride(-1) == 1 or x.size(-1) == 1 else x.contiguous()


def _result(q: Tensor) -> Tensor:
    """Memory for y [B, H, T, D]: a view of [B, T, H, D], as the next product wants it."""
    rows, heads, queries, width = q.shape
    return torch.empty((rows, queries, heads, width), dtype=q.dtype, device=q.device)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Tensor | None,
    table: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """q [B, H, T, D], k and v [B, K, S, D] to y [B, H, T, D]; see `tinylm.ops.decode_attention`.

    With a `table` [B, blocks] int32, k and v are [N, K, page, D], and place s of row b is in block
    table[b, s // page]. Entries and places that no query sees are not read.
    """
    _check(q, k, v, past, table, k_scale, v_scale, window)
    launch = _launch(q)
    y = _result(q)
    if y.numel() == 0:
        return y.transpose(1, 2)
    rows, heads, queries, width = q.shape
    kv_heads, page = k.shape[1:3]
    keys = page if table is None else page * table.size(1)
    q, k, v = _rows_together(q), _rows_together(k), _rows_together(v)
    table = None if table is None else table.contiguous()
    # No window is one that reaches over the whole row.
    window = min(keys if window is None else window, keys)
    packed = heads // kv_heads * queries
    block_rows = min(launch.rows, max(16, triton.next_power_of_2(packed)))
    programs = rows * kv_heads * triton.cdiv(packed, block_rows)
    # A window that begins inside a tile touches one more.
    tiles = min(triton.cdiv(keys, launch.block), triton.cdiv(window + queries, launch.block) + 1)
    slots = launch.programs * config.device_of(q.device).processors
    splits = split_count(programs, tiles, slots)
    parts, lse = y, None
    if splits > 1:
        shape = (rows * queries * heads, splits)
        parts = torch.empty((*shape, width), dtype=torch.float32, device=q.device)
        lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        split_kernel[(programs, splits)](
            q,
            k,
            v,
            past,
            table,
            k_scale,
            v_scale,
            parts,
            lse,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *((0, 0, 0) if k_scale is None else k_scale.stride()),
            *((0, 0, 0) if v_scale is None else v_scale.stride()),
            0 if table is None else table.size(1),
            keys,
            kv_heads,
            window,
            scale,
            1.0 if softcap is None else softcap,
            GROUP=heads // kv_heads,
            TIME=queries,
            D=width,
            PAGE=page if table is not None else 0,
            CAPPED=softcap is not None,
            BLOCK=launch.block,
            BLOCK_ROWS=block_rows,
            BLOCK_D=max(16, triton.next_power_of_2(width)),
            # The compiler shares the stages out between a load and the load of its address.
            STAGES=launch.stages if table is None else 2 * launch.stages - 1,
            num_warps=launch.warps * block_rows // 16,
        )
        if lse is not None:
            held = triton.next_power_of_2(splits)
            columns = min(triton.next_power_of_2(width), COMBINED // held)
            combine_kernel[(rows * queries * heads, triton.cdiv(width, columns))](
                parts, lse, y, splits, D=width, SPLITS=held, COLUMNS=columns, num_warps=4
            )
    return y.transpose(1, 2)


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each row of the tables, for the offline compiler.

    Each row with one query over a long contiguous cache, which is split; with one over an int8
    cache of small pages, which wants the most registers; the rows of narrow dtypes also with drafts
    of 8 tokens, 32 queries to a key head.
    """
    for key, launch in FORWARD:
        dtype = torch.bfloat16 if key.itemsize == 2 else torch.float32
        name = f"head {key.size} {str(dtype).removeprefix('torch.')}"
        kinds = {"": (1, 0, dtype), " int8 page 16": (1, 16, torch.int8)}
        if launch.rows > 16:
            kinds[" page 64 drafts"] = (8, 64, dtype)
        for kind, (queries, page, stored) in kinds.items():

            def call(
                size: int = key.size,
                dtype: torch.dtype = dtype,
                queries: int = queries,
                page: int = page,
                stored: torch.dtype = stored,
            ) -> None:
                rows = 128 if page else 1
                q = torch.zeros(rows, 32, queries, size, dtype=dtype)
                k = torch.zeros(rows, 8, page or 4096, size, dtype=stored)
                past = torch.zeros(rows, dtype=torch.int64)
                table = torch.zeros(rows, 64, dtype=torch.int32) if page else None
                scales = k.sum(-1, dtype=torch.float32) if stored == torch.int8 else None
                cap = 30.0 if queries > 1 else None
                forward(q, k, k, past, table, scales, scales, 1024, 0.1, cap)

            yield name + kind, call


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Tensor | None,
    table: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    _check(q, k, v, past, table, k_scale, v_scale, window)
    return _result(q).transpose(1, 2)


def _no_gradient(ctx: Any, dy: Tensor) -> NoReturn:
    raise NotImplementedError(
        "decode_attention's kernel has no gradient; tinylm.ops.attention has one"
    )


register(
    "decode_attention(Tensor q, Tensor k, Tensor v, Tensor? past, Tensor? table, Tensor? k_scale, "
    "Tensor? v_scale, int? window, float scale, float? softcap) -> Tensor",
    forward,
    _fake,
)
torch.library.register_autograd("tinylm::decode_attention", _no_gradient, lib=LIBRARY)
