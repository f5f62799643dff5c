"""Steps of decoding with the choice inside, as a GPU repeats them, against one step at a time."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.models import build, configs
from tinylm import cache
from tinylm.config import ModelConfig, SampleConfig
from tinylm.model import inference
from tinylm.sample import generate, replay
from tinylm.sample.forward import Forward
from tinylm.sample.logits import draw, greedy, temperature
from tinylm.sample.replay import Replay

SMALL = ModelConfig(vocab_size=17, d_model=12, n_layers=2, n_heads=2, context_length=12)
# Operations that wait for the device, or bring a number from the host: no graph holds them.
FORBIDDEN = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "lift_fresh", "masked_select"}


class NothingOfTheHost(TorchDispatchMode):
    """Refuses every operation that could not be recorded in a CUDA graph."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name.partition("::")[2]
        assert name not in FORBIDDEN, name
        return function(*args, **(kwargs or {}))


def held(model, lengths, room):
    """A cache with fixed shapes whose rows hold texts of these lengths, and their newest ids."""
    made = cache.build(model, len(lengths), max(lengths) + room, fixed=True)
    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(0, model.config.vocab_size, shape, generator=generator)
    model(ids, cache=made)
    made.truncate(torch.tensor(lengths))
    return made, [7 % model.config.vocab_size] * len(lengths)


def plain(forward, made, tokens, numbers, heat):
    """Step by step, each step asked for by the host."""
    found = []
    for row in numbers:
        logits = forward.hide(forward.last([[token] for token in tokens], made))
        chosen = draw(temperature(logits, heat), row) if heat else greedy(logits)
        tokens = chosen.tolist()
        found.append(tokens)
    return found


@settings(max_examples=15, deadline=None)
@given(
    config=configs(context_length=12),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    steps=st.integers(1, 3),
    heat=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 2**31),
)
def test_steps_of_a_replay_are_steps(config, lengths, steps, heat, seed):
    model = build(config, seed)
    size = config.vocab_size
    with inference(model):
        torch.manual_seed(seed)
        made, tokens = held(model, lengths, 6)
        other = made.select(torch.arange(len(lengths)))
        missing = [1] if size > 2 else []
        forward = Forward(model, vocab_size=size, missing=missing)
        numbers = torch.rand(6 // steps * steps, len(lengths), dtype=torch.float64)
        expected = plain(forward, other, tokens, numbers, heat)
        steps_of = Replay(forward, made, temperature=heat, steps=steps)
        found = []
        for part in numbers.split(steps):
            ids, finite = steps_of(tokens, part)
            assert all(finite)
            found += ids
            tokens = ids[-1]
        assert found == expected
        assert made.lengths.tolist() == made.ends == other.ends


@settings(max_examples=8, deadline=None)
@given(config=configs(context_length=12, vocab_size=9), heat=st.sampled_from([0.0, 0.7]))
def test_no_step_asks_the_host(config, heat):
    model = build(config)
    with inference(model):
        made, _ = held(model, [2, 3], 2)
        forward = Forward(model, vocab_size=config.vocab_size, missing=[0])
        steps_of = Replay(forward, made, temperature=heat, steps=2)
        made.lengths = steps_of.lengths.copy_(made.lengths)
        with NothingOfTheHost():
            steps_of._run(2)
    assert made.ends == [4, 5]


def test_a_row_whose_logits_are_not_finite_is_named_and_costs_no_other():
    model = build(SMALL)
    found = []
    with inference(model):
        for value in (0.0, torch.nan):
            made, tokens = held(model, [2, 3], 2)
            made.v[0][1, :, 0] += value
            found.append(Replay(Forward(model, vocab_size=17), made, steps=2)(tokens))
    (sound, _), (ids, finite) = found
    assert finite == [True, False]
    assert [first for first, _ in ids] == [first for first, _ in sound]


def test_what_does_not_fit_is_refused():
    model = build(SMALL)
    with inference(model):
        forward = Forward(model, vocab_size=17)
        with pytest.raises(ValueError, match="build it with fixed=True"):
            Replay(forward, cache.build(model, 1, 8))
        with pytest.raises(ValueError, match="steps=0: must be at least 1"):
            Replay(forward, cache.build(model, 1, 8, fixed=True), steps=0)
        made, tokens = held(model, [3], 2)
        with pytest.raises(ValueError, match=r"3 \+ 3 tokens do not fit a cache of 5"):
            Replay(forward, made, steps=3)(tokens)
        with pytest.raises(ValueError, match=r"3 \+ 12 tokens pass the context length, 12"):
            Replay(forward, made, steps=12)(tokens)
        assert made.ends == [3]


@settings(max_examples=20, deadline=None)
@given(
    config=configs(context_length=30),
    prompts=st.lists(st.lists(st.integers(0, 16), min_size=1, max_size=5), min_size=1, max_size=3),
    heat=st.sampled_from([0.0, 0.9]),
    samples=st.integers(1, 2),
    most=st.integers(1, 9),
    stop=st.integers(0, 16),
)
def test_texts_of_a_graph_are_those_of_the_engine(config, prompts, heat, samples, most, stop):
    model = build(config)
    size = config.vocab_size
    prompts = [[id % size for id in prompt] for prompt in prompts]
    ways = {"temperature": heat, "samples": samples, "max_tokens": most, "stop": (stop % size,)}
    sample = SampleConfig(**ways)
    expected = generate(model, prompts, sample)
    with inference(model), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinylm.sample.replay.STEPS", 3)
        patch.setattr("tinylm.sample.replay.ROWS", 4)
        found = replay.generate(model, prompts, sample, stops={stop % size}, vocab_size=size)
    assert found == expected


def test_a_graph_is_for_long_texts_of_plain_settings_on_a_gpu(monkeypatch):
    model, prompts = build(replace(SMALL, context_length=100)), [[1, 2]]
    plain = SampleConfig(max_tokens=64, temperature=0.5, samples=3, stop=(4,))
    assert not replay.serves(model, prompts, plain)
    monkeypatch.setattr(type(model), "weight", property(lambda own: SimpleNamespace(is_cuda=True)))
    assert replay.serves(model, prompts, plain)
    for other in ({"max_tokens": 63}, {"max_tokens": 90}, {"top_k": 3}, {"cache": "paged"}):
        assert not replay.serves(model, prompts, replace(plain, **other)), other
