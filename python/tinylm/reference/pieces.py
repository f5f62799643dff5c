"""A text in pieces by several steps: the pre-tokenizers of a `tokenizer.json`.

Each step cuts every piece of the step before it further; some write it anew. `cut` runs the steps
of a file, with the keys and types of the file.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

import regex

from tinylm.reference.patterns import split

# A text, or its characters with what else is known of them.
T = TypeVar("T", bound=Sequence[Any])
# A stretch of a piece, and whether it was looked for and found.
Found = list[tuple[str, bool]]
SPACE = regex.compile(r"\s")
WORD = regex.compile(r"\w")
# Those of texts that this definition is asked about.
SCRIPTS = (
    *("Common", "Inherited", "Latin", "Greek", "Cyrillic", "Hebrew", "Arabic", "Devanagari"),
    *("Thai", "Hangul", "Han", "Hiragana", "Katakana", "Georgian", "Ethiopic"),
)


def cut(text: str, steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """The pieces of a text after all steps; none is empty."""
    return through(text, steps, _step)


def through(
    text: T, steps: Iterable[Mapping[str, Any]], cut_one: Callable[..., list[T]]
) -> list[T]:
    """What is left of a text after `cut_one(piece, step, first=)` of each step; none is empty."""
    pieces = [text] if text else []
    begins = True
    for step in steps:
        # Only the piece that begins the text knows that it does, until something before it goes.
        parts = [cut_one(piece, step, first=begins and i == 0) for i, piece in enumerate(pieces)]
        begins = begins and bool(parts and parts[0] and parts[0][0])
        pieces = [piece for part in parts for piece in part if piece]
    return pieces


def _step(piece: str, step: Mapping[str, Any], *, first: bool) -> list[str]:
    match step["type"]:
        case "ByteLevel":
            return byte_level(piece, blank=step["add_prefix_space"], pattern=step["use_regex"])
        case "BertPreTokenizer":
            words = by_behavior(characters(piece, is_space), "Removed")
            parts = (by_behavior(characters(word, is_punctuation), "Isolated") for word in words)
            return [part for word in parts for part in word]
        case "Metaspace":
            scheme = step["prepend_scheme"]
            prepend = scheme == "always" or (scheme == "first" and first)
            return metaspace(piece, step["replacement"], prepend=prepend, apart=step["split"])
        case "UnicodeScripts":
            return scripts(piece)
        case "FixedLength":
            length = step["length"]
            return [piece[i : i + length] for i in range(0, len(piece), length)]
    return by_behavior(*stretches(piece, step))


def stretches(piece: str, step: Mapping[str, Any]) -> tuple[Found, str]:
    """What a step that only cuts finds in a piece, and what becomes of it."""
    match step["type"]:
        case "Split":
            found = search(piece, step["pattern"])
            if step["invert"]:
                found = [(part, not is_match) for part, is_match in found]
            return found, step["behavior"]
        case "Digits":
            how = "Isolated" if step["individual_digits"] else "Contiguous"
            return characters(piece, is_number), how
        case "Punctuation":
            return characters(piece, is_punctuation), step["behavior"]
        case "Whitespace":
            found = search(piece, {"Regex": r"\w+|[^\w\s]+"})
            return [(part, not is_match) for part, is_match in found], "Removed"
        case "WhitespaceSplit":
            return characters(piece, is_space), "Removed"
        case "CharDelimiterSplit":
            return characters(piece, lambda c: c == step["delimiter"]), "Removed"
    raise ValueError(step["type"])


def is_space(char: str) -> bool:
    """Whether Unicode calls a character white space."""
    return SPACE.match(char) is not None


def is_number(char: str) -> bool:
    """Whether Unicode calls a character a number: a digit, a letter like VIII, a fraction."""
    return unicodedata.category(char)[0] == "N"


def is_punctuation(char: str) -> bool:
    """Punctuation of Unicode, and all symbols of ASCII."""
    return unicodedata.category(char)[0] == "P" or char in "$+<=>^`|~"


def characters(piece: str, wanted: Callable[[str], bool]) -> Found:
    """Each character that is wanted, and the stretches between them."""
    found: Found = []
    for is_match, run in groupby(piece, wanted):
        stretch = "".join(run)
        found += [(char, True) for char in stretch] if is_match else [(stretch, False)]
    return found


def search(piece: str, pattern: Mapping[str, str]) -> Found:
    """The matches of a string or an expression, and the stretches between them.

    A match may be empty, but not where the one before it ends: then the search goes on one
    character later.
    """
    escaped = re.escape(pattern["String"]) if "String" in pattern else pattern["Regex"]
    wanted = regex.compile(escaped, flags=regex.V1)
    found: Found = []
    end = at = 0
    while match := wanted.search(piece, at):
        if match.end() == at and found and end == at:
            at += 1
            if at > len(piece):
                break
            continue
        found += [(piece[end : match.start()], False), (match.group(), True)]
        end = at = match.end()
    found.append((piece[end:], False))
    return [(part, is_match) for part, is_match in found if part or is_match]


def by_behavior(found: Found, behavior: str) -> list[str]:
    """The pieces that a behavior makes of the stretches."""
    match behavior:
        case "Isolated":
            return [part for part, _ in found]
        case "Removed":
            # What is gone leaves an empty piece, which `cut` drops.
            return ["" if is_match else part for part, is_match in found]
        case "Contiguous":
            runs = groupby(found, key=lambda stretch: stretch[1])
            return ["".join(part for part, _ in run) for _, run in runs]
    # A match goes with the stretch before it, or after it, if that is no match itself.
    backwards = behavior == "MergedWithNext"
    pieces: list[str] = []
    before = False
    for part, is_match in reversed(found) if backwards else found:
        if pieces and is_match and not before:
            pieces[-1] = part + pieces[-1] if backwards else pieces[-1] + part
        else:
            pieces.append(part)
        before = is_match
    return pieces[::-1] if backwards else pieces


def scripts(piece: str) -> list[str]:
    """Runs of one script; blanks go with any, and those before the first run are gone."""
    pieces: list[str] = []
    last = None
    for char in piece:
        found = next((name for name in SCRIPTS if regex.match(rf"\p{{Script={name}}}", char)), "")
        # The long vowel mark of Japanese is Common in Unicode.
        name = "Han" if found in ("Hiragana", "Katakana") or char == "\u30fc" else found
        if char != " " and name != last:
            pieces.append(char)
            last = name
        elif pieces:
            pieces[-1] += char
    return pieces


def metaspace(piece: str, mark: str, *, prepend: bool, apart: bool) -> list[str]:
    """A mark for each blank, and one in front; with `apart` each mark begins a piece."""
    piece = piece.replace(" ", mark)
    if prepend and not piece.startswith(mark):
        piece = mark + piece
    # An empty part in front is nothing that went: what follows still begins the text.
    parts = re.split(f"(?={re.escape(mark)})", piece) if apart else [piece]
    return [part for part in parts if part]


def byte_level(piece: str, *, blank: bool, pattern: bool) -> list[str]:
    """GPT-2's pieces, in its alphabet of a character for each byte."""
    if blank and not piece.startswith(" "):
        piece = f" {piece}"
    pieces = split(piece, "gpt2") if pattern else [piece]
    return ["".join(ALPHABET[byte] for byte in piece.encode()) for piece in pieces]


def _alphabet() -> list[str]:
    """Printable Latin-1 stands for itself, the others follow U+0100 in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


ALPHABET = _alphabet()
