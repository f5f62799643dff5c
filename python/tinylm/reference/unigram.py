"""Unigram: a text is cut into the tokens that are most probable together.

Every token t has a log probability score(t), and a segmentation is as probable as the product of
its tokens. `encode` finds the best one (Viterbi), `n_best` the n best, `sample` draws one:

    best[end]  = max over tokens t that end there of  best[start] + score(t)
    alpha[end] = log sum over them of             exp(alpha[start] + score(t))

Training begins with far too many tokens. EM fits their probabilities: the E step counts how often
each is expected, the M step takes those counts as probabilities. `losses` says what the corpus
loses without a token, and those that cost least go, until the vocabulary is small enough.

Kudo 2018, arXiv:1804.10959. Quadratic in the piece for `encode`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import exp, inf, log
from struct import pack, unpack

# The longest token has this many characters; sentencepiece's default.
LONGEST = 16
# Each round fits twice and keeps three quarters of the tokens, until there are few enough.
FITS, KEPT = 2, 0.75
# The last round leaves this many times the tokens asked for; the most probable of them stay.
SPARE = 1.1
# Tokens that are expected less often go.
LEAST = 0.5
# Numbers that differ by less are taken for equal, so that rounding decides nothing.
SLACK = 1e-9
# An unknown character scores this much less than the rarest token; sentencepiece's number.
PENALTY = 10.0
Scores = dict[bytes, float]
# Some tokens in a row, as (start, end, whether it is a token).
Path = list[tuple[int, int, bool]]


def characters(piece: bytes) -> list[int]:
    """Where each character of `piece` ends; a byte that is not UTF-8 is one."""
    ends, at = [], 0
    while at < len(piece):
        for width in (1, 2, 3, 4):
            try:
                found = len(piece[at : at + width].decode()) == 1
            except UnicodeDecodeError:
                found = False
            if found:
                break
        else:
            width = 1
        at += width
        ends.append(at)
    return ends


def edges(piece: bytes, scores: Scores) -> list[tuple[int, int, float, bool]]:
    """All tokens in `piece` as (start, end, score, True), by start and then end.

    Tokens begin at characters. Where no token is just the character, it is unknown: (..., False).
    If all 256 bytes are tokens, every byte counts as a character.
    """
    over_bytes = all(bytes([byte]) in scores for byte in range(256))
    ends = list(range(1, len(piece) + 1)) if over_bytes else characters(piece)
    unknown = min(scores.values(), default=0.0) - PENALTY
    found = []
    for start, character in zip([0, *ends], ends, strict=False):
        tokens = ((end, piece[start:end]) for end in range(start + 1, len(piece) + 1))
        found += [(start, end, scores[t], True) for end, t in tokens if t in scores]
        if piece[start:character] not in scores:
            found.append((start, character, unknown, False))
    return found


def viterbi(piece: bytes, scores: Scores, slack: float = 0.0) -> Path:
    """The best segmentation; of equal ones that whose last token is the longest, and so on.

    Sums that differ by no more than `slack` are equal.
    """
    best: dict[int, tuple[float, int, bool]] = {0: (0.0, 0, True)}
    for start, end, score, known in edges(piece, scores):
        total = best[start][0] + score
        if end not in best or total > best[end][0] + slack:
            best[end] = (total, start, known)
    return _path(best, len(piece))


def _path(best: dict[int, tuple[float, int, bool]], end: int) -> Path:
    """The way back from `end` through the best tokens that end at each place, the first first."""
    path = []
    while end > 0:
        _, start, known = best[end]
        path.append((start, end, known))
        end = start
    return path[::-1]


def viterbi_float32(piece: bytes, scores: Scores) -> Path:
    """`viterbi` with the sums of sentencepiece: each is rounded to float32.

    So the rounding decides between nearly equal segmentations, and `piece` must be the whole text.
    """
    best: dict[int, tuple[float, int, bool]] = {0: (0.0, 0, True)}
    for start, end, score, known in edges(piece, scores):
        total = float32(best[start][0] + (score if known else float32(score)))
        if end not in best or total > best[end][0]:
            best[end] = (total, start, known)
    return _path(best, len(piece))


def float32(x: float) -> float:
    """The nearest number of 32 bits."""
    return float(unpack("<f", pack("<f", x))[0])


def ids_of(
    piece: bytes,
    path: Path,
    ids: dict[bytes, int],
    unknown: int | None = None,
    byte_fallback: bool = False,
) -> list[int]:
    """The ids of a segmentation. Unknown neighbours are one: `unknown`, or the tokens `<0x00>` to
    `<0xFF>` of their bytes if the vocabulary has all of those."""
    found: list[int] = []
    stretch = b""
    for start, end, known in [*path, (len(piece), len(piece), True)]:
        if not known:
            stretch += piece[start:end]
            continue
        if stretch:
            named = [b"<0x%02X>" % byte for byte in stretch]
            if byte_fallback and all(name in ids for name in named):
                found += [ids[name] for name in named]
            elif unknown is not None:
                found.append(unknown)
        stretch = b""
        if start < end:
            found.append(ids[piece[start:end]])
    return found


def encode(
    piece: bytes,
    scores: Scores,
    ids: dict[bytes, int],
    unknown: int | None = None,
    byte_fallback: bool = False,
) -> list[int]:
    """The ids of the best segmentation of `piece`."""
    return ids_of(piece, viterbi(piece, scores), ids, unknown, byte_fallback)


def n_best(piece: bytes, scores: Scores, n: int) -> list[tuple[float, Path]]:
    """The `n` best segmentations with their scores, the best first.

    Each place keeps its `n` best; of equal ones that whose last token begins first comes first.
    """
    best: defaultdict[int, list[tuple[float, Path]]] = defaultdict(list)
    best[0] = [(0.0, [])]
    for start, end, score, known in edges(piece, scores):
        # Everything that ends at `start` has been seen. Sorting is stable.
        best[start] = sorted(best[start], key=lambda found: -found[0])[:n]
        best[end] += [(total + score, [*path, (start, end, known)]) for total, path in best[start]]
    return sorted(best[len(piece)], key=lambda found: -found[0])[:n]


def forward(piece: bytes, scores: Scores, theta: float = 1.0) -> list[float]:
    """alpha[i]: the log of the summed weights of all segmentations of the first i bytes.

    The weight of a token is exp(theta * score); a place that no token ends at has -inf.
    """
    alpha = [-inf] * (len(piece) + 1)
    alpha[0] = 0.0
    for start, end, score, _ in edges(piece, scores):
        alpha[end] = log_add(alpha[end], alpha[start] + theta * score)
    return alpha


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high if low == -inf else high + log(1 + exp(low - high))


def sample(piece: bytes, scores: Scores, theta: float, draw: Callable[[], float]) -> Path:
    """A segmentation drawn with a probability proportional to exp(theta * its score).

    From the right, with one number of `draw()` in [0, 1) per token: a token that ends at a place is
    chosen with exp(alpha[start] + theta * score - alpha[end]). theta -> infinity gives the best.
    """
    alpha = forward(piece, scores, theta)
    found = edges(piece, scores)
    path: Path = []
    end = len(piece)
    while end > 0:
        left = draw()
        for edge in (edge for edge in found if edge[1] == end):
            # If rounding leaves a little at the end, it is the last one.
            start, _, score, known = edge
            left -= exp(alpha[start] + theta * score - alpha[end])
            if left < 0:
                break
        path.append((start, end, known))
        end = start
    return path[::-1]


def e_step(words: dict[bytes, int], scores: Scores) -> tuple[dict[bytes, float], float]:
    """How often each token is expected in `words`, and the log likelihood of those.

    A token's expected count in a word is the share of the segmentations that have it, by weight:
    exp(alpha[start] + score + beta[end] - alpha[all]). All characters of the words are tokens.
    """
    expected = dict.fromkeys(scores, 0.0)
    likelihood = 0.0
    for word, count in words.items():
        found = edges(word, scores)
        alpha = forward(word, scores)
        beta = [-inf] * (len(word) + 1)
        beta[len(word)] = 0.0
        for start, end, score, _ in reversed(found):
            beta[start] = log_add(beta[start], score + beta[end])
        likelihood += count * alpha[len(word)]
        for start, end, score, _ in found:
            share = exp(alpha[start] + score + beta[end] - alpha[len(word)])
            expected[word[start:end]] += count * share
    return expected, likelihood


def digamma(x: float) -> float:
    """The derivative of log gamma, for x > 0: recurrence up to 7, then its asymptotic series."""
    result = 0.0
    while x < 7:
        result -= 1 / x
        x += 1
    square = 1 / (x * x)
    return result + log(x) - 0.5 / x - square * (1 / 12 - square * (1 / 120 - square / 252))


def m_step(expected: dict[bytes, float], required: Iterable[bytes], *, drop: bool = True) -> Scores:
    """The scores of the tokens by their expected counts; `required` ones count at least LEAST.

    With `drop`, tokens that are expected less often than LEAST go, and a score is
    digamma(count) - digamma(sum): a sparse prior, which takes from rare tokens (Liang and Klein
    2007). Without, every token stays, and a score is the logarithm of its share.
    """
    kept = set(expected) if not drop else set(required)
    counts = {
        token: max(count, LEAST)
        for token, count in expected.items()
        if count >= LEAST - SLACK or token in kept
    }
    log_of = digamma if drop else log
    total = log_of(sum(counts.values()))
    return {token: log_of(count) - total for token, count in counts.items()}


def losses(words: dict[bytes, int], scores: Scores, required: Iterable[bytes]) -> Scores:
    """What the log likelihood of `words` loses without each token that is not required.

    The best segmentations of the words use a token freq times. Without it, its own best
    segmentation into others takes its place: loss = freq * (log p - sum of log p' of those), where
    p' counts what they gain. It is -inf for a token that no best segmentation uses.
    """
    used: Counter[bytes] = Counter()
    for word, count in words.items():
        for start, end, _ in viterbi(word, scores, SLACK):
            used[word[start:end]] += count
    total = sum(used.values())
    found = {}
    for token in [token for token in scores if token not in set(required)]:
        others = {other: score for other, score in scores.items() if other != token}
        other = [token[start:end] for start, end, _ in viterbi(token, others, SLACK)]
        freq = used[token]
        if freq == 0 or sum(scores[part] for part in other) > scores[token] + SLACK:
            found[token] = -inf
            continue
        after = log(total + freq * (len(other) - 1))
        gained = sum(log(used[part] + freq) - after for part in other)
        found[token] = freq * (log(freq / total) - gained)
    return found


def seeds(words: dict[bytes, int], required: Iterable[bytes], least: int = 2) -> dict[bytes, int]:
    """The strings in `words` that occur `least` times, with their counts: the first vocabulary.

    They have up to LONGEST characters and are not required. Of strings that always go on in the
    same way only the longest counts: it must be the last of a word, have LONGEST characters, or be
    followed by two different characters.
    """
    counts: Counter[bytes] = Counter()
    followers: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for word, count in words.items():
        ends = [0, *characters(word)]
        for i, start in enumerate(ends):
            for length in range(1, min(LONGEST, len(ends) - 1 - i) + 1):
                token = word[start : ends[i + length]]
                counts[token] += count
                after = (
                    word[ends[i + length] : ends[i + length + 1]]
                    if i + length + 1 < len(ends)
                    else b""
                )
                # Two that never agree stand for the end of a word and the longest length.
                followers[token] |= {after} if after and length < LONGEST else {b"", b"end"}
    fit = {token for token, after in followers.items() if len(after) > 1}
    named = set(required)
    kept = [t for t in fit if counts[t] >= least and t not in named]
    return {token: counts[token] for token in sorted(kept, key=lambda t: (len(t), t))}


def train(words: dict[bytes, int], size: int, required: Sequence[bytes]) -> Scores:
    """`size` tokens with their scores, learned from words and their counts.

    `required` are the tokens that there must be, such as the 256 bytes. They come first, the others
    by falling score.
    """
    counts = dict.fromkeys(required, 0) | seeds(words, required)
    for word, count in words.items():
        for start, end, *_ in edges(word, dict.fromkeys(required, 0.0)):
            counts[word[start:end]] += count
    worth = {token: max(1, count) * len(token) for token, count in counts.items()}
    total = sum(worth.values())
    scores = {token: log(value / total) for token, value in worth.items()}
    desired = int(size * SPARE)
    while True:
        for _ in range(FITS):
            scores = m_step(e_step(words, scores)[0], required)
        if len(scores) <= desired:
            break
        lost = {t: loss for t, loss in losses(words, scores, required).items() if loss > -inf}
        room = max(desired, int(len(scores) * KEPT)) - len(required)
        keep = {*required, *by_worth(lost)[: max(0, room)]}
        if len(keep) == len(scores):
            break
        scores = {token: score for token, score in scores.items() if token in keep}
    rest = {token: score for token, score in scores.items() if token not in set(required)}
    keep = {*required, *by_worth(rest)[: max(0, size - len(required))]}
    scores = {token: score for token, score in scores.items() if token in keep}
    for _ in range(FITS):
        scores = m_step(e_step(words, scores)[0], required, drop=False)
    rest = {token: score for token, score in scores.items() if token not in set(required)}
    return {token: scores[token] for token in [*required, *by_worth(rest)]}


def by_worth(values: Scores) -> list[bytes]:
    """The tokens, the greatest value first; of those that are nearly equal, as they stand."""
    return sorted(values, key=lambda token: -float(f"{values[token]:.8e}"))
