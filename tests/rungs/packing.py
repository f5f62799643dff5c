"""Documents to packed rows: the Rust dataloader against `reference.packing`."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import strategies as st

from tests.rungs.rung import rust_rung
from tests.rungs.shards import FOLDERS, WORDS
from tinylm import _rust
from tinylm.reference import order, packing

# More than any example has.
MOST = 1 << 17


@cache
def _counting():
    """A file in which every token is its own place."""
    FOLDERS.append(TemporaryDirectory())
    path = Path(FOLDERS[-1].name) / "counting.bin"
    np.arange(MOST, dtype="<u4").tofile(path)
    return path


def rows_slowly(lengths, context_length, limits, order_name, seed, epoch, mask_at):
    """Every row of an epoch: tokens, targets, positions, documents and ends."""
    *block_limits, window_inputs = limits
    pieces = packing.cut(lengths, context_length)
    blocks = packing.blocks(pieces, context_length, *block_limits)
    packs = [packing.pack(block, context_length) for block in blocks]
    places = packing.epoch(
        [len(rows) for rows in packs], context_length, order_name, seed, epoch, window_inputs
    )
    most = max(len(row) for rows in packs for row in rows)
    ids, found = list(range(sum(lengths))), []
    for block, at in places:
        row = packs[block][at]
        parts = order.fill([ids], packing.row(row), context_length)
        targets = [-100 if target == mask_at else target for target in parts[1]]
        ends = packing.ends(row, context_length, most)
        inside = [piece[:3] for piece in packing.row(row)]
        found.append((parts[0], targets, *parts[2:], ends, inside))
    return found, (sum(lengths) - 1, most)


def rows(lengths, context_length, limits, order_name, seed, epoch, mask_at):
    tokens = _rust.Tokens([(_counting(), sum(lengths), 0, None, None)], 4)
    packed = _rust.Rows.packed(
        tokens,
        np.array(lengths, np.uint32),
        order=order_name,
        seed=seed,
        context_length=context_length,
        mask_at=mask_at,
        limits=limits,
    )
    found = []
    for i in range(packed.n_rows):
        ids, targets, places = packed.row(epoch, i)
        parts = [part.tolist() for part in (ids, targets, *places)]
        found.append((*parts, packed.pieces(epoch, i)))
    return found, packed.filled


LENGTHS = st.lists(
    st.integers(1, 40) | st.integers(1, 4) | st.integers(1, 300), min_size=1, max_size=60
).filter(lambda lengths: sum(lengths) > 1)
LIMITS = st.tuples(
    st.integers(1, 30), st.integers(1, 10), st.integers(1, 2000), st.integers(1, 3000)
)


def _example():
    lengths = np.random.default_rng(0).lognormal(3.5, 1, 2000).astype(int) + 1
    return lengths.tolist(), 256, (500, 10, 1 << 15, 1 << 16), "shuffle", 3, 5, None


RUNGS = (
    rust_rung(
        "packed rows",
        rows_slowly,
        rows,
        st.tuples(
            LENGTHS,
            st.integers(1, 64) | st.just(1024),
            LIMITS,
            st.sampled_from(["shuffle", "sequential"]),
            WORDS,
            st.integers(0, 2**40),
            st.none() | st.integers(1, 50),
        ),
        _example,
        covers=("Rows.packed", "Rows.filled"),
    ),
)
