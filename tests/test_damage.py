"""Damage is found when its block is read: every flipped bit and every cut of a shard of 64 KiB."""

import os

import numpy as np
import pytest

from tests.support.bytes_tokenizer import Bytes
from tinylm import _rust
from tinylm.data import Dataset, ShardWriter

HEADER, PAYLOAD = 1024, 1 << 16


@pytest.fixture
def shard(tmp_path):
    """The one shard of 32,768 tokens, its entry for `_rust.Tokens`, and its file."""
    ids = np.random.default_rng(0).integers(0, 256, PAYLOAD // 2 - 1)
    with ShardWriter(tmp_path, tokenizer=Bytes()) as writer:
        writer.add(ids, n_bytes=1)
    (made,) = Dataset.open(tmp_path).shards
    path = tmp_path / made.name
    assert path.stat().st_size == HEADER + PAYLOAD
    blocks = [int(block, 16) for block in made.blocks]
    return path, (path, made.tokens, HEADER, int(made.header, 16), blocks)


def is_found(entry, token):
    """Whether a reader that opens the shard anew, and then reads one token, raises."""
    try:
        _rust.Tokens([entry], 2).read(token, 1)
    except ValueError as error:
        return "corrupt" in str(error)
    return False


def missed_flips(shard, bits):
    """The bits of the file whose change nobody finds."""
    path, entry = shard
    data, missed = path.read_bytes(), []
    # Any token of the block: no part of it is trusted before the whole is hashed.
    tokens = np.random.default_rng(1).integers(0, PAYLOAD // 2, len(bits)).tolist()
    with path.open("r+b", buffering=0) as file:
        for bit, token in zip(bits, tokens, strict=True):
            at = bit // 8
            os.pwrite(file.fileno(), bytes([data[at] ^ (1 << bit % 8)]), at)
            if not is_found(entry, token):
                missed.append(bit)
            os.pwrite(file.fileno(), data[at : at + 1], at)
    assert not is_found(entry, 0)
    return missed


def missed_cuts(shard, sizes):
    """The sizes, descending, to which the file can be cut unseen."""
    path, entry = shard
    missed = []
    for size in sizes:
        os.truncate(path, size)
        if not is_found(entry, 0):
            missed.append(size)
    return missed


def test_flipped_bits_and_cuts_are_found(shard):
    # Every 401st bit: all bits of a byte, all places in a word.
    assert missed_flips(shard, range(0, 8 * (HEADER + PAYLOAD), 401)) == []
    assert missed_cuts(shard, range(HEADER + PAYLOAD - 1, -1, -97)) == []


@pytest.mark.slow
def test_every_flipped_bit_and_every_cut_is_found(shard):
    assert missed_flips(shard, range(8 * (HEADER + PAYLOAD))) == []
    assert missed_cuts(shard, range(HEADER + PAYLOAD - 1, -1, -1)) == []
