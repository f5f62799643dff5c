"""Several contenders side by side in one process: rounds, ratios inside a round, their spread.

Each contender runs once per round, in turn, so that a busy machine slows all alike; the ratio is
taken inside a round. The first round only warms up. Reported are the median of the rounds and the
range of the middle half.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OURS = "tinylm"


@dataclass(frozen=True)
class Race:
    """One amount of `work` in `unit`, done by several; each takes what its own `fresh` makes."""

    name: str
    work: float
    unit: str
    runs: dict[str, Callable[[Any], object]]
    fresh: dict[str, Callable[[], Any]]


def measure(race: Race, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Work a second of each contender in each round, and our speed over its speed."""
    speeds: dict[str, list[float]] = {name: [] for name in race.runs}
    for number in range(rounds + 1):
        for name, run in race.runs.items():
            prepared = race.fresh[name]()
            start = time.perf_counter()
            run(prepared)
            seconds = time.perf_counter() - start
            # The first round only warms up: files in memory, threads started.
            if number:
                speeds[name].append(race.work / seconds)
    return {
        name: {
            "speed": found,
            "ratio": [ours / theirs for ours, theirs in zip(speeds[OURS], found, strict=True)],
        }
        for name, found in speeds.items()
    }


def report(race: Race, results: dict[str, dict[str, list[float]]]) -> None:
    """A line for each contender."""
    print(f"\n{race.name}")
    for name, result in results.items():
        speed = statistics.median(result["speed"])
        ratio, (low, high) = statistics.median(result["ratio"]), middle_half(result["ratio"])
        against = "" if name == OURS else f"   tinylm is {ratio:5.2f}x ({low:.2f} to {high:.2f})"
        print(f"  {name:<34} {speed:9.2f} {race.unit}{against}")


def middle_half(values: list[float]) -> tuple[float, float]:
    """The first and the third quartile."""
    # One round has no spread.
    values = values * 2 if len(values) == 1 else values
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def check(same: bool, what: str) -> None:
    """Stop where contenders differ."""
    if not same:
        raise SystemExit(f"error: {what}: no speed is reported for a different result")
