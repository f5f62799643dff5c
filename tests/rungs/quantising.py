"""How the scales and numbers of a trained matrix are chosen: loops over rows to whole matrices.

Random numbers without ties: where two scales cost the same, rounding decides between them.
"""

import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung, near
from tinylm.ops import rounding
from tinylm.quant import awq, gptq
from tinylm.reference import quant

GROUPS = st.sampled_from([32, 64])


def drawn(rows, groups, group, seed):
    """A matrix and the moments of inputs that depend on each other, a few of them large."""
    generator = torch.Generator().manual_seed(seed)
    width = groups * group
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    x = torch.randn(2 * width, width, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(width, width, generator=generator, dtype=torch.float64)
    x[:, :: width // 4] *= 10
    return weight, x.T @ x


def searched_by_definition(rows, groups, group, seed):
    weight, moments = drawn(rows, groups, group, seed)
    parts = zip(weight.flatten().split(group), moments.diagonal().repeat(rows).split(group),
                strict=True)  # fmt: skip
    return [[quant.search_scale(part, own) for part, own in parts]]


def searched(rows, groups, group, seed):
    weight, moments = drawn(rows, groups, group, seed)
    return [rounding.searched(weight, group, moments.diagonal()).flatten().tolist()]


def gptq_by_definition(rows, groups, group, seed):
    weight, moments = drawn(rows, groups, group, seed)
    return [part.numpy() for part in quant.gptq(weight, quant.damped(moments), group)]


def by_gptq(rows, groups, group, seed):
    weight, moments = drawn(rows, groups, group, seed)
    return [part.double().numpy() for part in gptq.gptq(weight, moments, group)]


def factors_by_definition(rows, groups, group, seed):
    weight, moments = drawn(rows, groups, group, seed)
    return [quant.awq_factors([weight], moments, group).numpy()]


def factors(rows, groups, group, seed):
    weight, moments = drawn(rows, groups, group, seed)
    return [awq.factors([weight], moments, group).numpy()]


RUNGS = tuple(
    Rung(
        name,
        "tensors",
        ("lists", "tensors"),
        slow,
        fast,
        st.tuples(st.integers(1, 2), st.integers(1, 2), GROUPS, SEEDS),
        lambda: (4, 4, 32, 0),
        same=near(1e-7),
        cost=cost,
        fuzz=200,
    )
    for name, slow, fast, cost in (
        ("search of a scale", searched_by_definition, searched, 10),
        ("gptq", gptq_by_definition, by_gptq, 30),
        ("awq factors", factors_by_definition, factors, 50),
    )
)
