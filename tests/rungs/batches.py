"""Shards to rows and batches: the Rust dataloader against `reference.order`."""

import json
import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st

from tests.rungs.rung import rust_rung
from tests.rungs.shards import FOLDERS, LONG, SHARES, SHORT, WORDS, written
from tests.support.bytes_tokenizer import VOCAB
from tinylm import _rust
from tinylm.data import ArrayDataset, Loader
from tinylm.reference import order, shards

ORDERS = ["shuffle", "sequential", "random"]
# More tokens than 32 bits can count.
HUGE = 4_500_000_000


@cache
def zeros(n_tokens):
    """The Rust side's tokens of a dataset of zeros, in sparse files that take no room."""
    FOLDERS.append(TemporaryDirectory())
    magic, version, _ = shards.LAYOUTS[2]
    entries = []
    for number in range(3):
        path, size = Path(FOLDERS[-1].name) / f"{number}.bin", 2 * (n_tokens // 3)
        header = shards.HEADER.pack(magic, version, n_tokens // 3, *[0] * 253)
        path.write_bytes(header)
        os.truncate(path, len(header) + size)
        # Nothing reads the tokens, so no block's hash is needed.
        entries.append((path, n_tokens // 3, len(header), _rust.xxh3_64(header), None))
    return _rust.Tokens(entries, 2)


def rows_of(tokens, order_name, seed, context, stride, mask=None):
    return _rust.Rows(
        tokens,
        order=order_name,
        seed=seed,
        context_length=context,
        stride=stride,
        mask_after=mask,
    )


def start_slowly(n_tokens, order_name, seed, context, stride, epoch, place):
    """How many rows an epoch has, and where one begins."""
    n = order.n_rows(n_tokens, context, stride)
    begin = order.start(order_name, seed, n_tokens, context, stride, epoch, int(place * n))
    return n, begin


def pieces_slowly(n_tokens, order_name, seed, context, *where):
    """How many rows an epoch has, and the one piece of a row."""
    n, begin = start_slowly(n_tokens, order_name, seed, context, *where)
    return n, [piece[:3] for piece in order.window(n_tokens, begin, context)]


def pieces(n_tokens, order_name, seed, context, stride, epoch, place):
    tokens = zeros(n_tokens) if n_tokens == HUGE else written(n_tokens)[1].tokens
    rows = rows_of(tokens, order_name, seed, context, stride)
    i = int(place * rows.n_rows)
    return rows.n_rows, rows.pieces(epoch, i)


def row_from(n_tokens, begin, context, mask):
    """The row that begins at a token, by the reference."""
    tokens, _ = written(n_tokens)
    window = tokens[begin : begin + context + 1].tolist()
    return order.row(window, 0, context, VOCAB - 1 if mask else None)


def row_slowly(n_tokens, order_name, seed, context, stride, epoch, place, mask):
    _, begin = start_slowly(n_tokens, order_name, seed, context, stride, epoch, place)
    return row_from(n_tokens, begin, context, mask)


def row(n_tokens, order_name, seed, context, stride, epoch, place, mask):
    _, dataset = written(n_tokens)
    mask_after = dataset.eos_id if mask else None
    rows = rows_of(dataset.tokens, order_name, seed, context, stride, mask_after)
    tokens, targets, _ = rows.row(epoch, int(place * rows.n_rows))
    return tokens.tolist(), targets.tolist()


@st.composite
def places(draw, sizes):
    """A size of dataset, an order, its seed and settings, and a place in an epoch."""
    n_tokens, name = draw(st.sampled_from(sizes)), draw(st.sampled_from(ORDERS))
    # From half a million tokens on, a row is a block of its own.
    lengths = st.integers(1, 300) | st.integers(1, min(n_tokens - 1, 1 << 20))
    context = draw(lengths)
    # From 1024 rows on another permutation shuffles them.
    strides = st.integers(1, context) | st.integers(1, min(8, context))
    stride = context if name == "random" else draw(strides)
    place = draw(st.floats(0, 1, exclude_max=True))
    return n_tokens, name, draw(WORDS), context, stride, draw(st.integers(0, 2**40)), place


def first_row(n_tokens, context, place):
    """The row of the endless row of epochs at `place` in the first two."""
    return int(place * 2 * order.n_rows(n_tokens, context, context))


def numbered_rows(first, n, n_tokens, order_name, mask, seed, context):
    """Rows `first` to `first + n` of the endless row of epochs, by the reference."""
    per_epoch = order.n_rows(n_tokens, context, context)
    found = []
    for number in range(first, first + n):
        epoch, i = divmod(number, per_epoch)
        begin = order.start(order_name, seed, n_tokens, context, context, epoch, i)
        found.append(row_from(n_tokens, begin, context, mask))
    return found


def batches_slowly(where, place, stages):
    """For each stage (batch size, world size, steps, threads, prefetch) the rows of each rank."""
    n_tokens, *_, context = where
    found, first = [], first_row(n_tokens, context, place)
    for batch_size, world_size, steps, _, _ in stages:
        for step in range(steps):
            rows = numbered_rows(first + step * batch_size, batch_size, *where)
            found += [
                [rows[i] for i in order.global_rows(0, batch_size, rank, world_size)]
                for rank in range(world_size)
            ]
        first += steps * batch_size
    return found


def loaders_of(where, batch_size, world_size, threads, prefetch, dtype="int64", source=None):
    """A loader for each rank."""
    n_tokens, order_name, mask, seed, context = where
    return [
        Loader(
            written(n_tokens)[1] if source is None else source,
            batch_size=batch_size,
            context_length=context,
            order=order_name,
            mask_after_eos=mask,
            seed=seed,
            rank=rank,
            world_size=world_size,
            threads=threads,
            prefetch=prefetch,
            dtype=dtype,
        )
        for rank in range(world_size)
    ]


def pairs(batch):
    """Tokens and targets, row by row."""
    return list(zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True))


def batches(where, place, stages):
    """The same from loaders, each of which goes on from the state that the last one left."""
    n_tokens, *_, context = where
    found, state = [], None
    for batch_size, world_size, steps, threads, prefetch in stages:
        loaders = loaders_of(where, batch_size, world_size, threads, prefetch)
        if state is None:
            state = {**loaders[0].state(), "rows": first_row(n_tokens, context, place)}
        for loader in loaders:
            loader.restore(json.loads(json.dumps(state)))
        for _ in range(steps):
            found += [pairs(next(loader)) for loader in loaders]
        state = loaders[-1].state()
        for loader in loaders:
            loader.close()
    return found


def batches_of_array(where, place, stages, dtype):
    """The same of an array in memory, of one stage."""
    n_tokens, *_, context = where
    source = ArrayDataset(written(n_tokens)[0].astype(dtype), eos_id=VOCAB - 1)
    ((batch_size, world_size, steps, threads, prefetch),) = stages
    loaders = loaders_of(where, batch_size, world_size, threads, prefetch, source=source)
    for loader in loaders:
        loader.restore({**loader.state(), "rows": first_row(n_tokens, context, place)})
    found = [pairs(next(loader)) for _ in range(steps) for loader in loaders]
    for loader in loaders:
        loader.close()
    return found


def epoch_slowly(where, number, stage, dtype):
    """The batches of one epoch, rank by rank, the last filled with rows that do not count."""
    n_tokens, *_, context = where
    batch_size, world_size, *_ = stage
    n = order.n_rows(n_tokens, context, context)
    rows = numbered_rows(number * n, n, *where)
    rows += [order.row([], 0, context)] * (-n % batch_size)
    return {f"torch.{dtype}"}, [
        [
            [rows[i] for i in order.global_rows(first, batch_size, rank, world_size)]
            for first in range(0, len(rows), batch_size)
        ]
        for rank in range(world_size)
    ]


def epoch(where, number, stage, dtype):
    """The same from loaders."""
    batch_size, world_size, _, *ahead = stage
    loaders = loaders_of(where, batch_size, world_size, *ahead, dtype)
    ranks = [list(loader.epoch(number)) for loader in loaders]
    dtypes = {str(part.dtype) for rank in ranks for b in rank for part in (b.tokens, b.targets)}
    return dtypes, [[pairs(batch) for batch in rank] for rank in ranks]


@st.composite
def stages(draw):
    """Batch size, ranks, steps, threads and batches ahead."""
    batch_size = draw(st.integers(1, 20))
    world_size = draw(st.integers(1, min(3, batch_size)))
    return batch_size, world_size, *(draw(st.integers(1, most)) for most in (3, 3, 4))


def ordered(sizes, contexts):
    """A size of dataset, an order, whether eos hides what follows, a seed, a context length."""
    sizes, names = st.sampled_from(sizes), st.sampled_from(ORDERS)
    return st.tuples(sizes, names, st.booleans(), WORDS, contexts)


ROWS = ordered([SHORT, LONG], st.integers(1, 200))
# Where the second window of blocks and the second epoch begin too.
PLACES = SHARES | st.sampled_from([0.4534, 0.49999, 0.5])
WHERE = (SHORT, "shuffle", True, 7, 256)


RUNGS = (
    rust_rung(
        "order",
        pieces_slowly,
        pieces,
        places([SHORT, LONG, HUGE]),
        lambda: (SHORT, "shuffle", 3, 256, 256, 5, 0.7),
        covers=("Rows", "Rows.n_rows", "Rows.pieces"),
    ),
    rust_rung(
        "row",
        row_slowly,
        row,
        st.builds(lambda place, mask: (*place, mask), places([SHORT, LONG]), st.booleans()),
        lambda: (SHORT, "shuffle", 3, 256, 256, 5, 0.7, True),
        covers=("Rows.row",),
    ),
    rust_rung(
        "batches",
        batches_slowly,
        batches,
        st.tuples(ROWS, PLACES, st.lists(stages(), min_size=1, max_size=1)),
        lambda: (WHERE, 0, [(32, 1, 20, 2, 4)]),
        covers=("Rows.stream", "Stream", "Stream.next", "Stream.close", "Stream.shape"),
    ),
    rust_rung(
        "batches of an array",
        lambda where, place, stages, dtype: batches_slowly(where, place, stages),
        batches_of_array,
        st.tuples(
            ROWS,
            PLACES,
            st.lists(stages(), min_size=1, max_size=1),
            # What is used where it lies, and what is copied.
            st.sampled_from(["uint16", "uint32", "int64"]),
        ),
        lambda: (WHERE, 0, [(32, 1, 20, 2, 4)], "uint16"),
        covers=("Tokens.of_array",),
    ),
    rust_rung(
        "batches resumed",
        batches_slowly,
        batches,
        st.tuples(ROWS, PLACES, st.lists(stages(), min_size=2, max_size=3)),
        lambda: (WHERE, 0, [(32, 1, 10, 2, 4), (24, 3, 10, 1, 2)]),
        cost=2,
    ),
    rust_rung(
        "epoch",
        epoch_slowly,
        epoch,
        st.tuples(
            ordered([SHORT], st.integers(100, 3000)),
            st.integers(0, 2**40),
            stages(),
            st.sampled_from(["int64", "int32"]),
        ),
        lambda: (WHERE, 3, (32, 2, 0, 2, 4), "int64"),
    ),
)
