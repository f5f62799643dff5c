"""Caches that keep less than was read: what each row gets is what it would get alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.support.models import CLOSE, build, configs, tokens
from tinylm import cache
from tinylm.cache import quantised
from tinylm.config import ModelConfig

# A window, grouped heads, and parts that look one token back.
MIXED = ModelConfig(
    vocab_size=11,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    context_length=24,
    windows=(0, 5),
    key_mix=True,
)
# Small enough that most reads pack, or evict.
TIGHT = {
    "int8": {},
    "int4": {"group": 2, "tail": 3},
    "random": {"budget": 4},
    "h2o": {"budget": 4},
    "snapkv": {"budget": 4, "recent": 2},
}
FORGETTING = ("random", "h2o", "snapkv")
each_kind = pytest.mark.parametrize("kind", TIGHT)


class Alone:
    """Rows as caches of their own, of one row each."""

    def __init__(self, made, kind, count):
        self.rows = [cache.build(made, 1, 24, kind=kind, **TIGHT[kind]) for _ in range(count)]

    def copied(self, row):
        return self.rows[row].select(torch.tensor([0]))


@st.composite
def moves(draw):
    """What is done to three rows: reads of some of them, and everything else of the protocol."""
    rows = st.integers(0, 2)
    some = st.lists(rows, min_size=1, max_size=3, unique=True)
    move = st.one_of(
        st.tuples(st.just("read"), some, st.integers(1, 4)),
        st.tuples(st.just("read"), some, st.integers(1, 4)),
        st.tuples(st.just("truncate"), rows, st.integers(0, 3)),
        st.tuples(st.just("clear"), rows, st.none()),
        st.tuples(st.just("fork"), st.permutations([0, 1, 2]), st.none()),
        st.tuples(st.just("select"), st.lists(rows, min_size=3, max_size=3), st.none()),
    )
    return draw(st.lists(move, min_size=3, max_size=10))


@each_kind
@settings(max_examples=3, deadline=None)
@given(moves=moves(), seed=st.integers(0, 2**31))
def test_a_row_in_company_is_as_it_is_alone(kind, moves, seed):
    company(kind, moves, seed)


@pytest.mark.slow
@each_kind
@settings(max_examples=40, deadline=None)
@given(moves=moves(), seed=st.integers(0, 2**31))
def test_a_row_in_company_is_as_it_is_alone_whatever_is_done(kind, moves, seed):
    company(kind, moves, seed)


def company(kind, moves, seed):
    """Read, fork, select and so on, beside a cache of its own for each row."""
    made = build(MIXED, seed % 5)
    held, alone = cache.build(made, 3, 24, kind=kind, **TIGHT[kind]), Alone(made, kind, 3)
    for number, (move, what, count) in enumerate(moves):
        if move == "read":
            rows = [row for row in what if held.ends[row] + count <= 24]
            ids = tokens(MIXED, len(rows), count, seed + number)
            if rows:
                logits = made(ids, cache=held if rows == [0, 1, 2] else held.rows(rows))
            for place, row in enumerate(rows):
                wanted = made(ids[place : place + 1], cache=alone.rows[row])
                assert_close(logits[place], wanted[0], **CLOSE)
        elif move == "truncate":
            end = max(0, held.ends[what] - count)
            held.truncate(torch.tensor([end if r == what else e for r, e in enumerate(held.ends)]))
            alone.rows[what].truncate(torch.tensor([end]))
        elif move == "clear":
            held.clear([what])
            alone.rows[what].clear()
        elif move == "fork":
            source, *to = what
            held.clear(to)
            held.fork(source, to)
            alone.rows = [alone.copied(source if row in to else row) for row in range(3)]
        else:
            held = held.select(torch.tensor(what))
            alone.rows = [alone.copied(row) for row in what]
        assert held.ends == held.lengths.tolist() == [row.ends[0] for row in alone.rows]


@each_kind
@settings(max_examples=4, deadline=None)
@given(config=configs(context_length=9), seed=st.integers(0, 2**31), data=st.data())
def test_what_was_not_cut_is_seen_in_full(kind, config, seed, data):
    """Nothing is packed in a long tail, and nothing evicted from a large budget."""
    roomy = {"int4": {"tail": 9}, "int8": {}}.get(kind, {"budget": 9})
    if kind == "int4" and any(state.size % 2 for state in build(config).decode_states()):
        return
    made = build(config, seed)
    ids = tokens(config, 2, 9, seed)
    held = cache.build(made, 2, 9, kind=kind, **roomy)
    first = data.draw(st.integers(1, 8))
    parts = [made(ids[:, :first], cache=held), made(ids[:, first:], cache=held)]
    # Keys of 8 bits move a logit a little; by how much is the benchmark's business.
    close = {"rtol": 0, "atol": 0.5} if kind == "int8" else CLOSE
    assert_close(torch.cat(parts, 1), made(ids), **close)


@each_kind
def test_drafts_that_are_taken_back_leave_no_trace(kind):
    made = build(MIXED)
    prompt, drafts, rest = (tokens(MIXED, 2, count, count) for count in (11, 3, 5))
    held, other = (cache.build(made, 2, 24, kind=kind, **TIGHT[kind]) for _ in range(2))
    for each in (held, other):
        made(prompt, cache=each)
        made(prompt[:, :1], cache=each)
    for _ in range(2):
        made(drafts, cache=held)
        held.truncate(torch.tensor([12, 12]))
    for ids in rest.split(1, 1):
        assert_close(made(ids, cache=held), made(ids, cache=other), **CLOSE)


@each_kind
def test_a_cache_takes_over_what_another_gives(kind):
    made = build(MIXED)
    first, rest = tokens(MIXED, 2, 13, 1), tokens(MIXED, 2, 2, 2)
    held, other = (cache.build(made, 2, 24, kind=kind, **TIGHT[kind]) for _ in range(2))
    made(first, cache=held)
    held.truncate(torch.tensor([13, 9]))
    other.restore({name: x.clone() for name, x in held.tensors().items()}, held.ends)
    assert torch.equal(made(rest, cache=other), made(rest, cache=held))


def test_int4_takes_back_more_than_its_tail_as_its_bits_say():
    made = build(MIXED)
    held = cache.build(made, 2, 24, kind="int4", **TIGHT["int4"])
    made(tokens(MIXED, 2, 15), cache=held)
    before = held._floats(0, held._spans(0), 15)
    held.truncate(torch.tensor([7, 14]))
    after = held._floats(0, held._spans(0), 14)
    for row, end in ((0, 7), (1, 14)):
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old[row, :, :end], new[row, :, :end])
    # Of the eight tokens that were packed seven are left, and six of them in groups.
    assert [layer.ends for layer in held.layers] == [[6, 8], [6, 8]]


def test_the_bytes_are_those_of_the_buffers():
    made = build(ModelConfig(vocab_size=5, d_model=16, n_layers=1, n_heads=2, context_length=64))
    floats = cache.build(made, 3, 64).stats()
    assert floats.bytes == 3 * 64 * 2 * 16 * 8
    assert cache.build(made, 3, 64, kind="int8").stats().bytes == 3 * 64 * 2 * 2 * (8 + 4)
    few = cache.build(made, 3, 64, kind="int4", group=16, tail=16).stats().bytes
    packed, tails = 3 * 48 * 2 * 16 // 2, 3 * 47 * 2 * 16 * 8
    assert few == packed + tails + 3 * (3 * 16 + 48 * 2) * 4
    ids = tokens(ModelConfig(vocab_size=5), 3, 40)
    held = cache.build(made, 3, 64, kind="snapkv", budget=8, recent=2)
    for part in (ids, ids[:, :1]):
        made(part, cache=held)
    found = held.stats()
    # Keys and values, a place and a score per key head; queries of 3 tokens with their places.
    assert (found.tokens, found.places) == (3 * 41, 3 * 9)
    assert found.bytes == 3 * (9 * 2 * (2 * 8 * 8 + 4 + 8) + 3 * (2 * 8 * 8 + 4))


@pytest.mark.parametrize("kind", FORGETTING)
def test_no_more_is_held_than_the_budget_and_the_newest_pass(kind):
    made = build(MIXED)
    held = cache.build(made, 2, 24, kind=kind, **TIGHT[kind])
    for count, places in ((9, 9), (1, 5), (3, 7), (1, 5)):
        made(tokens(MIXED, 2, count, count), cache=held)
        assert [layer.place.size(2) for layer in held.layers] == [places] * 2
    assert held.ends == [14, 14]


def test_int8_reads_what_the_kernel_reads(monkeypatch):
    """On a GPU a few queries go to the decode kernel; its torch form takes the same arguments."""
    made = build(MIXED, dtype=torch.float32)
    logits = []
    for by_kernel in (False, True):
        monkeypatch.setattr(quantised, "_by_kernel", lambda *_, by_kernel=by_kernel: by_kernel)
        held = cache.build(made, 2, 24, kind="int8")
        made(tokens(MIXED, 2, 7, 1), cache=held)
        held.truncate(torch.tensor([7, 4]))
        logits.append([made(tokens(MIXED, 2, 3, part), cache=held) for part in (2, 3)])
    assert_close(logits[0], logits[1])


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("int4", {"group": 3}, "group=3"),
        ("int4", {"tail": -1}, "tail=-1"),
        ("int4", {"bits": 3}, "bits=3"),
        ("int4", {"fixed": True}, "fixed=True: cache=int4 takes bits, group, tail"),
        ("snapkv", {}, "cache=snapkv needs a budget="),
        ("snapkv", {"budget": 4, "recent": 5}, "recent=5"),
        ("snapkv", {"budget": 4, "pool": 2}, "pool=2: must be odd"),
        ("h2o", {"budget": 0}, "budget=0"),
    ],
)
def test_what_a_kind_cannot_do_is_named_in_one_line(kind, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        cache.build(build(MIXED), 1, 8, kind=kind, **options)
    assert "\n" not in str(caught.value)


def test_an_odd_head_has_no_halves():
    made = build(ModelConfig(vocab_size=5, d_model=6, n_heads=2, architecture="gpt2"))
    with pytest.raises(ValueError, match="cache=int4: the head size 3 is odd: take int8"):
        cache.build(made, 1, 8, kind="int4")
