"""The limits of numeric settings, and the error for a value outside its limits."""

import operator
from collections.abc import Mapping
from dataclasses import fields
from math import inf, isfinite
from typing import Any

# Each bound has the name of its comparison in `operator`. NaN fails every comparison.
Limits = Mapping[str, float]
COUNT: Limits = {"ge": 1, "lt": 2**31}
COUNT_OR_ZERO: Limits = {"ge": 0, "lt": 2**31}
SEED: Limits = {"ge": 0, "lt": 2**63}
POSITIVE: Limits = {"gt": 0, "lt": inf}
NOT_NEGATIVE: Limits = {"ge": 0, "lt": inf}
FINITE: Limits = {"gt": -inf, "lt": inf}
SHARE: Limits = {"ge": 0, "le": 1}
# The same limit as in the ring of batches (rust/dataloader/src/ring.rs).
THREADS: Limits = {"ge": 1, "le": 1024}

WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
POWERS = {2**31: "2^31", 2**63: "2^63"}


def in_words(limits: Limits) -> str:
    """Return limits in words, for example 'at least 1 and below 2^31'."""
    bounds = [
        f"{WORDS[name]} {POWERS.get(int(bound), bound)}"
        for name, bound in limits.items()
        if isfinite(bound)
    ]
    return " and ".join([*bounds, "finite"] if inf in limits.values() else bounds)


def show(value: object) -> str:
    """Return a value for an error message: on one line, and shortened to 60 characters."""
    # Python raises ValueError for an int of more than 4300 decimal digits.
    huge = isinstance(value, int) and value.bit_length() > 1000
    text = "null" if value is None else f"{value:#x}" if huge else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def require(condition: bool, key: str, value: object, limit: str) -> None:
    """If `condition` is false, raise `ValueError` with the key, its value and the limit."""
    if not condition:
        raise ValueError(f"{key}={show(value)}: {limit}")


def wrap_single(config: Any) -> None:
    """Turn a single value into a list of one, in every setting that is a list of any length.

    A string is a sequence of characters, so `stop="dog"` would otherwise stop at d, o and g. A list
    becomes a tuple, which keeps the frozen section hashable.
    """
    for setting in fields(config):
        value = getattr(config, setting.name)
        if isinstance(setting.default, tuple) and isinstance(value, str | int | list):
            items = tuple(value) if isinstance(value, list) else (value,)
            # The class is frozen, but the instance is still under construction.
            object.__setattr__(config, setting.name, items)


def require_limits(section: str, config: Any) -> None:
    """Raise `ValueError` if a number of a section is outside the limits of its field.

    Null in a field that has a number for "off" becomes that number.
    """
    for setting in fields(config):
        value = getattr(config, setting.name)
        if value is None and setting.metadata["off"] is not None:
            # Each section calls this first, so nobody has seen the frozen object before.
            object.__setattr__(config, setting.name, setting.metadata["off"])
            continue
        limits = setting.metadata["limits"]
        for number in value if isinstance(value, tuple) else (value,):
            if limits and isinstance(number, int | float):
                inside = all(getattr(operator, name)(number, b) for name, b in limits.items())
                text = f"must be {in_words(limits)}"
                require(inside, f"{section}.{setting.name}", number, text)
