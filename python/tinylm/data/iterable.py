"""Batches for torch's DataLoader, with as many workers as one likes.

A `Loader` reads ahead by itself, without processes, and is what a training loop should take. Where
a framework insists on a DataLoader:

    data = IterableBatches(dataset, batch_size=64, context_length=1024)
    for batch in DataLoader(data, batch_size=None, num_workers=2): ...
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from tinylm.data.arrays import ArrayDataset, reopened
from tinylm.data.batch import Batch
from tinylm.data.loader import Loader
from tinylm.data.numbers import whole


class IterableBatches(IterableDataset[Batch]):
    """The endless batches of `Loader(sources, **settings)`, the same for any number of workers.

    Worker w of W makes batches w, w + W and so on, and DataLoader asks one worker after the other.
    It needs `batch_size=None`, as these are batches already. `device` must be the CPU.

    Every `iter` begins at the place of the last `restore` or `load_state_dict`, at first row 0,
    whatever was read before: batches that workers read ahead are not lost. To go on, `restore` a
    state first; workers that persist do not see that, so make a new DataLoader.

    `state(n)` is where a run is that took `n` batches, for `restore` here or in a Loader, whatever
    the number of workers then. torchdata's StatefulDataLoader finds `state_dict` and
    `load_state_dict`, by which each worker goes on, with the same number of them.
    """

    def __init__(self, sources: Any, **settings: Any) -> None:
        if isinstance(sources, np.ndarray):
            sources = ArrayDataset(sources)
        device = settings.get("device", "cpu")
        if torch.device(device).type != "cpu":
            raise ValueError(f"device={device} must be cpu: move batches in the training process")
        # Wrong arguments fail here and not in a worker.
        with Loader(sources, **settings) as loader:
            self._begin = loader.state()
            self._batch_size = loader.batch_size
        self._sources, self._settings = sources, settings
        # Whether the beginning is the place of one worker, which is not moved again.
        self._own_begin = False
        # Where the next batch of this worker is, once it has begun.
        self._next: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """This worker's batches."""
        worker = get_worker_info()
        # What is open belongs to the process that opened it.
        sources = self._sources
        if worker is not None:
            several = isinstance(sources, list | tuple)
            sources = [*map(reopened, sources)] if several else reopened(sources)
        with Loader(sources, **self._settings) as loader:
            loader.restore(self._begin)
            if worker is not None:
                loader.share(0 if self._own_begin else worker.id, worker.num_workers)
            while True:
                batch = next(loader)
                self._next = loader.state()
                yield batch

    def state(self, batches: int) -> dict[str, Any]:
        """The state of a run that took `batches` batches since it began (see above)."""
        rows = self._begin["rows"] + whole("batches", batches) * self._batch_size
        return {**self._begin, "rows": rows}

    def restore(self, state: dict[str, Any]) -> None:
        """Begin at `state`, one of `state` or of a loader's; ValueError if it is of other data."""
        with Loader(self._sources, **self._settings) as loader:
            loader.restore(state)
            self._begin = loader.state()
        self._own_begin, self._next = False, None

    def state_dict(self) -> dict[str, Any]:
        """The place of this worker."""
        if self._next is None:
            return dict(self._begin, began=self._own_begin)
        return dict(self._next, began=True)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin at `state_dict`."""
        self._begin = {name: value for name, value in state.items() if name != "began"}
        self._own_begin, self._next = state["began"], None
