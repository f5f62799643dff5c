"""The sampler over every kind of cache: prompts of unequal length, texts past the context."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from tests.support.models import CLOSE, build
from tinylm import cache, sample
from tinylm.config import ModelConfig, SampleConfig
from tinylm.model import inference
from tinylm.sample.reader import Reader
from tinylm.sample.samples import engine_for

SMALL = ModelConfig(vocab_size=17, d_model=12, n_layers=2, n_heads=2, context_length=40)
PROMPTS = [[1, 2, 3], [4, 5], [6] * 20]
# Room for all tokens: then what a kind gives is what one buffer gives.
ALL = {"window": 44, "random": 40, "h2o": 40, "snapkv": 40}


@pytest.mark.parametrize("kind", [kind for kind in cache.KINDS if not kind.startswith("int")])
def test_a_text_does_not_depend_on_how_its_keys_are_kept(kind):
    model = build(SMALL)
    plain = SampleConfig(temperature=1.0, max_tokens=12, samples=2)
    other = SampleConfig(
        temperature=1.0, max_tokens=12, samples=2, cache=kind, cache_tokens=ALL.get(kind)
    )
    assert sample.generate(model, PROMPTS, other) == sample.generate(model, PROMPTS, plain)


@pytest.mark.parametrize("most", [1, 4, 13, 20])
@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("prompts", [1, 4])
def test_blocks_are_enough_for_every_text_at_once(most, samples, prompts):
    model, texts = build(SMALL), samples * prompts
    engine = engine_for(model, None, SampleConfig(cache="paged", max_tokens=most), texts, 5)
    plain = SampleConfig(max_tokens=most, samples=samples)
    for place in range(texts):
        # Samples of one prompt share their first block until they write into it.
        engine.add([1, 2, 3, 4, place // samples], plain, sample=place % samples)
    while engine.live:
        engine.step()
    assert engine.stats().preempted == 0
    assert engine.stats().steps == most
    assert len(engine.take_ended()) == texts


def test_a_text_in_a_window_goes_on_past_the_context_and_reads_each_token_once(monkeypatch):
    monkeypatch.setattr("tinylm.cache.window.SLACK", 3)
    model = build(SMALL)
    window = partial(cache.build, kind="window", budget=12)
    read = 0

    def count(module, inputs):
        nonlocal read
        read += inputs[0].size(1)

    model.embedding.register_forward_pre_hook(count)
    ids = torch.randint(17, (1, 80), generator=torch.Generator().manual_seed(0))
    with inference(model):
        reader = Reader(model, [ids[0, :60].tolist()], 20, vocab_size=17, build=window)
        for token in ids[0, 60:70].tolist():
            reader.read([[token]])
        assert read == 70
        # Drafts are taken back where positions have moved.
        before = reader.last
        reader.read([[3, 4]])
        reader.truncate([70])
        again = reader.read([ids[0, 70:72].tolist()])
        fresh = Reader(model, [ids[0, :60].tolist()], 20, vocab_size=17, build=window)
        for token in ids[0, 60:72].tolist():
            fresh.read([[token]])
    assert reader.cache.longest < SMALL.context_length
    assert_close(again[:, -1], fresh.last, **CLOSE)
    assert before.isfinite().all()


def test_texts_that_begin_alike_share_blocks_of_what_was_read_before():
    model = build(SMALL)
    shared = list(range(8)) * 2
    texts = [[*shared, 1], [*shared, 2, 3], [*shared, 4, 5, 6]]
    pages = partial(cache.build, kind="paged", page=4)
    with inference(model):
        reader = Reader(model, texts, 4, vocab_size=17, build=pages)
        for row, text in enumerate(texts):
            assert_close(reader.last[row], model(torch.tensor([text]))[0, -1].double(), **CLOSE)
        stats = reader.cache.stats()
        # The first text was read whole; the others found its four full blocks.
        assert (stats.found, stats.places) == (32, 28)
        reader.read([[1], [2], [3]])
        reader.keep([2, 2])
        reader.read([[7], [8]])
        alone = model(torch.tensor([[*texts[2], 3, 8]]))[0, -1]
        assert_close(reader.last[1], alone.double(), **CLOSE)
