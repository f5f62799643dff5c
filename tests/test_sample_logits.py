"""The steps of sampling together, their edges, and the random numbers.

Each step by itself is a rung of the ladder (`tests/rungs/choice.py`).
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tinylm.config import SampleConfig
from tinylm.sample import logits

# Halves make ties likely.
ROW = st.lists(st.integers(-12, 12).map(lambda n: n / 2), min_size=1, max_size=12)


def tensor(row):
    return torch.tensor([row], dtype=torch.float64)


def kept(row):
    """The ids that can still be drawn."""
    return {i for i, value in enumerate(row[0].tolist()) if value > -math.inf}


def softmax(row):
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / sum(weights) for weight in weights]


def after(filter, row, value):
    """A row without the tokens that a filter takes out."""
    return tensor(row).masked_fill(filter(tensor(row), value), -math.inf)


def likeliest_first(row):
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


@given(row=ROW, value=st.sampled_from([5e-324, 1e-100, 1e-8]))
def test_a_tiny_temperature_draws_among_the_likeliest(row, value):
    cold = logits.temperature(tensor(row), value)
    token = int(logits.draw(cold, torch.tensor([0.5], dtype=torch.float64)))
    assert row[token] == max(row)


def test_top_p_of_one_keeps_every_token():
    row = [0.0, *[-30.0] * 50]
    assert kept(after(logits.top_p, row, 1.0)) == set(range(51))


def test_top_p_stops_where_the_sum_is_p():
    assert kept(after(logits.top_p, [0.0, 0.0], 0.5)) == {0}
    assert kept(after(logits.top_p, [0.0, 0.0], 0.51)) == {0, 1}
    assert kept(after(logits.top_p, [0.0, 0.0], 1e-12)) == {0}


@given(row=ROW, allowed=st.sets(st.integers(0, 11), min_size=1), data=st.data())
def test_a_token_of_no_probability_is_never_drawn(row, allowed, data):
    assume(any(i < len(row) for i in allowed))
    masked = [x if i in allowed else -math.inf for i, x in enumerate(row)]
    ends = st.sampled_from([0.0, 0.5, 1 - 2**-53])
    u = data.draw(ends | st.floats(0, 1, exclude_max=True))
    token = int(logits.draw(tensor(masked), torch.tensor([u], dtype=torch.float64)))
    assert token in allowed


def test_the_steps_come_in_the_order_of_transformers():
    # Only after the temperature does min_p keep the second token, only after top_k top_p the
    # first two, only after the penalty is the last one out.
    row, marks = tensor([2.0, 1.0, 0.9, 3.0]), torch.tensor([[False, False, False, True]])
    counts = tensor([0.0, 0.0, 0.0, 2.0])
    config = SampleConfig(
        repetition_penalty=2.0, frequency_penalty=1.0, presence_penalty=0.5,
        temperature=2.0, top_k=3, top_p=0.7, min_p=0.5,
    )  # fmt: skip
    got = logits.process(row, marks, counts, config)
    assert kept(got) == {0, 1}
    assert got[0, 1] - got[0, 0] == pytest.approx(-0.5)
    greedy = dataclasses.replace(config, temperature=0.0, top_k=1)
    wanted = [2.0, 1.0, 0.9, 3 / 2 - 2 - 0.5]
    assert logits.process(row, marks, counts, greedy)[0].tolist() == pytest.approx(wanted)


def test_the_filters_agree_with_transformers():
    transformers = pytest.importorskip("transformers")
    row = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([[1, 2, 2], [3, 4, 5], [6, 6, 6], [7, 8, 9]])
    seen = torch.zeros(4, 50, dtype=torch.bool).scatter_(1, ids, True)
    config = SampleConfig(repetition_penalty=1.3, temperature=0.7, top_k=30, top_p=0.8, min_p=0.05)
    wanted = row
    for warper in (
        transformers.RepetitionPenaltyLogitsProcessor(1.3),
        transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(30),
        transformers.TopPLogitsWarper(0.8),
        transformers.MinPLogitsWarper(0.05),
    ):
        wanted = warper(ids, wanted)
    got = logits.process(row, seen, torch.zeros_like(row), config)
    torch.testing.assert_close(got.softmax(-1), wanted.softmax(-1))


@given(
    seed=st.integers(0, 2**63 - 1), prompt=st.integers(0, 2**40), index=st.integers(0, 2**40),
    step=st.integers(0, 40),
)  # fmt: skip
def test_a_random_number_is_a_function_of_its_place(seed, prompt, index, step):
    key = np.array([seed, logits.STREAM], dtype=np.uint64)
    counter = np.array([0, 0, index, prompt], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=counter).advance(step // 4)
    wanted = np.random.Generator(bits).random(4)[step % 4]
    assert logits.uniforms(seed, prompt, index, step, 1).tolist() == [wanted]
    assert logits.uniforms(seed, prompt, index, 0, step + 1)[step] == wanted


def test_the_random_numbers_are_uniform_and_of_their_own_in_every_row():
    rows = [
        logits.uniforms(seed, prompt, index, 0, 2000)
        for seed, prompt, index in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    for row in rows:
        counts, _ = np.histogram(row, 20, (0, 1))
        # 19 degrees of freedom: above 50 once in ten thousand.
        assert ((counts - 100) ** 2 / 100).sum() < 50
    assert np.abs(np.corrcoef(rows) - np.eye(4)).max() < 0.1


def test_drawn_tokens_follow_the_distribution():
    row = [0.3, -1.0, 0.0, 2.0, -math.inf]
    numbers = torch.from_numpy(logits.uniforms(0, 0, 0, 0, 20000))
    ids = logits.draw(tensor(row).expand(20000, -1), numbers.double())
    shares = torch.bincount(ids, minlength=5) / 20000
    assert shares.tolist() == pytest.approx(softmax(row), abs=0.015)
