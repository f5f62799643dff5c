"""Speculation: lists of probabilities against tensors, a search against a table of places."""

import random

import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung
from tinylm.layers.exits import Exits
from tinylm.reference import speculation as slow
from tinylm.sample.exits import confident
from tinylm.sample.lookup import Copies
from tinylm.sample.speculation import judge

# Probabilities are parts of PARTS and random numbers odd parts of 2 * 127: no sum of the former
# meets a product with the latter, so that rounding decides nothing.
PARTS, STEPS = 64, 127


def distribution(drawn, size):
    """A distribution over `size` tokens in whole parts, most of them 0 if there are many."""
    cuts = sorted(drawn.randrange(PARTS + 1) for _ in range(size - 1))
    return [(b - a) / PARTS for a, b in zip([0, *cuts], [*cuts, PARTS], strict=True)]


def number(drawn):
    return (2 * drawn.randrange(STEPS) + 1) / (2 * STEPS)


def rows(seed, size, count):
    """Some rows of p, q, a guess that q allows, and two numbers; every third row has no guess."""
    drawn = random.Random(seed)
    for row in range(count):
        p, q = distribution(drawn, size), distribution(drawn, size)
        guess = slow.choose(q, number(drawn))
        yield p, None if row % 3 == 2 else q, guess, number(drawn), number(drawn)


def judge_slowly(seed, size, count):
    return [slow.judge(*row) for row in rows(seed, size, count)]


def judge_quickly(seed, size, count):
    p, q, guesses, keep, numbers = zip(*rows(seed, size, count), strict=True)
    q = [[0.0] * size if row is None else row for row in q]
    reals = [torch.tensor(x, dtype=torch.float64) for x in (p, q, keep, numbers)]
    return judge(*reals[:2], torch.tensor(guesses), *reals[2:]).tolist()


def copied_slowly(texts, count):
    return [slow.lookup(text, count) for text in texts]


def copied_quickly(texts, count):
    """The table grows with the texts, in two halves."""
    copies = Copies([text[:1] for text in texts])
    copies.take([text[1 : len(text) // 2] for text in texts])
    copies.take([text[max(1, len(text) // 2) :] for text in texts])
    return copies.propose([count] * len(texts)).tokens


def exits_slowly(batch, length, exits):
    return [slow.exit_of(place, exits) for place in range(length)] * batch


def exits_quickly(batch, length, exits):
    """The number of the block that each token's vector comes from."""
    left = Exits(torch.full((batch, length, 1), -1), exits)
    for layer in range(exits + 1):
        left.add(layer, torch.full((batch, length, 1), layer))
    return left.x.flatten().tolist()


def rows_of_exits(seed, size, count):
    """Some distributions, and a confidence that none of their probabilities is."""
    drawn = random.Random(seed)
    found = [distribution(drawn, size) for _ in range(count)]
    return found, (2 * drawn.randrange(PARTS // 4, PARTS) + 1) / (2 * PARTS)


def confident_slowly(seed, size, count):
    found, least = rows_of_exits(seed, size, count)
    return [slow.leaves_early(p, least) for p in found]


def confident_quickly(seed, size, count):
    found, least = rows_of_exits(seed, size, count)
    # Logits of any height.
    logits = torch.tensor(found, dtype=torch.float64).log() + 7.0
    return confident(logits, least).tolist()


def text(seed):
    drawn = random.Random(seed)
    return [drawn.randrange(50) for _ in range(400)]


RUNGS = (
    Rung(
        "kept guesses",
        "tensors",
        ("lists", "tensors"),
        judge_slowly,
        judge_quickly,
        st.tuples(SEEDS, st.integers(1, 9), st.integers(1, 6)),
        example=lambda: (0, 2048, 64),
    ),
    Rung(
        "guesses copied from the text",
        "lists",
        ("lists", "tables"),
        copied_slowly,
        copied_quickly,
        st.tuples(
            st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), min_size=1, max_size=3),
            st.integers(1, 6),
        ),
        example=lambda: ([text(seed) for seed in range(4)], 10),
    ),
    Rung(
        "confident exits",
        "tensors",
        ("lists", "tensors"),
        confident_slowly,
        confident_quickly,
        st.tuples(SEEDS, st.integers(1, 9), st.integers(1, 6)),
        example=lambda: (0, 2048, 64),
    ),
    Rung(
        "exits of the tokens",
        "tensors",
        ("lists", "tensors"),
        exits_slowly,
        exits_quickly,
        st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 12)),
        example=lambda: (16, 256, 11),
    ),
)
