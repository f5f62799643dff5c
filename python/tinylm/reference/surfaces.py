"""Tokens to text by several steps: the decoders of a `tokenizer.json`.

Each step takes the tokens of a text as strings and gives others; at the end they are joined.
`decode` runs the steps of a file, with the keys and types of the file.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tinylm.reference.normalizers import replace
from tinylm.reference.pieces import ALPHABET

BYTE_OF = {char: byte for byte, char in enumerate(ALPHABET)}
# What WordPiece's decoder cleans, in this order.
CLEANED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    *((f" {end}", end) for end in ("'s", "'ve", "'re")),
)


def decode(tokens: list[str], steps: Iterable[Mapping[str, Any]]) -> bytes:
    """The bytes of a text; without steps its tokens are joined with blanks."""
    steps = list(steps)
    if not steps:
        return " ".join(tokens).encode()
    # A token that is bytes has one character for each, beyond Unicode's text.
    for step in steps:
        tokens = _step(tokens, step)
    return "".join(tokens).encode("utf-8", "surrogateescape")


def _step(tokens: list[str], step: Mapping[str, Any]) -> list[str]:
    match step["type"]:
        case "Fuse":
            return ["".join(tokens)]
        case "ByteFallback":
            return [_byte(token) for token in tokens]
        case "Replace":
            return [replace(token, step["pattern"], step["content"]) for token in tokens]
        case "Strip":
            return [_strip(token, step["content"], step["start"], step["stop"]) for token in tokens]
        case "Metaspace":
            mark, never = step["replacement"], step["prepend_scheme"] == "never"
            return [
                token.replace(mark, "" if i == 0 and not never else " ")
                for i, token in enumerate(tokens)
            ]
        case "WordPiece":
            return [_word(i, token, step) for i, token in enumerate(tokens)]
        case "ByteLevel":
            return ["".join(map(_bytes, tokens))]
    raise ValueError(step["type"])


def _escaped(data: bytes) -> str:
    """Bytes as text, those that are not UTF-8 as half characters that stand for them."""
    return data.decode("latin-1").translate({b: 0xDC00 + b for b in range(128, 256)})


def _byte(token: str) -> str:
    match = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
    return _escaped(bytes([int(match[1], 16)])) if match else token


def _bytes(token: str) -> str:
    if all(char in BYTE_OF for char in token):
        return _escaped(bytes(BYTE_OF[char] for char in token))
    return token


def _strip(token: str, char: str, start: int, stop: int) -> str:
    for _ in range(start):
        token = token.removeprefix(char)
    for _ in range(stop):
        token = token.removesuffix(char)
    return token


def _word(place: int, token: str, step: Mapping[str, Any]) -> str:
    if place:
        inside = token.startswith(step["prefix"])
        token = token.removeprefix(step["prefix"]) if inside else f" {token}"
    for mark, clean in CLEANED if step["cleanup"] else ():
        token = token.replace(mark, clean)
    return token
