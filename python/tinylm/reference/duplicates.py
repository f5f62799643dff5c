"""Near duplicates by MinHash, in loops: which documents of a list resemble an earlier one.

The set of a document is every five words in a row. A hash function orders all sets of five words;
the least of a document under it is equal for two documents with a probability of their Jaccard
similarity, the share of their common sets (Broder 1997, "On the resemblance and containment of
documents"). Of `bands` groups of `rows` such hashes one is equal with 1 - (1 - s^rows)^bands, which
is near 0 or 1 on both sides of a similarity s of about (1 / bands)^(1 / rows). The defaults are
those of FineWeb (Penedo et al. 2024, arXiv 2406.17557, section 3.4): 14 bands of 8.
"""

import hashlib
import re
from collections.abc import Sequence

WORDS = 5
# A letter of a script that is written without blanks is a word of its own.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[^\W{_ALONE}]+|[{_ALONE}]")
MASK = 2**64 - 1


def words(text: str) -> list[str]:
    """The words in small letters without what stands between them; of signs alone, the text."""
    return WORD.findall(text.lower()) or [text]


def word_number(word: str) -> int:
    """64 bits that stand for a word."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def mixed(number: int) -> int:
    """All bits of 64 depend on all: the end of splitmix64 (Steele et al. 2014)."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & MASK
    return number ^ (number >> 31)


def shingles(text: str) -> set[int]:
    """32 bits for each five words in a row; of a shorter text for all its words."""
    numbers = [word_number(word) for word in words(text)]
    found = set()
    for at in range(max(1, len(numbers) - WORDS + 1)):
        total = 0
        for number in numbers[at : at + WORDS]:
            total = mixed((total + number) & MASK)
        found.add(total >> 32)
    return found


def constants(count: int) -> list[tuple[int, int]]:
    """For each hash function what is exclusive-ored, and the odd number that multiplies."""
    found = []
    for k in range(count):
        number = mixed((k + 1) * 0x9E3779B97F4A7C15 & MASK)
        found.append((number >> 32, number & 0xFFFFFFFF | 1))
    return found


def signature(text: str, count: int) -> list[int]:
    """The least hash of a shingle under each of `count` hash functions."""
    found = shingles(text)
    return [
        min((shingle ^ flip) * factor & 0xFFFFFFFF for shingle in found)
        for flip, factor in constants(count)
    ]


def similarity(a: str, b: str) -> float:
    """The share of common shingles, which equal places of two signatures estimate."""
    first, second = shingles(a), shingles(b)
    return len(first & second) / len(first | second)


def near(texts: Sequence[str], bands: int = 14, rows: int = 8) -> list[bool]:
    """Whether each text resembles an earlier one that is not dropped itself: equal in a band."""
    kept: list[list[int]] = []
    found = []
    for text in texts:
        mine = signature(text, bands * rows)
        places = [slice(band * rows, (band + 1) * rows) for band in range(bands)]
        drop = any(mine[place] == other[place] for other in kept for place in places)
        if not drop:
            kept.append(mine)
        found.append(drop)
    return found
