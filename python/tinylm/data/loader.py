"""A dataset to batches, in an order that is a pure function of (seed, epoch, row).

Rust threads fill batches ahead of the training loop without the GIL. Neither their number nor
the number of ranks can be seen in what comes out: there is one global order, and every rank
takes its rows of each global batch. So the state of a run is one integer, the rows handed out.

The limits of the arguments are those of the Rust crate, which says them in its errors; here are
only the rules that it cannot see.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from tinylm import _rust
from tinylm.data import mixture
from tinylm.data.arrays import Source, check_marks, reopened
from tinylm.data.batch import Batch
from tinylm.data.numbers import whole
from tinylm.data.places import places
from tinylm.data.stats import Given, Stats, given
from tinylm.data.stream import Stream, check_uint16

if TYPE_CHECKING:
    import torch

    from tinylm.config import DataConfig

STATE_VERSION = 1
# The limit of the Rust side (MAX_ROWS): sums of a few row numbers stay below 64 bits.
_MAX_ROWS = 2**62


def of_settings(data: "DataConfig") -> dict[str, Any]:
    """The arguments of a `Loader` of the training text that say what its rows are."""
    return {
        "order": data.order,
        "pack": data.pack,
        "mask_eos": data.mask_eos,
        # What packed rows have no use for may be left over from a recipe.
        "stride": None if data.pack else data.stride,
        "mask_after_eos": data.mask_after_eos and not data.pack,
        "documents": data.document_mask and not data.pack,
    }


class Loader(AbstractContextManager["Loader"]):
    """An endless iterator of batches; one epoch runs into the next inside a batch.

    The tokens are those of a `Dataset`, or of an array [n] in memory: see `ArrayDataset`.
    `batch_size` is global: a rank gets rows `rank::world_size` of each batch. A row is
    `context_length` tokens and the one after; rows begin `stride` tokens apart (default: the
    context length, so that every target is seen once per epoch). `order="shuffle"` changes with
    the epoch; "random" takes windows with replacement and has no stride. In the last row of the
    dataset, "shuffle" begins early enough for a whole row, "sequential" pads with -100.
    `mask_after_eos` leaves out the targets after the first eos of a row. `keep` (tokens, targets
    to targets) may leave out more, such as `turns.Answers` for conversations. With `documents`,
    batches say where the documents of a row are.

    Of several datasets, `weights` are the shares of the tokens, or {row of the run: weights from
    there on}. Every 32 rows (more if a share is below 1/32) after weights begin, each source is
    within one row of its share. If others begin between, it is so on average. The rows of a source
    are those that it has alone, epoch after epoch.

    A batch lies in one block of memory, which is filled again once nobody holds a tensor of it: a
    batch that is kept never changes. `Batch.long` widens batches of `dtype="uint16"`.

    `next` raises ValueError when a shard is damaged, and again when it is called again.
    """

    def __init__(
        self,
        sources: "mixture.Sources",
        *,
        batch_size: int,
        context_length: int,
        order: Literal["shuffle", "sequential", "random"] = "shuffle",
        stride: int | None = None,
        mask_after_eos: bool = False,
        mask_eos: bool = False,
        pack: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        prefetch: int = 3,
        dtype: Literal["int64", "int32", "uint16"] = "int64",
        device: "str | torch.device" = "cpu",
        keep: "Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None" = None,
        documents: bool = False,
        weights: "mixture.Weights | None" = None,
    ) -> None:
        import torch

        # The Rust side counts in unsigned numbers of 64 bits, and checks what they are.
        place = {
            "seed": seed,
            "context_length": context_length,
            "stride": context_length if stride is None else stride,
        }
        part = {
            "batch_size": batch_size,
            "rank": rank,
            "world_size": world_size,
            "threads": threads,
            "prefetch": prefetch,
        }
        place, part = ({key: whole(key, n) for key, n in each.items()} for each in (place, part))
        if order == "random" and stride is not None:
            raise ValueError(f"stride={stride} has no meaning for order=random: leave it out")
        for name, set_too, way in (
            ("stride", stride is not None, "leave it out"),
            ("mask_after_eos", mask_after_eos, "leave it out, or use mask_eos"),
            ("documents", documents, "leave it out: packed rows always say where documents are"),
        ):
            if pack and set_too:
                raise ValueError(f"{name} has no meaning with pack=True: {way}")
        if mask_eos and mask_after_eos:
            raise ValueError("mask_eos and mask_after_eos: choose one")
        self._sources, self._stages = mixture.opened(sources, weights)
        if dtype == "uint16":
            most = max(source.vocab_size for source in self._sources)
            check_uint16(most, pack=pack, documents=documents, keep=bool(keep))
        self._device = torch.device(device)
        self._keep = keep
        marks = {"pack": pack, "mask_eos": mask_eos, "mask_after_eos": mask_after_eos}
        for source in self._sources:
            check_marks(source, document_mask=documents, **marks)
        self._eos_id = self._sources[0].eos_id if documents else None
        # What decides which rows come, and so belongs to the state of a run.
        self._place: dict[str, Any] = {
            "order": order,
            "mask_after_eos": mask_after_eos,
            **place,
        }
        if pack:
            # In place of what they replace, and only where they are set: a state of before they
            # existed is the state of a loader without them.
            del self._place["stride"], self._place["mask_after_eos"]
            self._place["pack"] = True
        if mask_eos:
            self._place["mask_eos"] = True
        if self._stages is not None:
            self._place["mixture"] = mixture.name_of(self._stages)
        # Who fills which row, and how: a run may go on with others.
        self._slice: dict[str, Any] = {**part, "dtype": dtype, "every": 1}
        self._row = 0
        self._batches = 0
        self._stall = 0.0
        self._stream: Stream | None = None
        self._rows = self._open_rows()
        # A stream without rows starts no thread: wrong arguments fail here, not at the first batch.
        self._rows.stream(first_row=0, end_row=0, **self._slice)

    def _open_rows(self) -> _rust.Rows:
        self._process = os.getpid()
        seed = self._place["seed"]
        # Each has its own rows, also those of a mixture.
        self._alone = [
            self._rows_of(data, _rust.source_seed(seed, number))
            for number, data in enumerate(self._sources)
        ]
        if self._stages is None:
            return self._alone[0]
        return _rust.Rows.mixed(self._alone, self._stages, seed=seed)

    def _rows_of(self, data: Source, seed: int) -> _rust.Rows:
        place = self._place
        common: dict[str, Any] = {
            "order": place["order"],
            "seed": seed,
            "context_length": place["context_length"],
            "mask_at": data.eos_id if "mask_eos" in place else None,
        }
        if "pack" in place:
            return _rust.Rows.packed(data.tokens, data.lengths(), **common)
        mask_after = data.eos_id if place["mask_after_eos"] else None
        return _rust.Rows(data.tokens, stride=place["stride"], mask_after=mask_after, **common)

    def _current_rows(self) -> _rust.Rows:
        """The rows, opened again in a forked child: threads and locks stay with the parent."""
        if self._process != os.getpid():
            self._sources = [*map(reopened, self._sources)]
            self._stream = None
            self._rows = self._open_rows()
        return self._rows

    @property
    def batch_size(self) -> int:
        """Rows of a batch, over all ranks. A new value holds from the next batch on.

        The rows keep their order: the next batch begins where the last one ended.
        """
        size: int = self._slice["batch_size"]
        return size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        """Set the rows of the batches to come."""
        size = whole("batch_size", size)
        if size == self._slice["batch_size"]:
            return
        # A stream without rows checks the number and starts no thread.
        self._current_rows().stream(first_row=0, end_row=0, **{**self._slice, "batch_size": size})
        # Batches read ahead have the old size.
        self.close()
        self._slice["batch_size"] = size

    def share(self, worker: int, workers: int) -> None:
        """Give every `workers`-th batch alone, from the one `worker` batches ahead on.

        For processes that share the work of a rank and are asked one after the other. A state then
        is the place of this worker. `epoch` gives all of its batches as before.
        """
        if not 0 <= worker < workers:
            raise ValueError(f"worker={worker} must be between 0 and workers - 1 = {workers - 1}")
        self._current_rows().stream(first_row=0, end_row=0, **{**self._slice, "every": workers})
        self.close()
        self._slice["every"] = workers
        self._row += worker * self.batch_size

    @property
    def context_length(self) -> int:
        """The tokens of a row (T)."""
        length: int = self._place["context_length"]
        return length

    @property
    def n_rows(self) -> int:
        """Rows of one epoch, over all ranks; of a mixture those of one epoch of each source."""
        return sum(rows.n_rows for rows in self._alone)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        """This rank's rows of the next batch."""
        rows = self._current_rows()
        begin = time.perf_counter()
        if self._stream is None:
            self._stream = Stream(rows, self._device, self._slice, self._row, None)
        try:
            array = self._stream.next()
        except ValueError:
            # What was read ahead is gone; the next call begins with the same batch.
            self.close()
            raise
        # Waiting alone is counted, not the making of the tensors.
        self._stall += time.perf_counter() - begin
        if array is None:
            raise ValueError("the loader was closed while it was being read")
        self._row += self._slice["batch_size"] * self._slice["every"]
        self._batches += 1
        return self._batch(self._stream.batch(array))

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """Every row of one epoch exactly once, whatever `next` is doing.

        The last batch is filled up with rows of target -100. With order="sequential" and the
        default stride, every target of the dataset is scored exactly once: use it to evaluate.
        """
        if self._stages is not None:
            raise ValueError("a mixture has no epochs: its sources have, each its own")
        n_rows = self.n_rows
        if not 0 <= number < _MAX_ROWS // n_rows - 1:
            raise ValueError(f"epoch {number} must be between 0 and {_MAX_ROWS // n_rows - 2}")
        rows = self._current_rows()
        first = number * n_rows
        # A stream of its own: evaluating in the middle of training moves no row of the training.
        settings = {**self._slice, "every": 1}
        stream = Stream(rows, self._device, settings, first, first + n_rows)
        try:
            while (array := stream.next()) is not None:
                yield self._batch(stream.batch(array))
        finally:
            stream.close()

    @property
    def padding(self) -> float:
        """The share of an epoch's inputs that are padding; 0 unless rows are packed.

        Of a mixture that of one epoch of each source.
        """
        filled, _ = self._rows.filled
        return 1 - filled / (self.n_rows * self.context_length) if "pack" in self._place else 0.0

    def _batch(self, batch: Batch) -> Batch:
        """The batch with what was asked for beside it."""
        if self._keep is None and self._eos_id is None:
            return batch
        if self._keep is not None:
            batch = replace(batch, targets=self._keep(batch.tokens, batch.targets))
        if self._eos_id is None:
            return batch
        return Batch(batch.tokens, batch.targets, *places(batch.tokens, self._eos_id))

    def row(self, epoch: int, i: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """(tokens[T], targets[T]) of row `i` of `epoch`, int64 on the CPU: a pure function.

        A mixture has the epoch 0 alone, without an end.
        """
        self._check_row(epoch, i)
        import torch

        tokens, targets, _ = self._current_rows().row(epoch, i)
        return torch.from_numpy(tokens), torch.from_numpy(targets)

    def pieces(self, epoch: int, i: int) -> list[tuple[int, int, int]]:
        """(source, the first input's place in it, inputs) of each piece of row `i` of `epoch`."""
        self._check_row(epoch, i)
        return self._current_rows().pieces(epoch, i)

    def _check_row(self, epoch: int, i: int) -> None:
        n_rows = self._rows.n_rows
        epochs = _MAX_ROWS if self._stages is None else 1
        if not 0 <= epoch < epochs or not 0 <= i < n_rows:
            raise ValueError(f"row {i} of epoch {epoch}: an epoch has {n_rows} rows")

    def state(self) -> dict[str, Any]:
        """The position of the run, for `restore`: JSON of less than 256 bytes.

        Counts batches handed out, not those read ahead. Holds nothing of ranks, threads or
        batch size, so that a run may go on with others.
        """
        return {
            "version": STATE_VERSION,
            "fingerprint": self._sources[0].fingerprint
            if self._stages is None
            else mixture.fingerprint(self._sources),
            "rows": self._row,
            **self._place,
        }

    def restore(self, state: dict[str, Any], force: bool = False) -> None:
        """Go on exactly where `state` was taken.

        Refuses the state of other data or of another order, which it could not continue;
        `force=True` takes its row number all the same.
        """
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            raise ValueError(f"not a loader's state of version {STATE_VERSION}: {state}")
        row = whole("the state's rows", state.get("rows"), _MAX_ROWS - 1)
        # All but the row itself: the rows of another order would not be the rest of this one.
        ours = self.state()
        for name in sorted((ours.keys() | state.keys()) - {"rows"}) if not force else ():
            if state.get(name) != ours.get(name):
                raise ValueError(
                    f"the state has {name}={state.get(name)!r}, this loader {ours.get(name)!r}: "
                    "restore with the same, or with force=True from its row number alone"
                )
        # Batches read ahead are those of the old place.
        self.close()
        self._row = row

    def stats(self) -> Stats:
        """Position (epoch, rows and tokens over all ranks), and what this object did."""
        rows = zip(self._rows.counts(self._row), self._alone, strict=True)
        return {
            "sources": self.given(self._row),
            "epoch": min(n // alone.n_rows for n, alone in rows),
            "rows": self._row,
            "tokens": self._row * self.context_length,
            "batches": self._batches,
            "stall_seconds": self._stall,
        }

    def given(self, rows: int) -> list[Given]:
        """What each source gives in the first `rows` rows of the run."""
        counts = self._rows.counts(rows)
        each = zip(self._sources, self._alone, counts, strict=True)
        return [given(data, alone, n, self.context_length) for data, alone, n in each]

    def close(self) -> None:
        """End the threads; the next batch starts them again where they were."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def __exit__(self, *_: object) -> None:
        self.close()
