"""Attention that sees only a part: packed documents and a window, beside dense rows.

The documents' numbers per token and the block masks of FlexAttention are made once, outside the
time: a model makes them once for all of its layers.
"""

from collections.abc import Callable, Iterator
from typing import Any

from benches.gpu import attention_inputs as attention
from benches.gpu.attention_inputs import Problem
from benches.gpu.case import Backward, Case, Contest, Missing, Patient, Place

# Lengths as they come: 16,384 tokens in one row.
DOCUMENTS = (4000, 257, 1100, 3011, 513, 2048, 131, 1300, 2600, 1424)
HEADS = (32, 8, 128)


def cases(place: Place) -> Iterator[Case]:
    """Dense rows of 2,048 are the measure for documents, a dense row of 16,384 for the window."""
    tokens = place.sized(sum(DOCUMENTS), 48)
    mean = place.sized(2048, 24)
    documents = place.sized(DOCUMENTS, (20, 5, 23))
    window = place.sized(1024, 16)
    heads = place.sized(HEADS, (4, 2, 16))
    problems = {
        "documents": Problem(place, 1, tokens, *heads, documents=documents),
        "equal rows": Problem(place, tokens // mean, mean, *heads),
        "window": Problem(place, 1, tokens, *heads, window=window),
        "long row": Problem(place, 1, tokens, *heads),
    }
    for name, problem in problems.items():
        at = {"tokens": tokens, "head": heads[2]}
        if name == "window":
            at["window"] = window
        for backward in (False, True):
            family = f"{name} {'backward' if backward else 'forward'}"
            yield Case(family, at, lambda p=problem, b=backward, n=name: contest(p, b, n))


def contest(problem: Problem, backward: bool, name: str) -> Contest:
    """Only what is seen counts: useful operations."""
    found = {"tinylm": attention.tinylm(problem)}
    if name in ("documents", "window"):
        found |= {
            "FlexAttention": attention.flex(problem, backward),
            "varlen_attn": attention.varlen(problem),
        }
    inputs = problem.inputs

    def bound(who: str, f: Callable[..., Any] | Missing) -> Callable[[], Any] | Missing:
        if isinstance(f, Missing):
            return f
        run = Backward(f, inputs, problem.dy) if backward else lambda: f(*inputs)
        return Patient(run) if who == "FlexAttention" else run

    return Contest(
        {who: bound(who, f) for who, f in found.items()},
        lambda: problem.exact(backward),
        2e-2 if backward else 1e-2,
        pick=problem.group if backward else lambda y: problem.group((y,)),
        flops=problem.flops(backward),
    )
