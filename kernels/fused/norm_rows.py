"""The rows of RMSNorm and LayerNorm: the kernels that both share.

    s = x + branch                               (the add forms; else s = x)
    n = (s - m) r                                m = mean(s) for a LayerNorm, 0 for an RMSNorm
    y = n weight + bias                          r = 1 / sqrt(mean((s - m)^2) + eps)
    ds = r (g - n mean(n g) - mean(g)) + ds'     g = weight dy; an RMSNorm has no mean(g)
    dweight = sum over rows of dy n              dbias = sum over rows of dy

ds' is the gradient that reaches the sum down the residual stream; ds is that of x and of branch.
Sources: Zhang and Sennrich 2019, equation 4; Ba et al. 2016, equation 4.

The idea: every number is read once and written once, and all between is float32 in registers. The
backward pass has the row there anyway, so it computes m and r again instead of reading them.

        D columns                              D columns
    +----------------+                     +----------------+
    |   program 0    | BLOCK_ROWS          |   program 0    |   dweight, dbias: a row of shares
    +----------------+                     +----------------+   per program, in registers until
    |   program 1    |                     |   program 1    |   the end; `sum_kernel` adds the
    +----------------+                     +----------------+   rows up. No atomics: repeated
    |   program 2    |                     |   program 0    |   runs agree to the bit.
    +----------------+                     +----------------+
        forward                                backward: each program walks on, loading ahead

    A row over 8192 numbers does not fit the registers of a program, and goes through them twice,
    a block of columns at a time:

    |--BLOCK_D--|--BLOCK_D--|--BLOCK_D--|-..|   first the statistics, lane by lane (a LayerNorm by
                                                Welford's update: one pass, no cancellation), then
                                                the outputs. Shares are summed in memory.

Cost: memory alone; about 5 operations per number forward and 12 backward. Bytes per number:

                                                bfloat16   float32 stream, bfloat16 branch
    forward   x -> y                                   4
    forward   x, branch -> s, y                        8   14   (apart: 10 and 18)
    backward  dy, x -> dx                              6
    backward  ds', dy, s -> ds                         8   18   (apart: 12 and 30)

The second read of a wide row comes from L2 while the rows in flight fit there, and its shares are
8 bytes more, also of L2. The tables in `norms` say how many bytes are in flight.

Tried, by the offline compiler for sm_90 (no speed was measured):
- Forward as a loop with asynchronous loads, as backward: at D = 1024, 2048, 4096, 8192 it takes 60,
  64, 79, 80 registers and has 128, 128, 96, 96 KB in flight with 3 stages, against the 72, 64, 72,
  64 KB of whole programs. Those are enough, and the hardware balances whole programs.
- Backward at D = 16384 in one block spills 150 to 216 bytes, with 16 warps as with 32.
- Wide blocks backward of 2048 columns on 8 warps, or 4096 on 16, spill 8 and 12 bytes.
- mean(s^2) - m^2 for the variance: one sum less, and no digit left where |m| is 1000 deviations.
"""

# Triton's language has no types.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    x,
    branch,
    weight,
    bias,
    total,
    y,
    x_stride,
    branch_stride,
    rows,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """`BLOCK_ROWS` whole rows a program; total (if `branch` is not None) and y are contiguous."""
    # int64 from here on: rows times D passes 2^31 with long contexts.
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    inside = (row < rows) & (column < D)
    w = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
    wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if branch is not None:
        added = tl.load(branch + row * branch_stride + column, mask=inside, other=0.0)
        # The norm is that of the sum as it is stored.
        stored = (wide + added.to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + row * D + column, stored, mask=inside)
        wide = stored.to(tl.float32)
    if CENTRED:
        # The row is in registers: two passes cost nothing, and mean(s^2) - m^2 would cancel.
        wide = tl.where(column < D, wide - tl.sum(wide, 1, keep_dims=True) / D, 0.0)
    # Inductor hands a Python float over as float64, and would pull the whole row up to it.
    epsilon = tl.full((), eps, tl.float32)
    r = tl.rsqrt(tl.sum(wide * wide, 1, keep_dims=True) / D + epsilon)
    out = wide * r * w
    if bias is not None:
        out += tl.load(bias + column, mask=column < D, other=0.0).to(tl.float32)
    tl.store(y + row * D + column, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dtotal,
    dy,
    x,
    weight,
    dx,
    dbranch,
    partial,
    dtotal_stride,
    dy_stride,
    x_stride,
    rows,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    CENTRED: tl.constexpr,
    BIASED: tl.constexpr,
):
    """Each program walks over every `num_programs`-th block of rows and sums its share of dweight.

    dx, dbranch (unless None) and partial [programs, 1 + BIASED, D], float32, are contiguous.
    """
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)[None, :]
    w = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
    epsilon = tl.full((), eps, tl.float32)
    gain = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    shift = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    step = tl.num_programs(0).to(tl.int64) * BLOCK_ROWS
    # The loop's own num_stages makes the loads asynchronous; the launch's does not reach it.
    for first in tl.range(program * BLOCK_ROWS, rows, step, num_stages=STAGES):
        row = first + tl.arange(0, BLOCK_ROWS).to(tl.int64)[:, None]
        inside = (row < rows) & (column < D)
        wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
        if CENTRED:
            wide = tl.where(column < D, wide - tl.sum(wide, 1, keep_dims=True) / D, 0.0)
        r = tl.rsqrt(tl.sum(wide * wide, 1, keep_dims=True) / D + epsilon)
        # Past the last row r is 1 / sqrt(eps), and 0 * inf would reach dweight where eps is 0.
        normed = wide * tl.where(row < rows, r, 0.0)
        gain += slope * normed
        if BIASED:
            shift += slope
        scaled = slope * w
        shared = tl.sum(normed * scaled, 1, keep_dims=True) / D
        if CENTRED:
            scaled -= tl.sum(scaled, 1, keep_dims=True) / D
        gradient = (scaled - normed * shared) * r
        if dtotal is not None:
            above = tl.load(dtotal + row * dtotal_stride + column, mask=inside, other=0.0)
            gradient += above.to(tl.float32)
        tl.store(dx + row * D + column, gradient.to(dx.dtype.element_ty), mask=inside)
        if dbranch is not None:
            narrow = gradient.to(dbranch.dtype.element_ty)
            tl.store(dbranch + row * D + column, narrow, mask=inside)
    column = tl.arange(0, BLOCK_D)
    share = partial + program * (1 + BIASED) * D + column
    tl.store(share, tl.sum(gain, 0), mask=column < D)
    if BIASED:
        tl.store(share + D, tl.sum(shift, 0), mask=column < D)


@triton.jit
def wide_forward_kernel(
    x,
    branch,
    weight,
    bias,
    total,
    y,
    x_stride,
    branch_stride,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """One row a program, a block of columns at a time, twice: for the statistics, then for y."""
    row = tl.program_id(0).to(tl.int64)
    mean = tl.zeros((BLOCK_D,), tl.float32)
    squares = tl.zeros((BLOCK_D,), tl.float32)
    for first in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        column = first + tl.arange(0, BLOCK_D)
        inside = column < D
        wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        if branch is not None:
            added = tl.load(branch + row * branch_stride + column, mask=inside, other=0.0)
            stored = (wide + added.to(tl.float32)).to(total.dtype.element_ty)
            tl.store(total + row * D + column, stored, mask=inside)
            wide = stored.to(tl.float32)
        if CENTRED:
            # Welford's update, lane by lane.
            apart = tl.where(inside, wide - mean, 0.0)
            mean += apart / (first // BLOCK_D + 1)
            squares += apart * (wide - mean)
        else:
            squares += wide * wide
    if CENTRED:
        count = (D - 1 - tl.arange(0, BLOCK_D)) // BLOCK_D + 1
        middle = tl.sum(mean * count, 0) / D
        squares += (mean - middle) * (mean - middle) * count
    r = tl.rsqrt(tl.sum(squares, 0) / D + tl.full((), eps, tl.float32))
    if branch is not None:
        # What is read back below may have been stored by another thread.
        tl.debug_barrier()
    for first in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        column = first + tl.arange(0, BLOCK_D)
        inside = column < D
        if branch is not None:
            wide = tl.load(total + row * D + column, mask=inside, other=0.0).to(tl.float32)
        else:
            wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        if CENTRED:
            wide -= middle
        out = wide * r * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            out += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + row * D + column, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def wide_backward_kernel(
    dtotal,
    dy,
    x,
    weight,
    dx,
    dbranch,
    partial,
    dtotal_stride,
    dy_stride,
    x_stride,
    rows,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    CENTRED: tl.constexpr,
    BIASED: tl.constexpr,
):
    """As `backward_kernel`, row by row and a block of columns at a time, twice."""
    program = tl.program_id(0).to(tl.int64)
    epsilon = tl.full((), eps, tl.float32)
    lane = tl.arange(0, BLOCK_D)
    count = (D - 1 - lane) // BLOCK_D + 1
    for index in tl.range(program, rows, tl.num_programs(0).to(tl.int64)):
        # The interpreter counts in Python's numbers, which it would take for int32.
        row = tl.full((), index, tl.int64)
        mean = tl.zeros((BLOCK_D,), tl.float32)
        squares = tl.zeros((BLOCK_D,), tl.float32)
        level = tl.zeros((BLOCK_D,), tl.float32)
        products = tl.zeros((BLOCK_D,), tl.float32)
        for first in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            column = first + lane
            inside = column < D
            wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
            slope = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
            scaled = slope * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
            if CENTRED:
                # Welford's update of two means, a variance and a covariance, lane by lane.
                apart = tl.where(inside, wide - mean, 0.0)
                mean += apart / (first // BLOCK_D + 1)
                squares += apart * (wide - mean)
                level += tl.where(inside, scaled - level, 0.0) / (first // BLOCK_D + 1)
                products += apart * (scaled - level)
            else:
                squares += wide * wide
                products += wide * scaled
        if CENTRED:
            middle = tl.sum(mean * count, 0) / D
            height = tl.sum(level * count, 0) / D
            squares += (mean - middle) * (mean - middle) * count
            products += (mean - middle) * (level - height) * count
        r = tl.rsqrt(tl.sum(squares, 0) / D + epsilon)
        shared = tl.sum(products, 0) * r / D
        # The shares of the row before may have been stored by other threads than read them here.
        tl.debug_barrier()
        for first in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            column = first + lane
            inside = column < D
            wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
            slope = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
            scaled = slope * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
            if CENTRED:
                wide -= middle
                scaled -= height
            normed = wide * r
            gradient = (scaled - normed * shared) * r
            if dtotal is not None:
                above = tl.load(dtotal + row * dtotal_stride + column, mask=inside, other=0.0)
                gradient += above.to(tl.float32)
            tl.store(dx + row * D + column, gradient.to(dx.dtype.element_ty), mask=inside)
            if dbranch is not None:
                narrow = gradient.to(dbranch.dtype.element_ty)
                tl.store(dbranch + row * D + column, narrow, mask=inside)
            # Nothing has been stored there before the program's first row.
            share = partial + program * (1 + BIASED) * D + column
            old = inside & (row != program)
            tl.store(share, tl.load(share, mask=old, other=0.0) + slope * normed, mask=inside)
            if BIASED:
                shift = tl.load(share + D, mask=old, other=0.0) + slope
                tl.store(share + D, shift, mask=inside)


@triton.jit
def sum_kernel(
    partial,
    dweight,
    dbias,
    programs,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum partial [programs, kinds, D] over the programs: kind 0 to dweight [D], kind 1 to dbias.

    A program has `BLOCK_D` columns of one kind, and adds up `BLOCK_ROWS` rows at a time.
    """
    kind = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    stride = tl.num_programs(1).to(tl.int64) * D
    total = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    for first in tl.range(0, programs, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)[:, None]
        inside = (row < programs) & (column < D)[None, :]
        place = row * stride + kind * D + column[None, :]
        total += tl.load(partial + place, mask=inside, other=0.0)
    sums = tl.sum(total, 0)
    inside = column < D
    tl.store(dweight + column, sums.to(dweight.dtype.element_ty), mask=inside & (kind == 0))
    if dbias is not None:
        tl.store(dbias + column, sums.to(dbias.dtype.element_ty), mask=inside & (kind == 1))
