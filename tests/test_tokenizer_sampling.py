"""Segmentations that are drawn: their distribution, their seeds, and the n best of a text."""

from collections import Counter
from itertools import pairwise, product
from math import exp, inf

import pytest

from tests.support.tokenizer_data import KINDS, TEXTS, TOKENIZERS
from tinylm import Tokenizer, _rust
from tinylm.reference import unigram
from tinylm.tokenizer.models import CharBpe

TEXT = TEXTS[0] + TEXTS[1]
SCORES = {"<unk>": 0.0, "a": -2.0, "b": -2.5, "ab": -3.0, "ba": -2.75, "aba": -4.0}


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=287, kind="unigram")


def chi_squared(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """The statistic divided by its degrees of freedom; 1 on average."""
    total = sum(counts.values())
    assert counts.keys() <= expected.keys()
    terms = ((counts[ids] - total * p) ** 2 / (total * p) for ids, p in expected.items())
    return sum(terms) / (len(expected) - 1)


def shares(alpha: float, n: int | None = None) -> dict[tuple[int, ...], float]:
    """The probability of every segmentation of "ababa", from the definition."""
    named = {token.encode(): score for token, score in SCORES.items()}
    ids = {token: i for i, token in enumerate(named)}
    found = unigram.n_best(b"ababa", named, n or 1000)
    weights = {tuple(unigram.ids_of(b"ababa", path, ids)): exp(alpha * s) for s, path in found}
    return {ids: weight / sum(weights.values()) for ids, weight in weights.items()}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [None, 3])
def test_a_unigram_draws_by_its_probabilities(alpha: float, n: int | None) -> None:
    tokens = {token.encode(): i for i, token in enumerate(SCORES)}
    model = _rust.Model.unigram(list(SCORES.values()), unknown=0)
    core = _rust.Tokenizer(tokens, model, "whole", [])
    draws = (tuple(core.sample("ababa", "text", seed, alpha, n, None)) for seed in range(4000))
    assert chi_squared(Counter(draws), shares(alpha, n)) < 2.5


def all_dropouts(piece: str, p: float) -> dict[tuple[str, ...], float]:
    """The probability of each result for merges ab, (ab)a, ba in this order, by every choice."""
    rank = {("a", "b"): 0, ("ab", "a"): 1, ("b", "a"): 2}
    found: Counter[tuple[str, ...]] = Counter()

    def go(parts: tuple[str, ...], weight: float) -> None:
        due = sorted((rank[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in rank)
        for tried, (_, i) in enumerate(due):
            merged = (*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :])
            go(merged, weight * p**tried * (1 - p))
        found[parts] += weight * p ** len(due)

    go(tuple(piece), 1.0)
    return dict(found)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_has_the_distribution_of_passing_over_each_merge(p: float) -> None:
    tokens = {"a": 0, "b": 1, "ab": 2, "aba": 3, "ba": 4}
    model = CharBpe([(0, 1), (2, 0), (1, 0)], unknown=0).core()
    core = _rust.Tokenizer({t.encode(): i for t, i in tokens.items()}, model, "whole", [])
    draws = (tuple(core.sample("ababa", "text", seed, 1.0, None, p)) for seed in range(4000))
    expected = {tuple(tokens[t] for t in ts): w for ts, w in all_dropouts("ababa", p).items()}
    # Cells of less than 2 expected draws would make the statistic heavy-tailed.
    rare = {ids for ids, weight in expected.items() if weight * 4000 < 2}
    counts = Counter(ids for ids in draws if ids not in rare)
    kept = {ids: weight for ids, weight in expected.items() if ids not in rare}
    total = sum(kept.values())
    assert chi_squared(counts, {ids: w / total for ids, w in kept.items()}) < 2.5


@pytest.mark.parametrize("name", TOKENIZERS)
def test_without_dropout_it_is_encoding_and_with_all_of_it_bytes(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert tokenizer.sample_encode(TEXT, seed=3, dropout=0) == tokenizer.encode(TEXT)
    assert tokenizer.sample_encode(TEXT, seed=3, dropout=1) == [*TEXT.encode()]
    first, again, other = (tokenizer.sample_encode(TEXT, seed=s, dropout=0.2) for s in (3, 3, 4))
    assert first == again != other
    for ids in (first, other):
        assert tokenizer.decode(ids) == TEXT


def test_a_unigram_draws_alike_with_equal_seeds_and_the_best_with_a_high_alpha(
    learned: Tokenizer,
) -> None:
    first, again, other = (learned.sample_encode(TEXT, seed=s, alpha=0.3) for s in (3, 3, 4))
    assert first == again != other
    assert learned.decode(first) == learned.decode(other) == TEXT
    assert learned.sample_encode("The quick", seed=0, alpha=1e4) == learned.encode("The quick")


def test_the_n_best_of_a_text_are_those_of_its_pieces_together(learned: Tokenizer) -> None:
    text = "The quick dog<|endoftext|> x"
    pieces = ["The", " quick", " dog", "<|endoftext|>", " x"]
    parts = [learned.n_best_encode(piece, 6, special="allow") for piece in pieces]
    together = sorted((sum(s for _, s in choice) for choice in product(*parts)), reverse=True)
    found = learned.n_best_encode(text, 6, special="allow")
    assert [score for _, score in found] == pytest.approx(together[:6])
    assert found[0][0] == learned.encode(text, special="allow")
    assert len({tuple(ids) for ids, _ in found}) == 6
    assert {learned.decode(ids) for ids, _ in found} == {text}
    assert learned.n_best_encode("", 4) == [([], 0.0)]


def test_special_tokens_are_never_divided(learned: Tokenizer) -> None:
    text = "a<|endoftext|>b"
    for tokenizer, how in ((learned, {"alpha": 0.0}), (TOKENIZERS["gpt4"], {"dropout": 1.0})):
        ids = tokenizer.sample_encode(text, seed=0, special="allow", **how)
        assert ids == [97, tokenizer.special_tokens["<|endoftext|>"], 98]
        with pytest.raises(ValueError, match="holds the special token"):
            tokenizer.sample_encode(text, seed=0, **how)


def test_what_a_model_cannot_draw_is_refused_by_name(learned: Tokenizer) -> None:
    bpe = TOKENIZERS["gpt4"]
    for wrong, message in (
        (lambda: learned.sample_encode("a", seed=0, dropout=0.1), "pass alpha"),
        (lambda: bpe.sample_encode("a", seed=0), "pass dropout"),
        (lambda: bpe.n_best_encode("a", 2), "n_best is for Unigram"),
        (lambda: KINDS["whitespace"].sample_encode("a", seed=0, dropout=0.1), "has none"),
        (lambda: bpe.sample_encode("a", seed=0, dropout=1.5), r"dropout 1\.5 must be from 0 to 1"),
        (lambda: bpe.sample_encode("a", seed=0, dropout=float("nan")), "dropout NaN"),
        (lambda: learned.sample_encode("a", seed=0, alpha=-1), "alpha -1 must be"),
        (lambda: learned.sample_encode("a", seed=0, alpha=inf), "alpha inf must be"),
        (lambda: learned.n_best_encode("a", 0), "n_best 0 must be from 1 to 1024"),
        (lambda: learned.sample_encode("a", seed=-1), "seed -1"),
        (lambda: bpe.sample_encode("a", seed=0, alpha=1, dropout=0.1), "pass one of both"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    word_piece = _rust.Tokenizer({b"[UNK]": 0}, _rust.Model.wordpiece(unknown=0), "whole", [])
    with pytest.raises(ValueError, match="WordPiece has no merges"):
        word_piece.sample("a", "text", 0, 1.0, None, 0.1)
    with pytest.raises(ValueError, match="WordPiece has neither"):
        word_piece.sample("a", "text", 0, 1.0, None, None)
