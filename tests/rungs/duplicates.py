"""Near duplicates: the filter of a corpus against `reference.duplicates`."""

import numpy as np
from hypothesis import strategies as st

from tests.rungs.rung import Rung
from tinylm.corpus.duplicates import Near
from tinylm.reference import duplicates

WORDS = ["one", "Two", "tw\xf3", "3", "\u4e2d\u6587", "-", "a_b", "\u0130"]


def near_slowly(texts, bands, rows):
    signatures = [duplicates.signature(text, bands * rows) for text in texts]
    return duplicates.near(texts, bands, rows), signatures


def near(texts, bands, rows):
    filter_ = Near(bands, rows)
    return [filter_(text) for text in texts], [filter_.signature(t).tolist() for t in texts]


def example():
    words = " ".join(str(k * k % 997) for k in range(600)).split()
    draws = np.random.default_rng(1).integers(0, 600, (20, 4))
    copies = [words.copy() for _ in draws]
    for copy, places in zip(copies, draws, strict=True):
        for place in places:
            copy[place] = "changed"
    return [" ".join(copy) for copy in copies], 14, 8


RUNGS = (
    Rung(
        name="near duplicates",
        chapter="arrays",
        media=("lists", "arrays"),
        slow=near_slowly,
        fast=near,
        inputs=st.tuples(
            st.lists(
                st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(max_size=9),
                max_size=6,
            ),
            st.integers(1, 14),
            st.integers(1, 8),
        ),
        example=example,
        cost=3,
    ),
)
