"""Texts for property tests: what tokenizers meet in the wild, and what they break on."""

import unicodedata

from hypothesis import strategies as st

# Long enough to be a token beyond the 15 bytes that the fast tables hold in place.
LONG_WORD = "internationalization"
# Each stands for a rule of some pattern: contractions in both cases, line ends, cased and
# uncased letters, marks, digits of several scripts, spaces that are not ASCII, joiners.
FRAGMENTS = [
    *" \n\r\t'!./-_#",
    *("  ", "\r\n", "\n\n", "'s", "'S", "'\u017f", "'ll", "'LL", "'Re", "'ve", "''", "//"),
    *("a", "b", "the", " the", "B", "Zz", "\xe9", "\xc9", "\u01c5", "\u02b0", "\u4e2d\u6587"),
    *("\u3042", "\u30fc", "\u0301", "\u093f", "1", "23", "456789", "\xbd", "\u0663", "\u2167"),
    *("\u2014", "\xa0", "\u2028", "\u3000", "\x85", "\x0b", "\x1c", "\U0001f600", "\u200d"),
    *("\xdf", "\u0130", "\ufb05", "\xad", "\x00", "\ufffd", "<|endoftext|>"),
    LONG_WORD,
    # A mark that begins a piece, before a capital without a small letter after it.
    "1\u0301B1",
]

# A character or two of each class that a pattern tells apart: any may stand next to any.
CLASSES = "aeB\xc9\u01c5\u02b0\u4e2d\u0301\u093f1\u0663's.!/ \xa0\u3000\t\n\r"


def hostile_text(max_size: int = 20) -> st.SearchStrategy[str]:
    """Fragments in a row, so that rules meet at their borders."""
    return st.lists(st.sampled_from(FRAGMENTS), max_size=max_size).map("".join)


def token_soup(tokens: list[bytes], max_size: int = 20) -> st.SearchStrategy[bytes]:
    """Tokens of a vocabulary in a row: valid pieces, and pairs no training text held."""
    return st.lists(st.sampled_from(tokens), max_size=max_size).map(b"".join)


def runs(max_size: int = 300) -> st.SearchStrategy[str]:
    """One or two fragments repeated: where merges overlap and searches turn quadratic."""
    unit = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=2).map("".join)
    return st.builds(lambda u, n, end: u * n + end, unit, st.integers(1, max_size), hostile_text(2))


def any_text() -> st.SearchStrategy[str]:
    """Hostile fragments, runs, classes side by side, and characters of all of Unicode."""
    return hostile_text() | runs() | st.text(CLASSES, max_size=20) | st.text(max_size=30)


def assigned_text() -> st.SearchStrategy[str]:
    """As `any_text`, of characters that Python's Unicode knows: on these all tables agree."""
    return any_text().map(lambda text: "".join(c for c in text if unicodedata.category(c) != "Cn"))
