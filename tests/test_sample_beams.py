"""Beam search against its definition, and log-probabilities of every way to decode."""

from dataclasses import replace
from functools import partial
from math import inf

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.fakes import ByteTokenizer
from tests.support.models import build
from tinylm import sample
from tinylm.config import ConfigError, ModelConfig, SampleConfig
from tinylm.model import inference
from tinylm.reference import choice
from tinylm.sample import beams, decoding
from tinylm.sample.logits import RowError
from tinylm.sample.reader import Reader

SMALL = ModelConfig(vocab_size=11, d_model=12, n_layers=2, n_heads=2, context_length=12, tied=False)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 1, 2, 3, 1, 2]]


@pytest.fixture(scope="module")
def small():
    return build(SMALL)


def scores_after(model, prompt, restrict=lambda row: row):
    """Log-probabilities after a continuation, the text read anew each time."""

    def step(text):
        seen = [*prompt, *text]
        row = model(torch.tensor([seen[-12:]]))[0, -1].tolist()
        return choice.logprobs(restrict(row), 0)[0]

    return step


@settings(max_examples=12, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 10), min_size=1, max_size=4),
    width=st.integers(2, 5),
    ends=st.sets(st.integers(0, 10), max_size=3),
    penalty=st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
    forbidden=st.integers(0, 10),
)
# At the last step no beam grows any more, so its score is not that of a longer one.
@example(prompt=[0], width=5, ends={7}, penalty=-1.0, forbidden=0)
def test_beams_are_those_of_the_definition(small, prompt, width, ends, penalty, forbidden):
    config = SampleConfig(
        num_beams=width, samples=width, max_tokens=5, length_penalty=penalty,
        logit_bias={forbidden: -50}, logprobs=1,
    )  # fmt: skip
    bias = partial(choice.logit_bias, bias={forbidden: -50.0})
    with inference(small):
        wanted = choice.beam_search(scores_after(small, prompt, bias), width, ends, 5, penalty)
        found = beams.search(Reader(small, [prompt], 5, vocab_size=11), config, ends)
    assert [beam.ids for beam in found] == [ids for ids, _ in wanted]
    assert [beam.score for beam in found] == pytest.approx([score for _, score in wanted])
    for beam in found:
        # Those of the model, to which no bias was added.
        step = scores_after(small, prompt)
        own = [step(beam.ids[:place])[id] for place, id in enumerate(beam.ids)]
        assert [one.id for one in beam.logprobs] == beam.ids
        assert [one.logprob for one in beam.logprobs] == pytest.approx(own)


def test_generate_and_stream_return_the_best_beams():
    model, tokenizer = build(replace(SMALL, vocab_size=257)), ByteTokenizer()
    config = SampleConfig(num_beams=4, samples=2, max_tokens=6, heal=False)
    both = sample.generate(model, [[256, *b"ab"], [256, *b"c"]], config, tokenizer=tokenizer)
    assert len(both) == 4
    assert [*decoding.stream_ids(model, tokenizer, "ab", config, sample=1)] == both[1]
    assert [*decoding.stream_ids(model, tokenizer, "c", config)] == both[2]
    # A beam as wide as the vocabulary finds the likeliest pair of all.
    wide = replace(config, num_beams=257, samples=1, max_tokens=2)
    (found,) = sample.generate(model, [[256, *b"ab"]], wide)
    first = torch.tensor([[256, *b"ab"]])
    rows = torch.cat((first.expand(257, -1), torch.arange(257)[:, None]), 1)
    with torch.no_grad():
        logs = model(rows).log_softmax(-1)
    totals = logs[0, 2][:, None] + logs[:, 3]
    assert found == [int(totals.argmax()) // 257, int(totals.argmax()) % 257]


def test_a_beam_that_no_token_may_follow_drops_out(small):
    def found(prompt, allowed, dead, ends=()):
        """The beams where the ids of `dead` let none of `allowed` follow, and the definition's."""

        def restrict(row, text):
            last = [*prompt, *text][-1]
            return [x if id in allowed and last not in dead else -inf for id, x in enumerate(row)]

        def step(text):
            row = restrict(model_row(text), text)
            return choice.logprobs(row, 0)[0] if max(row) > -inf else row

        def model_row(text):
            return small(torch.tensor([[*prompt, *text]]))[0, -1].tolist()

        bad = tuple((one, other) for one in dead for other in allowed)
        config = SampleConfig(
            num_beams=3, max_tokens=3, allowed_token_ids=allowed, bad_words_ids=bad
        )
        with inference(small):
            best = beams.search(Reader(small, [prompt], 3, vocab_size=11), config, {*ends})
            wanted = choice.beam_search(step, 3, {*ends}, 3, config.length_penalty)
        assert [beam.ids for beam in best] == [ids for ids, _ in wanted]
        assert [beam.score for beam in best] == pytest.approx([score for _, score in wanted])
        return [beam.ids for beam in best]

    assert sorted(found([4], (1, 2), (1,))) == [[2, 2, 1], [2, 2, 2]]
    # What has ended stays, though all others come to nothing.
    assert found([4], (1, 2, 3), (1, 2), ends=(3,)) == [[]]
    with pytest.raises(RowError, match="no token may follow after 1 tokens"):
        found([4], (1, 2), (1, 2))


def test_fewer_beams_than_samples_are_an_error():
    model, tokenizer = build(replace(SMALL, vocab_size=257)), ByteTokenizer()
    config = SampleConfig(num_beams=3, samples=3, max_tokens=2, allowed_token_ids=(5,))
    problem = "the search found 1 continuations, and samples=3: "
    with pytest.raises(ValueError, match=problem):
        sample.generate(model, [[1], [2]], config)
    for number in range(3):
        with pytest.raises(ValueError, match=problem):
            [*decoding.stream_ids(model, tokenizer, "ab", config, sample=number)]
    both = sample.generate(model, [[1], [2]], replace(config, samples=1))
    assert both == [[5, 5], [5, 5]]


WAYS = {
    "one by one": {},
    "paged": {"cache": "paged"},
    "lookup": {"draft": "lookup"},
    "beams": {"num_beams": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_decode_reports_the_log_probabilities_of_the_model(small, way):
    given = {"temperature": 0.7, "top_k": 5, "frequency_penalty": 0.1, **WAYS[way]}
    config = SampleConfig(
        max_tokens=8, samples=2, stop=(9,), logprobs=3, prompt_logprobs=0, **given
    )
    found = sample.complete(small, PROMPTS, config)
    plain = replace(config, logprobs=None, prompt_logprobs=None)
    assert [one.ids for one in found] == sample.generate(small, PROMPTS, plain)
    for number, one in enumerate(found):
        prompt = PROMPTS[number // 2]
        assert one.reason == ("length" if len(one.ids) == 8 else "stop")
        with inference(small):
            reader = Reader(small, [prompt], 8, vocab_size=11)
            for id, scored in zip(one.ids, one.logprobs, strict=True):
                logs, likeliest = choice.logprobs(reader.last[0].tolist(), 3)
                assert scored.id == id
                assert scored.logprob == pytest.approx(logs[id], abs=1e-9)
                assert [top for top, _ in scored.top] == likeliest
                assert scored.rank == 1 + sum(other > logs[id] for other in logs)
                reader.read([[id]])
            assert one.prompt_logprobs[0] is None
            for place, scored in enumerate(one.prompt_logprobs[1:], 1):
                reader = Reader(small, [prompt[:place]], 0, vocab_size=11)
                logs, _ = choice.logprobs(reader.last[0].tolist(), 0)
                assert scored.logprob == pytest.approx(logs[prompt[place]], abs=1e-9)
                assert scored.top == ()


@pytest.mark.parametrize("way", [{}, {"draft": "lookup"}, {"num_beams": 3}])
def test_a_stream_has_the_log_probabilities_of_complete(way):
    # Native: the logits of a text are the same bits, whatever its company.
    model = build(replace(SMALL, vocab_size=257), dtype=torch.float32)
    tokenizer = ByteTokenizer()
    config = SampleConfig(max_tokens=30, samples=2, logprobs=2, temperature=2.0, seed=3, **way)
    wanted = sample.complete(model, [[256, *b"ab"]], config, tokenizer=tokenizer)
    for number, one in enumerate(wanted):
        pieces = [*sample.stream(model, tokenizer, "ab", config, sample=number)]
        assert "".join(pieces) == tokenizer.decode(one.ids)
        assert [score for piece in pieces for score in piece.logprobs] == one.logprobs
        told = [*decoding.stream_ids(model, tokenizer, "ab", config, sample=number)]
        assert told == one.logprobs
        # A stop text takes its own tokens with it, and leaves those before.
        text = "".join(pieces)
        stop = replace(config, stop=(text[4:7],))
        cut = [*sample.stream(model, tokenizer, "ab", stop, sample=number)]
        assert "".join(cut) == text[: text.index(text[4:7])]
        scores = [score for piece in cut for score in piece.logprobs]
        assert 0 < len(scores) < len(one.logprobs)
        assert scores == one.logprobs[: len(scores)]
        assert tokenizer.decode([s.id for s in scores]).startswith("".join(cut))
    plain = replace(config, logprobs=None)
    assert all(not piece.logprobs for piece in sample.stream(model, tokenizer, "ab", plain))


def test_beams_are_searched_once_for_all_samples_of_a_stream(monkeypatch):
    model, tokenizer = build(replace(SMALL, vocab_size=257)), ByteTokenizer()
    config = SampleConfig(num_beams=4, samples=3, max_tokens=5)
    searches, search = [], beams.search
    monkeypatch.setattr(beams, "search", lambda *a, **b: searches.append(1) or search(*a, **b))
    found = decoding.continuations(model, tokenizer, "ab", config)
    ids = [[*some] for some in reversed(found)][::-1]
    assert len(searches) == 1
    assert ids == [
        [*decoding.stream_ids(model, tokenizer, "ab", config, sample=n)] for n in range(3)
    ]


def test_what_has_no_place_for_log_probabilities_refuses_them(small):
    for asked in ({"logprobs": 0}, {"prompt_logprobs": 2}):
        (name,) = asked
        with pytest.raises(ConfigError, match=rf"sample\.{name}=.*use complete\(\)"):
            sample.generate(small, [[1]], SampleConfig(**asked))
    with pytest.raises(ConfigError, match=r"sample\.prompt_logprobs=2: a stream .*complete\(\)"):
        sample.stream(small, ByteTokenizer(), "a", SampleConfig(prompt_logprobs=2))
    for function in (sample.generate, sample.complete):
        with pytest.raises(ValueError, match=rf"and {function.__name__}\(\) stops at ids alone"):
            function(small, [[1]], SampleConfig(stop=("a",)))
    assert sample.complete(small, [], SampleConfig(logprobs=1)) == []
