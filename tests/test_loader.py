"""The loader: the reference's order and rows, the same for any threads, ranks and resumes."""

import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bytes_tokenizer import VOCAB, Bytes, counting, flat, take
from tinylm import _rust
from tinylm.config.limits import THREADS
from tinylm.data import Batch, Dataset, Loader, ShardWriter
from tinylm.data.places import places
from tinylm.reference import order as reference


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """9,999 tokens of documents of very different lengths, in four shards."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    left = 9_999
    with ShardWriter(folder, tokenizer=Bytes(VOCAB), shard_tokens=3_000) as writer:
        while left:
            size = min(left, int(rng.integers(1, 120)))
            writer.add(rng.integers(0, VOCAB - 1, size - 1), n_bytes=size)
            left -= size
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def ids(dataset):
    return dataset.read(0, dataset.n_tokens).tolist()


def test_a_row_of_several_pieces_is_filled_as_the_worked_example_says():
    """Also worked through by the Rust side, in rust/dataloader/tests/naive/plan.rs."""
    ids = [1, 2, 99, 3, 4, 5, 99]
    pieces = [reference.Piece(0, 0, 2, 0), reference.Piece(0, 3, 3, 1)]
    tokens, targets, positions, documents = reference.fill([ids], pieces, 7)
    assert tokens == [1, 2, 3, 4, 5, 0, 0]
    # No target crosses from one document into the next: the last one of each is its eos.
    assert targets == [2, 99, 4, 5, 99, -100, -100]
    assert positions == [0, 1, 0, 1, 2, 0, 0]
    assert documents == [0, 0, 1, 1, 1, -1, -1]
    # A piece may begin with the eos before its document, lie in another source, or end with it.
    other = [reference.Piece(0, 2, 2, 7), reference.Piece(1, 1, 2, 8)]
    tokens, targets, *_ = reference.fill([ids, [6, 7, 8]], other, 4)
    assert (tokens, targets) == ([99, 3, 7, 8], [3, 4, 8, -100])


@given(st.integers(1, 200) | st.integers(1024, 5000), st.integers(0, 2**64 - 1))
@settings(max_examples=25, deadline=None)
def test_the_permutation_is_one(n, seed):
    assert sorted(reference.permute(i, n, seed) for i in range(n)) == list(range(n))


def test_several_windows_of_blocks_are_shuffled_as_the_reference_says(tmp_path):
    dataset = counting(tmp_path, 40_000_000)
    rows = _rust.Rows(
        dataset.tokens, order="shuffle", seed=5, context_length=1000, stride=1000, mask_after=None
    )
    for i in [0, 1, 16_767, 16_768, 20_000, 33_535, 33_536, 39_999]:
        expected = reference.start("shuffle", 5, dataset.n_tokens, 1000, 1000, 3, i)
        assert rows.pieces(3, i)[0][1] == expected
    starts = sorted(rows.pieces(0, i)[0][1] for i in range(rows.n_rows))
    assert starts == [*range(0, 39_999_000, 1000), 39_999_000 - 1]
    with Loader(dataset, batch_size=512, context_length=1000, seed=5, threads=2) as loader:
        for step, batch in enumerate(loader.epoch()):
            first = [
                rows.pieces(0, i)[0][1] for i in range(512 * step, min(512 * step + 512, 40_000))
            ]
            found = batch.tokens[: len(first), 0]
            assert found.tolist() == [start % (VOCAB - 1) for start in first]


def test_the_order_of_this_version_never_changes(dataset):
    rows = [
        _rust.Rows(
            dataset.tokens, order=order, seed=42, context_length=8, stride=8, mask_after=None
        )
        for order in ("shuffle", "random")
    ]
    assert [rows[0].pieces(1, i)[0][1] for i in range(8)] == GOLDEN_SHUFFLE
    assert [rows[1].pieces(1, i)[0][1] for i in range(8)] == GOLDEN_RANDOM


GOLDEN_SHUFFLE = [2384, 1752, 8488, 3320, 3016, 8368, 352, 320]
GOLDEN_RANDOM = [4124, 7148, 2040, 1069, 5863, 7502, 1476, 5218]


def test_16_bits_hold_the_same_tokens_where_the_vocabulary_fits(dataset, tmp_path):
    arguments = {"batch_size": 8, "context_length": 64, "mask_after_eos": True}
    wide = take(Loader(dataset, **arguments), 3)
    narrow = take(Loader(dataset, **arguments, dtype="uint16"), 3)
    assert {batch.tokens.dtype for batch in narrow} == {torch.uint16}
    assert flat(batch.long() for batch in narrow) == flat(wide) == flat(b.long() for b in wide)
    for setting in ("pack", "documents"):
        with pytest.raises(ValueError, match=f"uint16 has no room for what {setting}"):
            Loader(dataset, batch_size=1, context_length=8, dtype="uint16", **{setting: True})
    with ShardWriter(tmp_path, tokenizer=Bytes(2**16 - 99)) as writer:
        writer.add([1, 2, 3], n_bytes=3)
    with pytest.raises(ValueError, match="up to 65,436 ids, and this one has 65,437: use int32"):
        Loader(Dataset.open(tmp_path), batch_size=1, context_length=2, dtype="uint16")


def test_resuming_at_every_step_gives_the_rest_bit_by_bit(dataset):
    arguments = {"batch_size": 16, "context_length": 64, "seed": 3, "prefetch": 4}
    straight = flat(take(Loader(dataset, **arguments), 30))
    for step in range(30):
        first = Loader(dataset, **arguments, threads=2)
        take(first, step)
        state = json.loads(json.dumps(first.state()))
        second = Loader(dataset, **arguments)
        second.restore(state)
        assert flat(take(second, 30 - step)) == straight[step:]


def test_the_state_is_small_and_counts_batches_handed_out(dataset):
    with Loader(dataset, batch_size=4, context_length=32, seed=2**64 - 1, prefetch=8) as loader:
        next(loader)
        time.sleep(0.05)
        state = loader.state()
        assert state["rows"] == 4
        state["rows"] = 2**62 - 1
        assert len(json.dumps(state)) < 256
        assert loader.stats()["tokens"] == 4 * 32


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"context_length": 31}, {"order": "random"}, {"mask_after_eos": True}]
)
def test_a_state_of_another_order_is_refused_unless_forced(dataset, change):
    arguments = {"batch_size": 4, "context_length": 32}
    state = {**Loader(dataset, **arguments).state(), "rows": 8}
    other = Loader(dataset, **{**arguments, **change})
    with pytest.raises(ValueError, match=f"the state has .*{next(iter(change))}|stride"):
        other.restore(state)
    other.restore(state, force=True)
    assert other.state()["rows"] == 8


def test_a_state_of_other_data_is_refused(dataset, tmp_path):
    loader = Loader(counting(tmp_path, 500), batch_size=4, context_length=32)
    with pytest.raises(ValueError, match="fingerprint"):
        loader.restore(Loader(dataset, batch_size=4, context_length=32).state())
    for state in ({}, {"version": 1}, {"version": 1, "rows": -1}, {"version": 1, "rows": "3"}):
        with pytest.raises(ValueError, match="state"):
            loader.restore(state, force=True)


@given(st.integers(2, 2000), st.integers(1, 200), st.integers(1, 9), st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_a_sequential_epoch_scores_every_target_exactly_once(
    tmp_path_factory, n_tokens, context, batch_size, threads
):
    dataset = counting(tmp_path_factory.mktemp("shards"), n_tokens)
    loader = Loader(
        dataset,
        batch_size=batch_size,
        context_length=context,
        order="sequential",
        threads=threads,
    )
    for _ in range(2):
        batches = list(loader.epoch())
        assert {tuple(batch.tokens.shape) for batch in batches} == {(batch_size, context)}
        targets = [t for batch in batches for t in batch.targets.flatten().tolist()]
        assert [t for t in targets if t != -100] == dataset.read(1, n_tokens - 1).tolist()
    assert loader.state()["rows"] == 0


def test_a_shuffled_epoch_shows_every_target_and_the_next_another_order(dataset, ids):
    loader = Loader(dataset, batch_size=10, context_length=70)
    seen = [
        [t.row(epoch, i)[1].tolist() for i in range(t.n_rows)] for t in [loader] for epoch in (0, 1)
    ]
    assert seen[0] != seen[1]
    assert sorted(seen[0]) == sorted(seen[1])
    starts = {reference.start("shuffle", 0, len(ids), 70, 70, 0, i) for i in range(loader.n_rows)}
    assert {start + k for start in starts for k in range(1, 71)} == set(range(1, len(ids)))


def test_overlapping_rows_begin_a_stride_apart(dataset, ids):
    loader = Loader(dataset, batch_size=2, context_length=50, stride=20, order="sequential")
    assert loader.n_rows == reference.n_rows(len(ids), 50, 20)
    assert loader.row(0, 3)[0].tolist() == ids[60:110]


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"context_length": 0},
        {"context_length": 10_000},
        {"stride": 0},
        {"stride": 33},
        {"order": "sorted"},
        {"order": "random", "stride": 3},
        {"seed": -1},
        {"seed": 2**64},
        {"rank": 1},
        {"world_size": 5},
        {"world_size": 0},
        {"batch_size": -1},
        {"threads": 2**70},
        {"threads": 0},
        {"prefetch": 0},
        {"dtype": "int16"},
    ],
)
def test_a_bad_argument_is_named_in_one_line(dataset, change):
    with pytest.raises(ValueError, match=next(iter(change))) as caught:
        Loader(dataset, **{"batch_size": 4, "context_length": 32, **change})
    assert "\n" not in str(caught.value)


def test_the_setting_takes_as_many_threads_as_the_loader(dataset):
    most = THREADS["le"]
    Loader(dataset, batch_size=4, context_length=32, threads=most)
    with pytest.raises(ValueError, match=f"threads={most + 1} must be between 1 and {most}"):
        Loader(dataset, batch_size=4, context_length=32, threads=most + 1)


def test_a_damaged_shard_is_the_same_error_at_every_next(dataset, tmp_path):
    damaged = counting(tmp_path, 2_000_000)
    with (tmp_path / "train-00000.bin").open("r+b") as file:
        file.seek(1024 + (1 << 20) + 9)
        file.write(b"x")
    with Loader(
        damaged, batch_size=64, context_length=1024, order="sequential", threads=2
    ) as loader:
        for _ in range(7):
            next(loader)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"train-00000\.bin: corrupt at byte 1049600"):
                next(loader)
        assert loader.state()["rows"] == 7 * 64


def test_a_batch_has_the_dtype_that_is_asked_for_and_a_row_stands_alone(dataset):
    arguments = {"batch_size": 3, "context_length": 32, "seed": 2}
    for dtype in ("int64", "int32"):
        with Loader(dataset, dtype=dtype, **arguments) as loader:
            batch = next(loader)
            assert str(batch.tokens.dtype) == str(batch.targets.dtype) == f"torch.{dtype}"
            for i in range(3):
                row = [part.tolist() for part in loader.row(0, i)]
                assert row == [batch.tokens[i].tolist(), batch.targets[i].tolist()]


def test_a_micro_batch_is_the_same_rows_of_every_field(dataset):
    with Loader(dataset, batch_size=4, context_length=32) as loader:
        batch = next(loader)
    assert batch.positions is batch.documents is None
    part = batch.rows(slice(1, 3))
    assert part.tokens.equal(batch.tokens[1:3])
    assert part.targets.equal(batch.targets[1:3])
    assert part.positions is part.documents is None
    packed = Batch(*torch.arange(4 * 12).view(4, 4, 3))
    part = packed.rows(slice(2, None))
    assert part.positions.tolist() == [[30, 31, 32], [33, 34, 35]]
    assert part.documents.tolist() == [[42, 43, 44], [45, 46, 47]]


def test_documents_of_a_row_are_numbered_and_their_positions_restart():
    tokens = torch.tensor([[5, 9, 7, 9, 9, 8], [9, 1, 2, 3, 4, 5]])
    positions, documents = places(tokens, 9)
    assert positions.tolist() == [[0, 0, 1, 0, 0, 1], [0, 1, 2, 3, 4, 5]]
    assert documents.tolist() == [[0, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 1]]


def test_a_batch_says_where_its_documents_are(dataset):
    with Loader(dataset, batch_size=2, context_length=64, documents=True) as batches:
        batch = next(batches)
    positions, documents = places(batch.tokens, dataset.eos_id)
    assert torch.equal(batch.positions, positions)
    assert torch.equal(batch.documents, documents)
    assert documents.max() > 0
