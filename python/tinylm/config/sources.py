"""The sources of a mixture: `[novel.txt:0.7,poems.txt:0.3]`, each a text and its weight.

A weight is a number or a course over the run (`courses.py`): `novel.txt:0.7@0 0.2@0.5`. Weights
are shares of the training tokens once they are divided by their sum.
"""

import os
from typing import Any

from tinylm.config.courses import Course, checked, course
from tinylm.config.limits import NOT_NEGATIVE, require

KEY = "data.sources"


def parts(sources: tuple[str, ...]) -> tuple[tuple[str, Course], ...]:
    """Each text with the course of its weight; `checked_sources` has passed them."""
    found = (source.rpartition(":") for source in sources)
    return tuple((text, course(_number(weight))) for text, _, weight in found)


def checked_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    """The sources with their weights as they are saved; `ValueError` names the wrong one."""
    weights: dict[str, Any] = {}
    files: dict[str, str] = {}
    for source in sources:
        text, _, weight = source.rpartition(":")
        # The last colon: a path may have others.
        limit = "expected SOURCE:WEIGHT, such as [novel.txt:0.7,poems.txt:0.3]"
        require(bool(text.strip() and weight.strip()), KEY, source, limit)
        text = os.path.expanduser(text.strip())
        # By two names too: a.txt and ./a.txt.
        file = os.path.realpath(text) if os.path.exists(text) else text
        as_what = "" if files.get(file, text) == text else f", also as {files[file]}"
        require(file not in files, KEY, text, f"is named twice{as_what}: give it one weight")
        files[file] = text
        expected = "a weight, at least 0 and finite, or a course of them such as 0.7@0 0.2@0.5"
        key = f"{KEY}: {text}"
        weights[text] = checked(key, _number(weight.strip()), float, NOT_NEGATIVE, expected)
    courses = [course(weight) for weight in weights.values()]
    # Between two points the sum is above 0 if it is at one of them.
    for place in {place for one in courses for place, _ in one.points}:
        limit = f"all weights are 0 at {place:g} of the run: one must be above 0"
        require(any(one.at(place) > 0 for one in courses), KEY, f"[{','.join(sources)}]", limit)
    return tuple(f"{text}:{weight}" for text, weight in weights.items())


def _number(weight: str) -> float | str:
    """A plain number as one, so that it is checked and written as such."""
    try:
        return weight if "_" in weight else float(weight)
    except ValueError:
        return weight
