"""Attention over a cache, in torch and as a kernel: contiguous and paged, in floats and in 8 bits.

A case is built from one dense cache. Places that no query sees are NaN, and so are blocks that
belong to no row; entries of the table that nobody needs name no block.
"""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung
from tests.support.interpreter import DEVICE, guarded, playing, torch_forms
from tinylm import ops
from tinylm.reference import decoding

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Shape:
    """Sizes of one example, and how the cache is stored: `page` 0 is one buffer per row."""

    rows: int
    kv_heads: int
    group: int
    queries: int
    size: int
    capacity: int
    page: int
    layout: str
    int8: bool
    scales: torch.dtype
    window: int | None
    softcap: float | None
    dtype: torch.dtype
    equal: bool = False


def laid_out(x, layout):
    """x [N, K, S, D] in other memory: heads or places first, or with a gap after each row."""
    if layout == "places first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "gaps":
        wide = torch.cat((x, x), -1)
        return wide[..., : x.size(-1)]
    if layout == "columns first":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x


def stored(x, present, shape, generator):
    """Dense x [B, K, S, ...] as the cache stores it, with its table, NaN where `present` is not."""
    hidden = ~present[:, None, :].expand(x.shape[:3])
    x = x.masked_fill(hidden.view(*hidden.shape, *[1] * (x.dim() - 3)), torch.nan)
    if not shape.page:
        return x, None
    rows, blocks = shape.rows, -(-shape.capacity // shape.page)
    spare = 2
    order = torch.randperm(rows * blocks + spare, generator=generator)[: rows * blocks]
    table = order.view(rows, blocks).to(torch.int32)
    memory = torch.full((rows * blocks + spare, x.size(1), shape.page, *x.shape[3:]), torch.nan)
    padded = torch.full((*x.shape[:2], blocks * shape.page, *x.shape[3:]), torch.nan)
    padded[:, :, : shape.capacity] = x
    for row in range(rows):
        pieces = padded[row].unflatten(1, (blocks, shape.page)).transpose(0, 1)
        memory[table[row].long()] = pieces
    needed = torch.zeros(rows, blocks * shape.page, dtype=torch.bool)
    needed[:, : shape.capacity] = present
    used = needed.view(rows, blocks, shape.page).any(2)
    return memory, table.where(used, torch.tensor(-(2**31), dtype=torch.int32))


def case(shape, seed):
    """The arguments of `decode_attention` in the dtype of `shape`."""
    generator = torch.Generator().manual_seed(seed)
    least = shape.queries
    heads = shape.kv_heads * shape.group
    q = torch.randn(shape.rows, heads, shape.queries, shape.size, generator=generator) * 2
    past = torch.randint(0, shape.capacity - least + 1, (shape.rows,), generator=generator)
    if shape.equal:
        past = torch.full_like(past, shape.capacity - least)
    place = torch.arange(shape.capacity)
    window = shape.capacity if shape.window is None else shape.window
    present = (place < past[:, None] + least) & (place > past[:, None] - window)
    scales, parts = [None, None], []
    for index in range(2):
        dense = torch.randn(
            shape.rows, shape.kv_heads, shape.capacity, shape.size, generator=generator
        )
        # Tokens of unlike size, so that a scale in the wrong place shows.
        dense *= torch.rand(shape.capacity, 1, generator=generator) * 2
        paging = torch.Generator().manual_seed(seed)
        if shape.int8:
            n, scale = ops.quantise_int8(dense)
            x, table = stored(n.float(), present, shape, paging)
            scales[index] = stored(scale, present, shape, paging.manual_seed(seed))[0].to(
                DEVICE, shape.scales
            )
            x = x.nan_to_num(77).to(torch.int8)
        else:
            x, table = stored(dense, present, shape, paging)
            x = x.to(shape.dtype)
        parts.append(laid_out(x.to(DEVICE), shape.layout))
    q = laid_out(q.to(DEVICE, shape.dtype), shape.layout)
    named = {"table": None if table is None else table.to(DEVICE), "window": shape.window}
    named |= {"k_scale": scales[0], "v_scale": scales[1], "softcap": shape.softcap}
    return q, *parts, None if shape.equal else past.to(DEVICE), named


def in_float64(q, k, v, past, named):
    k, v = (x if x.dtype == torch.int8 else x.double() for x in (k, v))
    return (decoding.decode_attention(q.double(), k, v, past, **named),)


def plain(q, k, v, past, named):
    return (decoding.decode_attention(q, k, v, past, **named),)


def torch_form(q, k, v, past, named):
    with torch_forms():
        return (ops.decode_attention(q, k, v, past, **named),)


def terms(q, k, v, past, named):
    """The size of the sum of the shares times |v|: what is left of it can cancel."""
    v = v.abs() if v.dtype == torch.int8 else v.abs().double()
    k = k if k.dtype == torch.int8 else k.double()
    return (float(decoding.decode_attention(q.double(), k, v, past, **named).norm()),)


def by_kernel(q, k, v, past, named, processors=None):
    """The operation, as on a GPU of so many processors."""
    import tinylm.kernels  # noqa: F401

    with playing(processors=processors):
        names = ("table", "k_scale", "v_scale", "window")
        values = [named[name] for name in names]
        scale = q.size(-1) ** -0.5
        y = torch.ops.tinylm.decode_attention(q, k, v, past, *values, scale, named["softcap"])
    return (y,)


@st.composite
def shapes(draw, most=300):
    """Any shape of a cache of up to `most` places."""
    queries = draw(st.just(1) | st.integers(1, 8))
    # Without `past` all rows are full: that is what a contiguous cache says of equal rows.
    page = draw(st.sampled_from([0, 16, 32, 64, 128]))
    return Shape(
        rows=draw(st.sampled_from([0, 1, 1, 2, 2, 3])),
        kv_heads=draw(st.integers(1, 4)),
        group=draw(st.integers(1, 8)),
        queries=queries,
        size=draw(st.sampled_from([1, 12, 16, 32, 40, 64, 80, 128])),
        capacity=draw(st.integers(queries, most) | st.integers(queries, queries + 64)),
        page=page,
        layout=draw(st.sampled_from(["heads first", "places first", "gaps", "columns first"])),
        int8=draw(st.booleans()),
        scales=draw(st.sampled_from(DTYPES[:2])),
        window=draw(st.none() | st.integers(1, most)),
        softcap=draw(st.none() | st.sampled_from([0.5, 30.0])),
        dtype=draw(st.sampled_from(DTYPES)),
        equal=not page and draw(st.booleans()),
    )


LONG = Shape(
    rows=2,
    kv_heads=2,
    group=4,
    queries=1,
    size=128,
    capacity=32768 if DEVICE == "cuda" else 1024,
    page=64,
    layout="heads first",
    int8=False,
    scales=torch.float32,
    window=None,
    softcap=None,
    dtype=torch.bfloat16,
)
PROCESSORS = st.sampled_from([1, 3, 8])

RUNGS = (
    Rung(
        name="decode_attention",
        chapter="tensors",
        media=("tensors", "ops"),
        slow=in_float64,
        fast=torch_form,
        peer=plain,
        terms=terms,
        inputs=st.builds(case, shapes(most=40), SEEDS),
        example=lambda: case(LONG, 0),
        cost=2,
    ),
    Rung(
        name="decode_attention",
        chapter="metal",
        media=("ops", "kernels"),
        slow=lambda *arguments: in_float64(*arguments[:5]),
        fast=by_kernel,
        peer=lambda *arguments: torch_form(*arguments[:5]),
        terms=lambda *arguments: terms(*arguments[:5]),
        inputs=st.builds(
            lambda shape, seed, processors: (*case(shape, seed), processors),
            shapes(),
            SEEDS,
            PROCESSORS,
        ),
        example=lambda: (*case(LONG, 0), None),
        covers=("decode_attention",),
        cost=5,
        fuzz=2_000,
        around=guarded,
    ),
)
