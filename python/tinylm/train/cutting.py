"""Rows cut into shorter ones, for the steps of a run that train on those.

With rows of T tokens cut into pieces of L, the batches of T / L steps are read together, and each
of these steps gets one piece of every row:

             row 0            row 1            row 2            row 3
    step 0  [piece 0]------  [piece 0]------  [piece 0]------  [piece 0]------
    step 1  -----[piece 1]-  ...                                               B = 1, T / L = 4
    step 2  ...

So every step reads from as many places of the text as it has rows. If each step cut up its own row
instead, the pieces of a batch would be neighbours that say much the same; the default run then had
0.2 nats more at the same step (docs/log.md, 2026-11-27). No token is read twice or left out, and
the order is a function of the step alone.
"""

from typing import Any

from tinylm.config import TrainConfig
from tinylm.data import Batch, Loader


class Cuts:
    """The batches of a run, one per step, from a loader of whole rows."""

    def __init__(self, loader: Loader, settings: TrainConfig) -> None:
        self.loader, self.settings = loader, settings
        # The rows that are being cut, the place of the loader before them, the tokens of a piece,
        # the pieces used, and the rows of each batch among them.
        self.rows: Batch | None = None
        self.before: dict[str, Any] = {}
        self.length = self.used = self.batch = 0

    def take(self, step: int) -> Batch:
        """This process's rows of a step, whole [B, T] or pieces [B T / L, L]."""
        if self.rows is None:
            self._open(step)
        assert self.rows is not None, "opened above"
        whole = self.rows.tokens.size(1)
        if self.length == whole:
            batch, self.rows = self.rows, None
            return batch
        piece = self.rows.columns(slice(self.used * self.length, (self.used + 1) * self.length))
        self.used += 1
        if self.used * self.length == whole:
            self.rows = None
        return piece

    def state(self) -> tuple[dict[str, Any], dict[str, int] | None]:
        """The place of the loader, and what was used of the rows that follow it, if any."""
        if self.rows is None:
            return self.loader.state(), None
        return self.before, {"length": self.length, "used": self.used, "batch": self.batch}

    def restore(self, place: dict[str, Any], cut: dict[str, int] | None) -> None:
        """Go on where `state` was taken."""
        self.loader.restore(place)
        self.rows = None
        if cut is not None:
            # Not by the courses: another train.steps may give another length or batch here, and
            # the rows that were begun must be cut as they were.
            self._read(cut["batch"], cut["length"])
            self.used = cut["used"]

    def _open(self, step: int) -> None:
        """Read the rows of the steps from `step` on that are cut together."""
        progress, lengths = step / self.settings.steps, self.settings.sequence_lengths
        length = None if lengths is None else lengths.at(progress)
        self._read(self.settings.batch_sizes.at(progress), length)

    def _read(self, batch: int, length: int | None) -> None:
        """Read as many batches of `batch` rows as are cut together; None does not cut them."""
        self.loader.batch_size = self.batch = batch
        self.before, self.used = self.loader.state(), 0
        read = [next(self.loader)]
        whole = read[0].tokens.size(1)
        self.length = length or whole
        read += [next(self.loader) for _ in range(whole // self.length - 1)]
        self.rows = Batch.joined(read)
