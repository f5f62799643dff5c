"""The native step in the sampler: the same texts as by torch, and which models it is for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.support import models
from tinylm import _rust, cache, native, optim, quant, sample
from tinylm.cache import Full
from tinylm.config import ModelConfig, OptimConfig, SampleConfig
from tinylm.layers import PackedLinear
from tinylm.model import inference
from tinylm.sample import logits as choices
from tinylm.sample.drawer import Drawer
from tinylm.sample.reader import Reader

SMALL = ModelConfig(vocab_size=37, d_model=24, n_layers=2, n_heads=2, context_length=16)
SHAPES = [replace(SMALL, architecture=name) for name in ("llama3", "qwen3", "gpt2")]


def build(config):
    """A model in float32, with weights that all matter."""
    return models.build(config, dtype=torch.float32)


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: config.architecture)
@pytest.mark.parametrize("temperature", [0, 1.3])
def test_texts_are_those_of_the_torch_model(config, temperature, monkeypatch):
    model = build(config)
    # Of unequal length, past the context, with samples that end at different places.
    prompts = [[1, 2, 3], [4, 5, 6], [7], list(range(20))]
    settings = SampleConfig(temperature=temperature, max_tokens=30, samples=2, stop=(5,))
    assert native.fits(model)
    found = sample.generate(model, prompts, settings)
    monkeypatch.setattr(native, "fits", lambda model: False)
    assert found == sample.generate(model, prompts, settings)


def test_a_row_depends_on_no_other():
    model = build(SMALL)
    alone = [sample.generate(model, [[n, 3]], SampleConfig(temperature=0))[0] for n in range(9)]
    prompts = [[n, 3] for n in range(9)]
    assert sample.generate(model, prompts, SampleConfig(temperature=0)) == alone


def test_the_choice_inside_is_that_of_the_drawer():
    model = build(replace(SMALL, vocab_size=2000))
    step = native.step_for(model)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(2000, (64, 3), generator=generator).tolist()
    numbers = torch.rand(64, generator=generator, dtype=torch.float64)
    found = step.cache(64, 16).read(prompts).double()
    for heat in (0.0, 0.7, 2.0):
        drawn = step.cache(64, 16).draw(prompts, [heat] * 64, numbers.tolist())
        wanted = choices.greedy(found) if heat == 0 else choices.draw(found / heat, numbers)
        assert drawn == wanted.tolist()


def test_ids_that_are_missing_or_padding_are_not_drawn():
    model = build(SMALL)
    settings = {"vocab_size": 30, "missing": [*range(5, 28)]}
    held = native.build(model, 9, 8)
    numbers = [n / 9 for n in range(9)]
    seen = {*held.draw([[1]] * 9, [9.0] * 9, numbers, **settings)}
    assert seen <= {0, 1, 2, 3, 4, 28, 29}
    assert len(seen) > 1
    with pytest.raises(ValueError, match="missing has all ids from 0 to 29: leave one"):
        held.draw([[1]] * 9, [9.0] * 9, numbers, vocab_size=30, missing=[*range(30)])


def test_logits_that_are_no_numbers_are_named():
    model = build(SMALL)
    with torch.no_grad():
        model.norm.weight[3] = torch.inf
    held = native.build(model, 2, 8)
    with pytest.raises(ValueError, match="the logit of id 0 after 2 tokens is"):
        sample.generate(model, [[1, 2]], SampleConfig(max_tokens=2))
    assert held.draw([[5], [6]], [0.0] * 2, [0.0] * 2) == [None, None]


def test_weights_that_change_are_packed_again():
    model = build(SMALL)
    first = native.step_for(model)
    assert native.step_for(model) is first
    with torch.no_grad():
        model.blocks[0].attention.q.weight.mul_(2)
    with inference(model):
        found = Reader(model, [[1, 2, 3]], 4, vocab_size=37).last
        assert_close(found, model(torch.tensor([[1, 2, 3]]))[:, -1], rtol=0, atol=1e-4)
    assert native.step_for(model) is not first


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_model_between_two_steps_of_training_decodes_with_its_new_weights(name):
    model = build(SMALL)
    ids = torch.randint(37, (4, 9), generator=torch.Generator().manual_seed(0))
    # torch's fused steps change weights without raising their version.
    optimizer = optim.build(model, OptimConfig(name=name, lr=0.1))
    for _ in range(2):
        native.step_for(model)
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step(1.0)
        optimizer.zero_grad()
        with inference(model):
            found = native.step_for(model).cache(4, 9).read(ids.tolist())
            assert_close(found, model(ids)[:, -1], rtol=0, atol=1e-4)
    before = native.step_for(model)
    model.embedding.weight.data[5] += 1
    assert native.step_for(model) is not before


def test_int8_folders_are_read_as_they_are():
    model = build(replace(SMALL, architecture="qwen3"))
    quant.quantise(model, quant.Settings(method="int8"))
    assert native.fits(model)
    texts = torch.randint(37, (3, 9), generator=torch.Generator().manual_seed(0))
    with inference(model):
        wanted = model(texts)[:, -1]
        found = native.step_for(model).cache(3, 9).read(texts.tolist())
    # Inputs become integers of up to 15 bits.
    assert_close(found, wanted, rtol=0, atol=2e-3 * float(wanted.abs().max()))


def test_int4_folders_decode_with_their_numbers_in_float32():
    model = build(replace(SMALL, architecture="qwen3", d_model=64, n_heads=4, d_ff=64))
    texts = torch.randint(37, (8, 9), generator=torch.Generator().manual_seed(0))
    settings = quant.Settings(method="int4", keep=0.2, embedding="float")
    quant.quantise(model, settings, texts)
    # Also where matrices of one product are in both.
    forms = [part.form for part in model.modules() if isinstance(part, PackedLinear)]
    assert {*forms} == {"int4", "int8"}
    assert native.fits(model)
    with inference(model):
        wanted = model(texts)[:, -1]
        found = native.step_for(model).cache(8, 9).read(texts.tolist())
    assert_close(found, wanted, rtol=0, atol=2e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "speedrun"},
        {"logit_softcap": 5.0},
        {"windows": (4, 0)},
        {"bigrams": 64},
        {"position": "none"},
        {"attention": "manual"},
        {"norm": "plain_rmsnorm"},
        {"feedforward": "relu2"},
        {"architecture": "gpt2", "qk_norm": True},
    ],
    ids=lambda change: "".join(change),
)
def test_other_mixes_run_in_torch(change):
    assert not native.fits(build(replace(SMALL, **change)))


def test_what_is_added_to_a_model_keeps_it_in_torch():
    model = build(SMALL)
    assert native.fits(model)
    assert not native.fits(models.build(SMALL, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert not native.fits(model)
    handle = model.blocks[1].register_forward_hook(lambda *_: None)
    assert not native.fits(model)
    handle.remove()
    assert native.fits(model)
    for kind, options in (("paged", {"page": 32}), ("int8", {})):
        assert isinstance(native.build(model, 1, 4, kind, **options), cache.KINDS[kind])


def test_views_forks_and_copies_of_rows():
    model = build(SMALL)
    held = native.build(model, 4, 8)
    assert held.rows([2, 0]).read([[1, 2], [3]]).shape == (2, 37)
    assert held.ends == [1, 0, 2, 0]
    held.fork(2, [1, 3])
    wanted = held.rows([2]).read([[9]])
    assert (held.rows([1]).read([[9]]) == wanted).all()
    taken = held.select(torch.tensor([3, 3]))
    assert (taken.read([[9], [9]]) == wanted).all()
    held.truncate(torch.tensor([1, 3, 3, 2]))
    held.clear([0])
    assert held.ends == [0, 3, 3, 2]
    assert held.stats().tokens == 8
    with pytest.raises(Full, match="3 \\+ 6 tokens do not fit a cache of 8"):
        held.rows([1]).read([[0] * 6])
    with pytest.raises(ValueError, match="one token or more"):
        held.read([[1], [], [1], [1]])
    for wrong in (-1, 37):
        with pytest.raises(ValueError, match=f"id {wrong}: the vocabulary is 0 to 36"):
            held.read([[1], [wrong], [1], [1]])
    with pytest.raises(ValueError, match="is read by its step"):
        model(torch.tensor([[1]]), cache=native.build(model, 1, 4))


def test_a_network_says_what_is_wrong_with_its_parts():
    shape = native._shape(build(SMALL))
    with pytest.raises(ValueError, match="attention_norm is missing"):
        _rust.Network(shape, [], weights="float32", simd="auto")
    part = ("0.o", [np.zeros((2, 2), np.float32)], None)
    with pytest.raises(ValueError, match=r"0\.o has 4 weights: must be 24 x 24"):
        _rust.Network(shape, [part], weights="float32", simd="auto")
    for name, value in (("weights", "int3"), ("simd", "mmx")):
        words = {"weights": "float32", "simd": "auto", name: value}
        with pytest.raises(ValueError, match=f"{name}={value}: must be"):
            _rust.Network(shape, [], **words)
    with pytest.raises(KeyError, match="rotary"):
        _rust.Network(
            {k: v for k, v in shape.items() if k != "rotary"}, [], **words | {"simd": "auto"}
        )


def test_the_step_chooses_only_without_other_settings():
    def chances(**settings):
        config = SampleConfig(**settings)
        places = [(0, 0)]
        drawer = Drawer(config, [[1]], places, vocab_size=37, device=torch.device("cpu"))
        return drawer.chances()

    assert chances(temperature=0) == ([0.0], [0.0])
    heats, numbers = chances(temperature=0.5, seed=3)
    assert heats == [0.5]
    assert numbers == [choices.uniforms(3, 0, 0, 0, 1)[0]]
    others = ({"top_k": 2}, {"top_p": 0.5}, {"presence_penalty": 1.0}, {"logprobs": 1})
    assert [chances(**other) for other in others] == [None] * 4


def test_the_hash_of_an_array_is_that_of_its_bytes():
    array = np.arange(5000, dtype=np.int64).view(np.uint8)
    assert _rust.xxh3_64(array) == _rust.xxh3_64(array.tobytes())
    with pytest.raises((TypeError, ValueError)):
        _rust.xxh3_64(array[::2])
