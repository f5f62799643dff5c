"""Decoding with a cache gives what reading the whole text gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.support.models import CLOSE, build, configs, tokens
from tinylm import cache
from tinylm.config import ModelConfig

SMALL = ModelConfig(vocab_size=11, d_model=12, n_layers=2, n_heads=2, context_length=8)


@settings(max_examples=40, deadline=None)
@given(config=configs(context_length=6), seed=st.integers(0, 2**31), data=st.data())
def test_selected_rows_go_on_as_if_they_had_been_alone(config, seed, data):
    made = build(config, seed)
    rows = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
    ids = tokens(config, 3, 3, seed)
    rest = tokens(config, len(rows), 3, seed + 1)
    held = cache.build(made, 3, 6)
    made(ids, cache=held)
    chosen = held.select(torch.tensor(rows))
    logits = made(rest, cache=chosen)
    full = made(torch.cat((ids[rows], rest), 1))
    assert_close(logits, full[:, 3:], **CLOSE)
    assert held.length == 3
    assert_close(made(ids, cache=held), made(torch.cat((ids, ids), 1))[:, 3:], **CLOSE)


def test_a_cleared_cache_starts_anew():
    made = build(SMALL)
    held = cache.build(made, 1, 8)
    one, two = tokens(SMALL, 1, 6, 1), tokens(SMALL, 1, 8, 2)
    made(one, cache=held)
    held.clear()
    assert held.length == 0
    assert_close(made(two, cache=held), made(two))


def test_the_layers_keep_their_own_keys():
    made = build(SMALL)
    held = cache.build(made, 1, 8)
    made(tokens(SMALL, 1, 4), cache=held)
    assert not torch.equal(held.layers[0].k[:, :, :4], held.layers[1].k[:, :, :4])


def test_grouped_heads_store_only_their_keys():
    config = ModelConfig(vocab_size=3, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2)
    held = cache.build(build(config), 5, 7)
    assert held.layers[0].k.shape == held.layers[0].v.shape == (5, 2, 7, 6)


def test_the_buffers_take_the_dtype_of_the_computation():
    made = build(SMALL, dtype=torch.float32)
    assert cache.build(made, 1, 8).layers[0].k.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        held = cache.build(made, 1, 8)
        assert held.layers[0].k.dtype == torch.bfloat16
        made(tokens(SMALL, 1, 4), cache=held)


def test_the_limits_are_named():
    made = build(SMALL)
    with pytest.raises(ValueError, match="max_length=9: must be 1 to the context length, 8"):
        cache.build(made, 1, 9)
    with pytest.raises(ValueError, match="max_length=0"):
        cache.build(made, 1, 0)
    with pytest.raises(ValueError, match="kind=paged: the cache is contiguous"):
        cache.build(made, 1, 8, kind="paged")
    held = cache.build(made, 1, 4)
    made(tokens(SMALL, 1, 3), cache=held)
    with pytest.raises(ValueError, match=r"3 \+ 2 tokens do not fit a cache of 4"):
        made(tokens(SMALL, 1, 2), cache=held)
    with pytest.raises(ValueError, match="exclude each other"):
        made(tokens(SMALL, 1, 1), cache=held, documents=torch.zeros(1, 1))
