"""Shards, rows and batches: the Rust dataloader against `reference.shards`, `order` and `xxh3`."""

import json
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
# The folders of this process, removed when it ends.
FOLDERS: list[TemporaryDirectory] = []
WORDS = st.integers(0, 2**64 - 1)


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
def dataset(n_tokens=9_999):
    """Documents of very different lengths, in several shards."""
    FOLDERS.append(TemporaryDirectory())
    random = np.random.default_rng(0)
    with ShardWriter(
        FOLDERS[-1].name, tokenizer=Bytes(VOCAB), shard_tokens=n_tokens // 3
    ) as writer:
        left = n_tokens
        while left:
            size = min(left, int(random.integers(1, 120)))
            writer.add(random.integers(0, VOCAB - 1, size - 1), n_bytes=size)
            left -= size
    return Dataset.open(FOLDERS[-1].name)


@cache
def ids():
    return dataset().read(0, dataset().n_tokens).tolist()


def rows_of(order_name, seed, context, stride, mask=False):
    return _rust.Rows(
        dataset().tokens,
        order=order_name,
        seed=seed,
        context_length=context,
        stride=stride,
        mask_after=dataset().eos_id if mask else None,
    )


def start_slowly(order_name, seed, context, stride, epoch, place, _=False):
    """How many rows an epoch has, and where one begins."""
    n = order.n_rows(len(ids()), context, stride)
    begin = order.start(order_name, seed, len(ids()), context, stride, epoch, int(place * n))
    return n, begin


def start(order_name, seed, context, stride, epoch, place):
    rows = rows_of(order_name, seed, context, stride)
    return rows.n_rows, rows.start(epoch, int(place * rows.n_rows))


def row_slowly(order_name, seed, context, stride, epoch, place, mask):
    _, begin = start_slowly(order_name, seed, context, stride, epoch, place)
    return order.row(ids(), begin, context, dataset().eos_id if mask else None)


def row(order_name, seed, context, stride, epoch, place, mask):
    rows = rows_of(order_name, seed, context, stride, mask)
    return tuple(x.tolist() for x in rows.row(epoch, int(place * rows.n_rows)))


@st.composite
def places(draw):
    """An order, its seed and settings, and a place in an epoch."""
    name, context = draw(st.sampled_from(ORDERS)), draw(st.integers(1, 300))
    # From 1024 rows on another permutation shuffles them.
    strides = st.integers(1, context) | st.integers(1, min(8, context))
    stride = context if name == "random" else draw(strides)
    place = draw(st.floats(0, 1, exclude_max=True))
    return name, draw(WORDS), context, stride, draw(st.integers(0, 2**40)), place


def numbered_rows(first, n, order_name, mask, seed, context):
    """Rows `first` to `first + n` of the endless row of epochs, by the reference."""
    per_epoch = order.n_rows(len(ids()), context, context)
    found = []
    for number in range(first, first + n):
        epoch, i = divmod(number, per_epoch)
        begin = order.start(order_name, seed, len(ids()), context, context, epoch, i)
        found.append(order.row(ids(), begin, context, dataset().eos_id if mask else None))
    return found


def batches_slowly(where, first, stages):
    """For each stage (batch size, world size, steps, threads, prefetch) the rows of each rank."""
    found = []
    for batch_size, world_size, steps, _, _ in stages:
        for step in range(steps):
            rows = numbered_rows(first + step * batch_size, batch_size, *where)
            found += [
                [rows[i] for i in order.global_rows(0, batch_size, rank, world_size)]
                for rank in range(world_size)
            ]
        first += steps * batch_size
    return found


def batches(where, first, stages):
    """The same from loaders, each of which goes on from the state that the last one left."""
    order_name, mask, seed, context = where
    found, state = [], None
    for batch_size, world_size, steps, threads, prefetch in stages:
        loaders = [
            Loader(
                dataset(),
                batch_size=batch_size,
                context_length=context,
                order=order_name,
                mask_after_eos=mask,
                seed=seed,
                rank=rank,
                world_size=world_size,
                threads=threads,
                prefetch=prefetch,
            )
            for rank in range(world_size)
        ]
        state = {**loaders[0].state(), "rows": first} if state is None else state
        for loader in loaders:
            loader.restore(json.loads(json.dumps(state)))
        for _ in range(steps):
            for loader in loaders:
                batch = next(loader)
                pairs = zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True)
                found.append(list(pairs))
        state = loaders[-1].state()
        for loader in loaders:
            loader.close()
    return found


@st.composite
def stages(draw):
    """Batch size, ranks, steps, threads and batches ahead."""
    batch_size = draw(st.integers(1, 20))
    world_size = draw(st.integers(1, min(3, batch_size)))
    return batch_size, world_size, *(draw(st.integers(1, most)) for most in (3, 3, 4))


ORDERED = st.tuples(st.sampled_from(ORDERS), st.booleans(), WORDS, st.integers(1, 200))
DOCUMENTS = (
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.sampled_from(VOCAB_SIZES),
    st.integers(10, 50),
)
MANY = ([200] * 500, 50_257, 30_000)
WHERE = ("shuffle", True, 7, 256)


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
        st.tuples(*DOCUMENTS, st.floats(0, 1), st.floats(0, 1)),
        lambda: (*MANY, 0.1, 0.9),
        covers=("Tokens", "Tokens.n_tokens", "Tokens.read", "Tokens.verify"),
        cost=6,
    ),
    metal(
        "order",
        start_slowly,
        start,
        places(),
        lambda: ("shuffle", 3, 256, 256, 5, 0.7),
        covers=("Rows", "Rows.n_rows", "Rows.start"),
    ),
    metal(
        "row",
        row_slowly,
        row,
        st.builds(lambda place, mask: (*place, mask), places(), st.booleans()),
        lambda: ("shuffle", 3, 256, 256, 5, 0.7, True),
        covers=("Rows.row",),
    ),
    metal(
        "batches",
        batches_slowly,
        batches,
        st.tuples(ORDERED, st.integers(0, 500), st.lists(stages(), min_size=1, max_size=1)),
        lambda: (WHERE, 0, [(32, 1, 20, 2, 4)]),
        covers=("Rows.stream", "Stream", "Stream.next", "Stream.close"),
    ),
    metal(
        "batches resumed",
        batches_slowly,
        batches,
        st.tuples(ORDERED, st.integers(0, 500), st.lists(stages(), min_size=2, max_size=3)),
        lambda: (WHERE, 0, [(32, 1, 10, 2, 4), (24, 3, 10, 1, 2)]),
        cost=2,
    ),
)
