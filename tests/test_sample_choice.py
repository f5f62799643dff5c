"""Choosing tokens: settings of each row, restrictions, log-probabilities, and what is refused."""

import itertools
import math
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fakes import ByteTokenizer
from tests.support.kinds import model_of, tokenizer_of
from tests.support.models import build
from tinylm import sample
from tinylm.config import ConfigError, ModelConfig, SampleConfig
from tinylm.model import inference
from tinylm.reference import choice
from tinylm.sample import logprobs, nucleus
from tinylm.sample.drawer import Drawer
from tinylm.sample.logits import RowError
from tinylm.sample.reader import visible

V = 24
CPU = torch.device("cpu")
SMALL = ModelConfig(
    vocab_size=257, d_model=12, n_layers=1, n_heads=2, context_length=16, tied=False
)
CONFIGS = [
    SampleConfig(temperature=1.0, seed=3),
    SampleConfig(temperature=0.0, logprobs=2),
    SampleConfig(temperature=1.0, top_p=0.8, top_k=9, min_p=0.01, logprobs=0),
    SampleConfig(temperature=0.7, frequency_penalty=0.5, repetition_penalty=1.2),
    SampleConfig(temperature=0.0, presence_penalty=2.0, seed=5),
    SampleConfig(temperature=1.0, logit_bias={3: 2.5, 4: -100}, min_tokens=4),
    SampleConfig(temperature=1.0, allowed_token_ids=(1, 2, 3, 7), typical_p=0.9),
    SampleConfig(temperature=2.0, bad_words_ids=((5,), (6, 7), (1, 1))),
]
ENDS = frozenset({0, 2})


@pytest.fixture(scope="module")
def small():
    return build(SMALL, dtype=torch.float32)


def drawer_of(config, text=(1, 2), place=(0, 0), ends=ENDS):
    return Drawer(config, [text], [place], vocab_size=V, device=CPU, ends=ends)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def test_each_row_draws_by_its_own_settings_what_it_would_draw_alone():
    # Twice: rows of equal settings are processed together.
    configs = CONFIGS * 2
    steps = noise(30, len(configs), V)
    alone = []
    for row, config in enumerate(configs):
        one = drawer_of(config, [1, row], (row, 1))
        alone.append((one, [one.draw(step[row : row + 1])[0] for step in steps]))
    texts, places = [[1, row] for row in range(len(configs))], [(r, 1) for r in range(len(configs))]
    group = Drawer(configs[:9], texts[:9], places[:9], vocab_size=V, device=CPU, ends=ENDS)
    drawn = [[] for _ in configs]
    live = [*range(9)]
    for number, step in enumerate(steps):
        # Rows come late and go early, in any order.
        if number == 3:
            for row in range(9, len(configs)):
                had = alone[row][1][:3]
                group.add(configs[row], texts[row], places[row], had, ENDS)
                drawn[row] += had
            live += range(9, len(configs))
        if number in (10, 20):
            live = [*live[::-1][2:]]
            group.keep([*range(len(group.rows))][::-1][2:])
        for row, id in zip(live, group.draw(step[live]), strict=True):
            drawn[row].append(id)
    for row, (one, wanted) in enumerate(alone):
        assert drawn[row] == wanted[: len(drawn[row])]
        if row in live:
            assert len(drawn[row]) == len(steps)
            kept = group.logprobs[live.index(row)]
            assert kept == one.logprobs[0][len(one.logprobs[0]) - len(kept) :]


@settings(max_examples=8, deadline=None)
@given(backs=st.lists(st.integers(0, 12), min_size=1, max_size=3), data=st.data())
def test_what_is_taken_back_is_drawn_again(backs, data):
    steps = noise(12, len(CONFIGS), V, seed=2)
    group = Drawer(
        CONFIGS, [[1]] * len(CONFIGS), [(0, 0)] * len(CONFIGS), vocab_size=V, device=CPU, ends=ENDS
    )
    first = [group.draw(step) for step in steps]
    known = [[*row] for row in group.logprobs]
    for back in backs:
        group.truncate([back] * len(CONFIGS))
        assert [len(row) for row in group.logprobs] == [
            back if config.logprobs is not None else 0 for config in CONFIGS
        ]
        assert [group.draw(step) for step in steps[back:]] == first[back:]
        assert group.logprobs == known
    row = data.draw(st.integers(0, len(CONFIGS) - 1))
    group.keep([row, row])
    group.truncate([3, 7])
    again = group.draw(torch.stack((steps[3, row], steps[7, row])))
    assert again == [first[3][row], first[7][row]]


def test_restrictions_hold_and_min_tokens_puts_the_end_off():
    steps = noise(150, 1, V, seed=3)
    for config, holds in (
        (replace(CONFIGS[6], max_tokens=150), lambda ids: {*ids} == {1, 2, 3, 7}),
        (CONFIGS[5], lambda ids: 4 not in ids and not ENDS & {*ids[:4]} and ENDS & {*ids[4:]}),
        (
            CONFIGS[7],
            lambda ids: 5 not in ids and not {(6, 7), (1, 1)} & {*itertools.pairwise([1, *ids])},
        ),
    ):
        one = drawer_of(config, [2, 1])
        ids = [one.draw(step)[0] for step in steps]
        assert holds(ids), config


def test_a_row_without_a_token_is_named_and_nothing_has_changed():
    configs = [CONFIGS[1], CONFIGS[0], CONFIGS[1], CONFIGS[3]]
    group = Drawer(configs, [[1]] * 4, [(0, 0)] * 4, vocab_size=V, device=CPU)
    steps = noise(2, 4, V)
    group.draw(steps[0])
    before = [[*ids] for ids in group.drawn]
    for row, value in itertools.product(range(4), (math.nan, math.inf, -math.inf)):
        bad = steps[1].clone()
        bad[row, 3 if value == math.inf or value != value else slice(None)] = value
        with pytest.raises(RowError, match=rf"the largest logit of row {row} is") as caught:
            group.draw(bad)
        assert caught.value.row == row
        assert group.drawn == before
        others = [other for other in range(4) if other != row]
        group.draw(bad, going=others)
        assert [len(ids) for ids in group.drawn] == [2 if i in others else 1 for i in range(4)]
        group.truncate([1] * 4)
    group.draw(steps[1])
    stuck = replace(CONFIGS[0], allowed_token_ids=(5,), bad_words_ids=((5, 5),))
    group.add(stuck, [5], (1, 0))
    with pytest.raises(RowError, match=r"no token may follow after 0 tokens by .*bad_words_ids"):
        group.draw(noise(5, V))
    # The plainest way to choose finds the same.
    cold = drawer_of(SampleConfig(temperature=0.0))
    with pytest.raises(RowError, match="the largest logit of row 0 is nan"):
        cold.draw(torch.full((1, V), math.nan))


@settings(max_examples=100, deadline=None)
@given(
    row=st.lists(st.integers(-40, 0).map(lambda n: n / 8), min_size=1, max_size=300),
    scale=st.sampled_from([0.0, 0.01, 1.0, 30.0]),
    p=st.floats(1e-6, 1, exclude_max=True),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_nucleus_by_buckets_is_that_by_sorting(row, scale, p, dtype):
    logits = torch.tensor([row], dtype=dtype) * scale
    ordered = logits.sort(descending=True).values
    weights = (ordered - ordered[:, :1]).exp()
    one, other = nucleus.likeliest(logits, p), nucleus.by_sorting(ordered, weights, p)
    if not all(map(torch.equal, one, other)):
        # Only where a sum is p but for rounding.
        shares = sorted(choice.softmax(logits[0].tolist()), reverse=True)
        assert min(abs(x - p) for x in itertools.accumulate(shares)) < 1e-6


@pytest.mark.parametrize("kind", ["gpt4", "char"])
def test_a_bad_word_never_comes_to_be_whatever_tokens_spell_it(kind):
    tokenizer, model = tokenizer_of(kind), model_of(kind)
    hot = SampleConfig(temperature=3.0, max_tokens=100, samples=3)
    free = sample.generate(model, [[tokenizer.eos_id]], hot, tokenizer=tokenizer)
    # What does come to be: a letter, and the first pairs of letters.
    data = tokenizer.decode_bytes(free[0])
    pairs = [data[i : i + 2] for i in range(len(data)) if data[i : i + 2].isascii()]
    words = tuple(pair.decode() for pair in (pairs[0], pairs[1], pairs[-1][:1]))
    banned = replace(hot, bad_words=words)
    for ids in sample.generate(model, [[tokenizer.eos_id]], banned, tokenizer=tokenizer):
        written = tokenizer.decode_bytes(ids)
        assert len(ids) > 10
        assert not [word for word in words if word.encode() in written]
    with pytest.raises(ConfigError, match=r"sample\.bad_words='x' is a text and no tokenizer"):
        sample.generate(model, [[1]], replace(hot, bad_words="x"))


def test_a_stop_text_does_not_end_a_text_before_min_tokens(small):
    tokenizer = ByteTokenizer()
    letters = {"temperature": 1.0, "max_tokens": 40, "allowed_token_ids": tuple(b"abcd")}
    config = SampleConfig(**letters)
    whole = "".join(sample.stream(small, tokenizer, "ab", config))
    stop = next(letter for letter in whole if letter != whole[0])
    at_once = "".join(sample.stream(small, tokenizer, "ab", replace(config, stop=stop)))
    assert at_once == whole.partition(stop)[0] != ""
    late = "".join(sample.stream(small, tokenizer, "ab", replace(config, stop=stop, min_tokens=20)))
    assert late == whole[:20] + whole[20:].partition(stop)[0] != whole


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"logit_bias": {24: 1}}, r"sample\.logit_bias=24: the vocabulary is 0 to 23"),
        ({"allowed_token_ids": (1, 30)}, r"sample\.allowed_token_ids=30: the vocabulary is 0 to"),
        ({"bad_words_ids": ((1,), (2, 99))}, r"sample\.bad_words_ids=99: the vocabulary is 0 to"),
        (
            {"allowed_token_ids": (3,), "bad_words_ids": ((3,),)},
            r"sample\.allowed_token_ids and sample\.bad_words_ids leave no token",
        ),
    ],
)
def test_settings_that_leave_nothing_are_one_line(given, problem):
    with pytest.raises(ConfigError, match=problem):
        drawer_of(SampleConfig(**given))


def test_a_structure_without_llguidance_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"sample\.regex=a\+: .*pip install 'tinylm\[grammar\]'"):
        sample.generate(
            model_of("byte"), [[1]], SampleConfig(regex="a+"), tokenizer=tokenizer_of("byte")
        )


def test_the_log_probabilities_of_a_prompt_are_those_of_reading_it_token_by_token(
    small, monkeypatch
):
    monkeypatch.setattr(logprobs, "AT_ONCE", 12)
    text = [*range(3, 33)]
    with inference(small):
        found = logprobs.of_prompt(small, text[:16], 3, 250, missing=(7, 9))
        assert found[0] is None
        for place in range(1, 16):
            row = small(torch.tensor([text[:place]]))[0, -1, :250]
            row[[7, 9]] = -math.inf
            (wanted,) = logprobs.of_tokens(row[None], [text[place]], 3)
            assert found[place].id == text[place]
            assert found[place].rank == wanted.rank
            assert found[place].logprob == pytest.approx(wanted.logprob, abs=1e-5)
            assert [id for id, _ in found[place].top] == [id for id, _ in wanted.top]
        # What the model does not see any more has none.
        longer, seen = logprobs.of_prompt(small, text, 0, 257), visible(len(text), 16)
        assert [one is None for one in longer] == [place <= 30 - seen for place in range(30)]
        assert all(one.top == () for one in longer if one)
