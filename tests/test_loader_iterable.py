"""The adapter for torch's DataLoader: the same batches for any number of workers, and resumed."""

import copy

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.support.bytes_tokenizer import counting, flat, take
from tinylm.data import ArrayDataset, Loader
from tinylm.data.iterable import IterableBatches

ARGUMENTS = {"batch_size": 4, "context_length": 32, "seed": 3}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return counting(tmp_path_factory.mktemp("shards"), 9_999)


def drawn(data, workers, n):
    """`n` batches by torch's DataLoader."""
    batches = iter(DataLoader(data, batch_size=None, num_workers=workers))
    return [next(batches) for _ in range(n)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing_and_a_run_goes_on_with_other_ones(dataset, workers):
    straight = flat(take(Loader(dataset, **ARGUMENTS), 11))
    data = IterableBatches(dataset, **ARGUMENTS)
    assert flat(drawn(data, workers, 7)) == straight[:7]
    other = IterableBatches(dataset, **ARGUMENTS)
    other.restore(data.state(7))
    assert flat(drawn(other, 2, 4)) == straight[7:]
    loader = Loader(dataset, **ARGUMENTS)
    loader.restore(other.state(2))
    assert flat(take(loader, 2)) == straight[9:]


def test_each_worker_has_a_state_of_its_own(dataset):
    straight = flat(take(Loader(dataset, **ARGUMENTS), 8))
    first = IterableBatches(dataset, **ARGUMENTS)
    untouched = copy.deepcopy(first.state_dict())
    batches = iter(first)
    taken = [next(batches) for _ in range(3)]
    again = IterableBatches(dataset, **ARGUMENTS)
    again.load_state_dict(first.state_dict())
    assert flat([*taken, *take_of(again, 2)]) == straight[:5]
    again.load_state_dict(untouched)
    assert flat(take_of(again, 3)) == straight[:3]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_every_iter_begins_at_the_same_place(dataset, workers, persistent):
    straight = flat(take(Loader(dataset, **ARGUMENTS), 7))
    data = IterableBatches(dataset, **ARGUMENTS)
    data.restore(data.state(2))
    settings = {"batch_size": None, "num_workers": workers, "persistent_workers": persistent}
    loader = DataLoader(data, **settings)
    assert flat(take_of(loader, 5)) == flat(take_of(loader, 5)) == straight[2:]
    # To go on, the state is restored.
    data.restore(data.state(3))
    assert flat(take_of(DataLoader(data, **settings), 2)) == straight[5:]


def take_of(data, n):
    batches = iter(data)
    return [next(batches) for _ in range(n)]


def test_a_loader_that_is_shared_gives_its_batches_and_whole_epochs(dataset):
    straight = flat(take(Loader(dataset, **ARGUMENTS), 6))
    loaders = [Loader(dataset, **ARGUMENTS) for _ in range(3)]
    for worker, loader in enumerate(loaders):
        loader.share(worker, 3)
    assert flat(next(loader) for _ in range(2) for loader in loaders) == straight
    assert flat(loaders[1].epoch()) == flat(Loader(dataset, **ARGUMENTS).epoch())
    with pytest.raises(ValueError, match="worker=3 must be between 0 and workers - 1 = 2"):
        loaders[0].share(3, 3)
    with pytest.raises(ValueError, match="every=1025 must be between 1 and 1024"):
        loaders[0].share(0, 1025)


def test_arrays_and_mistakes(dataset):
    ids = np.arange(5_000, dtype=np.uint16)
    data = IterableBatches(ArrayDataset(ids), **ARGUMENTS)
    assert flat(drawn(data, 2, 4)) == flat(take(Loader(ids, **ARGUMENTS), 4))
    with pytest.raises(ValueError, match="device=meta must be cpu"):
        IterableBatches(dataset, **ARGUMENTS, device="meta")
    for wrong in (-3, 1.5):
        with pytest.raises(ValueError, match=f"batches={wrong} must be a whole number"):
            data.state(wrong)
    with pytest.raises(ValueError, match="context_length=0"):
        IterableBatches(dataset, batch_size=1, context_length=0)
    with pytest.raises(ValueError, match="fingerprint"):
        data.restore(IterableBatches(dataset, **ARGUMENTS).state(0))
