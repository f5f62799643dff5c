"""Checks of the values of a JSON file: each fails with the name and the value."""

import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

KINDS = {
    bool: "true or false",
    int: "an id, an integer from 0 to 4294967295",
    str: "a string",
    dict: "an object",
    list: "a list",
}
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
Kind = TypeVar("Kind", bool, int, str, dict[str, Any], list[Any])


def shown(value: object) -> str:
    """A value of the file, short enough for one line."""
    return json.dumps(value)[:200]


def checked(value: object, kind: type[Kind], name: str) -> Kind:
    """A value of the file, if it is of its type; ValueError with its name otherwise."""
    # In Python a bool is an int. The integers of the file are ids.
    fits = not isinstance(value, int) or kind is bool or 0 <= value < 2**32
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not fits:
        raise ValueError(f"{name} = {shown(value)} is not {KINDS[kind]}")
    return value


def check_keys(found: Mapping[str, Any], known: set[str], place: str) -> None:
    """ValueError for a key that is not known: what it asks for would be lost."""
    for key in found:
        if key not in known:
            raise ValueError(
                f"key {place}{key} = {shown(found[key])} is not known; take it out if no id "
                "depends on it"
            )


def steps_of(part: Any, name: str, inner: str) -> list[dict[str, Any]]:
    """The steps of a part of the document: none, itself, or those of a Sequence."""
    match part:
        case None:
            return []
        case {"type": "Sequence"}:
            check_keys(part, {"type", inner}, f"{name} Sequence.")
            children = checked(part[inner], list, f"{name} {inner}")
            return [step for child in children for step in steps_of(child, name, inner)]
        case {"type": str()}:
            return [part]
    raise ValueError(f"{name} = {shown(part)} is not an object with a type")


def refuse_halves(path: Path, data: bytes, value: object) -> None:
    """ValueError for a string with a lone surrogate in it, by its place; `value` is all of `data`.

    It would fail only when the tokenizer is made or saved, and without a name.
    """
    # Only an escape can write one, and hardly any file has such an escape.
    if _ESCAPED_HALF.search(data) and (half := _half(value, "")):
        raise ValueError(f"{path}: {half} has half a character, which UTF-8 cannot hold: remove it")


def _half(value: object, place: str) -> str | None:
    """The place and value of the first string with a lone surrogate; None if there is none."""
    parts: Iterable[str | None] = ()
    match value:
        case str() if _HALF.search(value):
            return f"{place.removeprefix('.')} = {shown(value)}"
        case dict():
            keys = (_half(key, f"{place} key") for key in value)
            parts = chain(keys, (_half(part, f"{place}.{key}") for key, part in value.items()))
        case list():
            parts = (_half(part, f"{place}[{i}]") for i, part in enumerate(value))
    return next((part for part in parts if part), None)
