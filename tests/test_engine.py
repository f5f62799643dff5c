"""The engine: each request gets the tokens that it gets alone, whatever happens beside it."""

import dataclasses
import functools
import itertools
import linecache
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import build
from tests.test_sample import slow
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


@settings(max_examples=25, deadline=None)
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
        leaving = frame.f_code.co_name == "step" or line.strip() == "return told"
        if event == "line" and not leaving and next(left) == 0:
            raise KeyboardInterrupt
        return trace

    return trace


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
