"""The rules of state.json: which keys it must have, and what each may hold.

    check(path, content, {"step": WHOLE})

Its bytes are the user's as soon as MANIFEST.json is gone or is not asked, and a wrong number here
would train on in silence from another place.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Whether a value fits, and what is expected, in words.
Rule = tuple[Callable[[Any], bool], str]


def whole(least: int, most: int = 2**63 - 1) -> Rule:
    """A whole number in these limits; JSON's true and 1.0 are none."""
    # Not isinstance: a bool is an int.
    limit = f"from {least} to {most:,}" if most < 2**63 - 1 else f"at least {least}"
    return lambda value: type(value) is int and least <= value <= most, f"a whole number, {limit}"


WHOLE = whole(0)
OBJECT: Rule = (lambda value: isinstance(value, dict), "an object")
TEXT: Rule = (lambda value: isinstance(value, str), "a text")
# JSON as Python reads it has NaN and Infinity.
SECONDS: Rule = (
    lambda value: type(value) in (int, float) and math.isfinite(value) and value >= 0,
    "a number, at least 0",
)
FACTOR: Rule = (
    lambda value: type(value) in (int, float) and math.isfinite(value) and value > 0,
    "a number above 0",
)
LOSS: Rule = (
    lambda value: value is None or (type(value) in (int, float) and math.isfinite(value)),
    "a number or null",
)


def check(
    path: Path, content: Mapping[str, Any], rules: Mapping[str, Rule], inside: str = ""
) -> None:
    """Raise `ValueError` naming the file and the key unless each rule has a value that fits."""
    for key, (fits, words) in rules.items():
        name = f"{inside}{key}"
        if key not in content:
            raise ValueError(f"{path}: lacks the key {name}, {words}: {_WAY_OUT}")
        if not fits(content[key]):
            # Short: a value may be a whole list.
            found = repr(content[key])[:60]
            raise ValueError(f"{path}: {name}={found}: expected {words}: {_WAY_OUT}")


_WAY_OUT = "mend it, take another checkpoint, or start from the weights alone (train.init=)"
