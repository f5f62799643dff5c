"""Measures of one document that need no language, and the limits that published corpora set.

    RULES["max_mean_word"]     the mean length of a word; above 10 it is dropped

Words are what stands between blanks, so the rules on words do not fit scripts without blanks.
Sources of the rules and of their limits:

- Gopher: Rae et al. 2021, arXiv 2112.11446, appendix A.1.1 (quality, repetition; table A1).
- C4: Raffel et al. 2020, arXiv 1910.10683, section 2.2.
- FineWeb: Penedo et al. 2024, arXiv 2406.17557, section 3.6.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from itertools import pairwise
from typing import NamedTuple

_ELLIPSES = ("...", "\u2026")
_BULLETS = (*"\u2022\u2023\u25b6\u25c0\u25e6\u25a0\u25a1\u25aa\u25ab-*",)
# A full stop in several scripts, and what closes a sentence behind one.
_ENDS = (*".?!\"'\u2026\u201d\u2019\u3002\uff01\uff1f\u061f\u06d4\u0964", "...")
_LETTER = re.compile(r"[^\W\d_]")
_PARAGRAPHS = re.compile(r"\n{2,}")
# Characters of a line that FineWeb calls short.
SHORT = 30


class Facts:
    """A document with its parts, each found once however many rules ask for it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._repeats: list[list[list[int]]] = []

    @cached_property
    def words(self) -> list[str]:
        """What stands between blanks."""
        return self.text.split()

    @cached_property
    def letters(self) -> int:
        """Characters of all words together."""
        return sum(map(len, self.words))

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not blank, without the blanks around them."""
        return [line for line in map(str.strip, self.text.splitlines()) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What stands between blank lines."""
        parts = map(str.strip, _PARAGRAPHS.split(self.text))
        return [part for part in parts if part]

    @cached_property
    def ends(self) -> list[int]:
        """Characters of the words before each word, and of all."""
        found = [0]
        for word in self.words:
            found.append(found[-1] + len(word))
        return found

    def repeats(self, n: int) -> list[list[int]]:
        """The places of every n >= 2 words in a row that come more than once, a list for each.

        Only where n - 1 words are repeated can n be, so beyond two words little is looked at.
        """
        words = self.words
        if not self._repeats:
            pairs = list(pairwise(words))
            often: dict[tuple[str, str], list[int]] = {
                pair: [] for pair, count in Counter(pairs).items() if count > 1
            }
            for place, pair in enumerate(pairs):
                if pair in often:
                    often[pair].append(place)
            self._repeats.append(list(often.values()))
        while len(self._repeats) < n - 1:
            last = len(self._repeats) + 1
            self._repeats.append([])
            for group in self._repeats[-2]:
                by_word: dict[str, list[int]] = {}
                # The last of a group may end the text.
                for place in group if group[-1] + last < len(words) else group[:-1]:
                    by_word.setdefault(words[place + last], []).append(place)
                self._repeats[-1] += [places for places in by_word.values() if len(places) > 1]
        return self._repeats[n - 2]


def _share(part: float, whole: float) -> float:
    # Of nothing, nothing is wrong.
    return part / whole if whole else 0.0


def mean_word(facts: Facts) -> float:
    """Mean characters per word."""
    return _share(facts.letters, len(facts.words))


def symbols(facts: Facts) -> float:
    """Signs # or ellipses per word, whichever are more."""
    text = facts.text
    most = max(text.count("#"), sum(map(text.count, _ELLIPSES)))
    return _share(most, len(facts.words))


def alphabetic(facts: Facts) -> float:
    """Share of the words with a letter."""
    # As a rule a word is letters alone, which is seen faster.
    found = sum(1 for word in facts.words if word.isalpha() or _LETTER.search(word))
    return _share(found, len(facts.words))


def bullets(facts: Facts) -> float:
    """Share of the lines that begin with a bullet."""
    return _share(sum(line.startswith(_BULLETS) for line in facts.lines), len(facts.lines))


def ellipses(facts: Facts) -> float:
    """Share of the lines that end with an ellipsis."""
    return _share(sum(line.endswith(_ELLIPSES) for line in facts.lines), len(facts.lines))


def punctuated(facts: Facts) -> float:
    """Share of the lines that end with a sign that ends a sentence."""
    return _share(sum(line.endswith(_ENDS) for line in facts.lines), len(facts.lines))


def short(facts: Facts) -> float:
    """Share of the lines of fewer than 30 characters."""
    return _share(sum(len(line) < SHORT for line in facts.lines), len(facts.lines))


def duplicates(parts: Callable[[Facts], list[str]], facts: Facts) -> float:
    """Share of the lines or paragraphs that stand in the document before."""
    found = parts(facts)
    return _share(len(found) - len(set(found)), len(found))


def duplicate_chars(parts: Callable[[Facts], list[str]], facts: Facts) -> float:
    """Share of the characters that are in such lines or paragraphs."""
    found = parts(facts)
    whole = sum(map(len, found))
    return _share(whole - sum(map(len, set(found))), whole)


def top_run(n: int, facts: Facts) -> float:
    """Share of the characters of words that are in the most frequent n words in a row.

    The longest of those that are equally frequent; of runs that come once, 0.
    """
    groups = facts.repeats(n)
    most = max(map(len, groups), default=0)
    longest = max(
        (_length(facts, group[0], n) for group in groups if len(group) == most), default=0
    )
    return _share(longest * most, facts.letters)


def duplicate_runs(n: int, facts: Facts) -> float:
    """Share of the characters of words that are in n words in a row that stand there before.

    Characters in several such runs count once: after one, the search goes on behind it.
    """
    runs = {place: run for run, group in enumerate(facts.repeats(n)) for place in group}
    seen: set[int] = set()
    behind = repeated = 0
    for place in sorted(runs):
        if place < behind:
            continue
        if runs[place] in seen:
            repeated += _length(facts, place, n)
            behind = place + n
        seen.add(runs[place])
    return _share(repeated, facts.letters)


def _length(facts: Facts, place: int, n: int) -> int:
    """Characters of the n words from `place` on."""
    return facts.ends[place + n] - facts.ends[place]


class Rule(NamedTuple):
    """A measure and its usual limit, above or below which a document is dropped."""

    measure: Callable[[Facts], float]
    limit: float | None
    about: str


def _lines(facts: Facts) -> list[str]:
    return facts.lines


def _paragraphs(facts: Facts) -> list[str]:
    return facts.paragraphs


# By name: `min_` drops what is below the limit, `max_` what is above it. None must be given.
RULES: dict[str, Rule] = {
    "min_chars": Rule(lambda facts: len(facts.text), None, "characters"),
    "max_chars": Rule(lambda facts: len(facts.text), None, "characters"),
    "min_words": Rule(lambda facts: len(facts.words), 50, "words (Gopher)"),
    "max_words": Rule(lambda facts: len(facts.words), 100_000, "words (Gopher)"),
    "min_mean_word": Rule(mean_word, 3, "characters per word (Gopher)"),
    "max_mean_word": Rule(mean_word, 10, "characters per word (Gopher)"),
    "max_symbols": Rule(symbols, 0.1, "signs # or ellipses per word (Gopher)"),
    "min_alphabetic": Rule(alphabetic, 0.8, "share of words with a letter (Gopher)"),
    "max_bullets": Rule(bullets, 0.9, "share of lines that begin with a bullet (Gopher)"),
    "max_ellipses": Rule(ellipses, 0.3, "share of lines that end with an ellipsis (Gopher)"),
    "max_duplicate_lines": Rule(
        partial(duplicates, _lines), 0.3, "share of lines that came before (Gopher)"
    ),
    "max_duplicate_line_chars": Rule(
        partial(duplicate_chars, _lines), 0.2, "share of their characters (Gopher; FineWeb 0.1)"
    ),
    "max_duplicate_paragraphs": Rule(
        partial(duplicates, _paragraphs), 0.3, "share of paragraphs that came before (Gopher)"
    ),
    "max_duplicate_paragraph_chars": Rule(
        partial(duplicate_chars, _paragraphs), 0.2, "share of their characters (Gopher)"
    ),
    **{
        f"max_top_{n}_words": Rule(
            partial(top_run, n), limit, f"share of characters in the top {n} words (Gopher)"
        )
        for n, limit in ((2, 0.2), (3, 0.18), (4, 0.16))
    },
    **{
        f"max_duplicate_{n}_words": Rule(
            partial(duplicate_runs, n),
            limit,
            f"share of characters in {n} words in a row that came before (Gopher)",
        )
        for n, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))
    },
    "min_punctuated": Rule(punctuated, 0.12, "share of lines that end a sentence (FineWeb)"),
    "max_short_lines": Rule(short, 0.67, "share of lines below 30 characters (FineWeb)"),
    "max_lorem_ipsum": Rule(
        lambda facts: facts.text.lower().count("lorem ipsum"), 0, "filler texts (C4)"
    ),
    "max_braces": Rule(lambda facts: facts.text.count("{"), 0, "signs {, which code has (C4)"),
}

_QUALITY = (
    *("min_words", "max_words", "min_mean_word", "max_mean_word", "max_symbols"),
    *("max_bullets", "max_ellipses", "min_alphabetic"),
)
# Names of several rules, with their usual limits unless one is written behind it. `fineweb` is what
# FineWeb adds to Gopher's rules.
BUNDLES: dict[str, tuple[str, ...]] = {
    "gopher_quality": _QUALITY,
    "gopher_repetition": tuple(
        name for name in RULES if name.startswith(("max_duplicate_", "max_top_"))
    ),
    "fineweb": ("min_punctuated", "max_duplicate_line_chars:0.1", "max_short_lines"),
}
