"""Which source gives row `i` of a mixture, and which of its rows: a pure function of (seed, i).

Drawing the source of every row by chance gives shares that wander, and a table of all rows has to
be made and kept. Here the rows are cut into blocks of a few dozen. How many rows a source has
given by the end of a block is its share of all rows until there, rounded so that the numbers add
up (largest remainders: Hamilton, 1792). So after every block each source is within one row of its
share, and the composition of a block is known without those before it. Inside a block the sources
are shuffled. The idea of blocks with exact counts is that of Levanter's `MixtureDataset`.

A source gives its own rows in its own order, and begins its next epoch where the last one ends:
its `k`-th row of the run is row `k % n` of its epoch `k // n`, whatever the other sources do. So a
mixture of one source has the rows of that source alone.

Weights that change over a run are stages of constant shares. A stage begins exactly at its row,
with a block, and its shares are counted from there. Of the last block of a stage the rows before
the next stage are taken: the first of a shuffled block, so the shares hold there on average, also
in a stage of one row. Shares are whole numbers that add up to 2^32, because a sum of floats would
depend on the machine.
"""

from itertools import pairwise

from tinylm.reference.order import key, permute

WHOLE = 1 << 32
# Rows of a block, if no share is too small for it.
BLOCK_ROWS = 32

# The streams of random numbers of one seed; 0 to 4 are those of `order` and `packing`.
MIX, SOURCES = 5, 6

# (the row with which it begins, the share of each source)
Stage = tuple[int, list[int]]


def seed_of(seed: int, source: int) -> int:
    """The seed of a source's own order: equal texts in two sources are not read in step."""
    return seed if source == 0 else key(seed, SOURCES, source)


def block_rows(shares: list[int]) -> int:
    """Rows of a block: a power of two, enough for each share above 0 to be a row of it.

    With a row in every block, a rounded number never falls from one block to the next.
    """
    least = min(share for share in shares if share > 0)
    rows = BLOCK_ROWS
    while rows * least < WHOLE:
        rows *= 2
    return rows


def quotas(shares: list[int], rows: int) -> list[int]:
    """The rows of each source among `rows`: its share rounded down, or up for the largest rests."""
    whole = [share * rows // WHOLE for share in shares]
    rests = [share * rows % WHOLE for share in shares]
    # Of equal rests that of the first source counts as larger.
    largest = sorted(range(len(shares)), key=lambda source: (-rests[source], source))
    for source in largest[: rows - sum(whole)]:
        whole[source] += 1
    return whole


def sources(stage: Stage, seed: int, block: int) -> list[int]:
    """The source of each row of a block of a stage, which is cut nowhere."""
    first, shares = stage
    begin = block * block_rows(shares)
    end = begin + block_rows(shares)
    counts = zip(quotas(shares, begin), quotas(shares, end), strict=True)
    # As many places as it has rows, one source after the other.
    places = [source for source, (one, two) in enumerate(counts) for _ in range(two - one)]
    mixed = key(seed, MIX, first + begin)
    return [places[permute(i, len(places), mixed)] for i in range(len(places))]


def given(stage: Stage, seed: int, n: int) -> list[int]:
    """The rows of each source among the first `n` of a stage."""
    _, shares = stage
    block, place = divmod(n, block_rows(shares))
    there = quotas(shares, n - place)
    cut = sources(stage, seed, block)[:place] if place else []
    return [whole + cut.count(source) for source, whole in enumerate(there)]


def counts(stages: list[Stage], seed: int, i: int) -> list[int]:
    """The rows that each source gives before row `i`."""
    total = [0] * len(stages[0][1])
    for stage, (end, _) in pairwise([*stages, (i, [])]):
        n = max(0, min(end, i) - stage[0])
        total = [there + more for there, more in zip(total, given(stage, seed, n), strict=True)]
    return total


def row(stages: list[Stage], n_rows: list[int], seed: int, i: int) -> tuple[int, int, int]:
    """(source, its epoch, row in that epoch) of row `i`; `n_rows` of each are those of an epoch."""
    stage = [stage for stage in stages if stage[0] <= i][-1]
    block, place = divmod(i - stage[0], block_rows(stage[1]))
    source = sources(stage, seed, block)[place]
    return source, *divmod(counts(stages, seed, i)[source], n_rows[source])
