"""Causal attention forward: 32 query and 8 key heads, 2k to 16k tokens, 16k tokens in all."""

from collections.abc import Callable, Iterator

from benches.gpu import attention_inputs as attention
from benches.gpu.attention_inputs import Problem, Sdpa
from benches.gpu.case import Case, Contest, Missing, Patient, Place

TOKENS = 16384
# FlexAttention and the memory-efficient backend are measured at this length only: the first takes
# seconds to compile for each.
OTHERS_AT = 8192


def cases(place: Place) -> Iterator[Case]:
    """Two head sizes, four lengths."""
    for size in place.sized((128, 64), (16,)):
        for length in place.sized((2048, 4096, 8192, 16384), (48,)):
            at = {"tokens": length, "head": size}
            yield Case("attention forward", at, lambda n=length, d=size: forward(place, n, d))


def problem_of(place: Place, length: int, size: int) -> Problem:
    """Rows of `length` tokens, `TOKENS` in all."""
    heads, kv_heads = place.sized((32, 8), (4, 2))
    return Problem(place, place.sized(TOKENS // length, 1), length, heads, kv_heads, size)


def contenders(
    place: Place, problem: Problem, bind: Callable[[Callable], Callable], backward: bool
) -> tuple[dict[str, Callable | Missing], dict[str, Sdpa]]:
    """Ours and torch's, each with inputs bound to it by `bind`; the SDPA ones apart, too."""
    ours = {
        "tinylm portable": attention.tinylm(problem),
        "tinylm hopper": attention.hopper(problem),
    }
    sdpa = attention.sdpa(place)
    every = place.dry or problem.length == OTHERS_AT
    found = {**ours, **{n: f for n, f in sdpa.items() if every or n != "SDPA EFFICIENT"}}
    bound = {n: f if isinstance(f, Missing) else bind(f) for n, f in found.items()}
    if every:
        flex = attention.flex(problem, backward)
        bound["FlexAttention"] = flex if isinstance(flex, Missing) else Patient(bind(flex))
    return bound, {n: f for n, f in sdpa.items() if isinstance(f, Sdpa)}


def expanded(sdpa: dict[str, Sdpa]) -> Callable[[str], dict[str, str]]:
    """A note for the backends that cannot group heads."""
    return lambda name: {"heads": "expanded"} if name in sdpa and sdpa[name].expanded else {}


def forward(place: Place, length: int, size: int) -> Contest:
    """Two products per pair of a query and a key that it sees."""
    problem = problem_of(place, length, size)
    q, k, v = problem.inputs
    found, sdpa = contenders(place, problem, lambda f: lambda: f(q, k, v), False)
    return Contest(
        found,
        lambda: problem.exact(backward=False),
        1e-2,
        pick=lambda y: problem.group((y,)),
        flops=problem.flops(backward=False),
        notes=expanded(sdpa),
    )
