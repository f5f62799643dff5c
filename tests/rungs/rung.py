"""A rung of the ladder: a slow definition, the fast thing that equals it, what to feed both."""

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

CHAPTERS = ("lists", "arrays", "tensors", "metal")


@dataclass(frozen=True)
class Rung:
    """One operation in two neighbouring media.

    `chapter` is that of the fast side. `slow`, `fast` and `peer` take what `inputs` draws and
    what `example` returns, unpacked. With `gradients` they return (output, *gradients).
    """

    name: str
    chapter: str
    media: tuple[str, str]
    slow: Callable[..., Any]
    fast: Callable[..., Any]
    inputs: st.SearchStrategy[tuple]
    # One large realistic input, for the benchmark.
    example: Callable[[], tuple]
    same: Callable[[Any, Any], bool] = operator.eq
    # Of floats: torch in the dtype of `fast`, whose error is the measure. Of discrete things: the
    # tool that people use, which must give the same.
    peer: Callable[..., Any] | None = None
    # What the rounding errors of each result are measured against besides the result.
    terms: Callable[..., tuple[float, ...]] | None = None
    gradients: bool = False
    # The public names of tinylm._rust and tinylm.kernels that no other rung answers for.
    covers: tuple[str, ...] = ()
    # Divides the number of examples, but not the fuzzer's: above 1 where one takes over 10 ms.
    cost: int = 1
    # How many examples `make fuzz` draws.
    fuzz: int = 20_000
    # Entered around every run of both sides under test.
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __post_init__(self) -> None:
        assert self.chapter in CHAPTERS, self.chapter

    def __str__(self) -> str:
        return f"{self.name}-{'-'.join(self.media)}".replace(" ", "_")


def rust_rung(
    name: str,
    slow: Callable[..., Any],
    fast: Callable[..., Any],
    inputs: st.SearchStrategy[tuple],
    example: Callable[[], tuple],
    **rest: Any,
) -> Rung:
    """A rung from lists to Rust."""
    return Rung(name, "metal", ("lists", "rust"), slow, fast, inputs, example, **rest)


def check(rung: Rung, case: tuple) -> None:
    """Raise AssertionError unless the fast side equals the slow one on `case`."""
    with rung.around():
        slow, fast = rung.slow(*case), rung.fast(*case)
        peer = None if rung.peer is None else rung.peer(*case)
    if rung.terms is not None:
        assert_as_exact(slow, fast, peer, rung.terms(*case))
        return
    assert rung.same(slow, fast), f"{rung.media[1]} gives {fast!r}, {rung.media[0]} {slow!r}"
    if rung.peer is not None:
        assert rung.same(slow, peer), f"the peer gives {peer!r}, {rung.media[0]} {slow!r}"


def assert_as_exact(slow: Any, fast: Any, peer: Any, terms: tuple[float, ...]) -> None:
    """|fast - f64| <= 2 |torch - f64| + 4 eps max(|f64|, terms), in 2-norms, result by result.

    A gradient can cancel, to the last digit; what is left is as exact as the terms it was the
    sum of, so that the rounding is measured against those where they are the larger.
    """
    for place, (exact, ours, theirs, term) in enumerate(zip(slow, fast, peer, terms, strict=True)):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), f"result {place}"
        error, allowed = norm(ours - exact), 2 * norm(theirs - exact)
        allowed += 4 * torch.finfo(ours.dtype).eps * max(norm(exact), term)
        assert error <= allowed, f"result {place}: error {error} over {allowed}"


def norm(x: Any) -> float:
    """2-norm of a tensor or array, in float64."""
    return float(torch.as_tensor(x).double().norm())


def near(tolerance: float) -> Callable[[Any, Any], bool]:
    """Results equal one by one: shapes, and |difference| <= tolerance (1 + |slow|) in 2-norms."""

    def same(slow: Any, fast: Any) -> bool:
        return len(slow) == len(fast) and all(
            a.shape == b.shape and np.linalg.norm(a - b) <= tolerance * (1 + np.linalg.norm(a))
            for a, b in zip(map(np.asarray, slow), map(np.asarray, fast), strict=True)
        )

    return same


SEEDS = st.integers(0, 2**32)
