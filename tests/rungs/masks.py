"""Masks as values: which keys a query may look at, from lists to what attention reads."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung, near
from tinylm import ops
from tinylm.mask import Mask
from tinylm.ops import attentions, spelled
from tinylm.reference import masks, tensors

HEADS, GROUP, SIZE = 2, 2, 4


@dataclass(frozen=True)
class Case:
    """The fields of a mask, how many queries follow how many keys in each row, and two numbers."""

    queries: int
    keys: int
    rows: int
    causal: bool
    window: int | None
    prefixes: list[int] | None
    documents: list[list[int]] | None
    pasts: list[int] | None
    scale: float | None = None
    softcap: float | None = None


@st.composite
def cases(draw):
    """Any mix of fields; every query sees itself at least."""
    queries, rows = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    keys = queries + draw(st.integers(0, 4))

    def per_row(values):
        return draw(st.none() | st.lists(values, min_size=rows, max_size=rows))

    return Case(
        queries,
        keys,
        rows,
        draw(st.booleans()),
        draw(st.none() | st.integers(1, 6)),
        per_row(st.integers(0, keys)),
        per_row(st.lists(st.integers(0, 2), min_size=keys, max_size=keys)),
        per_row(st.integers(0, keys - queries)),
        draw(st.none() | st.floats(-2, 2)),
        draw(st.none() | st.floats(0.1, 50)),
    )


def tensor(values):
    return None if values is None else torch.tensor(values)


def mask_of(case):
    """The value, and the keys before each row's queries."""
    mask = Mask(case.causal, case.window, tensor(case.documents), tensor(case.prefixes))
    return mask, tensor(case.pasts)


def in_lists(case):
    return masks.mask(
        case.queries,
        case.keys,
        pasts=case.pasts,
        causal=case.causal,
        window=case.window,
        prefixes=case.prefixes,
        documents=case.documents,
        rows=case.rows,
    )


def dense(case):
    mask, past = mask_of(case)
    found = mask.dense(case.queries, case.keys, past=past, device=torch.device("cpu"))
    shape = (case.rows, 1, case.queries, case.keys)
    return found.expand(shape)[:, 0].tolist()


def queries_keys_values(case, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (case.rows, HEADS, case.keys, SIZE)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in "qkv")
    return torch.cat((q, k), 1)[:, : HEADS * GROUP, : case.queries], k, v


def by_dense_masks(case, seed):
    """The definition of attention with the definition of the mask."""
    seen = torch.tensor(in_lists(case))[:, None]
    q, k, v = queries_keys_values(case, seed)
    named = {"scale": case.scale, "softcap": case.softcap}
    return [tensors.attention(q, k, v, mask=seen, **named).numpy()]


def by_fields(case, seed):
    """What the model calls: `ops` reads the fields, a row at a time where masks are large."""
    mask, past = mask_of(case)
    q, k, v = queries_keys_values(case, seed)
    named = {"mask": mask, "past": past, "scale": case.scale, "softcap": case.softcap}
    found = ops.attention(q, k, v, **named)
    cells, attentions.MASK_CELLS = attentions.MASK_CELLS, 1
    try:
        by_rows = ops.attention(q, k, v, **named)
    finally:
        attentions.MASK_CELLS = cells
    spelled = ops.manual_attention(q, k, v, **named)
    for other in (by_rows, spelled):
        assert np.allclose(found, other, rtol=1e-12, atol=1e-12)
    return [found.numpy()]


@st.composite
def causal_cases(draw):
    """Rows of several chunks; what `spelled` computes has no prefix, past or cap."""
    rows, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    row = st.lists(st.integers(0, 2), min_size=tokens, max_size=tokens)
    documents = draw(st.none() | st.lists(row, min_size=rows, max_size=rows))
    window = draw(st.none() | st.integers(1, 10))
    scale = draw(st.floats(0.1, 2))
    return Case(tokens, tokens, rows, True, window, None, documents, None, scale)


def value_and_gradients(function, case, seed):
    leaves = [x.requires_grad_() for x in queries_keys_values(case, seed)]
    y = function(*leaves)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    return [x.detach().numpy() for x in (y, *torch.autograd.grad(y, leaves, dy))]


def causal_by_definition(case, seed, keep):
    seen = torch.tensor(in_lists(case))[:, None]
    return value_and_gradients(
        lambda q, k, v: tensors.attention(q, k, v, mask=seen, scale=case.scale), case, seed
    )


def causal_by_chunks(case, seed, keep):
    """Chunks of 3 queries where the machine takes 128; with and without weights that are kept."""
    mask, _ = mask_of(case)
    before = spelled.CHUNK, spelled.KEPT
    spelled.CHUNK, spelled.KEPT = (3 if case.keys < 10 else 128), (spelled.KEPT if keep else 0)
    try:
        return value_and_gradients(
            lambda q, k, v: spelled.causal_attention(q, k, v, mask, case.scale), case, seed
        )
    finally:
        spelled.CHUNK, spelled.KEPT = before


LARGE = Case(256, 256, 4, True, 64, None, [[i // 50 for i in range(256)]] * 4, None)

RUNGS = (
    Rung(
        "mask",
        "tensors",
        ("lists", "mask"),
        in_lists,
        dense,
        st.tuples(cases()),
        lambda: (LARGE,),
    ),
    Rung(
        "attention behind a mask of fields",
        "tensors",
        ("tensors", "ops"),
        by_dense_masks,
        by_fields,
        st.tuples(cases(), SEEDS),
        lambda: (LARGE, 0),
        same=near(1e-11),
        cost=2,
    ),
    Rung(
        "attention in chunks of queries",
        "tensors",
        ("tensors", "ops"),
        causal_by_definition,
        causal_by_chunks,
        st.tuples(causal_cases(), SEEDS, st.booleans()),
        lambda: (Case(256, 256, 4, True, 64, None, LARGE.documents, None, 0.5), 0, True),
        same=near(1e-11),
        covers=("causal_attention", "causal_attention_backward"),
    ),
)
