"""Which source gives row `i` of a mixture, and which of its rows: a pure function of (seed, i).

Drawing the source of every row by chance gives shares that wander, and a table of all rows has to
be made and kept. Here the rows are cut into blocks of a few hundred. How many rows a source has
given by the end of a block is its share of all rows until there, rounded so that the numbers add
up (largest remainders: Hamilton, 1792). So after every block each source is within one row of its
share, and the composition of a block is known without those before it. Inside a block the sources
are shuffled. The idea of blocks with exact counts is that of Levanter's `MixtureDataset`.

A source gives its own rows in its own order, and begins its next epoch where the last one ends:
its `k`-th row of the run is row `k % n` of its epoch `k // n`, whatever the other sources do. So a
mixture of one source has the rows of that source alone.

Weights that change over a run are stages of constant shares. A stage begins with a block, and its
shares are counted from there. Shares are whole numbers that add up to 2^32, because a sum of
floats would depend on the machine.
"""

from tinylm.reference.order import key, permute

WHOLE = 1 << 32
# Rows of a block, if no share is too small for it.
BLOCK_ROWS = 256

# The streams of random numbers of one seed; 0 to 4 are those of `order` and `packing`.
MIX, SOURCES = 5, 6

# (the row with which it begins, the share of each source)
Stage = tuple[int, list[int]]


def seed_of(seed: int, source: int) -> int:
    """The seed of a source's own order: equal texts in two sources are not read in step."""
    return seed if source == 0 else key(seed, SOURCES, source)


def block_rows(stages: list[Stage]) -> int:
    """Rows of a block: a power of two, enough for each share above 0 to be a row of it.

    With a row in every block, a rounded number never falls from one block to the next.
    """
    least = min(share for _, shares in stages for share in shares if share > 0)
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


def before(stages: list[Stage], block: int) -> list[int]:
    """The rows that each source gives before a block.

    A stage begins at the block nearest to its row; of several that begin at one the last counts.
    """
    rows = block_rows(stages)
    begins = [(first + rows // 2) // rows for first, _ in stages]
    total = [0] * len(stages[0][1])
    for (_, shares), begin, end in zip(stages, begins, [*begins[1:], block], strict=True):
        n = max(0, min(block, end) - begin) * rows
        total = [there + more for there, more in zip(total, quotas(shares, n), strict=True)]
    return total


def sources(stages: list[Stage], seed: int, block: int) -> list[int]:
    """The source of each row of a block."""
    counts = zip(before(stages, block), before(stages, block + 1), strict=True)
    # As many places as it has rows, one source after the other.
    places = [source for source, (one, two) in enumerate(counts) for _ in range(two - one)]
    mixed = key(seed, MIX, block)
    return [places[permute(i, len(places), mixed)] for i in range(len(places))]


def row(stages: list[Stage], n_rows: list[int], seed: int, i: int) -> tuple[int, int, int]:
    """(source, its epoch, row in that epoch) of row `i`; `n_rows` of each are those of an epoch."""
    block, place = divmod(i, block_rows(stages))
    mixed = sources(stages, seed, block)
    source = mixed[place]
    nth = before(stages, block)[source] + mixed[:place].count(source)
    return source, *divmod(nth, n_rows[source])


def counts(stages: list[Stage], seed: int, i: int) -> list[int]:
    """The rows that each source gives before row `i`."""
    block, place = divmod(i, block_rows(stages))
    mixed = sources(stages, seed, block)[:place]
    there = before(stages, block)
    return [n + mixed.count(source) for source, n in enumerate(there)]
