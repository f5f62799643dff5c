"""Rungs of choosing a token: each step of the chain, from lists to tensors."""

import itertools
import math

import torch
from hypothesis import strategies as st

from tests.rungs.rung import Rung
from tinylm.reference import choice
from tinylm.sample import beams, logits, logprobs, nucleus, restrictions

NEVER = -math.inf
# Halves make ties likely; a few tokens cannot be drawn, and one can.
LOGIT = st.integers(-12, 12).map(lambda n: n / 2)
ROW = st.builds(
    lambda row, gaps: [NEVER if i in gaps else x for i, x in enumerate(row)],
    st.lists(LOGIT, min_size=1, max_size=12),
    st.sets(st.integers(1, 11), max_size=3),
)
IDS = st.sets(st.integers(0, 11), max_size=4)
COUNTS = st.lists(st.integers(0, 3), min_size=12, max_size=12)
SHARES = st.floats(0.01, 1)
LONG = torch.randn(32_000, generator=torch.Generator().manual_seed(0)).mul(2).tolist()


def tensor(row, dtype=torch.float32):
    return torch.tensor([row], dtype=dtype)


def step(function):
    """A step of the chain on a list."""
    return lambda row, *rest: function(tensor(row), *rest)[0].tolist()


def filtered(function, dtype=torch.float32):
    """The logits after a filter, which says what goes."""

    def keep(row, *rest):
        logits = tensor(row, dtype)
        return logits.masked_fill(function(logits, *rest), NEVER)[0].tolist()

    return keep


def on_a_gpu(keys, p):
    ordered, ids = keys.sort(dim=-1, descending=True)
    weights = keys.softmax(-1).gather(-1, ids)
    return nucleus.below(keys, *nucleus.by_sorting(ordered, weights, p))


def marks(row, ids):
    return torch.tensor([[i in ids for i in range(len(row))]])


def near(slow, fast):
    """Equal but for rounding in float32; infinities in the same places."""
    return all(
        a == b or (math.isfinite(a) and abs(a - b) <= 1e-5 * (1 + abs(a)))
        for a, b in zip(slow, fast, strict=True)
    )


def kept(row):
    return [i for i, x in enumerate(row) if x > NEVER]


def same_tokens(slow, fast):
    return kept(slow) == kept(fast)


def clear(row, p):
    """Whether no sum of likely tokens is p but for rounding."""
    reached = 0.0
    for share in sorted(choice.softmax(row), reverse=True):
        reached += share
        if abs(reached - p) < 1e-5:
            return False
    return True


def typical_is_clear(row, p):
    """The same for `typical_p`: neither the sums nor the order hang on rounding."""
    shares = [x for x in choice.softmax(row) if x > 0]
    entropy = -sum(x * math.log(x) for x in shares)
    strange = sorted((abs(entropy + math.log(x)), x) for x in shares)
    pairs = itertools.pairwise(strange)
    if any(0 < b[0] - a[0] < 1e-5 or (b[0] == a[0] and b[1] != a[1]) for a, b in pairs):
        return False
    reached = 0.0
    for _, share in strange:
        reached += share
        if abs(reached - p) < 1e-5:
            return False
    return True


def draw(row, number, tokens=None):
    """The draw; with `tokens`, as of a large vocabulary in stretches of so many tokens."""
    numbers = torch.tensor([number], dtype=torch.float64)
    before = logits.LARGE, logits.TOKENS
    if tokens is not None:
        logits.LARGE, logits.TOKENS = 0, tokens
    try:
        return int(logits.draw(tensor(row), numbers))
    finally:
        logits.LARGE, logits.TOKENS = before


def clear_draw(case):
    """A number that is not a bound between two tokens but for rounding."""
    row, number = case
    reached = 0.0
    for share in choice.softmax(row):
        reached += share
        if abs(reached - number) < 1e-5:
            return False
    return True


def allowed_by_rules(row, ids):
    return restrictions.allowed_token_ids(tensor(row), ids)[0].tolist()


VOCAB = {i: bytes(word, "ascii") for i, word in enumerate(("a", "b", "ab", "ba", "aab", "bb"))}


class Letters:
    """A tokenizer of a few short tokens."""

    vocab = VOCAB


def forbidden_words(text, words):
    found = restrictions.Words(words, Letters(), len(VOCAB))
    return found.never | found.after(text)


def forbidden_by_definition(text, words):
    data = b"".join(VOCAB[id] for id in text)
    return choice.bad_words(data, [word.encode() for word in words], VOCAB)


def tokens_of(row, n):
    """Log-probability of each id, the ids of the n likeliest, and the rank of each."""
    found = logprobs.of_tokens(tensor(row).expand(len(row), -1), [*range(len(row))], n)
    assert [f.id for f in found] == [*range(len(row))]
    return (
        [f.logprob for f in found],
        [id for id, _ in found[0].top],
        [f.rank for f in found],
    )


def tokens_by_definition(row, n):
    logs, ids = choice.logprobs(row, n)
    order = choice.logprobs(row, len(row))[1]
    return (
        logs,
        [id for id in ids if row[id] > NEVER],
        [order.index(i) + 1 for i in range(len(row))],
    )


def same_logprobs(slow, fast):
    return near(slow[0], fast[0]) and slow[1:] == fast[1:]


def best_of(scores, count):
    """The candidates of a step of a beam search, by sorting all."""
    every = [(b, id, x) for b, row in enumerate(scores) for id, x in enumerate(row) if x > NEVER]
    return sorted(every, key=lambda found: -found[2])[:count]


def rung(name, slow, fast, inputs, example, same=near):
    return Rung(name, "tensors", ("lists", "sample"), slow, fast, inputs, example, same=same)


RUNGS = (
    rung(
        "logit_bias",
        choice.logit_bias,
        step(restrictions.logit_bias),
        ROW.flatmap(
            lambda row: st.tuples(
                st.just(row), st.dictionaries(st.integers(0, len(row) - 1), LOGIT, max_size=4)
            )
        ),
        lambda: (LONG, dict.fromkeys(range(100), 2.0)),
    ),
    rung(
        "allowed_token_ids",
        choice.allowed_token_ids,
        allowed_by_rules,
        ROW.flatmap(lambda row: st.tuples(st.just(row), st.sets(st.integers(0, len(row) - 1)))),
        lambda: (LONG, range(1000)),
    ),
    rung(
        "bad_words_ids",
        choice.bad_words_ids,
        restrictions.bad_words_ids,
        st.tuples(
            st.lists(st.integers(0, 2), max_size=6),
            st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=4),
        ),
        lambda: ([1, 2] * 500, [[1, 2, 3]] * 100),
        same=set.__eq__,
    ),
    rung(
        "bad_words",
        forbidden_by_definition,
        forbidden_words,
        st.tuples(
            st.lists(st.integers(0, len(VOCAB) - 1), max_size=5),
            st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
        ),
        lambda: ([0, 1, 2, 3] * 100, ["abab", "bbb"]),
        same=set.__eq__,
    ),
    rung(
        "repetition_penalty",
        choice.repetition_penalty,
        lambda row, ids, x: logits.repetition_penalty(tensor(row), marks(row, ids), x)[0].tolist(),
        st.tuples(ROW, IDS, st.floats(0.1, 10)),
        lambda: (LONG, {*range(500)}, 1.3),
    ),
    *(
        rung(
            name,
            lambda row, counts, x, slow=slow: slow(row, counts[: len(row)], x),
            lambda row, counts, x, fast=fast: fast(tensor(row), tensor(counts[: len(row)]), x)[
                0
            ].tolist(),
            st.tuples(ROW, COUNTS, st.floats(-2, 2)),
            lambda: (LONG, [1, 0] * 16_000, 0.3),
        )
        for name, slow, fast in (
            ("frequency_penalty", choice.frequency_penalty, logits.frequency_penalty),
            ("presence_penalty", choice.presence_penalty, logits.presence_penalty),
        )
    ),
    rung(
        "temperature",
        choice.temperature,
        step(logits.temperature),
        st.tuples(ROW, st.floats(0.05, 20)),
        lambda: (LONG[:2000], 0.8),
    ),
    rung(
        "top_k",
        choice.top_k,
        filtered(logits.top_k),
        st.tuples(ROW, st.integers(1, 14)),
        lambda: (LONG, 50),
        same=same_tokens,
    ),
    rung(
        "top_p",
        choice.top_p,
        filtered(logits.top_p),
        st.tuples(ROW, SHARES).filter(lambda case: clear(*case)),
        lambda: (LONG, 0.9),
        same=same_tokens,
    ),
    rung(
        "top_p on a GPU",
        choice.top_p,
        filtered(on_a_gpu),
        st.tuples(ROW, st.floats(0.01, 0.99)).filter(lambda case: clear(*case)),
        lambda: (LONG, 0.9),
        same=same_tokens,
    ),
    rung(
        "min_p",
        choice.min_p,
        filtered(logits.min_p, torch.float64),
        st.tuples(ROW, SHARES),
        lambda: (LONG, 0.05),
        same=same_tokens,
    ),
    rung(
        "typical_p",
        choice.typical_p,
        filtered(logits.typical_p),
        st.tuples(ROW, SHARES).filter(lambda case: typical_is_clear(*case)),
        lambda: (LONG, 0.9),
        same=same_tokens,
    ),
    rung(
        "draw",
        choice.draw,
        draw,
        st.tuples(ROW, st.floats(0, 1, exclude_max=True)).filter(clear_draw),
        lambda: (LONG, 0.4),
        same=int.__eq__,
    ),
    rung(
        "draw of a large vocabulary",
        lambda row, number, _: choice.draw(row, number),
        draw,
        st.tuples(ROW, st.floats(0, 1, exclude_max=True), st.integers(1, 5)).filter(
            lambda case: clear_draw(case[:2])
        ),
        lambda: (LONG, 0.4, 128),
        same=int.__eq__,
    ),
    rung(
        "greedy",
        choice.greedy,
        lambda row: int(logits.greedy(tensor(row))),
        st.tuples(ROW),
        lambda: (LONG,),
        same=int.__eq__,
    ),
    rung(
        "logprobs",
        tokens_by_definition,
        tokens_of,
        st.tuples(ROW, st.integers(0, 14)),
        lambda: (LONG[:500], 20),
        same=same_logprobs,
    ),
    rung(
        "candidates of beams",
        best_of,
        lambda scores, n: beams.best(torch.tensor(scores, dtype=torch.float64), n),
        st.integers(1, 4).flatmap(
            lambda width: st.tuples(
                st.lists(st.lists(LOGIT, min_size=width, max_size=width), min_size=1, max_size=3),
                st.integers(1, 15),
            )
        ),
        lambda: ([LONG[:8000]] * 4, 8),
        same=list.__eq__,
    ),
)
