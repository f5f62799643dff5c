"""The sources of a mixture and their shares: what `Loader([...], weights=...)` is made of.

Which row comes from which source is the matter of the Rust crate (`rust/dataloader/src/mix.rs`),
defined by `reference/mixture.py`. Here weights become whole shares, and a course of weights over a
run becomes stages of constant shares.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.data.arrays import ArrayDataset, Source
from tinylm.data.numbers import whole

# What the shares of a stage add up to, and the least above 0 (`rust/dataloader/src/mix.rs`).
WHOLE = 1 << 32
LEAST = WHOLE >> 16
# Stages that follow one straight line of a course, at most, and the least rows of each: those of a
# block, as shares hold on average only in less.
STAIRS, STAIR_ROWS = 32, 32
# The last row with which a stage may begin (MAX_ROWS of the Rust side, less one).
_MAX_ROW = 2**62 - 1

One = Source | NDArray[Any]
Sources = One | Sequence[One]
Weights = Sequence[float] | Mapping[int, Sequence[float]]
Stages = list[tuple[int, list[int]]]


def stages(weights: Weights | None, sources: int) -> Stages:
    """The stages of weights, or of {the row with which they begin: weights}.

    Weights are shares of the tokens after they are divided by their sum. `ValueError` for numbers
    that are no weights, and for one above 0 that is less than 1/65536 of the whole.
    """
    if weights is None:
        raise ValueError("weights=None: a mixture takes a weight for each source")
    begun = weights if isinstance(weights, Mapping) else {0: weights}
    begun = {whole("weights: a row", row, _MAX_ROW): shares for row, shares in begun.items()}
    if min(begun, default=1) != 0:
        raise ValueError(f"weights begin at rows {sorted(begun)}: the first must be 0")
    return [(row, _shares(begun[row], sources)) for row in sorted(begun)]


def opened(sources: Sources, weights: Weights | None) -> tuple[list[Source], Stages | None]:
    """The sources of a loader, and the stages of a mixture; None for a source without others."""
    if isinstance(sources, Source | np.ndarray):
        if weights is not None:
            raise ValueError("weights are for several sources: give a list of datasets")
        return [_source(sources)], None
    if not isinstance(sources, list | tuple):
        raise ValueError(f"sources={sources!r:.60} must be a Dataset, an array of NumPy or a list")
    found = [_source(source) for source in sources]
    check(found)
    return found, stages(weights, len(found))


def _source(source: One) -> Source:
    if isinstance(source, np.ndarray):
        return ArrayDataset(source)
    if not isinstance(source, Source):
        raise ValueError(f"source {source!r:.60} must be a Dataset or an array of NumPy")
    return source


def _shares(weights: Sequence[float], sources: int) -> list[int]:
    """Weights as whole numbers that add up to `WHOLE`."""
    if not isinstance(weights, Sequence | np.ndarray) or isinstance(weights, str):
        raise ValueError(f"weights: {weights!r} must be a list with a number for each source")
    if len(weights) != sources:
        raise ValueError(f"{len(weights)} weights for {sources} sources: give one for each")
    for weight in weights:
        if not isinstance(weight, Real) or not 0 <= weight < float("inf"):
            raise ValueError(f"weights: {weight!r} must be a number, at least 0 and finite")
    # Fractions, because a sum of floats depends on their order.
    exact = [Fraction(int(w) if isinstance(w, Integral) else float(w)) for w in weights]
    total = sum(exact)
    if not total:
        raise ValueError("weights are all 0: one must be above 0")
    found = [int(weight / total * WHOLE) for weight in exact]
    for weight, share in zip(weights, found, strict=True):
        if weight and share < LEAST:
            raise ValueError(
                f"weights: {weight} is {share / WHOLE:.2g} of all: must be 0 or at least 1/65536"
            )
    # What rounding down has left, fewer than there are sources, goes to the largest.
    found[found.index(max(found))] += WHOLE - sum(found)
    return found


def staged(
    courses: Sequence[Any], rows: Callable[[float], int]
) -> "Mapping[int, Sequence[float]] | list[float]":
    """The weights of courses (`tinylm.config.courses.Course`) over a run, as stages.

    `rows` gives the rows that are read before a progress from 0 to 1. A straight line becomes
    stairs of the same mean. A source that is on its way from or to 0 has none while it is below
    1/65536 of all.
    """
    places = sorted({place for course in courses for place, _ in course.points} | {0.0, 1.0})
    found: dict[int, list[float]] = {}
    for begin, end in pairwise(places):
        constant = all(course.at(begin) == course.at(end) for course in courses)
        n = 1 if constant else min(STAIRS, max(1, (rows(end) - rows(begin)) // STAIR_ROWS))
        for step in range(n):
            at = begin + (end - begin) * step / n
            middle = begin + (end - begin) * (step + 0.5) / n
            weights = [course.at(middle) for course in courses]
            least = sum(weights) / 2**15 if n > 1 else 0
            found[rows(at)] = [weight if weight >= least else 0.0 for weight in weights]
    same = [weights for row, weights in found.items() if weights != found[0]]
    return found if same else found[0]


def fingerprint(datasets: Sequence[Source]) -> str:
    """A hash of the tokens of all sources, in their order."""
    return _hash([dataset.fingerprint for dataset in datasets])


def name_of(found: Stages) -> str:
    """A hash of stages, which a saved state holds in place of them."""
    return _hash(found)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def check(datasets: Sequence[Source]) -> None:
    """Raise `ValueError` unless the sources are of one tokenizer, as far as they say it.

    Tokens that came without their tokenizer are compared by the size of the vocabulary alone, and
    arrays by their eos. Texts and conversations may be mixed.
    """
    if not datasets:
        raise ValueError("sources=[]: a mixture has one source at least")
    first = datasets[0]
    for other in datasets[1:]:
        one, two = first.tokenizer_sha256, other.tokenizer_sha256
        if one != two:
            raise ValueError(
                f"{first.folder} was made by tokenizer {one[:12]} and {other.folder} by "
                f"{two[:12]}: prepare both with the same"
            )
        if first.eos_id != other.eos_id:
            raise ValueError(
                f"{first.folder} ends its documents with id {first.eos_id} and {other.folder} with "
                f"id {other.eos_id}: prepare both with the same"
            )
        # What an array has by itself is what its dtype can hold.
        if one and first.vocab_size != other.vocab_size:
            raise ValueError(
                f"{first.folder} has a vocabulary of {first.vocab_size:,} and {other.folder} of "
                f"{other.vocab_size:,}: prepare both with the same tokenizer"
            )
