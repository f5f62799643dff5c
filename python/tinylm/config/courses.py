"""Numbers that change over a run: a course gives a value at each point of its progress.

    0.95                        # the same number throughout
    0.85@0 0.95@0.1             # 0.85 at the start, 0.95 from a tenth of the run on

A point is `value@progress`; progress is step / steps, from 0 to 1. Between two points a number
follows the straight line, and a whole number holds until the next point. Before the first point
and after the last one the value is constant.
"""

import operator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from tinylm.config.limits import Limits, in_words, require


@dataclass(frozen=True)
class Course:
    """Numbers at points of the progress, with straight lines between them."""

    points: tuple[tuple[float, float], ...]

    def at(self, progress: float) -> float:
        """Return the value at `progress` (0 to 1)."""
        before, value = self.points[0]
        for place, there in self.points:
            if progress < place:
                # Before the first point the share is 0 / 0, so it has its own case.
                share = (progress - before) / (place - before) if place > before else 0.0
                return value + share * (there - value)
            before, value = place, there
        return value


@dataclass(frozen=True)
class Stairs:
    """Whole numbers that hold from their point of the progress to the next point."""

    points: tuple[tuple[float, int], ...]

    def at(self, progress: float) -> int:
        """Return the value at `progress` (0 to 1)."""
        value = self.points[0][1]
        for place, there in self.points:
            if progress >= place:
                value = there
        return value

    @property
    def values(self) -> tuple[int, ...]:
        """Every value that the run takes, in order."""
        return tuple(value for _, value in self.points)


def course(value: float | str) -> Course:
    """Return the course of a setting that `checked` has passed."""
    return Course(tuple((place, float(number)) for place, number in _points(value, float)))


def stairs(value: int | str) -> Stairs:
    """Return the course of whole numbers of a setting that `checked` has passed."""
    return Stairs(tuple((place, int(number)) for place, number in _points(value, int)))


def checked(key: str, value: Any, kind: type, limits: Limits, expected: str) -> Any:
    """Return `value` as a number or as the text of a course; `ValueError` names the wrong point.

    `kind` is int or float. `expected` describes the allowed values.
    """
    try:
        points = _points(value, kind)
    except ValueError:
        require(False, key, value, f"expected {expected}")
    for place, number in points:
        # The point is named only if there are several values, one of which is wrong.
        where = f"{number}@{place:g}" if len(points) > 1 else number
        inside = all(getattr(operator, name)(number, bound) for name, bound in limits.items())
        require(inside, key, where, f"must be {in_words(limits)}")
        require(0 <= place <= 1, key, f"{number}@{place}", "progress must be between 0 and 1")
    places = [place for place, _ in points]
    for one, two in pairwise(places):
        require(one < two, key, value, f"progress must grow, but {two:g} follows {one:g}")
    if len(points) == 1:
        return points[0][1]
    return " ".join(f"{number}@{_short(place)}" for place, number in points)


def _short(place: float) -> float:
    return int(place) if place == int(place) else place


@cache
def _points(value: float | str, kind: type) -> tuple[tuple[float, Any], ...]:
    """Return the points of a course as (progress, number); `ValueError` if a number is none."""
    if not isinstance(value, str):
        return ((0.0, kind(value)),)
    words = value.split()
    if not words or "_" in value:
        raise ValueError("no number")
    if len(words) == 1 and "@" not in value:
        return ((0.0, kind(value)),)
    return tuple(
        (float(place), kind(number)) for number, _, place in (w.partition("@") for w in words)
    )
