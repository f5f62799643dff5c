"""Tiles of attention: how they are read and multiplied, and which of them a query sees.

                keys 0          low      all_low      all_high   high
    queries     |  prefix  |  -  |  edge  |   whole   |   edge   |  -  |       - is not read
      p0 .. p1  | (masked) |     | masked | no masks  |  masked  |     |
                start     gap

A query sees an interval of keys, from the larger of its document's first key and its window's to
the smaller of its document's end and itself. Both ends grow with the place of the query, so those
of the first and the last query of a tile say which keys some of them see and which all of them. The
whole tiles come first, without a comparison; then one loop over both edges, which jumps over the
middle. A prefix is a second interval; if it ends before the window begins, the loop jumps there
too.

That costs two comparisons per score of an edge. Comparing places, windows and documents with each
key instead spilled up to 24 bytes at D=128 (by the offline compiler).

float32: "ieee" products run on the ordinary cores, and spill 2036 bytes even with tiles of 32 x 32
at D=128. Of two parts of 11 bits each, the three largest products on the tensor cores have the
error of float32 in an emulation: 2.1e-7 of the norm against 2.0e-7, at D=128. Six products of three
parts of 8 bits ("bf16x6") have 0.8e-7, but spill backward.
"""

# Triton's language has no types.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import triton
import triton.language as tl

# How float32 is multiplied; the interpreter knows one way.
SPLIT = tl.constexpr("ieee" if triton.knobs.runtime.interpret else "tf32x3")


@triton.jit
def product(a, b, total=None):
    """Return total + a b in float32."""
    if a.dtype == tl.float32:
        total = tl.dot(a, b, total, input_precision=SPLIT)
    else:
        total = tl.dot(a, b, total)
    return total


@triton.jit
def assigned(tiles, rows, section):
    """Return the tile and the row (batch entry and head) of this program.

    `section` rows at a time: all their first tiles, then all their second, ... Their keys and
    values stay in the second level cache meanwhile.
    """
    program = tl.program_id(0).to(tl.int64)
    begin = program // (tiles.to(tl.int64) * section) * section
    count = tl.minimum(section, rows - begin)
    rest = program - begin * tiles
    return rest // count, begin + rest % count


@triton.jit
def load(
    x, place, rows, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr
):
    """Return `ROWS` rows of x from `place` (entry, head, row) on, [ROWS, BLOCK_D].

    Zeros past its `rows` rows and `D` columns; `WHOLE`: all the rows exist. x is a descriptor, or a
    pointer with the strides of entries, heads and rows.
    """
    b, h, n = place
    # No early return: the compiler would go on with the code behind it.
    if isinstance(x, tl.core.tensor_descriptor_base):
        block = x.load([b, h, n, 0]).reshape(ROWS, BLOCK_D)
    else:
        row = n + tl.arange(0, ROWS)[:, None]
        d = tl.arange(0, BLOCK_D)[None, :]
        start = x[0] + b.to(tl.int64) * x[1] + h.to(tl.int64) * x[2]
        places = start + row.to(tl.int64) * x[3] + d
        if WHOLE and D == BLOCK_D:
            block = tl.load(places)
        elif WHOLE:
            block = tl.load(places, mask=d < D, other=0.0)
        else:
            block = tl.load(places, mask=(row < rows) & (d < D), other=0.0)
    return block


@triton.jit
def document(b, place, length, mask):
    """Return the first place of the document that `place` is in, and the place after its last.

    0 and `length` without documents. `place` is one place or a block of them, `mask` the bounds
    [B, S] of documents and S.
    """
    lower, upper = place * 0, place * 0 + length
    if mask[0] is not None:
        lower = tl.load(mask[0] + b * mask[2] + place)
        upper = tl.minimum(tl.load(mask[1] + b * mask[2] + place), length)
    return lower, upper


@triton.jit
def keys_seen(bounds, p, window, CAUSAL: tl.constexpr):
    """Narrow the bounds of documents to the keys that the queries at places p see."""
    lower, upper = bounds
    if window is not None:
        lower = tl.maximum(lower, p - window + 1)
    if CAUSAL:
        upper = tl.minimum(upper, p + 1)
    elif window is not None:
        upper = tl.minimum(upper, p + window)
    return lower, upper


@triton.jit
def key_tiles(b, p0, p1, keys, mask, prefix, window, CAUSAL: tl.constexpr, BLOCK: tl.constexpr):
    """Return the keys that the queries at places p0 to p1 see, in tiles of `BLOCK` keys.

    start .. gap and low .. high: some query sees some key of the tile.
    all_low .. all_high, part of low .. high: every query sees every key of the tile.
    """
    # Both bounds grow with the place.
    lowest, all_highest = document(b, p0, keys, mask)
    all_lowest, highest = document(b, p1, keys, mask)
    low, all_high = keys_seen((lowest, all_highest), p0, window, CAUSAL)
    all_low, high = keys_seen((all_lowest, highest), p1, window, CAUSAL)
    start, gap = low, low
    if prefix is not None:
        some, every = tl.minimum(prefix, highest), tl.minimum(prefix, all_highest)
        high = tl.maximum(high, some)
        # A prefix that reaches the window makes one range of both.
        joined = every >= all_low
        low = tl.where(joined, lowest, low)
        all_low = tl.where(joined, all_lowest, all_low)
        all_high = tl.where(joined, tl.maximum(all_high, every), all_high)
        start = tl.where(some > lowest, lowest, low)
        gap = tl.maximum(some, start) + BLOCK - 1
    start -= start % BLOCK
    low -= low % BLOCK
    gap = tl.minimum(gap - gap % BLOCK, low)
    all_low += BLOCK - 1
    all_low -= all_low % BLOCK
    all_high -= all_high % BLOCK
    none = all_high <= all_low
    return start, gap, low, tl.where(none, low, all_low), tl.where(none, low, all_high), high


@triton.jit
def row_bounds(b, p, keys, mask, prefix, window, CAUSAL: tl.constexpr):
    """Return the first key that each query sees and the key after its last; of its prefix too."""
    # The rows past the last query take its bounds.
    p = tl.minimum(p, keys - 1)[:, None]
    bounds = document(b, p, keys, mask)
    lower, upper = keys_seen(bounds, p, window, CAUSAL)
    length = bounds[1]
    if prefix is not None:
        length = tl.minimum(length, prefix)
    return lower, upper, bounds[0], length


@triton.jit
def visible(s, bounds, PREFIX: tl.constexpr):
    """Whether places s are inside of the bounds."""
    seen = (s >= bounds[0]) & (s < bounds[1])
    if PREFIX:
        seen = seen | ((s >= bounds[2]) & (s < bounds[3]))
    return seen
