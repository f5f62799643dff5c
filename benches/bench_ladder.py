"""What climbing a rung gains: slow, fast and the peer on the large example of every rung.

`make bench` prints one table per rung and leaves the numbers in `.benchmarks/ladder.json`. A side
is timed only after all sides gave the same result (Muon's in float64, where its formula shows; it
is timed as it trains, in bfloat16); `ARGS="-k encode"` picks rungs by name.
"""

from functools import cache

import pytest
import torch

from tests.ladder import RUNGS, check
from tinylm import _rust

SIDES = [
    pytest.param(rung, side, id=f"{rung}-{side}")
    for rung in RUNGS
    for side in ("slow", "fast", "peer")
    if getattr(rung, side) is not None
]


@pytest.fixture(scope="module", autouse=True)
def _optimised():
    """A debug build is some twenty times slower than what people install."""
    if _rust.build_profile != "release":
        pytest.fail(f"the extension is a {_rust.build_profile} build: maturin develop --release")


@cache
def checked_example(rung):
    """The example, after its sides agreed on it."""
    case = rung.example()
    check(rung, case)
    return case


@pytest.mark.parametrize(("rung", "side"), SIDES)
def test_ladder(benchmark, rung, side):
    if rung.media[1] == "kernels" and not torch.cuda.is_available():
        pytest.skip("a kernel's time in the interpreter says nothing: it needs a GPU")
    case = checked_example(rung)
    benchmark.group = str(rung)
    benchmark.name = side
    benchmark.extra_info["media"] = rung.media
    benchmark(getattr(rung, side), *case)
