"""Decoding with a cache is reading the whole text: every kind, every legal mix of parts."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.models import build, configs, tokens
from tinylm import cache
from tinylm.model import inference

LENGTH, ROWS = 14, 3
# The kinds that forget keep all here. Those of fewer bits have tests of their own.
EXACT = {
    "contiguous": [{}, {"fixed": True}],
    "paged": [{"page": 2}, {"page": 16}, {"page": 4, "tokens": 48}],
    "window": [{"budget": LENGTH + 4}, {"budget": LENGTH, "first": 0}],
    "random": [{"budget": LENGTH}],
    "h2o": [{"budget": LENGTH}],
    "snapkv": [{"budget": LENGTH}],
}
KINDS = st.sampled_from([(kind, options) for kind in EXACT for options in EXACT[kind]])


def test_every_kind_is_here_but_those_of_fewer_bits():
    assert set(cache.KINDS) - set(EXACT) == {"int8", "int4"}


def cached(model, held, ids, data):
    """The logits of every row: chunks of some rows at a time, drafts taken back, in any order."""
    ends, logits = [0] * ROWS, [[] for _ in range(ROWS)]
    while min(ends) < LENGTH:
        unread = [row for row in range(ROWS) if ends[row] < LENGTH]
        some = data.draw(st.lists(st.sampled_from(unread), min_size=1, unique=True))
        count = data.draw(st.integers(1, LENGTH - max(ends[row] for row in some)))
        # All rows as they are, in order, need no view.
        view = held if some == [*range(ROWS)] else held.rows(some)
        new = torch.stack([ids[row, ends[row] : ends[row] + count] for row in some])
        found = model(new, cache=view)
        keep = data.draw(st.integers(1, count)) if count < 5 else count
        view.truncate(view.lengths - (count - keep))
        for row, each in zip(some, found, strict=True):
            logits[row].append(each[:keep])
            ends[row] += keep
        assert held.ends == ends
    return torch.stack([torch.cat(each) for each in logits])


def check(config, seed, kind, data):
    """Compare the logits in float32 with those of one pass without a cache."""
    model = build(config, seed, torch.float32)
    ids = tokens(config, ROWS, LENGTH, seed)
    name, options = kind
    with inference(model):
        held = cache.build(model, ROWS, LENGTH, name, **options)
        found, full = cached(model, held, ids, data), model(ids)
        exact = build(config, seed, torch.float64)(ids)
    # Relative to the largest: the logits of a model of random weights pass 1,000. Some models make
    # more of a rounding, which shows in the pass without a cache too.
    off = (full - exact).abs().max()
    assert (found - full).abs().max() <= 1e-5 * full.abs().max().clamp(min=1) + 8 * off


@settings(max_examples=8, deadline=None)
@given(
    config=configs(context_length=LENGTH), seed=st.integers(0, 2**31), kind=KINDS, data=st.data()
)
def test_decoding_with_any_cache_is_reading_the_whole_text(config, seed, kind, data):
    check(config, seed, kind, data)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=configs(context_length=LENGTH), seed=st.integers(0, 2**31), kind=KINDS, data=st.data()
)
def test_500_mixes_of_parts_and_caches(config, seed, kind, data):
    check(config, seed, kind, data)
