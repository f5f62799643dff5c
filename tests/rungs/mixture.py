"""Several sources to the rows of a mixture: the Rust dataloader against `reference.mixture`."""

from functools import cache
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import strategies as st

from tests.rungs.rung import rust_rung
from tests.rungs.shards import FOLDERS, WORDS
from tinylm import _rust
from tinylm.reference import mixture, order

# Tokens of a row, and rows whose source and place are compared.
T, ROWS = 4, 12


@cache
def _counting(source, n_rows):
    """A file in which every row of a source begins with its own number."""
    FOLDERS.append(TemporaryDirectory())
    path = Path(FOLDERS[-1].name) / f"{source}.bin"
    np.arange(source << 24, (source << 24) + T * n_rows + 1, dtype="<u4").tofile(path)
    return _rust.Tokens([(path, T * n_rows + 1, 0, None, None)], 4)


def shares(weights):
    """Whole numbers in proportion to `weights` that add up to 2^32; 0 stays 0."""
    total, before = sum(weights), 0
    ends = [end * mixture.WHOLE // total for end in accumulate(weights)]
    return [end - begin for begin, end in zip([before, *ends], ends, strict=False)]


def rows_slowly(n_rows, stages, seed, first):
    """(source, its first token) of some rows, and how many each source gave before them."""
    found = []
    for i in range(first, first + ROWS):
        source, epoch, at = mixture.row(stages, n_rows, seed, i)
        n_tokens, own = T * n_rows[source] + 1, mixture.seed_of(seed, source)
        found.append((source, order.start("shuffle", own, n_tokens, T, T, epoch, at)))
    return found, mixture.counts(stages, seed, first)


def rows(n_rows, stages, seed, first):
    sources = [
        _rust.Rows(
            _counting(source, n),
            order="shuffle",
            seed=_rust.source_seed(seed, source),
            context_length=T,
            stride=T,
            mask_after=None,
        )
        for source, n in enumerate(n_rows)
    ]
    mixed = _rust.Rows.mixed(sources, stages, seed=seed)
    found = []
    for i in range(first, first + ROWS):
        token = int(mixed.row(0, i)[0][0])
        found.append((token >> 24, token & (1 << 24) - 1))
    return found, mixed.counts(first)


@st.composite
def mixtures(draw):
    """Rows of each source, stages, a seed and the first row to look at."""
    n = draw(st.integers(1, 6))
    n_rows = draw(st.lists(st.integers(1, 5) | st.integers(1, 3000), min_size=n, max_size=n))
    weight = st.integers(0, 9) | st.sampled_from([0, 1, 300])
    weights = st.lists(weight, min_size=n, max_size=n).filter(any)
    begin = st.integers(0, 2000) | st.integers(0, 90)
    begins = sorted({0, *draw(st.lists(begin, max_size=3))})
    stages = [(begin, shares(draw(weights))) for begin in begins]
    first = draw(st.integers(0, 3000) | st.integers(0, 90) | st.integers(0, 1 << 40))
    return n_rows, stages, draw(WORDS), first


def _example():
    return [3000, 700, 5], [(0, shares([70, 29, 1])), (1000, shares([20, 0, 80]))], 3, 5000


RUNGS = (
    rust_rung(
        "mixture",
        rows_slowly,
        rows,
        mixtures(),
        _example,
        covers=("Rows.mixed", "Rows.counts", "source_seed"),
        cost=2,
    ),
)
