"""Documents to shards and back: the Rust dataloader against `reference.shards`."""

import os
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import strategies as st

from tests.rungs.rung import rust_rung
from tests.support.bytes_tokenizer import VOCAB, Bytes
from tinylm import _rust
from tinylm.data import Dataset, ShardWriter
from tinylm.reference import shards

VOCAB_SIZES = [257, 65_536, 65_537, 200_000]
# One block of rows, and 36 of them, of which 32 are shuffled together.
SHORT, LONG = 9_999, 18_500_001
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


def files_of_parts(sizes, vocab_size, shard_tokens, part):
    """As `files`, each document in parts of up to `part` ids."""
    tokenizer = Bytes(vocab_size)
    with TemporaryDirectory() as folder:
        writer = _rust.ShardWriter(
            folder,
            split="train",
            vocab_size=vocab_size,
            eos_id=tokenizer.eos_id,
            shard_tokens=shard_tokens,
            tokenizer_sha256=bytes.fromhex(tokenizer.sha256),
        )
        for document in of_sizes(sizes, vocab_size):
            for at in range(0, len(document), part):
                writer.add_part(np.array(document[at : at + part], np.uint32))
            writer.end_document()
        names = [record[0] for record in writer.finish()]
        assert names == sorted(path.name for path in Path(folder).glob("*.bin"))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


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


def damaged_slowly(shard, at):
    """The (shard, block)s that a changed byte `at` of a shard's file spoils."""
    n_blocks = len(written(LONG)[1].shards[shard].blocks)
    header, mebibyte = 1024, 1 << 20
    spoiled = range(n_blocks) if at < header else [(at - header) // mebibyte]
    return [(shard, block) for block in spoiled]


def damaged(shard, at):
    """The same, told by looking at all of them."""
    dataset = written(LONG)[1]
    with open(dataset.folder / dataset.shards[shard].name, "r+b", buffering=0) as file:
        (byte,) = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte ^ 0x10]), at)
        try:
            return [place for place in every_block(dataset) if not is_whole(dataset, *place)]
        finally:
            os.pwrite(file.fileno(), bytes([byte]), at)


def every_block(dataset):
    return [(s, b) for s, shard in enumerate(dataset.shards) for b in range(len(shard.blocks))]


def is_whole(dataset, shard, block):
    try:
        dataset.tokens.verify(shard, block)
    except ValueError:
        return False
    return True


@cache
def short_documents():
    """Two shards of documents of one token each, their lengths over more than a block."""
    FOLDERS.append(TemporaryDirectory())
    with ShardWriter(FOLDERS[-1].name, tokenizer=Bytes(VOCAB), shard_tokens=600_000) as writer:
        for _ in range(400_000):
            writer.add([1], n_bytes=1)
    return Dataset.open(FOLDERS[-1].name)


def spoiled_lengths_slowly(shard, at, by):
    """The block of the lengths of a shard that holds the byte `at`, which is changed by `by`."""
    return at // (1 << 20) if by else None


def spoiled_lengths(shard, at, by):
    """The same, told by reading the lengths."""
    dataset = short_documents()
    path = (dataset.folder / dataset.shards[shard].name).with_suffix(".doc")
    with open(path, "r+b", buffering=0) as file:
        (byte,) = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte ^ by]), at)
        try:
            dataset.lengths()
        except ValueError as error:
            return int(re.search(rf"{path.name}: corrupt.*block (\d+):", str(error))[1])
        finally:
            os.pwrite(file.fileno(), bytes([byte]), at)
    return None


@st.composite
def ranges(draw):
    """Tokens of the long dataset, anywhere and around the borders of blocks and shards."""
    # 1 MiB of a shard, half a million uint16, is a block; a shard has 12.
    shard, block = draw(st.integers(0, 2)), draw(st.integers(0, 11))
    border = shard * (LONG // 3) + (block << 19)
    near = st.integers(-40, 40).map(lambda by: max(0, border + by))
    start = draw(near | st.integers(0, LONG))
    n = draw(st.integers(0, min(100, LONG - start)))
    # A block that was looked at before is not read whole again.
    return start, n, draw(st.sets(st.sampled_from([(shard, max(0, block - 1)), (shard, block)])))


def read(start, n, verified):
    """Tokens of the long dataset, opened again, after some of its blocks were verified."""
    dataset = Dataset.open(written(LONG)[1].folder)
    for place in verified:
        dataset.tokens.verify(*place)
    return dataset.read(start, n).tolist()


def foreign_slowly(itemsize, files, start, end):
    """A range of the tokens of several files."""
    ids = [id for _, ids, _ in files for id in ids]
    return ids[round(start * len(ids)) : round(end * len(ids))], len(ids)


def foreign(itemsize, files, start, end):
    """The same, read from files without a header of ours or hashes."""
    with TemporaryDirectory() as folder:
        entries = []
        for number, (before, ids, after) in enumerate(files):
            path = Path(folder) / f"{number}.bin"
            payload = np.array(ids, f"<u{itemsize}").tobytes()
            path.write_bytes(before + payload + after)
            entries.append((path, len(ids), len(before), None, None))
        tokens = _rust.Tokens(entries, itemsize)
        first, last = round(start * tokens.n_tokens), round(end * tokens.n_tokens)
        return tokens.read(first, max(0, last - first)).tolist(), tokens.n_tokens


@st.composite
def foreign_files(draw):
    """Files of tokens with something before and after them, and a range of the tokens."""
    itemsize = draw(st.sampled_from([2, 4]))
    ids = st.lists(st.integers(0, 256**itemsize - 1), max_size=30)
    file = st.tuples(st.binary(max_size=40), ids, st.binary(max_size=5))
    return itemsize, draw(st.lists(file, min_size=1, max_size=3)), draw(SHARES), draw(SHARES)


DOCUMENTS = (
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.sampled_from(VOCAB_SIZES),
    st.integers(10, 50),
)
MANY = ([200] * 500, 50_257, 30_000)


RUNGS = (
    rust_rung(
        "shards written",
        files_slowly,
        files,
        st.tuples(*DOCUMENTS),
        lambda: MANY,
        covers=("ShardWriter", "ShardWriter.add", "ShardWriter.finish"),
        cost=6,
    ),
    rust_rung(
        "shards written in parts",
        lambda *case: files_slowly(*case[:3]),
        files_of_parts,
        st.tuples(
            st.lists(st.integers(0, 40) | st.integers(100, 150), min_size=1, max_size=10),
            *DOCUMENTS[1:],
            st.integers(1, 60),
        ),
        lambda: (*MANY, 64),
        covers=("ShardWriter.add_part", "ShardWriter.end_document"),
        cost=6,
    ),
    rust_rung(
        "shards read",
        contents_slowly,
        contents,
        st.tuples(*DOCUMENTS, SHARES, SHARES),
        lambda: (*MANY, 0.1, 0.9),
        covers=("Tokens", "Tokens.n_tokens"),
        cost=6,
    ),
    rust_rung(
        "tokens",
        lambda start, n, _: written(LONG)[0][start : start + n].tolist(),
        read,
        ranges(),
        lambda: (LONG // 3 - 500_000, 1_000_000, ()),
        covers=("Tokens.read",),
    ),
    rust_rung(
        "tokens of other files",
        foreign_slowly,
        foreign,
        foreign_files(),
        lambda: (2, [(b"x" * 80, list(range(50_000)), b"")] * 4, 0.1, 0.9),
        cost=2,
    ),
    rust_rung(
        "damage",
        damaged_slowly,
        damaged,
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 1023 + 2 * (LONG // 3))
            | st.integers(0, 2000)
            | st.just(1024 + (1 << 20)),
        ),
        lambda: (1, 5_000_000),
        covers=("Tokens.verify",),
        cost=3,
    ),
    # The value of the hash is held to published ones in rust/dataloader/tests/xxh3.rs.
    rust_rung(
        "damaged lengths",
        spoiled_lengths_slowly,
        spoiled_lengths,
        # Shard 0 has 300,000 lengths of four bytes, over two blocks; shard 1 has 100,000.
        st.tuples(st.just(0), st.integers(0, 1_199_999), st.integers(0, 255))
        | st.tuples(st.just(0), st.integers(1 << 20, 1_199_999), st.integers(0, 255))
        | st.tuples(st.just(1), st.integers(0, 399_999), st.integers(0, 255)),
        lambda: (0, 1_100_000, 1),
        covers=("xxh3_64",),
    ),
)
