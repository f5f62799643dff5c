"""Rows of several sources: exact shares, stages, sources that repeat, small exact states."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.rungs.mixture import shares
from tests.support.bytes_tokenizer import VOCAB, Bytes, counting, flat, take
from tinylm.config.courses import course
from tinylm.data import ArrayDataset, Dataset, Loader, ShardWriter, mixture
from tinylm.reference import mixture as reference

SOURCES = st.integers(1, 8)
BLOCK = reference.BLOCK_ROWS


def written(folder, number, n_documents):
    """A dataset whose tokens are all in the thousand `number`."""
    rng = np.random.default_rng(number)
    with ShardWriter(folder, tokenizer=Bytes(VOCAB), shard_tokens=3_000) as writer:
        for size in rng.integers(1, 60, n_documents):
            writer.add(rng.integers(1000 * number, 1000 * (number + 1), size), n_bytes=1)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Three sources, the last of which has a few rows only."""
    sizes = enumerate((300, 120, 10))
    return [written(tmp_path_factory.mktemp("shards"), *each) for each in sizes]


def source_of(row):
    return int(max(token for token in row.tolist() if token < VOCAB - 1)) // 1000


@given(
    st.lists(st.integers(0, 50) | st.sampled_from([0, 5000]), min_size=1, max_size=8).filter(any),
    st.integers(0, 5000),
)
def test_every_block_ends_within_one_row_of_every_share_and_adds_up(weights, block):
    stage = 0, shares(weights)
    rows = reference.block_rows(stage[1])
    one, two = (reference.counts([stage], 3, b * rows) for b in (block, block + 1))
    assert sum(two) - sum(one) == rows
    assert all(b >= a for a, b in zip(one, two, strict=True))
    for share, count in zip(stage[1], two, strict=True):
        assert abs(count - share * rows * (block + 1) / reference.WHOLE) < 1
    mixed = Counter(reference.sources(stage, 3, block))
    assert [mixed[s] for s in range(len(weights))] == [b - a for a, b in zip(one, two, strict=True)]


def test_stages_are_exact_after_each_block_and_a_weight_of_0_gives_nothing(datasets):
    weights = {0: [1, 1, 0], 16 * BLOCK: [0, 3, 1]}
    loader = Loader(datasets, weights=weights, batch_size=8 * BLOCK, context_length=32, seed=4)
    found = [Counter(map(source_of, batch.tokens)) for batch in take(loader, 4)]
    half, quarter = 4 * BLOCK, 2 * BLOCK
    assert found[:2] == [{0: half, 1: half}] * 2
    assert found[2:] == [{1: 3 * quarter, 2: quarter}] * 2
    given = loader.stats()["sources"]
    assert [source["rows"] for source in given] == [2 * half, 2 * half + 6 * quarter, 2 * quarter]
    # The last source has a few rows, which came many times.
    alone = Loader(datasets[2], batch_size=1, context_length=32).n_rows
    assert given[2]["epochs"] == 2 * quarter / alone > 5
    assert given[0]["tokens"] == 2 * half * 32
    assert loader.stats()["epoch"] == int(min(source["epochs"] for source in given))


@pytest.mark.parametrize("begins", [1, 8, 100, 257])
def test_a_stage_begins_exactly_at_its_row(datasets, begins):
    weights = {0: [1, 0, 0], begins: [0, 1, 0], begins + 3: [0, 0, 1]}
    loader = Loader(datasets, weights=weights, batch_size=begins + 9, context_length=8)
    (batch,) = take(loader, 1)
    assert [*map(source_of, batch.tokens)] == [0] * begins + [1] * 3 + [2] * 6
    assert [source["rows"] for source in loader.stats()["sources"]] == [begins, 3, 6]


def test_a_tiny_share_does_not_move_the_other_stages(datasets):
    weights = {0: [1, 0.0001], 4000: [0.0001, 1]}
    loader = Loader(datasets[:2], weights=weights, batch_size=1, context_length=8)
    first, last = (loader.given(rows)[0]["rows"] for rows in (4000, 8000))
    assert first >= 3998
    assert last - first <= 2


def test_few_rows_have_their_shares(datasets):
    loader = Loader(datasets[:2], weights=[7, 3], batch_size=1, context_length=8)
    assert 55 <= loader.given(80)[0]["rows"] <= 57


@given(st.integers(1, 60), st.integers(1, 12))
def test_a_stage_that_is_cut_has_its_shares_on_average(n, weight):
    stage = 7, shares([weight, 5])
    seeds = range(200)
    mean = sum(reference.given(stage, seed, n)[0] for seed in seeds) / len(seeds)
    # A whole block is off by less than a row; five deviations of the mean of a cut one are 0.5.
    assert mean == pytest.approx(n * weight / (weight + 5), abs=1.5)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [(("1@0 0@1", "0@0 1@1"), 40), (("0.9@0 0.1@0.5", "0.1@0 0.9@0.5"), 24)],
)
def test_a_short_run_follows_its_courses(datasets, lines, expected):
    weights = mixture.staged([*map(course, lines)], lambda progress: 4 * round(20 * progress))
    loader = Loader(datasets[:2], weights=weights, batch_size=4, context_length=8)
    assert abs(loader.given(80)[0]["rows"] - expected) <= 3


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("order", ["shuffle", "sequential"])
def test_a_source_gives_the_rows_that_it_has_alone_in_their_order(datasets, pack, order):
    common = {"batch_size": 64, "context_length": 24, "order": order, "pack": pack}
    mixed = take(Loader(datasets, weights=[2, 1, 1], **common, seed=9, threads=2), 12)
    for number, dataset in enumerate(datasets):
        seed = reference.seed_of(9, number)
        rows = [row for b in take(Loader(dataset, **common, seed=seed), 12) for row in b.tokens]
        found = [row for b in mixed for row in b.tokens if source_of(row) == number]
        assert len(found) >= 12 * 64 // 4 - 1
        assert all(map(torch.equal, found, rows))


def test_a_mixture_of_one_source_is_that_source(datasets):
    arguments = {"batch_size": 10, "context_length": 30, "seed": 3}
    alone = flat(take(Loader(datasets[0], **arguments), 90))
    assert flat(take(Loader(datasets[:1], weights=[5], **arguments), 90)) == alone


def test_the_order_of_this_version_never_changes(datasets):
    loader = Loader(datasets, weights=[0.7, 0.2, 0.1], batch_size=1, context_length=8, seed=42)
    assert [source_of(loader.row(0, i)[0]) for i in range(300, 324)] == GOLDEN


GOLDEN = [0, 1, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 2, 0, 1, 0, 0]


def test_a_state_is_small_with_fifty_sources_and_refuses_other_ones(datasets, tmp_path):
    many = [datasets[0]] * 50
    arguments = {"batch_size": 4, "context_length": 32, "seed": 2**64 - 1, "mask_eos": True}
    weights = {1000 * stage: [1 + (stage + s) % 7 for s in range(50)] for stage in range(64)}
    for pack in (False, True):
        loader = Loader(many, weights=weights, **arguments, pack=pack)
        state = {**loader.state(), "rows": 2**62 - 1}
        assert len(json.dumps(state)) <= 256
    state = Loader(datasets, weights=[1, 1, 1], **arguments).state()
    other = written(tmp_path, 1, 20)
    for sources, weights, key in (
        (datasets, [1, 1, 2], "mixture"),
        (datasets[::-1], [1, 1, 1], "fingerprint"),
        ([*datasets[:2], other], [1, 1, 1], "fingerprint"),
    ):
        with pytest.raises(ValueError, match=f"the state has {key}="):
            Loader(sources, weights=weights, **arguments).restore(state)
    # Weights count by their ratio.
    Loader(datasets, weights=[2, 2, 2], **arguments).restore(state)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (None, "weights=None: a mixture takes a weight for each source"),
        ([1, 1], "2 weights for 3 sources: give one for each"),
        ([1, -1, 1], "weights: -1 must be a number, at least 0 and finite"),
        ([1, float("nan"), 1], "weights: nan must be a number, at least 0 and finite"),
        ([0, 0, 0], "weights are all 0: one must be above 0"),
        ([1, 1, 1e-6], "weights: 1e-06 is 5e-07 of all: must be 0 or at least 1/65536"),
        (["1", 1, 1], "weights: '1' must be a number, at least 0 and finite"),
        (3, "weights: 3 must be a list with a number for each source"),
        ({0: [1, 1, 1], 1.5: [1, 1, 1]}, "weights: a row=1.5 must be a whole number"),
        ({0: [1, 1, 1], 2**70: [1, 1, 1]}, f"weights: a row={2**70} must be a whole number"),
        ({5: [1, 1, 1]}, "weights begin at rows .5.: the first must be 0"),
    ],
)
def test_wrong_weights_are_named(datasets, weights, problem):
    with pytest.raises(ValueError, match=problem):
        Loader(datasets, weights=weights, batch_size=4, context_length=32)


def imported(folder, vocab):
    """Tokens that came without their tokenizer."""
    tokenizer = Bytes(vocab)
    tokenizer.eos_id, tokenizer.sha256 = 9, "0" * 64
    with ShardWriter(folder, tokenizer=tokenizer) as writer:
        writer.add(np.arange(100), n_bytes=1)
    return Dataset.open(folder)


def test_sources_that_do_not_go_together_are_named(datasets, tmp_path):
    arguments = {"batch_size": 4, "context_length": 32}
    with ShardWriter(tmp_path / "other", tokenizer=Bytes(300)) as writer:
        writer.add(np.arange(100), n_bytes=1)
    other = Dataset.open(tmp_path / "other")
    with pytest.raises(ValueError, match=r"was made by tokenizer .* prepare both with the same"):
        Loader([datasets[0], other], weights=[1, 1], **arguments)
    none = [imported(tmp_path / str(vocab), vocab) for vocab in (1_000, 120_000)]
    with pytest.raises(ValueError, match=r"has a vocabulary of 1,000 and .* of 120,000"):
        Loader(none, weights=[1, 1], **arguments)
    ends = [ArrayDataset(np.arange(999), eos_id=eos) for eos in (3, None)]
    with pytest.raises(ValueError, match=r"ends its documents with id 3 and .* with id None"):
        Loader(ends, weights=[1, 1], **arguments)
    arrays = [np.arange(999, dtype=np.uint16), np.arange(70_000, 70_999, dtype=np.uint32)]
    arrays[0] = ArrayDataset(arrays[0], vocab_size=1_000)
    with pytest.raises(ValueError, match=r"dtype=uint16 holds .* name the vocab_size of an array"):
        Loader(arrays, weights=[1, 1], **arguments, dtype="uint16")
    for sources in (torch.arange(999), [torch.arange(999)], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="must be a Dataset"):
            Loader(sources, weights=[1], **arguments)
    with pytest.raises(ValueError, match="a mixture has one source at least"):
        Loader([], weights=[], **arguments)
    with pytest.raises(ValueError, match="weights are for several sources: give a list"):
        Loader(datasets[0], weights=[1], **arguments)
    loader = Loader(datasets, weights=[1, 1, 1], **arguments)
    with pytest.raises(ValueError, match="a mixture has no epochs"):
        next(loader.epoch())
    with pytest.raises(ValueError, match="row 0 of epoch 1"):
        loader.row(1, 0)


def test_a_straight_line_of_weights_becomes_stairs_of_the_same_mean():
    lines = [course("0.7@0 0.2@0.5"), course("0.3@0 0.8@0.5")]
    found = mixture.staged(lines, lambda progress: round(progress * 640_000))
    # The line to the half, and the constant weights after it.
    assert len(found) == mixture.STAIRS + 1
    assert found[320_000] == [pytest.approx(0.2), pytest.approx(0.8)]
    stages = mixture.stages(found, 2)
    first, _ = reference.counts(stages, 3, 640_000)
    assert first / 640_000 == pytest.approx((0.45 + 0.2) / 2, abs=1e-4)
    assert mixture.staged([course(0.7), course("0.3@0 0.3@1")], round) == [0.7, 0.3]


@pytest.mark.slow
def test_many_large_sources_are_read_row_by_row(tmp_path):
    """Otherwise each would keep two windows of blocks in memory, 128 MiB."""
    dataset = counting(tmp_path, 40_000_000)
    loader = Loader([dataset] * 12, weights=[1] * 12, batch_size=64, context_length=1000, seed=1)
    before = Loader(dataset, batch_size=64, context_length=1000, seed=1)
    rows = [row for batch in take(before, 1) for row in batch.tokens]
    found = {tuple(row.tolist()) for batch in take(loader, 12) for row in batch.tokens}
    assert all(tuple(row.tolist()) in found for row in rows[:48])


def test_arrays_in_memory_can_be_mixed(datasets):
    arrays = [np.arange(1000 * n, 1000 * n + 400, dtype=np.uint16) for n in range(2)]
    loader = Loader(arrays, weights=[3, 1], batch_size=BLOCK, context_length=9, seed=1)
    (batch,) = take(loader, 1)
    assert Counter(map(source_of, batch.tokens)) == {0: 3 * BLOCK // 4, 1: BLOCK // 4}
