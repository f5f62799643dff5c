"""Which tokens are row `i` of epoch `e`: a pure function of (seed, epoch, i).

Storing a shuffled order costs 4 to 12 bytes per sample and has to be saved to resume; computing
it costs nothing and resuming is one integer. A permutation of 0..n is computed by a Feistel
network (Luby and Rackoff, 1988): cut a number of 2b bits into halves, and let each half in turn
be changed by a random function of the other. Each such round can be undone, so the whole is a
bijection of 0..2^2b; a result outside 0..n is sent through again until it falls inside ("cycle
walking", Black and Rogaway, 2002), fewer than two trips on average. Eight rounds look random to
chi-squared tests from n = 100 on; below 1024 a table shuffled by Fisher and Yates is used.

A disk serves whole blocks 17 to 80 times as fast as single rows, so an epoch is shuffled on two
levels: blocks of rows are permuted, then the rows within each window of 32 blocks.

Between the order and the batch stands a plan: it turns the number of a row into pieces, each a
run of tokens of one document. `window` is the plan of rows that are cut from the dataset without
regard to documents, one piece per row; `fill` says what any pieces become.
"""

from functools import lru_cache
from typing import NamedTuple

MASK = (1 << 64) - 1
# 2^64 divided by the golden ratio, and odd: the increment of splitmix64.
GOLDEN = 0x9E3779B97F4A7C15
# 1 MiB of tokens of two bytes: large enough to be read from a disk as one block.
BLOCK_TOKENS = 1 << 19
WINDOW_BLOCKS = 32
# Below this a network has few bits and looks less random, and a table is cheap.
TABLE_BELOW = 1024
ROUNDS = 8

# The streams of random numbers of one seed.
BLOCKS, INSIDE, WINDOWS = 0, 1, 2


def mix(z: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def draw(key: int, counter: int) -> int:
    """The `counter`-th 64-bit number of the stream `key`."""
    # As in splitmix64 the increment comes before mix, because mix(0) is 0.
    return mix(key + (counter + 1) * GOLDEN & MASK)


def unit(word: int) -> float:
    """`word`, a number of 64 bits, as a number of [0, 1): its upper 53 bits."""
    return (word >> 11) * 2.0**-53


def key(*parts: int) -> int:
    """One key out of several numbers."""
    result = GOLDEN
    for part in parts:
        result = draw(result ^ mix(part), 0)
    return result


def below(word: int, n: int) -> int:
    """`word`, a number of 64 bits, scaled to 0..n."""
    # No remainder: the bias of either is below n / 2^64, and a product is faster.
    return word * n >> 64


@lru_cache(maxsize=4)
def fisher_yates(n: int, key: int) -> list[int]:
    """0..n shuffled: each place, from the last, swaps with a random one up to itself."""
    table = list(range(n))
    for last in range(n - 1, 0, -1):
        other = below(draw(key, last), last + 1)
        table[last], table[other] = table[other], table[last]
    return table


def network(x: int, bits: int, key: int) -> int:
    """Eight Feistel rounds on a number of `bits` bits; the low half has the odd bit."""
    high_bits = bits // 2
    low_bits = bits - high_bits
    high, low = x >> low_bits, x & (1 << low_bits) - 1
    for number in range(ROUNDS):
        # The key of a round is its number's draw, so no two rounds are alike.
        if number % 2 == 0:
            high ^= mix(low ^ draw(key, number)) & (1 << high_bits) - 1
        else:
            low ^= mix(high ^ draw(key, number)) & (1 << low_bits) - 1
    return high << low_bits | low


def permute(i: int, n: int, key: int) -> int:
    """Where the permutation of 0..n that belongs to `key` sends `i`."""
    assert 0 <= i < n
    if n < TABLE_BELOW:
        return fisher_yates(n, key)[i]
    i = network(i, (n - 1).bit_length(), key)
    # This ends: the network is a bijection, so the way from i leads back below n.
    while i >= n:
        i = network(i, (n - 1).bit_length(), key)
    return i


def n_rows(n_tokens: int, context_length: int, stride: int) -> int:
    """Rows of one epoch: one each `stride` tokens until one reaches the last token."""
    return 1 + -(-max(0, n_tokens - 1 - context_length) // stride)


def shuffled(i: int, epoch: int, rows: int, block_rows: int, seed: int) -> int:
    """The row in place `i` of an epoch of `rows` rows.

    The incomplete block at the end of the dataset keeps its place among the blocks.
    """
    window_rows = block_rows * WINDOW_BLOCKS
    window, place = divmod(i, window_rows)
    size = min(window_rows, rows - window * window_rows)
    place = permute(place, size, key(seed, INSIDE, epoch, window))
    block, offset = divmod(window * window_rows + place, block_rows)
    whole = rows // block_rows
    # The last, incomplete block stays where it is: any other place would move all rows after it.
    if block < whole:
        block = permute(block, whole, key(seed, BLOCKS, epoch))
    return block * block_rows + offset


def start(
    order: str, seed: int, n_tokens: int, context_length: int, stride: int, epoch: int, i: int
) -> int:
    """The token at which row `i` of `epoch` begins.

    The last row of a dataset would reach beyond its end. Shuffled, it begins early enough to be
    whole; sequential, it is cut and padded, so that every target is scored exactly once.
    """
    last = n_tokens - context_length - 1
    if order == "random":
        return below(draw(key(seed, WINDOWS, epoch), i), last + 1)
    if order == "sequential":
        return i * stride
    rows = n_rows(n_tokens, context_length, stride)
    row = shuffled(i, epoch, rows, max(1, BLOCK_TOKENS // stride), seed)
    # The last row begins early enough to be whole; some of its tokens come twice.
    return min(row * stride, last)


class Piece(NamedTuple):
    """Tokens `start` to `start + length` of a source, as inputs that belong to `document`."""

    source: int
    start: int
    length: int
    document: int


def window(n_tokens: int, begin: int, context_length: int) -> list[Piece]:
    """The pieces of a row that begins at token `begin`: one, shorter at the end of the source."""
    return [Piece(0, begin, min(context_length, n_tokens - begin), 0)]


def fill(
    sources: list[list[int]],
    pieces: list[Piece],
    context_length: int,
    mask_after: int | None = None,
) -> tuple[list[int], list[int], list[int], list[int]]:
    """(tokens, targets, positions, documents) of a row, each of `context_length` numbers.

    The target of an input is the token after it in its source, also for the last input of a
    piece, and -100 at the end of the source. It is never a token of the next piece: a piece that
    ends one token before its document does has the document's eos as its last target. With
    `mask_after` (the id of eos), the targets after the first such target of a piece are -100.
    Positions count from 0 in every piece. Padding is token 0, target -100, position 0 and
    document -1.
    """
    tokens: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    documents: list[int] = []
    for source, start, length, document in pieces:
        after = sources[source][start + 1 : start + length + 1]
        # The last token of a source has no token after it.
        after += [-100] * (length - len(after))
        if mask_after is not None and mask_after in after:
            kept = after.index(mask_after) + 1
            after[kept:] = [-100] * (length - kept)
        tokens += sources[source][start : start + length]
        targets += after
        positions += range(length)
        documents += [document] * length
    rest = context_length - len(tokens)
    padding = ([0] * rest, [-100] * rest, [0] * rest, [-1] * rest)
    return tokens + padding[0], targets + padding[1], positions + padding[2], documents + padding[3]


def row(
    ids: list[int], begin: int, context_length: int, mask_after: int | None = None
) -> tuple[list[int], list[int]]:
    """(tokens, targets) of the window that begins at `begin`."""
    pieces = window(len(ids), begin, context_length)
    return fill([ids], pieces, context_length, mask_after)[:2]


def global_rows(first: int, batch_size: int, rank: int, world_size: int) -> list[int]:
    """The rows of the batch that begins at row `first` which belong to `rank`.

    Ranks slice one order: every world size sees the same batches, so none overlap.
    """
    return list(range(first, first + batch_size))[rank::world_size]
