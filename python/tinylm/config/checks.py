"""The check of a new section: each value has the type and the limits of its field.

Values from files and arguments have their types already. Values from Python may be anything:
`heal="no"` would be true, and a stop of bytes would never be found.
"""

import operator
import os
import sys
from collections.abc import Iterator
from dataclasses import Field, fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tinylm.config.courses import checked
from tinylm.config.limits import in_words, require

# What `_convert` returns for a value of a wrong type, because None is a value of some settings.
WRONG = object()


@cache
def hints(kind: Any) -> dict[str, Any]:
    """Return the types of the fields of a section, with their annotations resolved."""
    return get_type_hints(kind)


def check(section: str, config: Any) -> None:
    """Raise `ValueError` if a value of a new section has a wrong type or is outside its limits.

    `section` is "" for `Run` itself. Null in a field that has a number for "off" becomes that
    number, and a list becomes a tuple, which keeps the frozen section hashable.
    """
    settled = _settled(config.__class__)
    for setting in fields(config):
        if getattr(config, setting.name) is settled.get(setting.name, settled):
            continue
        key = f"{section}.{setting.name}" if section else setting.name
        given, kind = getattr(config, setting.name), hints(config.__class__)[setting.name]
        value = _convert(_filled(given, setting), kind)
        if value is WRONG:
            shown = given if given is None or isinstance(given, int) else repr(given)
            require(False, key, shown, f"expected {expectation(setting, kind)}")
        limits: Any = setting.metadata.get("limits")
        number = setting.metadata.get("course")
        if number is not None and value is not None:
            value = checked(key, value, number, limits, expectation(setting, kind))
        if value is not given:
            # The class is frozen, but the instance is still under construction.
            object.__setattr__(config, setting.name, value)
        for item in _numbers(value):
            if limits and isinstance(item, int | float):
                inside = all(getattr(operator, name)(item, b) for name, b in limits.items())
                require(inside, key, item, f"must be {in_words(limits)}")


@cache
def _settled(kind: Any) -> dict[str, Any]:
    """The defaults of a section that `check` leaves as they are: a request makes a section anew."""
    return {
        setting.name: setting.default
        for setting in fields(kind)
        if setting.metadata.get("course") is None
        and _convert(_filled(setting.default, setting), hints(kind)[setting.name])
        is setting.default
    }


class Fixed(dict[Any, Any]):
    """A mapping of a section: hashable, as frozen sections are, because nobody may change it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("a setting cannot be changed: make new settings with dataclasses.replace")


def _numbers(value: Any) -> Iterator[Any]:
    """The single values of a setting, those of a list in a list and of a mapping too."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    else:
        yield value


def expectation(setting: Field[Any], kind: Any) -> str:
    """Describe the allowed values of a field in words, for example "a number, above 0"."""
    choices: Any = setting.metadata.get("choices")
    limits: Any = setting.metadata.get("limits")
    if choices and get_origin(kind) is tuple:
        return f"a list of {', '.join(choices)}, such as [{','.join(choices[:2])}]"
    if (unit := setting.metadata.get("course")) is not None:
        example = "4@0 8@0.5" if unit is int else "0.85@0 0.95@0.1"
        optional = type(None) in get_args(kind) or setting.metadata.get("off") is not None
        course = f"or a course of them such as '{example}'{', or null' if optional else ''}"
        return f"{_describe(unit)}, {in_words(limits)}, {course}"
    words = " or ".join(choices) if choices else _describe(kind)
    if choices and isinstance(kind, UnionType):
        words += " or null"
    if setting.metadata.get("off") is not None:
        words += " or null"
    if limits is None:
        return words
    if get_origin(kind) is tuple:
        return f"{words}, each {in_words(limits)}"
    number, null, rest = words.partition(" or null")
    return f"{number}, {in_words(limits)}{',' if null else ''}{null}{rest}"


def _filled(value: Any, setting: Field[Any]) -> Any:
    """Return the number for "off" instead of null, and a tuple of one instead of a single value."""
    if value is None:
        return setting.metadata.get("off")
    # A string is a sequence of characters: `stop="dog"` would otherwise stop at d, o and g.
    single = isinstance(setting.default, tuple) and isinstance(value, str | Integral)
    return (value,) if single else value


def _convert(value: Any, kind: Any) -> Any:
    """Return `value` as Python's own type of this kind, or `WRONG`."""
    if isinstance(kind, UnionType):
        found = (_convert(value, part) for part in get_args(kind))
        return next((item for item in found if item is not WRONG), WRONG)
    if get_origin(kind) is Literal:
        # Also by type, because 1 == True.
        same = (type(value) is type(one) and value == one for one in get_args(kind))
        return value if any(same) else WRONG
    if get_origin(kind) is tuple:
        return _tuple(value, get_args(kind))
    if get_origin(kind) is dict:
        return _mapping(value, get_args(kind))
    # True is an int for Python; nobody means it as a number.
    if kind in (int, float) and not isinstance(value, bool):
        return _number(value, kind)
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    return value if right else WRONG


def _tuple(value: Any, parts: tuple[Any, ...]) -> Any:
    """Return a list or tuple as a tuple with items of these kinds, or `WRONG`."""
    if not isinstance(value, list | tuple):
        return WRONG
    kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
    if len(kinds) != len(value):
        return WRONG
    items = tuple(map(_convert, value, kinds))
    if any(item is WRONG for item in items):
        return WRONG
    same = isinstance(value, tuple) and all(map(operator.is_, items, value))
    return value if same else items


def _mapping(value: Any, kinds: tuple[Any, ...]) -> Any:
    """Return a mapping with keys and values of these kinds as one that is fixed, or `WRONG`."""
    if isinstance(value, Fixed):
        return value
    if not isinstance(value, dict):
        return WRONG
    items = {_convert(key, kinds[0]): _convert(item, kinds[1]) for key, item in value.items()}
    return WRONG if WRONG in items or WRONG in items.values() else Fixed(items)


def _number(value: Any, kind: type) -> Any:
    """Return a number, also one of NumPy, as an int or float; a float setting takes both."""
    if isinstance(value, Integral):
        # Above this no float follows, and arithmetic with one raises OverflowError.
        if kind is float and abs(int(value)) > sys.float_info.max:
            return WRONG
        return value if isinstance(value, int) else int(value)
    if kind is float and isinstance(value, Real):
        return value if isinstance(value, float) else float(value)
    return WRONG


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(str(value).lower() for value in get_args(kind))
    if get_origin(kind) is dict:
        return "a mapping of ids to numbers, such as {5: -100}"
    if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is tuple:
        return "a list of lists, such as [[5],[6,7]]"
    if get_origin(kind) is tuple:
        length = "" if get_args(kind)[-1] is Ellipsis else f" of {len(get_args(kind))}"
        return f"a list{length}, such as [{'0.9,0.95' if get_args(kind)[0] is float else 'a,b'}]"
    if isinstance(kind, UnionType):
        return " or ".join(
            "null" if part is type(None) else _describe(part) for part in get_args(kind)
        )
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names.get(kind) or f"a {kind.__name__}"
