"""Blocks of the native cache: shared, copied on writing, found again; the texts are those alone."""

import faulthandler
import functools
import signal
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import models
from tests.test_native import SMALL
from tinylm import native, sample
from tinylm.cache import Full, Native
from tinylm.config import SampleConfig
from tinylm.sample.engine import Engine

MODEL = models.build(replace(SMALL, context_length=64), dtype=torch.float32)
# Beginnings of more than a block that are alike, and others.
PROMPTS = [[*range(20)], [*range(20), 5], [*range(35)], [3], [7, 8, 9], [*range(30, 1, -1)]]
CONFIGS = [
    SampleConfig(temperature=0.0, max_tokens=30, samples=3),
    SampleConfig(temperature=1.2, max_tokens=17, samples=3, seed=2),
    SampleConfig(temperature=0.9, max_tokens=40, samples=3, stop=(1, 4)),
    SampleConfig(temperature=0.9, top_k=5, max_tokens=9, samples=3),
]


def long(length):
    """A cache of rows long enough that their prompts are read in several chunks."""
    model = models.build(replace(SMALL, context_length=length), dtype=torch.float32)
    return native.build(model, 2, length)


@functools.cache
def alone(number, config, place):
    """The ids of a request by itself, in a cache without blocks that are shared."""
    engine = Engine(MODEL, cache="contiguous", max_batch=1)
    engine.add(PROMPTS[number], CONFIGS[config], prompt=number, sample=place)
    while engine.live:
        engine.step()
    return engine.take_ended()[0].ids


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2), st.integers(0, 5)),
        min_size=1,
        max_size=9,
    ),
    st.integers(1, 5),
    st.integers(4, 12),
    st.integers(1, 40),
)
def test_requests_get_what_they_get_alone_bit_for_bit(requests, rows, blocks, chunk):
    engine = Engine(MODEL, cache="paged", max_batch=rows, max_tokens=16 * blocks, chunk=chunk)
    assert isinstance(engine.cache, Native)
    places = {}
    for prompt, config, place, steps in requests:
        number = engine.add(PROMPTS[prompt], CONFIGS[config], prompt=prompt, sample=place)
        places[number] = prompt, config, place
        for _ in range(steps):
            engine.step()
    while engine.live:
        engine.step()
    for ended in engine.take_ended():
        assert ended.ids == alone(*places[ended.number])
    assert engine.cache.free == engine.cache.total == blocks
    assert engine.stats().cache.tokens == 0


def test_a_known_beginning_is_found_and_shared_blocks_are_copied_before_they_change():
    ids = [*range(36)]
    plain = native.build(MODEL, 1, 64)
    wanted = [plain.read([ids[:35]]), plain.read([ids[35:]])]
    held = native.build(MODEL, 3, 64, "paged", tokens=96)
    assert (held.rows([0]).read([ids[:35]]) == wanted[0]).all()
    held.note(0, ids[:35])
    # The last token is always read.
    assert held.match(1, ids[:33]) == 32
    assert (held.rows([1]).read([ids[32:35]]) == wanted[0]).all()
    assert held.stats().found == 32
    held.fork(0, [2])
    assert held.free == 2
    assert held.needed(2, 1) == 1
    # What one of them reads is not what the others read next.
    held.rows([2]).read([[0]])
    for row in (0, 1):
        assert (held.rows([row]).read([ids[35:]]) == wanted[1]).all()
    held.clear([1, 2])
    taken = held.select(torch.tensor([0]))
    held.clear()
    # A block that nobody knows any more is another's; those of a copy are its own.
    held.rows([1]).read([[9] * 40])
    again = plain.read([[3]])
    assert (taken.read([[3]]) == again).all()
    with pytest.raises(Full, match="more blocks of 16 tokens are needed"):
        held.rows([2]).read([[1] * 33])
    assert held.ends == [0, 40, 0]


def test_a_budget_is_for_blocks_of_16_and_other_pages_are_read_in_torch():
    settings = {"temperature": 0.0, "max_tokens": 20, "cache": "paged"}
    found = sample.generate(MODEL, PROMPTS, SampleConfig(**settings))
    assert found == sample.generate(MODEL, PROMPTS, SampleConfig(temperature=0.0, max_tokens=20))
    assert isinstance(native.build(MODEL, 1, 8, "paged", page=16, tokens=32), Native)
    assert not isinstance(native.build(MODEL, 1, 8, "paged", page=8), Native)
    with pytest.raises(ValueError, match="tokens=8: must be at least page, 16"):
        native.build(MODEL, 1, 8, "paged", tokens=8)
    for length in (0, 65):
        with pytest.raises(ValueError, match=f"max_length={length}: must be 1 to the context"):
            native.build(MODEL, 1, length)


def test_a_block_is_copied_while_another_thread_reads_a_prompt():
    held = long(2048)
    # Threads that wait for each other with the GIL can be stopped by this alone.
    faulthandler.dump_traceback_later(60, exit=True)
    reader = threading.Thread(target=lambda: held.rows([0]).read([[1] * 2000]))
    reader.start()
    while reader.is_alive():
        held.pool.copy(250, 251)
        assert held.pool.held.bytes >= 0
    faulthandler.cancel_dump_traceback_later()
    assert held.ends == [2000, 0]


def test_a_signal_handler_cannot_use_the_cache_that_is_read():
    held, said, done = long(2048), [], threading.Event()

    def handle(*_):
        try:
            held.pool.copy(250, 251)
        except RuntimeError as error:
            said.append(str(error))

    def send():
        while not done.wait(0.001):
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    sender = threading.Thread(target=send)
    # A handler that waits for its own thread can be stopped by this alone.
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        sender.start()
        held.rows([0]).read([[1] * 2000])
    finally:
        done.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
        faulthandler.cancel_dump_traceback_later()
    assert {*said} == {"this cache reads tokens now: a signal handler cannot use it"}
    assert held.ends == [2000, 0]


def test_sizes_that_no_machine_has_are_refused():
    most = 16 * (2**31 - 1)
    with pytest.raises(ValueError, match=f"tokens: must be at most {most}$"):
        Engine(MODEL, cache="paged", max_tokens=10**12)
    # Blocks cost nothing, here and in Rust, before they are used.
    engine = Engine(MODEL, cache="paged", max_tokens=10**10)
    engine.add([1, 2, 3], CONFIGS[0])
    while engine.live:
        engine.step()
    held = native.build(MODEL, 2, 64)
    for wrong in (0, 38, 10**15):
        with pytest.raises(ValueError, match=f"vocab_size={wrong}: must be 1 to 37"):
            held.read([[1], [2]], vocab_size=wrong)
        with pytest.raises(ValueError, match=f"vocab_size={wrong}: must be 1 to 37"):
            held.draw([[1], [2]], [0.0] * 2, [0.0] * 2, vocab_size=wrong)
    with pytest.raises(ValueError, match="layers=0: must be 1 to 2"):
        held.read([[1], [2]], layers=0)
    for heat in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"temperature=(-1|NaN): must be 0 or more"):
            held.draw([[1], [2]], [1.0, heat], [0.0] * 2)
    for heats in ([], [1.0] * 3):
        with pytest.raises(ValueError, match=f"{len(heats)} temperatures and 1 numbers: must be 2"):
            held.draw([[1], [2]], heats, [0.0])
    for number in (-0.5, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"number=.*: must be at least 0 and below 1"):
            held.draw([[1], [2]], [1.0, 1.0], [0.0, number])
    assert held.ends == [0, 0]


def test_so_high_a_temperature_makes_all_ids_equal():
    held = native.build(MODEL, 37, 8)
    numbers = [(n + 0.5) / 37 for n in range(37)]
    assert held.draw([[1]] * 37, [1e39] * 37, numbers) == [*range(37)]
