"""Other segmentations than the best: drawn ones, the n best, and those of rounded sums."""

from collections.abc import Callable

from hypothesis import strategies as st

from tests.rungs.models import MARK, char_bpe_model, frequent, merges, scored, unigrams
from tests.rungs.rung import rust_rung
from tests.support.strategies import assigned_text, runs
from tests.support.tokenizer_data import TOKENIZERS, standard_library
from tinylm import _rust
from tinylm.reference import byte_bpe, char_bpe, order, patterns, unigram

seeds = st.integers(0, 2**64 - 1)
halves = st.sampled_from([0.0, 0.3, 1.0, 2.5])
chances = st.sampled_from([0.05, 0.3, 0.7, 0.97, 1.0])


def draws(seed: int) -> Callable[[], float]:
    """The numbers in [0, 1) of a seed, as Rust draws them."""
    counter = iter(range(2**64))
    return lambda: order.unit(order.draw(seed, next(counter)))


# Unigram


def own(scores):
    """The tokens with their scores, and their ids."""
    named = {token.encode(): score for token, score in scores.items()}
    return named, {token: i for i, token in enumerate(named)}


def core_of(scores, has_bytes):
    model = _rust.Model.unigram(list(scores.values()), unknown=0, byte_fallback=has_bytes)
    return _rust.Tokenizer(own(scores)[1], model, "whole", [])


def n_best_slow(piece, scores, has_bytes, n):
    named, ids = own(scores)
    found = unigram.n_best(piece.encode(), named, n)
    return [(s, unigram.ids_of(piece.encode(), path, ids, 0, has_bytes)) for s, path in found]


def n_best_fast(piece, scores, has_bytes, n):
    return core_of(scores, has_bytes).n_best(piece, n, "text")


def sample_slow(piece, scores, has_bytes, alpha, seed):
    named, ids = own(scores)
    path = unigram.sample(piece.encode(), named, alpha, draws(seed))
    return unigram.ids_of(piece.encode(), path, ids, 0, has_bytes)


def sample_fast(piece, scores, has_bytes, alpha, seed):
    return core_of(scores, has_bytes).sample(piece, "text", seed, alpha, None, None)


@st.composite
def lines(draw):
    """A text of words behind marks, and tokens in float32 that do not go on after a mark."""
    tenths = st.integers(-90, -10).map(lambda tenth: unigram.float32(tenth / 10))
    inside = st.text("ab", min_size=1, max_size=4)
    tokens = st.dictionaries(inside | inside.map(MARK.__add__), tenths, max_size=12)
    scores = {"<unk>": 0.0, MARK: -2.0, "a": -3.5, **draw(tokens)}
    words = draw(st.lists(st.text("aab\xe9", min_size=1, max_size=12), min_size=1, max_size=12))
    return "".join(MARK + word for word in words * draw(st.sampled_from([1, 1, 7]))), scores


def lines_slow(text, scores):
    ids = {token.encode(): i for i, token in enumerate(scores)}
    own = {token.encode(): score for token, score in scores.items()}
    return unigram.ids_of(text.encode(), unigram.viterbi_float32(text.encode(), own), ids, 0)


def lines_fast(text, scores):
    model = _rust.Model.unigram(list(scores.values()), unknown=0, float32=True)
    tokens = {token.encode(): i for i, token in enumerate(scores)}
    tokenizer = _rust.Tokenizer(tokens, model, "marks", [])
    first = tokenizer.encode(text, "text")
    # The second time most words come from the cache, and behind another text.
    assert tokenizer.encode(text, "text") == first
    return first


# BPE


def dropout_slow(text, name, p, seed):
    tokens = TOKENIZERS[name].vocab
    own = [tokens[id] for id in sorted(tokens)]
    place = {token: id for id, token in enumerate(own)}
    pairs = [(place[left], place[right]) for left, right in TOKENIZERS[name].merges]
    draw = draws(seed)
    ids = []
    for piece in patterns.split(text, name):
        ids += byte_bpe.encode(piece.encode(), pairs, own, lambda: draw() < p)
    return ids


def dropout_fast(text, name, p, seed):
    return TOKENIZERS[name].sample_encode(text, seed=seed, dropout=p, special="text")


def char_dropout_slow(piece, tokens, pairs, more, p, seed):
    draw = draws(seed)
    rank = {pair: r for r, pair in enumerate(pairs)}
    symbols = char_bpe.symbols(piece, tokens, **more)
    merged = char_bpe.merge_all(symbols, rank, lambda: draw() < p, more["prefix"])
    return [tokens[token] for token in merged]


def char_dropout_fast(piece, tokens, pairs, more, p, seed):
    model = char_bpe_model(tokens, pairs, more)
    spelled = {token.encode(): id for token, id in tokens.items()}
    return _rust.Tokenizer(spelled, model, "whole", []).sample(piece, "text", seed, 1.0, None, p)


def scored_dropout_slow(piece, scores, p, seed):
    draw = draws(seed)
    tokens = {token: i for i, token in enumerate(scores)}
    ranks = char_bpe.ranks_of_scores(scores)
    merged = char_bpe.merge_all(char_bpe.symbols(piece, tokens), ranks, lambda: draw() < p)
    return [tokens[token] for token in merged]


def scored_dropout_fast(piece, scores, p, seed):
    model = _rust.Model.char_bpe(None, scores=list(scores.values()))
    spelled = {token.encode(): i for i, token in enumerate(scores)}
    return _rust.Tokenizer(spelled, model, "whole", []).sample(piece, "text", seed, 1.0, None, p)


def joined(strategy, *more):
    """Cases of a strategy with more values behind each."""
    return st.tuples(strategy, *more).map(lambda parts: (*parts[0], *parts[1:]))


RUNGS = (
    rust_rung(
        "unigram float32",
        lines_slow,
        lines_fast,
        lines(),
        lambda: (MARK + frequent()[0], frequent()[1]),
    ),
    rust_rung(
        "unigram n best",
        n_best_slow,
        n_best_fast,
        joined(unigrams(), st.integers(1, 9)),
        lambda: (*frequent(), False, 8),
        covers=("Tokenizer.n_best",),
    ),
    rust_rung(
        "unigram sample",
        sample_slow,
        sample_fast,
        joined(unigrams(), halves, seeds),
        lambda: (*frequent(), False, 0.5, 7),
        covers=("Tokenizer.sample",),
    ),
    rust_rung(
        "bpe dropout",
        dropout_slow,
        dropout_fast,
        st.tuples(
            assigned_text() | runs() | st.text("ab ", max_size=60),
            st.sampled_from([*TOKENIZERS]),
            chances,
            seeds,
        ),
        lambda: (standard_library(2)[:20_000], "gpt4", 0.1, 7),
        cost=4,
    ),
    rust_rung(
        "char bpe dropout",
        char_dropout_slow,
        char_dropout_fast,
        joined(merges(), chances, seeds),
        lambda: (
            *("abab" * 100, {"a": 0, "b": 1, "ab": 2, "abab": 3, "<unk>": 4}),
            [("a", "b"), ("ab", "ab")],
            {"unknown": None, "fuse": False, "byte_fallback": False, "prefix": "", "suffix": ""},
            *(0.1, 7),
        ),
    ),
    rust_rung(
        "char bpe dropout by scores",
        scored_dropout_slow,
        scored_dropout_fast,
        joined(scored(), chances, seeds),
        lambda: ("abab" * 100, {"a": -9.0, "b": -9.0, "ab": -1.0, "abab": -2.0}, 0.1, 7),
    ),
)
