"""The engine: each request gets the tokens that it gets alone, whatever happens beside it."""

import dataclasses
import functools
import itertools
import linecache
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import build, configs
from tests.test_sample import slow
from tinylm import sample
from tinylm.config import ModelConfig, SampleConfig
from tinylm.sample import engine as engines
from tinylm.sample import scheduling
from tinylm.sample.engine import Engine

# In float64 two tokens are too close to tell apart about once in 1e13 draws, so that rounding by
# the shape of a product cannot show.
SMALL = ModelConfig(vocab_size=17, d_model=12, n_layers=2, n_heads=2, context_length=8)
MODELS = {
    position: build(dataclasses.replace(SMALL, position=position))
    for position in ("rope", "learned")
}
CONFIGS = [
    SampleConfig(temperature=0.0, max_tokens=7, samples=9),
    SampleConfig(temperature=1.0, max_tokens=12, samples=9, seed=3),
    SampleConfig(temperature=1.0, max_tokens=9, samples=9, stop=(1, 5, 9)),
    SampleConfig(
        temperature=0.8, top_k=9, repetition_penalty=1.3, presence_penalty=0.2, max_tokens=5,
        samples=9,
    ),
]  # fmt: skip
# Few different ones, so that some are shared, and what each gets alone is computed once.
PROMPTS = [[1, 2, 3], [1, 2, 3, 4], [5], [6, 7, 8, 9, 1, 2], [*range(8)], [*range(12)]]
REQUESTS = st.tuples(
    st.sampled_from(PROMPTS), st.sampled_from(CONFIGS), st.integers(0, 1), st.integers(0, 2)
)
# A request to add, a number of steps to take, or which request to cancel.
OPERATIONS = st.lists(
    REQUESTS | st.integers(1, 4) | st.tuples(st.just("cancel"), st.integers(0, 20)), max_size=14
)


@functools.cache
def alone(position, prompt, config, number, index):
    """The tokens of a request by reading everything anew."""
    return slow(MODELS[position], prompt, config, number, index)


@st.composite
def engine_settings(draw):
    """Caches, with room for one whole request or more."""
    kind, rows = draw(st.sampled_from(["contiguous", "paged"])), draw(st.integers(1, 4))
    chosen = {"cache": kind, "max_batch": rows, "chunk": draw(st.integers(1, 9))}
    if kind == "contiguous":
        return chosen | {"max_tokens": 8 * rows}
    return chosen | {
        "max_tokens": draw(st.integers(8, 10 * rows)),
        "page": draw(st.sampled_from([1, 2, 4])),
    }


class Script:
    """Runs operations on an engine, and knows what must come of them."""

    def __init__(self, position, **options):
        self.position = position
        self.engine = Engine(MODELS[position], **options)
        self.asked, self.got, self.ended = {}, {}, {}

    def add(self, prompt, config, number, index):
        key = self.engine.add(prompt, config, prompt=number, sample=index)
        self.asked[key], self.got[key] = (prompt, config, number, index), []

    def step(self):
        schedule = self.engine.schedule
        reading = {r.number for r in schedule.running if r.new > 1 or r.window}
        decoding = {r.number for r in schedule.running} - reading
        before = schedule.counts.preempted
        drawn = self.engine.step()
        self.take(drawn)
        if schedule.counts.preempted == before:
            # However long a prompt is read, everybody else gets a token or ends.
            assert decoding <= {key for key, _ in drawn} | {*self.ended}

    def take(self, drawn):
        for key, id in drawn:
            self.got[key].append(id)
        for ended in self.engine.take_ended():
            self.ended[ended.number] = ended

    def cancel(self, place):
        live = [key for key in self.asked if key not in self.ended]
        if live:
            key = live[place % len(live)]
            self.engine.cancel(key)
            del self.asked[key], self.got[key]

    def run(self, operations):
        for operation in operations:
            match operation:
                case int():
                    for _ in range(operation):
                        self.step()
                case ("cancel", place):
                    self.cancel(place)
                case _:
                    self.add(*operation)
        for _ in range(10_000):
            if not self.engine.live:
                break
            self.step()

    def check(self):
        """Tokens as each request alone, told once, and nothing kept."""
        for key, (prompt, config, number, index) in self.asked.items():
            wanted = alone(self.position, tuple(prompt), config, number, index)
            assert self.ended[key].ids == self.got[key] == wanted
            full = len(wanted) == config.max_tokens
            assert self.ended[key].reason == ("length" if full else "stop")
        engine, schedule = self.engine, self.engine.schedule
        stats = engine.stats()
        assert (engine.live, stats.waiting, stats.running, stats.cache.tokens) == (0, 0, 0, 0)
        assert sorted(schedule.free) == [*range(engine.max_batch)]
        assert engine.cache.free == engine.cache.total


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([*MODELS]), engine_settings(), OPERATIONS)
def test_a_request_gets_what_it_gets_alone(position, options, operations):
    script = Script(position, **options)
    script.run(operations)
    script.check()
    assert script.engine.stats().drawn >= sum(map(len, script.got.values()))


def interrupting(at):
    """A trace function that interrupts before the line number `at` of all lines of the engine."""
    left = itertools.count(-at)
    files = {engines.__file__, scheduling.__file__}

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in files:
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        # What is on its way to an interrupted caller is lost to it, whoever tries what.
        leaving = frame.f_code.co_name == "step" or line.strip() in ("return told", "return ended")
        if event == "line" and not leaving and next(left) == 0:
            raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    engine_settings(),
    st.lists(REQUESTS, min_size=1, max_size=5),
    st.lists(st.integers(1, 900), max_size=3),
)
def test_an_interrupted_step_loses_nothing(options, requests, stops):
    script = Script("rope", **options)
    for request in requests:
        script.add(*request)
    for at in stops:
        before = sys.gettrace()
        sys.settrace(interrupting(at))
        try:
            while script.engine.live:
                script.take(script.engine.step())
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
    script.take(script.engine.step())
    script.run([])
    script.check()


def test_a_long_prompt_is_read_beside_the_decoding_of_others():
    engine = Engine(MODELS["rope"], max_batch=3, max_tokens=64, page=1, chunk=2)
    config = SampleConfig(temperature=0.0, max_tokens=20)
    first = engine.add([1, 2], config)
    engine.step()
    long = engine.add([*range(3, 11)], config)
    for _ in range(3):
        # Two tokens of the prompt per step; a token of the other text in each.
        assert [number for number, _ in engine.step()] == [first]
    assert [number for number, _ in engine.step()] == [first, long]


def test_a_prompt_is_read_once_for_all_that_begin_with_it():
    engine = Engine(MODELS["rope"], max_batch=4, max_tokens=64, page=2)
    config = SampleConfig(temperature=1.0, max_tokens=2, samples=3)
    for index in range(3):
        engine.add([1, 2, 3, 4, 5], config, sample=index)
    engine.step()
    stats = engine.stats()
    assert (stats.read, stats.shared, stats.passes) == (5, 2, 1)
    engine.step()
    # All are gone, and their blocks are free; but what was in them can still be found.
    assert engine.cache.free == engine.cache.total
    engine.add([1, 2, 3, 4, 9], config)
    engine.step()
    assert (engine.stats().matched, engine.stats().read) == (4, 5 + 3 + 1)


def test_the_youngest_gives_way_when_the_blocks_run_out():
    engine = Engine(MODELS["rope"], max_batch=2, max_tokens=10, page=1)
    config = SampleConfig(temperature=1.0, max_tokens=5, samples=2)
    numbers = [engine.add([1, 2, index], config, sample=index) for index in range(2)]
    ended = []
    while engine.live:
        engine.step()
        ended += engine.take_ended()
    assert engine.stats().preempted > 0
    assert [each.number for each in ended] == numbers
    for index, each in enumerate(ended):
        assert each.ids == alone("rope", (1, 2, index), config, 0, index)


@pytest.mark.parametrize(
    ("options", "request_", "message"),
    [
        ({"max_batch": 0}, None, "max_batch=0: must be at least 1"),
        ({"cache": "contiguous", "max_batch": 3, "max_tokens": 2}, None, "a token per row"),
        ({}, ([], {}), "the prompt is empty"),
        ({}, ([17], {}), "the prompt has id 17: the vocabulary is 0 to 16"),
        ({}, ([1], {"stop": (40,)}), "stop has id 40"),
        ({}, ([1], {}, 2, 17), "drawn has id 17: the vocabulary is 0 to 16"),
        ({}, ([1], {"max_tokens": 2}, 5, 6), "drawn has 2 tokens: .* fewer than max_tokens=2"),
        ({}, ([1], {"num_beams": 2}), "sample.num_beams=2: the engine draws one token"),
        ({}, ([1], {"draft": "lookup"}), r"sample.draft=lookup: .* use generate\(\) or stream\(\)"),
        (
            {"cache": "contiguous", "max_batch": 2, "max_tokens": 12},
            ([1, 2, 3], {"max_tokens": 5}),
            "a prompt of 3 and max_tokens=5 need 7 tokens of the cache, and a row holds 6 "
            r"\(max_tokens=12 / max_batch=2\)",
        ),
        (
            {"max_tokens": 7, "page": 4},
            ([1, 2, 3], {"max_tokens": 4}),
            r"need 6 tokens of the cache, 2 blocks, and there are 1 \(max_tokens=7\)",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, request_, message):
    def ask():
        engine = Engine(MODELS["rope"], **options)
        ids, settings, *drawn = request_
        engine.add(ids, SampleConfig(**settings), drawn=[*drawn])

    with pytest.raises(ValueError, match=message) as found:
        ask()
    assert "\n" not in str(found.value)


def test_a_cancelled_request_is_gone_and_cancels_once():
    engine = Engine(MODELS["rope"], max_batch=1, max_tokens=16, page=2)
    running, waiting = (engine.add([1, 2, 3], SampleConfig(max_tokens=9)) for _ in range(2))
    engine.step()
    engine.cancel(running)
    assert (engine.cache.free, engine.stats().running) == (engine.cache.total, 0)
    engine.cancel(waiting)
    assert (engine.live, engine.step(), engine.take_ended()) == (0, [], [])
    with pytest.raises(ValueError, match="request 0: there is none, or it has ended"):
        engine.cancel(running)


@pytest.mark.parametrize("cache", ["contiguous", "paged"])
def test_a_request_that_fails_ends_alone_and_leaves_nothing_behind(cache):
    model = build(dataclasses.replace(SMALL, tied=False))
    with torch.no_grad():
        # Whoever reads this id has keys and values that are not numbers.
        model.embedding.weight[16] = torch.nan
    config = SampleConfig(temperature=0.0, max_tokens=6, allowed_token_ids=(*range(8),))
    page = {"page": 1} if cache == "paged" else {}
    engine = Engine(model, cache=cache, max_batch=2, max_tokens=16, **page)
    good = [engine.add([1, 2, 3], config)]
    bad = engine.add([4, 5, 16, 6, 7], config)
    ended = []
    # The row of the failed one is taken by a shorter text beside a longer one.
    good += [engine.add([8], config), engine.add([9, 10, 11], config)]
    while engine.live:
        engine.step()
        ended += engine.take_ended()
    errors = {each.number: each.error for each in ended if each.reason == "error"}
    assert [*errors] == [bad]
    assert "after 5 tokens is nan" in errors[bad]
    texts = {each.number: each.ids for each in ended}
    wanted = sample.generate(model, [[1, 2, 3], [8], [9, 10, 11]], config)
    assert [texts[number] for number in good] == wanted


def test_a_penalty_without_measure_ends_its_own_request():
    engine = Engine(MODELS["rope"], max_batch=2, max_tokens=32)
    fine = engine.add([1, 2], SampleConfig(max_tokens=3))
    wrong = engine.add([1, 2], SampleConfig(max_tokens=3, frequency_penalty=-1.7e308))
    while engine.live:
        engine.step()
    ended = {each.number: each for each in engine.take_ended()}
    assert (ended[fine].reason, ended[wrong].reason) == ("length", "error")
    assert "frequency_penalty=-1.7e+308" in ended[wrong].error


@settings(max_examples=6, deadline=None)
@given(config=configs(context_length=8, vocab_size=17), seed=st.integers(0, 2**31))
def test_every_mix_of_parts_reads_rows_of_unequal_length_in_one_pass(config, seed):
    model = build(config, seed)
    engine = Engine(model, cache="contiguous", max_batch=4, chunk=6)
    chosen = SampleConfig(temperature=1.0, max_tokens=4)
    prompts = [[1], [2, 3, 4], [5, 6, 7, 8, 9, 10], [11, 12]]
    for number, prompt in enumerate(prompts):
        engine.add(prompt, chosen, prompt=number)
    while engine.live:
        engine.step()
    stats = engine.stats()
    assert stats.passes == stats.steps
    for number, ended in enumerate(engine.take_ended()):
        assert ended.ids == slow(model, prompts[number], chosen, number)


def test_a_request_that_fails_leaves_the_blocks_that_others_share():
    model = build(dataclasses.replace(SMALL, vocab_size=40, context_length=64, tied=False))
    with torch.no_grad():
        model.embedding.weight[39] = torch.nan
    prompt = [*range(20)]
    config = SampleConfig(temperature=0.0, max_tokens=20, allowed_token_ids=tuple(range(39)))

    def ids(*others):
        engine = Engine(model, cache="paged", max_batch=3)
        number = engine.add([*prompt, 30], config)
        engine.step()
        engine.step()
        for text in others:
            engine.add(text, config)
        while engine.live:
            engine.step()
        ended = {done.number: done for done in engine.take_ended()}
        assert [done.reason for done in ended.values()].count("error") == len(others)
        # A text that begins alike finds the blocks again.
        engine.add([*prompt, 31], config)
        while engine.live:
            engine.step()
        return ended[number].ids, engine.take_ended()[0].ids

    assert ids([*prompt, 39]) == ids()
