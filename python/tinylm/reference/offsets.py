"""Where the tokens of a text stand in it, also where steps change the text before it is cut.

The tokens of byte-level BPE are the bytes of the text, one token after the other. For the others a
text is followed through the steps: each byte of a character keeps its place, a pair of offsets of
bytes in the text as given. One rule serves all steps. A stretch that stays as it is keeps its
places, what a stretch becomes has all of it, and what is put in between has an empty place. A
stretch is the smallest that a step changes by itself.

Hugging Face's `tokenizers` gives what is put in the place of its neighbour instead.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import regex

from tinylm.reference import normalizers, patterns, pieces

Place = tuple[int, int]
# The characters of a text, each with the places of its bytes.
Aligned = list[tuple[str, list[Place]]]
# By which a piece is cut whatever stands in it: one character for each place.
TAGS = 0xF0000


def lengths(tokens: Iterable[bytes]) -> list[Place]:
    """The bytes that each token has of the text that they make together."""
    return list(pairwise(accumulate(map(len, tokens), initial=0)))


def in_characters(text: str, places: Iterable[Place]) -> list[Place]:
    """Places in bytes to the characters that they touch: whoever cuts a character has all of it."""
    of = [number for number, char in enumerate(text) for _ in char.encode()] + [len(text)]
    return [(of[a], of[b - 1] + 1 if b > a else of[a]) for a, b in places]


def aligned(text: str) -> Aligned:
    """A text as it is given."""
    ends = accumulate((len(char.encode()) for char in text), initial=0)
    return [
        (char, [(byte, byte + 1) for byte in range(start, end)])
        for char, (start, end) in zip(text, pairwise(ends), strict=True)
    ]


def text_of(chars: Aligned) -> str:
    """The text without its places."""
    return "".join(char for char, _ in chars)


def put(chars: Aligned, made: str) -> Aligned:
    """What a stretch becomes."""
    if text_of(chars) == made:
        return chars
    places = [place for _, bytes_ in chars for place in bytes_]
    whole = (places[0][0], places[-1][1])
    return [(char, [whole] * len(char.encode())) for char in made]


def put_in(made: str, after: Aligned) -> Aligned:
    """What is put before the characters `after`."""
    at = after[0][1][0][0]
    return [(char, [(at, at)] * len(char.encode())) for char in made]


def normalise(chars: Aligned, steps: Iterable[Mapping[str, Any]]) -> Aligned:
    """A text after all normalisers, in their order."""
    for step in steps:
        chars = _normalised(chars, step) if chars else chars
    return chars


def _normalised(chars: Aligned, step: Mapping[str, Any]) -> Aligned:
    text, by_itself = text_of(chars), partial(_alone, step)
    match step["type"]:
        case "NFC" | "NFD" | "NFKC" | "NFKD":
            return by_cuts(chars, by_itself)
        case "Strip":
            start = text.index(kept) if (kept := by_itself(text)) else 0
            return chars[start : start + len(kept)]
        case "Replace":
            return _replaced(chars, step["pattern"], step["content"])
        case "Prepend":
            return put_in(step["prepend"], chars) + chars
        case "Precompiled":
            found = normalizers.read_map(step["precompiled_charsmap"])
            return by_clusters(chars, lambda cluster: normalizers.by_map(cluster, found))
        case "BertNormalizer":
            for one in ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"):
                alone = {**dict.fromkeys(step, False), "type": step["type"], one: step[one]}
                if one == "strip_accents" and step[one]:
                    # Its accents are the marks that are left over when characters come apart.
                    chars = normalise(chars, [{"type": "NFD"}])
                chars = each(chars, partial(_alone, alone))
            return chars
    return each(chars, by_itself)


def _alone(step: Mapping[str, Any], text: str) -> str:
    return normalizers.normalise(text, [step])


def each(chars: Aligned, step: Callable[[str], str]) -> Aligned:
    """A step that looks at one character at a time."""
    return [made for char in chars for made in put([char], step(char[0]))]


def by_cuts(chars: Aligned, step: Callable[[str], str]) -> Aligned:
    """A step that may be taken on both sides of a cut as on the whole: the stretches are those
    between such cuts."""
    text = text_of(chars)
    whole = step(text)
    inner = [i for i in range(1, len(text)) if step(text[:i]) + step(text[i:]) == whole]
    cuts = pairwise([0, *inner, len(text)])
    return [made for a, b in cuts for made in put(chars[a:b], step(text[a:b]))]


def by_clusters(chars: Aligned, step: Callable[[str], str]) -> Aligned:
    """A step over grapheme clusters: a stretch is one that is replaced as a whole, or a character
    of another."""
    out: Aligned = []
    for match in regex.finditer(r"\X", text_of(chars)):
        cluster = chars[match.start() : match.end()]
        alone = [made for char in cluster for made in put([char], step(char[0]))]
        whole = step(match.group())
        out += alone if text_of(alone) == whole else put(cluster, whole)
    return out


def _replaced(chars: Aligned, pattern: Mapping[str, str], content: str) -> Aligned:
    out: Aligned = []
    at = 0
    for part, is_match in pieces.search(text_of(chars), pattern):
        stretch = chars[at : at + len(part)]
        out += put(stretch, content) if is_match else stretch
        at += len(part)
    return out


def cut(chars: Aligned, steps: Iterable[Mapping[str, Any]]) -> list[Aligned]:
    """The pieces of a text after all pre-tokenizers; none is empty."""
    return pieces.through(chars, steps, _cut)


def _cut(chars: Aligned, step: Mapping[str, Any], *, first: bool) -> list[Aligned]:
    match step["type"]:
        case "ByteLevel":
            if step["add_prefix_space"] and chars[0][0] != " ":
                chars = put_in(" ", chars) + chars
            text = text_of(chars)
            words = patterns.split(text, "gpt2") if step["use_regex"] else [text]
            return [list(map(_spelled, _bytes_of(word))) for word in _divided(chars, words)]
        case "Metaspace":
            mark, scheme = step["replacement"], step["prepend_scheme"]
            chars = each(chars, lambda char: mark if char == " " else char)
            if (scheme == "always" or (scheme == "first" and first)) and chars[0][0] != mark:
                chars = put_in(mark, chars) + chars
            parts = pieces.metaspace(text_of(chars), mark, prepend=False, apart=step["split"])
            return _divided(chars, parts)
        case "BertPreTokenizer":
            punctuation = {"type": "Punctuation", "behavior": "Isolated"}
            return cut(chars, [{"type": "WhitespaceSplit"}, punctuation])
        case "FixedLength":
            size = step["length"]
            return [chars[i : i + size] for i in range(0, len(chars), size)]
    # Where a step cuts is decided by what it finds; then it does not look at the text any more.
    found, behavior = pieces.stretches(text_of(chars), step)
    tags = iter(range(len(chars)))
    tagged = [("".join(chr(TAGS + next(tags)) for _ in part), match) for part, match in found]
    parts = pieces.by_behavior(tagged, behavior)
    return [[chars[ord(tag) - TAGS] for tag in part] for part in parts]


def _divided(chars: Aligned, parts: Iterable[str]) -> list[Aligned]:
    """The characters as the parts have them, which are the text without a gap."""
    ends = accumulate(map(len, parts), initial=0)
    return [chars[a:b] for a, b in pairwise(ends)]


def _bytes_of(chars: Aligned) -> list[tuple[int, Place]]:
    return [pair for char, places in chars for pair in zip(char.encode(), places, strict=True)]


def _spelled(byte: tuple[int, Place]) -> tuple[str, list[Place]]:
    """A byte as a character of GPT-2's alphabet."""
    char = pieces.ALPHABET[byte[0]]
    kept = ord(char) == byte[0] < 128
    return char, [byte[1]] if kept else [byte[1]] * len(char.encode())
