"""Batches for torch's DataLoader, with as many workers as one likes.

A `Loader` reads ahead by itself, without processes, and is what a training loop should take. Where
a framework insists on a DataLoader:

    data = IterableBatches(dataset, batch_size=64, context_length=1024)
    for batch in DataLoader(data, batch_size=None, num_workers=2): ...
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from tinylm.data.arrays import ArrayDataset, reopened
from tinylm.data.batch import Batch
from tinylm.data.loader import Loader


class IterableBatches(IterableDataset[Batch]):
    """The endless batches of `Loader(sources, **settings)`, the same for any number of workers.

    Worker w of W makes batches w, w + W and so on, and DataLoader asks one worker after the other.
    It needs `batch_size=None`, as these are batches already. `device` must be the CPU.

    `state(n)` is where a run is that took `n` batches, for `restore` here or in a Loader, whatever
    the number of workers then. torchdata's StatefulDataLoader finds `state_dict` and
    `load_state_dict`, by which each worker goes on, with the same number of them.
    """

    def __init__(self, sources: Any, **settings: Any) -> None:
        if isinstance(sources, np.ndarray):
            sources = ArrayDataset(sources)
        # Wrong arguments fail here and not in a worker.
        with Loader(sources, **settings) as loader:
            self._begin = loader.state()
            self._batch_size = loader.batch_size
        self._sources, self._settings = sources, settings
        # Of this worker: where its next batch is, once it has begun.
        self._own: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """This worker's batches."""
        worker = get_worker_info()
        # What is open belongs to the process that opened it.
        sources = self._sources
        if worker is not None:
            several = isinstance(sources, list | tuple)
            sources = [*map(reopened, sources)] if several else reopened(sources)
        with Loader(sources, **self._settings) as loader:
            loader.restore(self._begin if self._own is None else self._own)
            if worker is not None:
                first = worker.id if self._own is None else 0
                loader.share(first, worker.num_workers)
            while True:
                batch = next(loader)
                self._own = loader.state()
                yield batch

    def state(self, batches: int) -> dict[str, Any]:
        """The state of a run that took `batches` batches since the last `restore`."""
        return {**self._begin, "rows": self._begin["rows"] + batches * self._batch_size}

    def restore(self, state: dict[str, Any]) -> None:
        """Begin at `state`, one of `state` or of a loader's; ValueError if it is of other data."""
        with Loader(self._sources, **self._settings) as loader:
            loader.restore(state)
            self._begin = loader.state()
        self._own = None

    def state_dict(self) -> dict[str, Any]:
        """The place of this worker."""
        return dict(self._begin if self._own is None else self._own, began=self._own is not None)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        own = {name: value for name, value in state.items() if name != "began"}
        self._own = own if state["began"] else None
        self._begin = self._begin if state["began"] else own
