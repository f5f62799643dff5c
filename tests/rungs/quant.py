"""Rows in 8 bits: the same numbers from `ops` as from the definition, to the bit."""

import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung
from tinylm import ops
from tinylm.reference import quant

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def rows(shape, dtype, power, seed):
    """Rows of a size near 10^power, some numbers 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 10.0**power
    return ((x * (torch.rand(shape, generator=generator) > 0.2)).to(dtype),)


SHAPES = st.lists(st.integers(0, 4), max_size=3).flatmap(
    lambda leading: st.integers(1, 40).map(lambda width: (*leading, width))
)
ROWS = st.builds(rows, SHAPES, st.sampled_from(DTYPES), st.integers(-45, 4), SEEDS)


def same(slow, fast):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(slow, fast, strict=True))


def back(medium, x):
    """One way and back again, with a scale in float32 and in float16."""
    n, scale = quant.quantise_rows(x)
    return [medium.dequantise_rows(n, s) for s in (scale, scale.half())]


RUNGS = tuple(
    Rung(
        name=name,
        chapter="tensors",
        media=("tensors", "ops"),
        slow=slow,
        fast=fast,
        inputs=ROWS,
        example=lambda: rows((4096, 1024), torch.float32, 0, 0),
        same=same,
    )
    for name, slow, fast in (
        ("quantise_rows", quant.quantise_rows, ops.quantise_rows),
        ("dequantise_rows", lambda x: back(quant, x), lambda x: back(ops, x)),
    )
)
