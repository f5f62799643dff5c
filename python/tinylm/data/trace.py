"""`python -m tinylm.data trace RUN step=N`: which documents a step of a run learned from.

Nothing is trained and no batch is read: the rows of a step follow from the order alone, which is a
pure function of the seed, the epoch and the row. The walk over the steps begins at the newest
checkpoint before step N, so it stays right in runs that were lengthened.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylm import commands, config
from tinylm.data import mixture
from tinylm.data.batch import Batch
from tinylm.data.folders import load_tokenizer, recorded
from tinylm.data.loader import Loader, of_settings
from tinylm.data.shards import Dataset

if TYPE_CHECKING:
    from tinylm.config import Run
    from tinylm.tokenizer import Tokenizer

# The arguments and their defaults: a step, rows that are shown, characters of each text.
_DEFAULTS = {"step": None, "rows": 8, "text": 60}


def add(subparsers: Any) -> None:
    """Add the command to those of `python -m tinylm.data`."""
    command = subparsers.add_parser("trace", help="the documents that one step of a run read")
    command.add_argument("run", type=commands.path, metavar="RUN")
    command.add_argument(
        "settings",
        nargs="+",
        metavar="step=N",
        help="the step, from 1; also rows=K, how many of its rows are shown (8), and text=K, "
        "characters of each text (60)",
    )
    command.set_defaults(command=_trace)


@dataclass(frozen=True, slots=True)
class Span:
    """Targets of a step that are of one document: its tokens `first` to before `last` of `length`.

    `source` numbers the texts of the run; `place` is where the first target lies in its tokens.
    """

    source: int
    document: int
    first: int
    last: int
    length: int
    place: int


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a step, or the piece of one: `number` counts all rows of the run, from 0.

    The rows of a mixture have no `epoch`.
    """

    number: int
    epoch: int | None
    spans: list[Span]


class Places:
    """Stands for a loader in `Cuts`: its batches say which row, and which place in it, is where."""

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self.batch_size = self.row = 0

    def state(self) -> dict[str, Any]:
        """The place, as of a loader."""
        return {"rows": self.row}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on at a place."""
        self.row = state["rows"]

    def __next__(self) -> Batch:
        import torch

        shape = (self.batch_size, self.context_length)
        rows = torch.arange(self.row, self.row + self.batch_size)[:, None].expand(shape)
        self.row += self.batch_size
        return Batch(rows, torch.arange(self.context_length).expand(shape))


class Trace:
    """The rows of any step of a run, from its folder."""

    def __init__(self, folder: Path) -> None:
        found = config.find(folder)
        if found is None:
            raise ValueError(f"{folder} has no config.yaml: name the folder of a run")
        self.folder = folder
        self.run: Run = config.load(found)
        shards = recorded(folder)
        if not shards:
            raise ValueError(
                f"{folder}: the shards that its run.json names are gone: prepare its text again"
            )
        self.datasets = [Dataset.open(home, split="train") for home in shards]
        self.states = sorted(_states(folder), key=lambda state: state["step"])
        # What a checkpoint says goes first: train.init may have decided the context length.
        known: dict[str, Any] = self.states[-1]["state"]["loader"] if self.states else {}
        self.context_length: int = known.get("context_length", self.run.model.context_length)
        weights, train = self.run.data.weights, self.run.train
        staged = None
        if weights is not None:
            staged = mixture.staged(weights, lambda p: train.rows(round(p * train.steps)))
        self.loader = Loader(
            self.datasets[0] if staged is None else self.datasets,
            weights=staged,
            batch_size=1,
            context_length=self.context_length,
            seed=train.seed,
            **of_settings(self.run.data),
        )
        fingerprint = self.loader.state()["fingerprint"]
        if known.get("fingerprint", fingerprint) != fingerprint:
            names = ", ".join(map(str, shards))
            raise ValueError(f"{names}: holds other tokens than the run was trained on")
        self.ends = [np.cumsum(data.lengths(), dtype=np.int64) for data in self.datasets]

    def rows(self, step: int) -> list[Row]:
        """The rows of a step, from 1, over all processes and in their order."""
        from tinylm.data.cutting import Cuts

        if step < 1:
            raise ValueError(f"step={step}: the first step of a run is 1")
        last = max([self.run.train.steps, *(saved["step"] for saved in self.states)])
        if step > last:
            raise ValueError(f"step={step}: the last step of {self.folder} is {last} (train.steps)")
        places: Any = Places(self.context_length)
        cuts, at = Cuts(places, self.run.train), 0
        for saved in self.states:
            if at <= saved["step"] < step:
                at, state = saved["step"], saved["state"]
                before = {"rows": state["loader"]["rows"]}
                cuts.restore(before, state.get("cut"))
        cuts.pass_over(at, step - 1)
        batch = cuts.take(step - 1)
        size = batch.tokens.size(1)
        firsts = zip(batch.tokens[:, 0].tolist(), batch.targets[:, 0].tolist(), strict=True)
        return [self._row(number, first, size) for number, first in firsts]

    def _row(self, number: int, first: int, size: int) -> Row:
        mixed = self.run.data.weights is not None
        epoch, i = (0, number) if mixed else divmod(number, self.loader.n_rows)
        spans: list[Span] = []
        at = 0
        for source, start, length in self.loader.pieces(epoch, i):
            begin, end = max(first - at, 0), min(first + size - at, length)
            if begin < end:
                # The target of an input is the token behind it.
                spans += self._spans(source, start + begin + 1, start + end + 1)
            at += length
        return Row(number, None if mixed else epoch, spans)

    def _spans(self, source: int, place: int, stop: int) -> Iterator[Span]:
        stop, ends = min(stop, self.datasets[source].n_tokens), self.ends[source]
        while place < stop:
            document = int(np.searchsorted(ends, place, "right"))
            end = int(ends[document])
            begin = int(ends[document - 1]) if document else 0
            last = min(stop, end)
            yield Span(source, document, place - begin, last - begin, end - begin, place)
            place = last

    def text(self, span: Span, tokenizer: "Tokenizer", characters: int) -> str:
        """The beginning of a span as text."""
        # A character has at least one byte, and a token seldom less than one.
        dataset = self.datasets[span.source]
        ids = dataset.read(span.place, min(span.last - span.first, characters))
        return tokenizer.decode_bytes(ids.tolist()).decode(errors="replace")[:characters]


def _states(folder: Path) -> Iterator[dict[str, Any]]:
    for path in (folder / "checkpoints").glob("step-*/state.json"):
        state = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(state.get("state"), dict) and "loader" in state["state"]:
            yield state


def _trace(options: argparse.Namespace) -> None:
    words, given = commands.sorted_words(options.settings)
    for name in [*words, *(given.keys() - _DEFAULTS.keys())]:
        raise config.ConfigError(f"{name}: trace RUN takes step=N, rows=K and text=K")
    for name, value in given.items():
        if not value.isdecimal():
            raise config.ConfigError(f"{name}={value}: must be a whole number")
    if "step" not in given:
        raise config.ConfigError("which step? step=N")
    step, shown, characters = (int(given.get(k, v or 0)) for k, v in _DEFAULTS.items())
    trace = Trace(Path(options.run))
    rows = trace.rows(step)
    file = trace.folder / "tokenizer.json"
    tokenizer = load_tokenizer(str(file), trace.datasets[0].manifest) if file.exists() else None
    tokens = sum(span.last - span.first for row in rows for span in row.spans)
    print(f"step {step} of {trace.folder}: {len(rows):,} rows, {tokens:,} targets")
    for number, dataset in enumerate(trace.datasets):
        text = dataset.manifest.source.get("source", "an unknown text")
        print(f"source {number}: {text}, {dataset.folder}")
    for row in rows[:shown]:
        source = f"source {row.spans[0].source}" if row.spans else "padding"
        print(f"row {row.number:,} ({source if row.epoch is None else f'epoch {row.epoch}'})")
        for span in row.spans:
            line = (
                f"  document {span.document:,}: tokens {span.first:,} to {span.last - 1:,} of "
                f"{span.length:,}"
            )
            if tokenizer is not None and characters:
                line += f"  {trace.text(span, tokenizer, characters)!r}"
            print(line)
    if len(rows) > shown:
        print(f"and {len(rows) - shown:,} more rows: rows={len(rows)} shows all")
