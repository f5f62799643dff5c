"""The memory that an operation on a CPU takes."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak(run: Callable[[], Any]) -> int:
    """The most bytes that torch's CPU allocator held for `run` at once, beside what it held."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    now = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
