"""The steps of a `tokenizer.json` that change a text or cut it: its normalizer and pre_tokenizer.

`normalizers` and `pre_tokenizers` check every key and give the steps in the words of the file, with
what it leaves out filled in and its expressions in TinyLM's dialect; `rust/bindings/src/stages.rs`
takes them so. What is not in the two tables is refused by its name.
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

from tinylm.tokenizer import dialect
from tinylm.tokenizer.checks import check_keys, checked, shown, steps_of

Step = dict[str, Any]
# Stands for a key that must be there.
REQUIRED = object()
BEHAVIORS = ("Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext")


def _of(kind: type[Any]) -> Callable[[object, str], Any]:
    return lambda value, name: checked(value, kind, name)


def _one_of(*known: str) -> Callable[[object, str], str]:
    def check(value: object, name: str) -> str:
        if value not in known:
            raise ValueError(f"{name} = {shown(value)} is not one of {', '.join(known)}")
        return str(value)

    return check


def _character(value: object, name: str) -> str:
    text = checked(value, str, name)
    if len(text) != 1:
        raise ValueError(f"{name} = {shown(value)} is not one character")
    return text


def _maybe_flag(value: object, name: str) -> bool | None:
    return None if value is None else checked(value, bool, name)


def _length(value: object, name: str) -> int:
    length = checked(value, int, name)
    if length == 0:
        raise ValueError(f"{name} = 0 is not supported; a piece has a character")
    return length


def pattern_of(value: object, name: str) -> Step:
    """What a step looks for, a String or a Regex in TinyLM's dialect."""
    match checked(value, dict, name):
        case {"String": str(text), **rest} if not rest:
            return {"String": text}
        case {"Regex": str(regex), **rest} if not rest:
            # In a group, so that a word alone is not taken for the name of a pattern.
            return {"Regex": f"(?:{dialect.read(regex)})"}
    raise ValueError(f"{name} = {shown(value)} is neither a String nor a Regex")


def _map(value: object, name: str) -> bytes:
    text = checked(value, str, name)
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name} is not base64: {error}") from None


FLAG, TEXT = _of(bool), _of(str)
# By the type, each key with its check and what it is if it is left out.
NORMALIZERS: dict[str, dict[str, tuple[Callable[[object, str], Any], object]]] = {
    **{kind: {} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt")},
    "ByteLevel": {},
    "Strip": {"strip_left": (FLAG, REQUIRED), "strip_right": (FLAG, REQUIRED)},
    "Replace": {"pattern": (pattern_of, REQUIRED), "content": (TEXT, REQUIRED)},
    "Prepend": {"prepend": (TEXT, REQUIRED)},
    "Precompiled": {"precompiled_charsmap": (_map, REQUIRED)},
    "BertNormalizer": {
        "clean_text": (FLAG, REQUIRED),
        "handle_chinese_chars": (FLAG, REQUIRED),
        "strip_accents": (_maybe_flag, None),
        "lowercase": (FLAG, REQUIRED),
    },
}
PRE_TOKENIZERS: dict[str, dict[str, tuple[Callable[[object, str], Any], object]]] = {
    **{
        kind: {} for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts")
    },
    "ByteLevel": {
        "add_prefix_space": (FLAG, REQUIRED),
        "trim_offsets": (FLAG, True),
        "use_regex": (FLAG, True),
    },
    "Split": {
        "pattern": (pattern_of, REQUIRED),
        "behavior": (_one_of(*BEHAVIORS), REQUIRED),
        "invert": (FLAG, REQUIRED),
    },
    "Digits": {"individual_digits": (FLAG, REQUIRED)},
    "Punctuation": {"behavior": (_one_of(*BEHAVIORS), "Isolated")},
    "Metaspace": {
        "replacement": (_character, REQUIRED),
        "prepend_scheme": (_one_of("first", "always", "never"), "always"),
        "split": (FLAG, True),
        # Older files say these two.
        "add_prefix_space": (_maybe_flag, None),
        "str_rep": (TEXT, ""),
    },
    "CharDelimiterSplit": {"delimiter": (_character, REQUIRED)},
    "FixedLength": {"length": (_length, 5)},
}


# A text of Mistral is one piece; no token has U+2581 after another character, so cutting there
# changes no id, and the pieces are found in the cache: 1 MB of English at once goes from 3.6 to
# 26 MB/s on one thread. The expression is that of the pattern "marks".
BEFORE_MARKS: Step = {
    "type": "Split",
    "pattern": {"Regex": r"\x{2581}*[^\x{2581}]+|\x{2581}+"},
    "behavior": "Isolated",
    "invert": False,
}


def normalizers(part: object) -> list[Step]:
    """The steps of a normalizer; ValueError names what is not supported."""
    steps = _steps(part, "normalizer", "normalizers", NORMALIZERS)
    for step in steps:
        if step["type"] == "BertNormalizer" and step["strip_accents"] is None:
            step["strip_accents"] = step["lowercase"]
    return steps


def pre_tokenizers(part: object) -> list[Step]:
    """The steps of a pre_tokenizer; ValueError names what is not supported."""
    steps = _steps(part, "pre_tokenizer", "pretokenizers", PRE_TOKENIZERS)
    for step in steps:
        # `tokenizers` takes False for "never", and refuses it beside another scheme.
        contradicts = step.get("prepend_scheme", "never") != "never"
        if step["type"] == "Metaspace" and step["add_prefix_space"] is False and contradicts:
            raise ValueError(
                "pre_tokenizer Metaspace.add_prefix_space = false contradicts its "
                f"prepend_scheme {shown(step['prepend_scheme'])}"
            )
    if sum(step["type"] == "ByteLevel" for step in steps) > 1:
        raise ValueError(f"pre_tokenizer has two ByteLevel, which is not supported: {shown(part)}")
    return steps


def _steps(
    part: object,
    name: str,
    inner: str,
    known: Mapping[str, Mapping[str, tuple[Callable[[object, str], Any], object]]],
) -> list[Step]:
    found = []
    for step in steps_of(part, name, inner):
        kind = step["type"]
        if kind not in known:
            raise ValueError(
                f"{name} {kind} is not supported, only {', '.join(sorted(known))}: {shown(step)}"
            )
        keys = known[kind]
        check_keys(step, {"type", *keys}, f"{name} {kind}.")
        values: Step = {"type": kind}
        for key, (check, default) in keys.items():
            if key not in step and default is REQUIRED:
                raise ValueError(f"{name} {kind}.{key} is missing")
            values[key] = check(step[key], f"{name} {kind}.{key}") if key in step else default
        found.append(values)
    return found
