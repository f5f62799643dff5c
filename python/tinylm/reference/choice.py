"""Choosing a token, in plain lists: what of the logits of one text may be drawn, and the draw.

A row is the list of the logits of one text; -inf is a token that cannot be drawn.
"""

import math
from collections.abc import Callable, Iterable, Sequence

Row = list[float]
NEVER = -math.inf


def softmax(row: Row) -> Row:
    """The probabilities of a row."""
    largest = max(row)
    weights = [math.exp(x - largest) for x in row]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def logit_bias(row: Row, bias: dict[int, float]) -> Row:
    """logit + bias of the token. Source: OpenAI's API."""
    return [x + bias.get(id, 0.0) for id, x in enumerate(row)]


def allowed_token_ids(row: Row, allowed: Iterable[int]) -> Row:
    """The logits of the allowed tokens, all others -inf. Source: vLLM's SamplingParams."""
    kept = {*allowed}
    return [x if id in kept else NEVER for id, x in enumerate(row)]


def min_tokens(row: Row, drawn: int, least: int, ends: Iterable[int]) -> Row:
    """The tokens that end a text get -inf until `least` tokens are drawn. Source: vLLM."""
    late = {*ends} if drawn < least else set()
    return [NEVER if id in late else x for id, x in enumerate(row)]


def bad_words_ids(text: Sequence[int], sequences: Iterable[Sequence[int]]) -> set[int]:
    """The ids with which `text` would end in one of the sequences. Source: transformers."""
    return {s[-1] for s in sequences if [*text][len(text) - len(s) + 1 :] == [*s][:-1]}


def bad_words(text: bytes, words: Iterable[bytes], vocab: dict[int, bytes]) -> set[int]:
    """The ids in whose bytes a word would end, wherever in the text it began."""
    return {
        id
        for id, token in vocab.items()
        for word in words
        # A word that ends in the token begins at most its length before the token's first byte.
        if word in (text + token)[max(0, len(text) - len(word) + 1) :]
    }


def repetition_penalty(row: Row, seen: set[int], penalty: float) -> Row:
    """A seen token's logit divided by the penalty if positive, else multiplied (CTRL, 2019)."""
    weakened = [x / penalty if x > 0 else x * penalty for x in row]
    return [weakened[id] if id in seen else x for id, x in enumerate(row)]


def frequency_penalty(row: Row, counts: Sequence[int], penalty: float) -> Row:
    """logit - penalty * count. Source: OpenAI's API."""
    return [x - penalty * n for x, n in zip(row, counts, strict=True)]


def presence_penalty(row: Row, counts: Sequence[int], penalty: float) -> Row:
    """logit - penalty where the count is not 0. Source: OpenAI's API."""
    return [x - penalty if n else x for x, n in zip(row, counts, strict=True)]


def temperature(row: Row, value: float) -> Row:
    """logit / temperature, less the largest."""
    return [(x - max(row)) / value for x in row]


def top_k(row: Row, k: int) -> Row:
    """The k largest logits, of equal ones the smaller ids (Fan et al. 2018, section 5.4)."""
    kept = {*_likeliest(row)[:k]}
    return allowed_token_ids(row, kept)


def top_p(row: Row, p: float) -> Row:
    """The fewest likeliest tokens that reach p together (Holtzman et al. 2020, section 3.1)."""
    return row if p >= 1 else allowed_token_ids(row, _reach(softmax(row), _likeliest(row), p))


def min_p(row: Row, share: float) -> Row:
    """The tokens at least `share` times as likely as the likeliest (Nguyen et al. 2024)."""
    floor = max(row) + math.log(share)
    return [x if x >= floor else NEVER for x in row]


def typical_p(row: Row, p: float) -> Row:
    """The fewest tokens that reach p together, the most typical ones first, then smaller ids.

    A token is the more typical the closer -log of its probability is to the entropy.
    Source: Meister et al. 2022, section 3.2.
    """
    shares = softmax(row)
    entropy = -math.fsum(x * math.log(x) for x in shares if x > 0)
    strangeness = [abs(entropy + math.log(x)) if x > 0 else math.inf for x in shares]
    order = sorted(range(len(row)), key=lambda id: (strangeness[id], id))
    return row if p >= 1 else allowed_token_ids(row, _reach(shares, order, p))


def draw(row: Row, number: float) -> int:
    """The first id whose cumulative probability exceeds a number in [0, 1)."""
    reached, last = 0.0, 0
    for id, share in enumerate(softmax(row)):
        if share > 0:
            reached, last = reached + share, id
            if reached > number:
                return id
    return last


def greedy(row: Row) -> int:
    """The likeliest id, the smallest of equal ones."""
    return _likeliest(row)[0]


def logprobs(row: Row, n: int) -> tuple[Row, list[int]]:
    """The logarithms of the probabilities, and the ids of the n largest."""
    largest = max(row)
    total = math.log(math.fsum(math.exp(x - largest) for x in row))
    return [x - largest - total for x in row], _likeliest(row)[:n]


def beam_search(
    step: Callable[[list[int]], Row],
    num_beams: int,
    ends: set[int],
    max_tokens: int,
    length_penalty: float,
) -> list[tuple[list[int], float]]:
    """The best `num_beams` continuations and their scores, best first.

    `step` returns the log-probabilities after a continuation. A score is the sum of a
    continuation's log-probabilities / its length ** length_penalty; the token of `ends` that ends
    it counts, though it is not part of it. Of each step's candidates the best 2 * num_beams are
    looked at, the ended ones among the first num_beams are finished, and the first num_beams
    others go on. Source: Wu et al. 2016, section 7, with the score of transformers.
    """
    live: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[tuple[list[int], float]] = []
    for length in range(1, max_tokens + 1):
        every = [(text, id, total + x) for text, total in live for id, x in enumerate(step(text))]
        best = sorted((c for c in every if c[2] > NEVER), key=lambda c: -c[2])[: 2 * num_beams]
        live = [([*text, id], total) for text, id, total in best if id not in ends][:num_beams]
        finished += [
            (text, total / length**length_penalty)
            for text, id, total in best[:num_beams]
            if id in ends
        ]
    finished += [(text, total / max_tokens**length_penalty) for text, total in live]
    return sorted(finished, key=lambda found: -found[1])[:num_beams]


def _likeliest(row: Row) -> list[int]:
    """The ids by falling logits, equal ones by rising ids."""
    return sorted(range(len(row)), key=lambda id: (-row[id], id))


def _reach(shares: Row, order: Sequence[int], p: float) -> set[int]:
    """The first ids of an order that reach p together; the one that crosses p belongs to them."""
    kept, reached = set(), 0.0
    for id in order:
        if reached >= p:
            break
        kept.add(id)
        reached += shares[id]
    return kept
