"""Tokens in memory: an array of NumPy as the source of a loader."""

import json
import pickle

import numpy as np
import pytest

from tests.support.bytes_tokenizer import flat, take
from tinylm.data import ArrayDataset, Loader

EOS = 99


@pytest.fixture(scope="module")
def ids():
    """5,000 tokens in documents of about 50, the last of them without eos."""
    return np.random.default_rng(0).integers(0, EOS + 1, 5_000).astype(np.uint16)


def test_a_file_of_another_program_is_read_where_it_lies(ids, tmp_path):
    ids.tofile(tmp_path / "train.bin")
    mapped = np.memmap(tmp_path / "train.bin", np.uint16, "r")
    arguments = {"batch_size": 4, "context_length": 32}
    assert flat(take(Loader(mapped, **arguments), 5)) == flat(take(Loader(ids, **arguments), 5))
    assert np.shares_memory(ArrayDataset(mapped).array, mapped)


def test_whole_documents_are_packed_and_every_target_comes_once(ids):
    source = ArrayDataset(ids, eos_id=EOS)
    assert source.lengths().sum() == ids.size
    assert all(ids[np.cumsum(source.lengths())[:-1] - 1] == EOS)
    loader = Loader(source, batch_size=4, context_length=256, pack=True)
    targets = np.concatenate([batch.targets.flatten().numpy() for batch in loader.epoch()])
    # Every token but the first.
    assert (targets != -100).sum() == ids.size - 1
    masked = Loader(source, batch_size=64, context_length=64, mask_after_eos=True)
    assert (next(masked).targets == -100).any()


def test_a_state_belongs_to_the_array_and_survives_pickling(ids):
    arguments = {"batch_size": 4, "context_length": 32}
    loader = Loader(ids, **arguments)
    first = take(loader, 3)
    again = pickle.loads(pickle.dumps(ArrayDataset(ids)))
    other = Loader(again, **arguments)
    other.restore(loader.state())
    assert flat(take(other, 2)) == flat(take(loader, 2)) != flat(first[:2])
    changed = ids.copy()
    changed[-1] ^= 1
    with pytest.raises(ValueError, match="fingerprint"):
        Loader(changed, **arguments).restore(loader.state())


@pytest.mark.parametrize(
    ("tokens", "settings", "says"),
    [
        (np.zeros((2, 2), np.uint16), {}, r"an array \[n\] of integers, not uint16\[2, 2\]"),
        (np.zeros(9), {}, r"an array \[n\] of integers, not float64\[9\]"),
        (np.array([-1, 5]), {}, "ids -1 to 5 must be between 0 and 4294967295"),
        (np.zeros(9, np.uint16), {"eos_id": 65_536}, "eos_id=65536 must be between 0 and 65535"),
        (np.zeros(9, np.uint16), {"vocab_size": 0}, "vocab_size=0 must be between 1 and 65536"),
    ],
)
def test_what_is_no_array_of_tokens_is_refused(tokens, settings, says):
    with pytest.raises(ValueError, match=says):
        ArrayDataset(tokens, **settings)


def test_documents_need_a_mark(ids):
    for setting in ("pack", "mask_eos", "documents"):
        with pytest.raises(ValueError, match="eos_id of an ArrayDataset"):
            Loader(ids, batch_size=1, context_length=8, **{setting: True})
    with pytest.raises(ValueError, match="one has 65,536: use int32"):
        Loader(ids, batch_size=1, context_length=8, dtype="uint16")
    narrow = Loader(ArrayDataset(ids, vocab_size=100), batch_size=1, context_length=8)
    assert next(narrow).tokens.shape == (1, 8)


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 2.5), ("seed", -1), ("threads", "2"), ("rank", True), ("prefetch", None)],
)
def test_a_number_that_is_none_is_named(name, value):
    arguments = {"batch_size": 2, "context_length": 10, name: value}
    with pytest.raises(ValueError, match=f"{name}={value!r} must be a whole number between 0 and"):
        Loader(np.arange(99), **arguments)


def test_a_batch_that_no_memory_holds_and_a_state_that_is_none_are_errors():
    array = np.arange(9_999)
    # Numbers of NumPy are numbers, also in a state.
    loader = Loader(array, batch_size=np.int64(2), context_length=10, seed=np.uint8(3))
    assert json.loads(json.dumps(loader.state())) == loader.state()
    for state in (None, [], {**loader.state(), "rows": True}, {**loader.state(), "rows": 1.5}):
        with pytest.raises(ValueError, match=r"not a loader's state|must be a whole number"):
            loader.restore(state)
    with pytest.raises(ValueError, match=r"batch_size=2147483648 .* make it smaller"):
        Loader(array, batch_size=2**31, context_length=5_000)
    with pytest.raises(ValueError, match=r"batch_size=2147483648 .* make it smaller"):
        loader.batch_size = 2**31
