"""Shards, rows and batches: the Rust dataloader against `reference.shards`, `order` and `xxh3`."""

import json
import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import strategies as st

from tests.bytes_tokenizer import VOCAB, Bytes
from tests.rungs.rung import Rung
from tinylm import _rust
from tinylm.data import Dataset, Loader, ShardWriter
from tinylm.reference import order, shards, xxh3

VOCAB_SIZES = [257, 65_536, 65_537, 200_000]
ORDERS = ["shuffle", "sequential", "random"]
# One block of rows; 36 blocks, of which 32 are shuffled together; more than 32 bits can count.
SHORT, LONG, HUGE = 9_999, 18_500_001, 4_500_000_000
# The folders of this process, removed when it ends.
FOLDERS: list[TemporaryDirectory] = []
WORDS = st.integers(0, 2**64 - 1)
SHARES = st.floats(0, 1)


def of_sizes(sizes, vocab_size):
    """Documents of random ids below the eos."""
    random = np.random.default_rng(len(sizes))
    return [random.integers(0, vocab_size - 1, size).tolist() for size in sizes]


def write_slowly(folder, sizes, vocab_size, shard_tokens):
    tokenizer = Bytes(vocab_size)
    return shards.write(
        Path(folder),
        "train",
        of_sizes(sizes, vocab_size),
        vocab_size=vocab_size,
        eos_id=tokenizer.eos_id,
        shard_tokens=shard_tokens,
        tokenizer_sha256=bytes.fromhex(tokenizer.sha256),
    )


def write(folder, sizes, vocab_size, shard_tokens):
    tokenizer = Bytes(vocab_size)
    with ShardWriter(folder, tokenizer=tokenizer, shard_tokens=shard_tokens) as writer:
        for document in of_sizes(sizes, vocab_size):
            writer.add(document)
    return Dataset.open(folder)


def any_bytes(n, seed):
    return np.random.default_rng(seed).bytes(n)


def files_slowly(*case):
    """The bytes of every file by its name."""
    with TemporaryDirectory() as folder:
        write_slowly(folder, *case)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def files(*case):
    with TemporaryDirectory() as folder:
        write(folder, *case)
        paths = [path for path in Path(folder).iterdir() if path.suffix != ".json"]
        return {path.name: path.read_bytes() for path in paths}


def contents_slowly(sizes, vocab_size, shard_tokens, start, end):
    """Documents, the tokens of a range of the whole, and how many there are."""
    with TemporaryDirectory() as folder:
        paths = write_slowly(folder, sizes, vocab_size, shard_tokens)
        tokens = [id for path in paths for id in shards.read(path)]
        part = slice(round(start * len(tokens)), round(end * len(tokens)))
        return [document[:-1] for document in shards.documents(paths)], tokens[part], len(tokens)


def contents(sizes, vocab_size, shard_tokens, start, end):
    with TemporaryDirectory() as folder:
        dataset = write(folder, sizes, vocab_size, shard_tokens)
        n = dataset.tokens.n_tokens
        assert list(dataset.verify())[-1] == n
        first, last = round(start * n), round(end * n)
        part = dataset.read(first, max(0, last - first)).tolist()
        return [document.tolist() for document in dataset.documents()], part, n


@cache
def written(n_tokens):
    """The tokens of documents of very different lengths, and the dataset of them in 3 shards."""
    FOLDERS.append(TemporaryDirectory())
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCAB - 1, n_tokens, dtype=np.uint16)
    ends = np.unique([*random.integers(1, n_tokens, 160), n_tokens])
    tokens[ends - 1] = VOCAB - 1
    with ShardWriter(
        FOLDERS[-1].name, tokenizer=Bytes(VOCAB), shard_tokens=n_tokens // 3
    ) as writer:
        for document in np.split(tokens, ends[:-1]):
            writer.add(document[:-1], n_bytes=1)
    return tokens, Dataset.open(FOLDERS[-1].name)


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
        entries.append((path, n_tokens // 3, _rust.xxh3_64(header), [0] * -(-size // (1 << 20))))
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


def start(n_tokens, order_name, seed, context, stride, epoch, place):
    tokens = zeros(n_tokens) if n_tokens == HUGE else written(n_tokens)[1].tokens
    rows = rows_of(tokens, order_name, seed, context, stride)
    return rows.n_rows, rows.start(epoch, int(place * rows.n_rows))


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
    return tuple(x.tolist() for x in rows.row(epoch, int(place * rows.n_rows)))


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


@st.composite
def ranges(draw):
    """Tokens of the long dataset, anywhere and around the borders of blocks and shards."""
    # 1 MiB of a shard, half a million uint16, is a block.
    border = draw(st.integers(0, 2)) * (LONG // 3) + (draw(st.integers(0, 12)) << 19)
    anywhere = st.integers(0, LONG)
    start = min(draw(anywhere | st.integers(-40, 40).map(lambda by: max(0, border + by))), LONG)
    return start, draw(st.integers(0, min(100, LONG - start)))


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


def loaders_of(where, batch_size, world_size, threads, prefetch, dtype="int64"):
    """A loader for each rank."""
    n_tokens, order_name, mask, seed, context = where
    return [
        Loader(
            written(n_tokens)[1],
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
DOCUMENTS = (
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.sampled_from(VOCAB_SIZES),
    st.integers(10, 50),
)
MANY = ([200] * 500, 50_257, 30_000)
WHERE = (SHORT, "shuffle", True, 7, 256)


def metal(name, slow, fast, inputs, example, covers=(), cost=1):
    media = ("lists", "rust")
    return Rung(name, "metal", media, slow, fast, inputs, example, covers=covers, cost=cost)


RUNGS = (
    metal(
        "xxh3_64",
        xxh3.xxh3_64,
        _rust.xxh3_64,
        st.tuples(st.binary(max_size=300) | st.builds(any_bytes, st.integers(0, 5000), WORDS)),
        lambda: (bytes(range(256)) * 1024,),
        covers=("xxh3_64",),
    ),
    metal(
        "shards written",
        files_slowly,
        files,
        st.tuples(*DOCUMENTS),
        lambda: MANY,
        covers=("ShardWriter", "ShardWriter.add", "ShardWriter.finish"),
        cost=6,
    ),
    metal(
        "shards read",
        contents_slowly,
        contents,
        st.tuples(*DOCUMENTS, SHARES, SHARES),
        lambda: (*MANY, 0.1, 0.9),
        covers=("Tokens", "Tokens.n_tokens", "Tokens.verify"),
        cost=6,
    ),
    metal(
        "tokens",
        lambda start, n: written(LONG)[0][start : start + n].tolist(),
        lambda start, n: written(LONG)[1].read(start, n).tolist(),
        ranges(),
        lambda: (LONG // 3 - 500_000, 1_000_000),
        covers=("Tokens.read",),
    ),
    metal(
        "order",
        start_slowly,
        start,
        places([SHORT, LONG, HUGE]),
        lambda: (SHORT, "shuffle", 3, 256, 256, 5, 0.7),
        covers=("Rows", "Rows.n_rows", "Rows.start"),
    ),
    metal(
        "row",
        row_slowly,
        row,
        st.builds(lambda place, mask: (*place, mask), places([SHORT, LONG]), st.booleans()),
        lambda: (SHORT, "shuffle", 3, 256, 256, 5, 0.7, True),
        covers=("Rows.row",),
    ),
    metal(
        "batches",
        batches_slowly,
        batches,
        st.tuples(ROWS, PLACES, st.lists(stages(), min_size=1, max_size=1)),
        lambda: (WHERE, 0, [(32, 1, 20, 2, 4)]),
        covers=("Rows.stream", "Stream", "Stream.next", "Stream.close"),
    ),
    metal(
        "batches resumed",
        batches_slowly,
        batches,
        st.tuples(ROWS, PLACES, st.lists(stages(), min_size=2, max_size=3)),
        lambda: (WHERE, 0, [(32, 1, 10, 2, 4), (24, 3, 10, 1, 2)]),
        cost=2,
    ),
    metal(
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
