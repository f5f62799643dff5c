"""Whole numbers that callers give, checked before the Rust side counts with them."""

import operator
from typing import Any


def whole(name: str, value: Any, most: int = 2**64 - 1) -> int:
    """`value` as an int of Python from 0 to `most`; ValueError names it."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        raise ValueError(f"{name}={value!r} must be a whole number between 0 and {most}")
    return number
