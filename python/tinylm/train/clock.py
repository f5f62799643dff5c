"""Where the seconds of a run went."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up seconds by what they were spent on; the time of an inner part counts for it alone.

    with clock("evaluation"):
        ...
    """

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        # For each open part, the seconds that the parts inside it have taken.
        self._inside: list[float] = []

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the seconds inside to `part`."""
        began = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            passed = time.perf_counter() - began
            self.spent[part] = self.spent.get(part, 0.0) + passed - self._inside.pop()
            if self._inside:
                self._inside[-1] += passed

    def words(self) -> str:
        """The parts with their seconds, in the order in which they began to count."""
        return ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.spent.items())
