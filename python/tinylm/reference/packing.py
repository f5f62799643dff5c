"""Which documents share a row: best fit decreasing, a block of documents at a time.

The inputs of a document are the end-of-text token before it and all its tokens but its own
end-of-text, which is its last target. So the documents of a dataset tile its inputs: every token
but the very first is a target exactly once. A document longer than a row is cut into whole rows
and a rest. Nothing else is ever cut, and nothing is left out.

Best fit decreasing (Johnson, 1974) takes the pieces from the longest to the shortest, and puts
each into the row with the least room that still holds it. It needs all pieces at once, so a
dataset is packed in blocks: enough short pieces to fill every gap, and enough rows that the last
one, which is seldom full, wastes little. Blocks are the same in every epoch, hence so is
the number of rows; an epoch permutes the blocks, and then the rows inside windows of about 16 M
tokens of blocks.
"""

from itertools import accumulate

from tinylm.reference.order import Piece, key, permute

# A block is over when it has so many pieces shorter than a row and inputs for so many rows, or so
# many inputs.
SHORT_PIECES = 4096
BLOCK_ROWS = 1024
BLOCK_INPUTS = 1 << 22
# Inputs of the blocks whose rows are shuffled together, padding counted.
WINDOW_INPUTS = 1 << 24

# The streams of random numbers of one seed; 0 to 2 are those of `order`.
PACKS, ROWS = 3, 4


def cut(lengths: list[int], context_length: int) -> list[tuple[int, int]]:
    """(start, length) of each piece; `lengths` are those of documents with their end-of-text."""
    pieces = []
    # The first document of all has no end-of-text before it.
    start = 0
    for end in accumulate(lengths):
        last = end - 1
        pieces += [
            (begin, min(context_length, last - begin))
            for begin in range(start, last, context_length)
        ]
        start = last
    return pieces


def blocks(
    pieces: list[tuple[int, int]],
    context_length: int,
    short_pieces: int = SHORT_PIECES,
    block_rows: int = BLOCK_ROWS,
    block_inputs: int = BLOCK_INPUTS,
) -> list[list[tuple[int, int]]]:
    """The pieces in blocks; a last one that is less than half full belongs to the one before."""

    def full(short: int, inputs: int) -> bool:
        enough = short >= short_pieces and inputs >= block_rows * context_length
        return enough or inputs >= block_inputs

    found: list[list[tuple[int, int]]] = [[]]
    short = inputs = 0
    for piece in pieces:
        if full(short, inputs):
            found.append([])
            short = inputs = 0
        found[-1].append(piece)
        short += piece[1] < context_length
        inputs += piece[1]
    if len(found) > 1 and not full(2 * short, 2 * inputs):
        rest = found.pop()
        found[-1] += rest
    return found


def pack(pieces: list[tuple[int, int]], context_length: int) -> list[list[tuple[int, int]]]:
    """The rows of a block, each a list of pieces.

    Of pieces of equal length the first comes first; of rows with equal room the one that was
    changed last takes a piece.
    """
    rows: list[list[tuple[int, int]]] = []
    # For each row the room that is left, and when it was changed.
    room: list[tuple[int, int]] = []
    for time, piece in enumerate(sorted(pieces, key=lambda piece: -piece[1])):
        fits = [(left, -changed, row) for row, (left, changed) in enumerate(room)]
        fits = [found for found in fits if found[0] >= piece[1]]
        if fits:
            left, _, row = min(fits)
        else:
            left, row = context_length, len(rows)
            rows.append([])
            room.append((0, 0))
        rows[row].append(piece)
        room[row] = (left - piece[1], time)
    return rows


def epoch(
    packs: list[int],
    context_length: int,
    order: str,
    seed: int,
    number: int,
    window_inputs: int = WINDOW_INPUTS,
) -> list[tuple[int, int]]:
    """(block, row in it) of every row of an epoch in its order; block b has `packs[b]` rows."""
    if order == "sequential":
        return [(block, row) for block, rows in enumerate(packs) for row in range(rows)]
    permuted = [permute(slot, len(packs), key(seed, PACKS, number)) for slot in range(len(packs))]
    found: list[tuple[int, int]] = []
    window: list[tuple[int, int]] = []
    windows = 0
    for slot, block in enumerate(permuted):
        window += [(block, row) for row in range(packs[block])]
        # The last window may be smaller.
        if len(window) * context_length >= window_inputs or slot == len(permuted) - 1:
            inside = key(seed, ROWS, number, windows)
            found += [window[permute(i, len(window), inside)] for i in range(len(window))]
            window, windows = [], windows + 1
    return found


def row(pieces: list[tuple[int, int]], source: int = 0) -> list[Piece]:
    """The pieces of a packed row, each a document of its own for the mask."""
    return [Piece(source, start, length, at) for at, (start, length) in enumerate(pieces)]


def ends(pieces: list[tuple[int, int]], context_length: int, most: int) -> list[int]:
    """Where each piece of a row ends, for kernels that take lengths: `most` pieces and padding."""
    found = list(accumulate(length for _, length in pieces))
    return found + [context_length] * (most + 1 - len(found))
