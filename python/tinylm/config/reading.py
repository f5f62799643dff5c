"""Read YAML without guessing types: the type of a setting decides the type of its value.

YAML 1.1 guesses the type of a word: it reads `010` as 8, `12:30` as 750, `no` as false and a date
as a date. Here, `read` keeps each word as a string, and `typed` converts it by the type of its
setting. Only `null` means null everywhere. OmegaConf turns strings into numbers and bools.
"""

import re
from typing import Any, ClassVar, get_args

import yaml

from tinylm.config.keys import takes_lists, takes_mapping, type_of

NULL = ("null", "Null", "NULL", "~", "")
BOOLS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
# Without leading zeros, because `007` among the stop texts is a text.
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")


class Plain(str):
    """A word without quotes, which may mean null, a number or a bool."""

    __slots__ = ()


class _Reader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader without its guesses. A key that is given twice is an error."""

    # Also without `<<`, which is refused as an unknown key.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return the keys and values of a mapping."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    text = f"the key {key.value} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
                seen.add(key.value)
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        return content


def _word(reader: _Reader, node: Any) -> str:
    text: str = reader.construct_scalar(node)
    return text if node.style else Plain(text)


_Reader.add_constructor("tag:yaml.org,2002:str", _word)


def read(text: str) -> Any:
    """Return the single document of a YAML text as dicts, lists and strings; {} if it is empty.

    Raises `yaml.YAMLError`, or `RecursionError` for a thousand open brackets.
    """
    reader = _Reader(text)
    try:
        content = reader.get_single_data()
        return {} if content is None else content
    finally:
        reader.dispose()


def typed(key: str, value: Any) -> Any:
    """Return the value of a setting in the form that OmegaConf needs for this key.

    Raises `ValueError` for values that the setting does not take: a mapping or a list of lists for
    most, 2 as a bool.
    """
    kind = type_of(key)
    if isinstance(value, list):
        numbers = any(int in get_args(part) for part in get_args(kind))
        if takes_lists(key):
            return [[_element(item, numbers) for item in _list(part)] for part in value]
        return [_element(item, numbers) for item in value]
    if isinstance(value, dict):
        if not takes_mapping(key):
            raise ValueError("a mapping")
        return {_whole(name): _element(item, False) for name, item in value.items()}
    if not isinstance(value, Plain):
        return value
    if value in NULL:
        return None
    if kind is bool and value.lower() not in BOOLS:
        # OmegaConf would read every number except 0 as true.
        raise ValueError("no bool")
    takes_bool = kind is bool or any(isinstance(part, bool) for part in get_args(kind))
    return BOOLS.get(value.lower(), str(value)) if takes_bool else str(value)


def _list(item: Any) -> list[Any]:
    if not isinstance(item, list):
        raise ValueError("no list of lists")
    return item


def _whole(word: Any) -> int:
    """The number of a mapping's key, which JSON writes in quotes."""
    if not _WHOLE.fullmatch(str(word)):
        raise ValueError("no whole number")
    return int(word)


def _element(item: Any, numbers: bool) -> Any:
    if isinstance(item, list | dict):
        raise ValueError("a list in a list")
    if not isinstance(item, Plain):
        return item
    if item in NULL:
        return None
    return int(item) if numbers and _WHOLE.fullmatch(item) else str(item)
