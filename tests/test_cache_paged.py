"""A cache in blocks: the bits of one buffer, whatever the rows share, and a budget that holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.support.models import CLOSE, build, configs, tokens
from tinylm import cache
from tinylm.config import ModelConfig
from tinylm.model import inference

SMALL = ModelConfig(vocab_size=11, d_model=12, n_layers=2, n_heads=2, context_length=24)
ROWS, LENGTH, PAGE = 3, 12, 2


def read(model, held, ids):
    """ids [R, T] into all rows of a cache, to the logits."""
    with inference(model):
        return model(ids, cache=held)


# Keys of 64 bytes: where they are not aligned alike, products are rounded in another way.
LAW = given(
    config=configs(context_length=LENGTH, head_size=16), seed=st.integers(0, 2**31), data=st.data()
)


@settings(max_examples=10, deadline=None)
@LAW
def test_blocks_give_the_bits_of_one_buffer_whatever_is_done_with_the_rows(config, seed, data):
    model = build(config, seed, torch.float32)
    pair = [
        cache.build(model, ROWS, LENGTH, kind, **options)
        for kind, options in (("contiguous", {}), ("paged", {"page": PAGE}))
    ]
    for step in range(8):
        ends = pair[0].ends
        action = data.draw(st.sampled_from(["read", "read", "truncate", "clear", "fork", "select"]))
        row = data.draw(st.integers(0, ROWS - 1))
        if action == "read":
            some = data.draw(st.lists(st.integers(0, ROWS - 1), min_size=1, unique=True))
            most = LENGTH - max(ends[row] for row in some)
            count = data.draw(st.integers(0, most))
            if count:
                ids = tokens(config, len(some), count, seed + step)
                one, other = (read(model, held.rows(some), ids) for held in pair)
                assert torch.equal(one, other)
        elif action == "truncate":
            back = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=3, max_size=3)))
            for held in pair:
                held.truncate((held.lengths - back).clamp(min=0))
        elif action == "clear":
            for held in pair:
                held.clear([row])
        elif action == "fork":
            for held in pair:
                others = [other for other in range(ROWS) if other != row]
                held.clear(others)
                held.fork(row, others)
        else:
            chosen = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=3, max_size=3)))
            held = None
            pair = [held.select(chosen) for held in pair]
        check(*pair)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=200, deadline=None)
@LAW
def test_200_histories_of_rows_give_the_bits_of_one_buffer(**drawn):
    test = test_blocks_give_the_bits_of_one_buffer_whatever_is_done_with_the_rows
    test.hypothesis.inner_test(**drawn)


def check(plain, paged):
    """Both have the same lengths, and no block is used but by the rows of `paged`."""
    assert plain.ends == paged.ends == plain.lengths.tolist() == paged.lengths.tolist()
    blocks = paged.pool.blocks
    used = {block for table in paged.tables for block in table}
    assert blocks.total - blocks.free == len(used)
    for block in used:
        assert blocks.users[block] == sum(block in table for table in paged.tables)


@settings(max_examples=8, deadline=None)
@given(
    config=configs(context_length=20, head_size=16),
    seed=st.integers(0, 2**31),
    shared=st.integers(1, 12),
    parts=st.sampled_from([[4, 4, 4], [12], [5, 7]]),
)
def test_a_prefix_that_is_found_is_the_prefix_read_to_the_bit(config, seed, shared, parts):
    model = build(config, seed, torch.float32)
    first, second = tokens(config, 1, 12, seed), tokens(config, 1, 18, seed + 1)
    second[:, :shared] = first[:, :shared]
    held = cache.build(model, 2, 20, "paged", page=4)
    for part in first.split(parts, 1):
        read(model, held.rows([0]), part)
    held.note(0, first[0].tolist())
    found = held.match(1, second[0].tolist())
    # A model of one or two tokens may repeat itself by chance.
    assert found >= shared // 4 * 4
    rest = read(model, held.rows([1]), second[:, found:])
    plain = cache.build(model, 1, 20)
    if found:
        # The same parts: another number of tokens at once is rounded in another way.
        for part in first.split(parts, 1):
            read(model, plain, part)
        plain.truncate(torch.tensor([found]))
    assert torch.equal(read(model, plain, second[:, found:]), rest)
    assert_close(rest, model(second)[:, found:], rtol=0, atol=1e-3)
    assert held.stats().hit_rate == found / 18


def test_a_prefix_outlives_its_row_until_its_blocks_are_needed():
    model = build(SMALL)
    held = cache.build(model, 2, 16, "paged", page=4, tokens=16)
    ids = tokens(SMALL, 1, 13)[0].tolist()
    read(model, held.rows([0]), torch.tensor([ids]))
    held.note(0, ids)
    held.clear([0])
    assert held.free == held.total == 4
    assert held.match(1, ids) == 12
    assert (held.free, held.needed(1, 1), held.needed_for(13)) == (1, 1, 4)
    held.clear([1])
    # One block of the end, let go first, becomes a new row's; the others are found still.
    held.rows([0]).reserve(8)
    assert held.match(1, ids) == 8


def test_a_whole_prompt_is_never_found_for_its_last_token_must_be_read():
    model = build(SMALL)
    held = cache.build(model, 2, 16, "paged", page=4)
    ids = tokens(SMALL, 1, 8)
    read(model, held.rows([0]), ids)
    held.note(0, ids[0].tolist())
    assert held.match(1, ids[0].tolist()) == 4


def test_what_does_not_fit_the_budget_is_refused_and_nothing_changes():
    model = build(SMALL)
    held = cache.build(model, 2, 20, "paged", page=4, tokens=19)
    assert held.total == 4
    read(model, held, tokens(SMALL, 2, 6))
    before = held.stats(), held.ends, held.free
    words = "2 more blocks of 4 tokens are needed, and 0 of 4 are free: clear rows"
    with pytest.raises(cache.Full, match=words):
        model(tokens(SMALL, 2, 4), cache=held)
    assert (held.stats(), held.ends, held.free) == before
    # Room for both in the blocks that they have.
    read(model, held, tokens(SMALL, 2, 2))
    held.clear([1])
    read(model, held.rows([0]), tokens(SMALL, 1, 4))
    assert held.ends == [12, 0]


def test_the_last_of_two_forks_keeps_the_block_that_both_had():
    model = build(SMALL)
    held = cache.build(model, 2, 8, "paged", page=4, tokens=8)
    read(model, held.rows([0]), tokens(SMALL, 1, 2))
    held.fork(0, [1])
    assert held.free == 1 == held.needed(0, 1)
    ids = tokens(SMALL, 2, 1, 5)
    logits = read(model, held, ids)
    assert (held.free, held.ends) == (0, [3, 3])
    for row in range(2):
        alone = torch.cat((tokens(SMALL, 1, 2)[0], ids[row]))[None]
        assert_close(logits[row], model(alone)[0, 2:], **CLOSE)


def test_selected_rows_share_blocks_and_a_cache_that_is_gone_gives_its_own_back():
    model = build(SMALL)
    held = cache.build(model, 2, 16, "paged", page=4)
    ids = tokens(SMALL, 2, 10)
    read(model, held, ids)
    taken = held.select(torch.tensor([1, 1, 0]))
    blocks = held.pool.blocks
    assert blocks.total - blocks.free == 6
    assert taken.stats().places == 24
    rest = tokens(SMALL, 3, 3, 1)
    # Copies of what is shared: more than there was room for at first.
    logits = read(model, taken, rest)
    assert_close(logits, model(torch.cat((ids[[1, 1, 0]], rest), 1))[:, 10:], **CLOSE)
    assert_close(read(model, held, ids[:, :3]), model(torch.cat((ids, ids[:, :3]), 1))[:, 10:])
    del taken
    assert blocks.total - blocks.free == 8
    held.clear()
    assert blocks.free == blocks.total


def test_stats_count_a_shared_place_once():
    model = build(SMALL)
    held = cache.build(model, 2, 16, "paged", page=4)
    read(model, held.rows([0]), tokens(SMALL, 1, 6))
    held.fork(0, [1])
    stats = held.stats()
    # Two layers of keys and values of 12 numbers of 8 bytes.
    assert (stats.tokens, stats.places, stats.bytes) == (12, 8, 8 * 2 * 2 * 12 * 8)
    assert stats.waste == 2 / 8
    assert stats.bytes_per_token == stats.bytes / 12
    full = cache.build(model, 2, 16).stats()
    assert (full.waste, full.hit_rate, full.bytes) == (1.0, 0.0, 2 * 16 * 2 * 2 * 12 * 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"page": 12}, "page=12: must be a power of two"),
        ({"page": 16, "tokens": 15}, "tokens=15: must be at least page, 16"),
        ({"fixed": True}, "fixed=True: cache=paged takes page, tokens"),
    ],
)
def test_options_that_cannot_be_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        cache.build(build(SMALL), 1, 8, "paged", **options)


def test_misuse_of_rows_is_named():
    held = cache.build(build(SMALL), 2, 8, "paged", page=4)
    read(build(SMALL), held.rows([0]), tokens(SMALL, 1, 2))
    with pytest.raises(ValueError, match="row 0 has 2 tokens: clear it first"):
        held.match(0, [1, 2, 3])
    with pytest.raises(ValueError, match="row 0 has 2 tokens: clear it first"):
        held.fork(1, [0])
    with pytest.raises(ValueError, match="3 ids for row 0 of 2 tokens"):
        held.note(0, [1, 2, 3])
    with pytest.raises(ValueError, match=r"rows\(\[0, 0\]\): must be different rows, 0 to 1"):
        held.rows([0, 0])
