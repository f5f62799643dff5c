"""Rows cut into shorter ones, for the steps of a run that train on those.

The rows of many steps are read together and cut. Of the pieces that come from one place of a
batch, each step gets as many as a row has, drawn without replacement:

    batch 0   [a0][a1][a2][a3]          step 0   b1 a3 d0 c2
    batch 1   [b0][b1][b2][b3]    ->    step 1   d2 a1 c0 b0      batches of one row, T / L = 4
    batch 2   [c0][c1][c2][c3]          step 2   ...
    batch 3   [d0][d1][d2][d3]

So the pieces of a step come from all over the text. If each step cut up its own rows, they would
be neighbours that say much the same: the default run then had 0.2 nats more at the same step. If
the four steps above got the first, second, third and fourth pieces, it had 0.011 bits per byte more
after 300 steps (docs/log.md, 2026-11-27). No token is read twice or left out, the order is a
function of the step alone, and any number of processes gives a step the same pieces.
"""

from typing import Any

import torch

from tinylm.config import TrainConfig
from tinylm.data.batch import Batch
from tinylm.data.loader import Loader

# At most so many steps get their pieces from one reading, and so many tokens are read together by
# all processes: 16 MiB of ids and targets. But a row's pieces go to different steps at least.
STEPS, TOKENS = 64, 2**20


class Cuts:
    """The batches of a run, one per step, from a loader of whole rows."""

    def __init__(self, loader: Loader, settings: TrainConfig) -> None:
        self.loader, self.settings = loader, settings
        # The pieces in the order of their use, the place of the loader before them, the steps that
        # they are for and those that have had theirs; tokens of a piece, rows of a whole batch.
        self.pieces: Batch | None = None
        self.before: dict[str, Any] = {}
        self.steps = self.used = self.length = self.batch = 0

    def take(self, step: int) -> Batch:
        """This process's rows of a step, whole [B, T] or pieces [B T / L, L]."""
        if self.pieces is None:
            self._read(*self._together(step))
        assert self.pieces is not None, "opened above"
        each = len(self.pieces.tokens) // self.steps
        mine = self.pieces.rows(slice(self.used * each, (self.used + 1) * each))
        self.used += 1
        if self.used == self.steps:
            self.pieces = None
        return mine

    def state(self) -> tuple[dict[str, Any], dict[str, int] | None]:
        """The place of the loader, and what was used of the rows that follow it, if any."""
        if self.pieces is None:
            return self.loader.state(), None
        names = ("length", "used", "batch", "steps")
        return self.before, {name: getattr(self, name) for name in names}

    def restore(self, place: dict[str, Any], cut: dict[str, int] | None) -> None:
        """Go on where `state` was taken."""
        self.loader.restore(place)
        self.pieces = None
        if cut is not None:
            # Not by the courses: another train.steps may give another length or batch here, and
            # the rows that were begun must be cut as they were.
            self._read(cut["batch"], cut["length"], cut["steps"])
            self.used = cut["used"]

    def pass_over(self, step: int, end: int) -> None:
        """Go on as after `take` of each step from `step` to before `end`, at most reading some.

        Rows are read only if some of the steps that are cut together with those come later.
        """
        while step < end:
            sizes = None if self.pieces is not None else self._together(step)
            steps = self.steps - self.used if sizes is None else sizes[2]
            if step + steps > end:
                if sizes is not None:
                    self._read(*sizes)
                self.used += end - step
                return
            if sizes is not None:
                place = self.loader.state()
                self.loader.restore({**place, "rows": place["rows"] + sizes[0] * steps})
            self.pieces = None
            step += steps

    def _together(self, step: int) -> tuple[int, int, int]:
        """What is read for `step`: (rows of a batch, tokens of a piece, steps cut together)."""
        batch, length = self._sizes(step)
        if length is None or length == self.loader.context_length:
            return batch, self.loader.context_length, 1
        # The steps up to the next change of the sizes or the end, if there are many.
        pieces = self.loader.context_length // length
        most = max(pieces, min(STEPS, TOKENS // (batch * self.loader.context_length)))
        end = min(step + most, self.settings.steps)
        end = next((s for s in range(step + 1, end) if self._sizes(s) != (batch, length)), end)
        # Enough for each step to have one piece of a row, also where the sizes change soon.
        return batch, length, max(pieces, end - step)

    def _sizes(self, step: int) -> tuple[int, int | None]:
        """The rows of a batch and the tokens of a piece that the courses give a step."""
        progress, lengths = step / self.settings.steps, self.settings.sequence_lengths
        length = None if lengths is None else lengths.at(progress)
        return self.settings.batch_sizes.at(progress), length

    def _read(self, batch: int, length: int, steps: int) -> None:
        """Read the batches of `steps` steps, of `batch` rows each, and cut them."""
        self.loader.batch_size = self.batch = batch
        self.before, self.used = self.loader.state(), 0
        self.length, self.steps = length, steps
        read = Batch.joined([next(self.loader) for _ in range(steps)])
        pieces = self.loader.context_length // length
        if pieces == 1:
            self.pieces = read
            return
        generator = torch.Generator().manual_seed(self.settings.seed ^ self.before["rows"])
        order = torch.randperm(steps * pieces, generator=generator)
        self.pieces = read.cut(length, steps, order)
