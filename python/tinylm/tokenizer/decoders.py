"""The decoder of a `tokenizer.json`: how each token looks in a text.

Hugging Face's decoders rewrite the tokens of a text one after the other. What a token becomes
depends on the token and on whether it comes first, so it can be told for each before there is any
text: `surfaces` does that, and decoding only joins bytes. CTC and BPEDecoder need the neighbours of
a token and are refused.

Bytes that are not UTF-8 become U+FFFD as everywhere in TinyLM; `tokenizers` gives one for each
ByteFallback token of a run with such a byte, also for those that are whole characters.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tinylm import _rust
from tinylm.tokenizer.checks import check_keys, checked, shown, steps_of
from tinylm.tokenizer.steps import PRE_TOKENIZERS, pattern_of

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
KEYS: dict[str, dict[str, type[Any]]] = {
    "ByteLevel": {"add_prefix_space": bool, "trim_offsets": bool, "use_regex": bool},
    "Metaspace": {},
    "WordPiece": {"prefix": str, "cleanup": bool},
    "ByteFallback": {},
    "Fuse": {},
    "Strip": {"content": str, "start": int, "stop": int},
    "Replace": {"pattern": dict, "content": str},
}
# In this order, within one token.
CLEANED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    *((f" {end}", end) for end in ("'s", "'ve", "'re")),
)


class Surfaces(NamedTuple):
    """The bytes of every token in a text, and of those that look otherwise where one begins.

    The beginning of a text loses up to `strip[1]` characters `strip[0]`.
    """

    all: dict[int, bytes]
    first: dict[int, bytes]
    strip: tuple[str, int] | None


def steps(part: object) -> list[dict[str, Any]]:
    """The steps of a decoder, their keys checked; ValueError names what is not supported."""
    found = steps_of(part, "decoder", "decoders")
    for step in found:
        kind = step["type"]
        if kind not in KEYS:
            raise ValueError(
                f"decoder {kind} is not supported, only {', '.join(sorted(KEYS))} or null: "
                f"{shown(step)}; the text of its ids would be another one"
            )
        if kind == "Metaspace":
            check_keys(step, {"type", *PRE_TOKENIZERS[kind]}, "decoder Metaspace.")
            checked(step["replacement"], str, "decoder Metaspace.replacement")
            continue
        check_keys(step, {"type", *KEYS[kind]}, f"decoder {kind}.")
        for key, type_ in KEYS[kind].items():
            if key != "use_regex" or key in step:
                checked(step[key], type_, f"decoder {kind}.{key}")
        if kind == "Replace":
            pattern_of(step["pattern"], "decoder Replace.pattern")
        if kind == "Strip" and len(step["content"]) != 1:
            raise ValueError(f"decoder Strip.content = {shown(step['content'])} is no character")
    _check_order(found)
    return found


def _check_order(found: list[dict[str, Any]]) -> None:
    """ValueError for what would look at several tokens at once."""
    joined = False
    for before, step in zip([None, *found], found, strict=False):
        kind = step["type"]
        after_join = kind == "Fuse" or (kind == "Strip" and not step["stop"])
        bytes_before = before and before["type"] == "ByteFallback" and kind != "Fuse"
        if (joined and not after_join) or bytes_before:
            raise ValueError(f"decoder {kind} after {before['type']} is not supported")  # type: ignore[index]
        joined |= kind in ("Fuse", "ByteLevel")


def is_byte_level(found: list[dict[str, Any]]) -> bool:
    """Whether a decoder gives the bytes of byte-level BPE and nothing else."""
    return [step["type"] for step in found if step["type"] != "Fuse"] == ["ByteLevel"]


def surfaces(
    found: list[dict[str, Any]], tokens: Mapping[int, str], alphabet: Mapping[str, int]
) -> Surfaces:
    """What checked steps make of `tokens`, by their ids; `alphabet` is that of ByteLevel."""
    all_of = {id: _run(found, token, alphabet, first=False) for id, token in tokens.items()}
    first = {}
    if not found or any(step["type"] in ("Metaspace", "WordPiece") for step in found):
        of_first = {id: _run(found, token, alphabet, first=True) for id, token in tokens.items()}
        first = {id: text for id, text in of_first.items() if text != all_of[id]}
    strip, joined = None, False
    for step in found:
        joined |= step["type"] in ("Fuse", "ByteLevel")
        if joined and step["type"] == "Strip" and step["start"]:
            if strip is not None and strip[0] != step["content"]:
                raise ValueError("decoder Strip of two characters in a row is not supported")
            strip = step["content"], step["start"] + (strip[1] if strip else 0)
    return Surfaces(all_of, first, strip)


def _run(
    found: list[dict[str, Any]], token: str, alphabet: Mapping[str, int], *, first: bool
) -> bytes:
    """One token through the steps up to the one that joins all tokens."""
    if not found:
        # Without a decoder `tokenizers` joins tokens with a blank.
        return (token if first else f" {token}").encode()
    for step in found:
        match step["type"]:
            case "Fuse":
                break
            case "ByteLevel":
                if all(char in alphabet for char in token):
                    return bytes(alphabet[char] for char in token)
                break
            case "ByteFallback":
                if byte := _BYTE.fullmatch(token):
                    return bytes([int(byte[1], 16)])
            case "Replace":
                found_in = pattern_of(step["pattern"], "decoder Replace.pattern")
                replace = {"type": "Replace", "pattern": found_in, "content": step["content"]}
                token = _rust.normalise(token, [replace])
            case "Strip":
                token = _stripped(token, step)
            case "Metaspace":
                drop = first and step.get("prepend_scheme") != "never"
                drop = drop and step.get("add_prefix_space") is not False
                token = token.replace(step["replacement"], "" if drop else " ")
            case "WordPiece":
                if not first:
                    inside = token.startswith(step["prefix"])
                    token = token.removeprefix(step["prefix"]) if inside else f" {token}"
                for mark, clean in CLEANED if step["cleanup"] else ():
                    token = token.replace(mark, clean)
    return token.encode()


def _stripped(token: str, step: Mapping[str, Any]) -> str:
    start, end = 0, len(token)
    while start < min(step["start"], end) and token[start] == step["content"]:
        start += 1
    while end > max(start, len(token) - step["stop"]) and token[end - 1] == step["content"]:
        end -= 1
    return token[start:end]
