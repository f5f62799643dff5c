"""The gradients of causal attention at the same sizes, and whether 20 runs give the same bits."""

from collections.abc import Iterator

from benches.gpu.case import Backward, Case, Contest, Place
from benches.gpu.sections.attention import contenders, expanded, problem_of

REPEATS = 20


def cases(place: Place) -> Iterator[Case]:
    """Two head sizes, four lengths."""
    for size in place.sized((128, 64), (16,)):
        for length in place.sized((2048, 4096, 8192, 16384), (48,)):
            at = {"tokens": length, "head": size}
            yield Case("attention backward", at, lambda n=length, d=size: backward(place, n, d))


def backward(place: Place, length: int, size: int) -> Contest:
    """Five products per pair. The kernel for Hopper has the backward pass of the portable one."""
    problem = problem_of(place, length, size)
    found, sdpa = contenders(
        place, problem, lambda f: Backward(f, problem.inputs, problem.dy), backward=True
    )
    del found["tinylm hopper"]
    return Contest(
        found,
        lambda: problem.exact(backward=True),
        2e-2,
        pick=problem.group,
        flops=problem.flops(backward=True),
        repeats=REPEATS,
        notes=expanded(sdpa),
    )
