"""The limits of numeric settings, and the error for a value outside its limits."""

from collections.abc import Mapping
from math import inf, isfinite

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
    if isinstance(value, tuple | list):
        # As on a command line, and not as in Python.
        text = f"[{', '.join(map(show, value))}]"
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def require(condition: bool, key: str, value: object, limit: str) -> None:
    """If `condition` is false, raise `ValueError` with the key, its value and the limit."""
    if not condition:
        raise ValueError(f"{key}={show(value)}: {limit}")
