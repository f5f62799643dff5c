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

from collections import Counter
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import exp, log

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


def viterbi(piece: bytes, scores: Scores) -> Path:
    """The best segmentation; of equal ones that whose last token is the longest, and so on."""
    best: dict[int, tuple[float, int, bool]] = {0: (0.0, 0, True)}
    for start, end, score, known in edges(piece, scores):
        total = best[start][0] + score
        if end not in best or total > best[end][0]:
            best[end] = (total, start, known)
    path, end = [], len(piece)
    while end > 0:
        _, start, known = best[end]
        path.append((start, end, known))
        end = start
    return path[::-1]


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

    A* from the right: a path's promise is its own score and that of the best path to its start.
    """
    found = edges(piece, scores)
    best = {0: 0.0}
    for start, end, score, _ in found:
        best[end] = max(best.get(end, -float("inf")), best[start] + score)
    done: list[tuple[float, Path]] = []
    # The number of a path decides between equal promises: first in, first out.
    heap: list[tuple[float, int, int, float, Path]] = [(-best[len(piece)], 0, len(piece), 0.0, [])]
    made = 1
    while heap and len(done) < n:
        _, _, at, score, path = heappop(heap)
        if at == 0:
            done.append((score, path))
            continue
        for start, end, own, known in found:
            if end == at:
                total = score + own
                entry = (-(best[start] + total), made, start, total, [(start, end, known), *path])
                heappush(heap, entry)
                made += 1
    return done


def forward(piece: bytes, scores: Scores, theta: float = 1.0) -> list[float]:
    """alpha[i]: the log of the summed weights of all segmentations of the first i bytes.

    The weight of a token is exp(theta * score); a place that no token ends at has -inf.
    """
    alpha = [-float("inf")] * (len(piece) + 1)
    alpha[0] = 0.0
    for start, end, score, _ in edges(piece, scores):
        alpha[end] = log_add(alpha[end], alpha[start] + theta * score)
    return alpha


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high if low == -float("inf") else high + log(1 + exp(low - high))


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


def e_step(words: Counter[bytes], scores: Scores) -> tuple[dict[bytes, float], float]:
    """How often each token is expected in `words`, and the log likelihood of those.

    A token's expected count in a word is the share of the segmentations that have it, by weight:
    exp(alpha[start] + score + beta[end] - alpha[all]). All characters of the words are tokens.
    """
    expected = dict.fromkeys(scores, 0.0)
    likelihood = 0.0
    for word, count in words.items():
        found = edges(word, scores)
        alpha = forward(word, scores)
        beta = [-float("inf")] * (len(word) + 1)
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


def m_step(expected: dict[bytes, float], keep: Sequence[bytes], least: float = 0.5) -> Scores:
    """The scores of the tokens expected at least `least` times, and of those in `keep`.

    digamma(count) - digamma(sum) instead of the logarithm: a sparse prior, which takes from rare
    tokens (Liang and Klein 2007). A token to keep counts at least `least` times.
    """
    kept = set(keep)
    counts = {
        token: max(count, least)
        for token, count in expected.items()
        if count >= least or token in kept
    }
    total = digamma(sum(counts.values()))
    return {token: digamma(count) - total for token, count in counts.items()}


def losses(words: Counter[bytes], scores: Scores) -> dict[bytes, float | None]:
    """What the log likelihood of `words` loses without each token; None if it must stay.

    The best segmentations of the words use a token freq times. Without it, its best other
    segmentation takes its place: loss = freq * (log p(token) - sum of log p' of that one), where p'
    counts what they gain. A token of one character, which has no other, stays.
    """
    used: Counter[bytes] = Counter()
    for word, count in words.items():
        for start, end, _ in viterbi(word, scores):
            used[word[start:end]] += count
    total = sum(used.values())
    found: dict[bytes, float | None] = {}
    for token in scores:
        paths = n_best(token, scores, 2)
        if len(paths) == 1 or not all(known for *_, known in paths[1][1]):
            found[token] = None
            continue
        freq = used[token]
        if freq == 0 or len(paths[0][1]) > 1:
            # Its own best segmentation is another one, so no text ever uses it.
            found[token] = 0.0
            continue
        other = [token[start:end] for start, end, _ in paths[1][1]]
        after = log(total + freq * (len(other) - 1))
        lost = log(freq / total) - sum(log(used[part] + freq) - after for part in other)
        found[token] = freq * lost
    return found
