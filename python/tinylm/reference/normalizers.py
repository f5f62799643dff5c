"""What a text becomes before it is tokenized: the normalisers of a `tokenizer.json`.

Each function takes a text and gives another one. `normalise` runs the steps of a file, with the
keys and types of the file. Unicode's normal forms: Unicode Standard Annex 15. The map of characters
is that of SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226), applied as Hugging Face does.
"""

import re
import struct
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import regex

from tinylm.reference.pieces import ALPHABET

# The blocks of unified ideographs that BERT puts between blanks.
CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
SPACE = regex.compile(r"\s")


def normalise(text: str, steps: Iterable[Mapping[str, Any]]) -> str:
    """The text after all steps, in their order."""
    for step in steps:
        text = _step(text, step)
    return text


def _step(text: str, step: Mapping[str, Any]) -> str:
    match step["type"]:
        case "NFC" | "NFD" | "NFKC" | "NFKD" as form:
            return unicodedata.normalize(form, text)
        case "Lowercase":
            return lowercase(text)
        case "Strip":
            return strip(text, left=step["strip_left"], right=step["strip_right"])
        case "StripAccents":
            return "".join(char for char in text if unicodedata.category(char)[0] != "M")
        case "Replace":
            return replace(text, step["pattern"], step["content"])
        case "Prepend":
            return step["prepend"] + text if text else text
        case "BertNormalizer":
            return bert(text, step)
        case "Nmt":
            return nmt(text)
        case "ByteLevel":
            return "".join(ALPHABET[byte] for byte in text.encode())
        case "Precompiled":
            return by_map(text, read_map(step["precompiled_charsmap"]))
    raise ValueError(step["type"])


def lowercase(text: str) -> str:
    """Each character by itself in lower case: a sigma that ends a word is like any other."""
    return "".join(char.lower() for char in text)


def strip(text: str, *, left: bool, right: bool) -> str:
    """The text without the white space of Unicode at the ends that are named."""
    start, end = 0, len(text)
    while left and start < end and SPACE.match(text[start]):
        start += 1
    while right and end > start and SPACE.match(text[end - 1]):
        end -= 1
    return text[start:end]


def replace(text: str, pattern: Mapping[str, str], content: str) -> str:
    """`content` in the place of a string, or of the matches of an expression."""
    wanted = re.escape(pattern["String"]) if "String" in pattern else pattern["Regex"]
    return str(regex.sub(wanted, lambda _: content, text, flags=regex.V1))


def bert(text: str, step: Mapping[str, Any]) -> str:
    """BERT's four steps, those that are asked for."""
    if step["clean_text"]:
        text = "".join(filter(None, map(_clean, text)))
    if step["handle_chinese_chars"]:
        chinese = {char for char in text if any(a <= ord(char) <= b for a, b in CHINESE)}
        text = "".join(f" {char} " if char in chinese else char for char in text)
    if step["strip_accents"]:
        decomposed = unicodedata.normalize("NFD", text)
        text = "".join(char for char in decomposed if unicodedata.category(char) != "Mn")
    return lowercase(text) if step["lowercase"] else text


def _clean(char: str) -> str:
    if char in "\t\n\r":
        return " "
    if char in "\x00\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Co"):
        return ""
    return " " if SPACE.match(char) else char


def nmt(text: str) -> str:
    """Without control characters, with a blank for other white space and invisible characters."""
    gone = {*range(1, 9), 11, *range(14, 32), 127, 0x8F, 0x9F}
    blank = {9, 10, 12, 13, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD}
    kept = (char for char in text if ord(char) not in gone)
    return "".join(" " if ord(char) in blank else char for char in kept)


def read_map(data: bytes) -> dict[bytes, str]:
    """The keys of a precompiled map and what stands for them.

    The bytes are the length of a double array, the array, and the replacements, each ended by a
    zero byte. A cell of the array has a label, the distance to its children and whether a key ends
    there; the cell behind such a key holds the place of its replacement.
    """
    (length,) = struct.unpack_from("<I", data)
    cells = struct.unpack_from(f"<{length // 4}I", data, 4)
    replacements = data[4 + length :]
    found = {}
    walk = [(b"", _distance(cells[0]))]
    while walk:
        key, at = walk.pop()
        for label in range(1, 256):
            child = at ^ label
            if child < len(cells) and cells[child] & 0x800000FF == label:
                after = child ^ _distance(cells[child])
                if cells[child] >> 8 & 1:
                    place = cells[after] & 0x7FFFFFFF
                    end = replacements.index(b"\0", place)
                    found[key + bytes([label])] = replacements[place:end].decode()
                walk.append((key + bytes([label]), after))
    return found


def _distance(cell: int) -> int:
    return cell >> 10 << ((cell & 1 << 9) >> 6)


def by_map(text: str, found: Mapping[bytes, str]) -> str:
    """The text with the replacements of a map, as Hugging Face's `tokenizers` makes them.

    A grapheme cluster of less than 6 bytes that begins with a key is replaced as a whole, by what
    stands for the shortest such key; the characters of others are replaced one by one.
    """
    parts = []
    for cluster in regex.findall(r"\X", text):
        whole = _shortest(cluster, found) if len(cluster.encode()) < 6 else None
        if whole is not None:
            parts.append(whole)
            continue
        for char in cluster:
            replaced = _shortest(char, found)
            parts.append(char if replaced is None else replaced)
    return "".join(parts)


def _shortest(text: str, found: Mapping[bytes, str]) -> str | None:
    data = text.encode()
    keys = (data[:end] for end in range(1, len(data) + 1))
    return next((found[key] for key in keys if key in found), None)
