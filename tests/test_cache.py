"""Decoding with a cache gives what reading the whole text gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.support.models import CLOSE, build, configs, tokens
from tinylm import cache, model
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
    assert held.lengths.tolist() == [3, 3, 3]
    assert_close(made(ids, cache=held), made(torch.cat((ids, ids), 1))[:, 3:], **CLOSE)


def test_a_cleared_cache_starts_anew():
    made = build(SMALL)
    held = cache.build(made, 1, 8)
    one, two = tokens(SMALL, 1, 6, 1), tokens(SMALL, 1, 8, 2)
    made(one, cache=held)
    held.clear()
    assert held.lengths.tolist() == [0]
    assert_close(made(two, cache=held), made(two))


def test_the_layers_keep_their_own_keys():
    made = build(SMALL)
    held = cache.build(made, 1, 8)
    made(tokens(SMALL, 1, 4), cache=held)
    assert not torch.equal(held.k[0][:, :, :4], held.k[1][:, :, :4])


def test_grouped_heads_store_only_their_keys():
    config = ModelConfig(vocab_size=3, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2)
    held = cache.build(build(config), 5, 7)
    assert held.k[0].shape == held.v[0].shape == (5, 2, 7, 6)


def test_the_buffers_take_the_dtype_of_the_computation():
    made = build(SMALL, dtype=torch.float32)
    assert cache.build(made, 1, 8).k[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        held = cache.build(made, 1, 8)
        assert held.k[0].dtype == torch.bfloat16
        made(tokens(SMALL, 1, 4), cache=held)


def test_the_limits_are_named():
    made = build(SMALL)
    with pytest.raises(ValueError, match="max_length=9: must be 1 to the context length, 8"):
        cache.build(made, 1, 9)
    with pytest.raises(ValueError, match="max_length=0"):
        cache.build(made, 1, 0)
    with pytest.raises(ValueError, match="kind=pages: must be contiguous"):
        cache.build(made, 1, 8, kind="pages")
    held = cache.build(made, 1, 4)
    made(tokens(SMALL, 1, 3), cache=held)
    with pytest.raises(ValueError, match=r"3 \+ 2 tokens do not fit a cache of 4"):
        made(tokens(SMALL, 1, 2), cache=held)
    with pytest.raises(ValueError, match="exclude each other"):
        made(tokens(SMALL, 1, 1), cache=held, documents=torch.zeros(1, 1))


@settings(max_examples=30, deadline=None)
@given(
    config=configs(context_length=9),
    seed=st.integers(0, 2**31),
    ends=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    fixed=st.booleans(),
)
def test_rows_of_unequal_length_go_on_as_if_they_had_been_alone(config, seed, ends, fixed):
    made = build(config, seed)
    ids, rest = tokens(config, 3, 5, seed), tokens(config, 3, 4, seed + 1)
    held = cache.build(made, 3, 9, fixed=fixed)
    made(ids, cache=held)
    held.truncate(torch.tensor(ends))
    assert held.lengths.tolist() == ends
    parts = [made(rest[:, :3], cache=held), made(rest[:, 3:], cache=held)]
    for row, end in enumerate(ends):
        alone = torch.cat((ids[row, :end], rest[row]))[None]
        assert_close(torch.cat(parts, 1)[row], made(alone)[0, end:], **CLOSE)


def test_a_cache_is_never_made_longer_by_truncating():
    held = cache.build(build(SMALL), 2, 8)
    held.advance(3)
    held.truncate(torch.tensor([2, 7]))
    assert held.lengths.tolist() == [2, 3]


def test_a_step_of_a_fixed_cache_is_one_graph_however_long_the_text_is():
    made = build(SMALL, dtype=torch.float32)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def step(ids, context):
        return made.head(made.hidden(made.embed(ids), context))

    compiled = torch.compile(step, backend=backend, dynamic=False)
    with model.inference(made):
        held, plain = cache.build(made, 1, 8, fixed=True), cache.build(made, 1, 8)
        for ids in tokens(SMALL, 1, 8, 3).split(1, 1):
            logits = compiled(ids, made.context(1, cache=held))
            held.advance(1)
            assert_close(logits, made(ids, cache=plain))
    assert len(graphs) == 1


@pytest.mark.parametrize("lengths", [[2], [1, -1], [[1, 1]]])
def test_lengths_that_cannot_be_are_named(lengths):
    held = cache.build(build(SMALL), 2, 8)
    held.advance(3)
    with pytest.raises(ValueError, match="must be 2 numbers of at least 0, one per row"):
        held.truncate(torch.tensor(lengths))
    assert held.lengths.tolist() == [3, 3]
