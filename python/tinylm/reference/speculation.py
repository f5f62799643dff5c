"""Speculative decoding on lists of probabilities: drafts, and which of them the model keeps.

A cheap draft guesses the next tokens. The model reads all of them in one pass, which gives its
distribution p at each of their positions and at the one after them. Token by token, a guess d that
was drawn from q is kept with probability min(1, p[d] / q[d]). The first one that is not kept is
replaced by a token drawn from what p has more than q. So every token has the distribution p:

    q[x] min(1, p[x] / q[x]) + (the refused) rest[x] = min(p[x], q[x]) + max(0, p[x] - q[x]) = p[x]

A guess without a distribution, such as one that is copied from the text, has q[d] = 1.

Source: Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2; for drafts copied from
the text, Saxena 2023 (prompt lookup decoding).
"""

from collections.abc import Sequence


def choose(weights: Sequence[float], number: float) -> int:
    """The first index whose cumulative weight exceeds number times their sum; number in [0, 1)."""
    target, total = number * sum(weights), 0.0
    for index, weight in enumerate(weights):
        total += weight
        if total > target:
            return index
    raise ValueError(f"weights={[*weights]}: at least one must be above 0")


def judge(
    p: Sequence[float],
    q: Sequence[float] | None,
    draft: int,
    keep: float,
    number: float,
) -> int:
    """The token at a position where `draft` was drawn from q: `draft`, if it is kept, or another.

    p and q are distributions over the vocabulary; without q there is no draft here. `keep` and
    `number` are independent random numbers in [0, 1).
    """
    if q is None:
        return choose(p, number)
    # keep < p / q without the division: q[draft] is above 0, because it was drawn.
    if keep * q[draft] < p[draft]:
        return draft
    rest = [max(0.0, have - had) for have, had in zip(p, q, strict=True)]
    return choose(rest if sum(rest) else p, number)


def verify(
    drafts: Sequence[int],
    ps: Sequence[Sequence[float]],
    qs: Sequence[Sequence[float]],
    keeps: Sequence[float],
    numbers: Sequence[float],
) -> list[int]:
    """The tokens that one pass of the model adds: the drafts that it keeps, and one of its own.

    There is one more of p, and of `numbers`, than of drafts.
    """
    found = []
    for place, draft in enumerate(drafts):
        token = judge(ps[place], qs[place], draft, keeps[place], numbers[place])
        found.append(token)
        if token != draft:
            return found
    return [*found, judge(ps[len(drafts)], None, 0, 0.0, numbers[len(drafts)])]


def lookup(text: Sequence[int], count: int, longest: int = 6) -> list[int]:
    """Up to `count` tokens that followed the newest earlier place where the text was as at its end.

    As many last tokens as possible must agree, at most `longest` and at least 1; else no token. A
    place so near that its continuation reaches the end of the text is gone round again, as in LZ77.
    """
    for size in range(min(longest, len(text) - 1), 0, -1):
        ending = [*text[-size:]]
        for start in range(len(text) - size - 1, -1, -1):
            if [*text[start : start + size]] == ending:
                grown = [*text]
                for place in range(start + size, start + size + count):
                    grown.append(grown[place])
                return grown[len(text) :]
    return []


def leaves_early(p: Sequence[float], confidence: float) -> bool:
    """Whether a token is taken from an exit, which gives it the distribution p.

    The likeliest token must have a probability of `confidence` at least. Source: Schuster et al.
    2022, section 3.2, where it is the lead over the second likeliest.
    """
    return max(p) >= confidence


def exit_of(place: int, exits: int) -> int:
    """Which of the exits 0, 1, ... token number `place` of a row trains; deeper ones train more.

    u = place / the golden ratio, without whole turns and in 2^32 steps per turn, covers the circle
    evenly in any stretch of places. Exit e begins at u = e (exits + e) / (2 exits^2), so its share
    rises from half of the mean to one and a half of it. Source: Knuth, The Art of Computer
    Programming 3, section 6.4, for the circle.
    """
    u = place * 2654435769 % 2**32
    return max(e for e in range(exits) if e * (exits + e) * 2**32 <= 2 * exits**2 * u)
