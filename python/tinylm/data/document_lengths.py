"""What shards hold in numbers: documents, tokens, bytes per token, and how long documents are."""

import argparse
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm import commands
from tinylm.data.manifest import Manifest, Split
from tinylm.data.shards import Dataset

# Below this many documents their percentiles say nothing.
FEW = 10
PERCENTILES = (50, 90, 99)
# From no document to the most of any column.
_LEVELS = " .:-=+*#%@"


class Lengths:
    """How often each length occurs among the documents of a split, in tokens, eos included.

    `values` are the lengths that occur, ascending, and `counts` how often each does: percentiles
    are exact. Memory does not grow with the number of documents: `T` tokens have documents of at
    most `sqrt(2 T)` different lengths.
    """

    def __init__(self, lengths: Iterable[NDArray[Any]] = ()) -> None:
        self.values = np.empty(0, np.int64)
        self.counts = np.empty(0, np.int64)
        for some in lengths:
            values, counts = np.unique(some, return_counts=True)
            both = np.concatenate([self.values, values.astype(np.int64)])
            self.values, place = np.unique(both, return_inverse=True)
            merged = np.zeros(len(self.values), np.int64)
            np.add.at(merged, place, np.concatenate([self.counts, counts]))
            self.counts = merged

    @property
    def documents(self) -> int:
        """The number of documents."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Tokens per document; 0 without a document."""
        return float((self.values * self.counts).sum() / max(1, self.documents))

    def percentile(self, percent: float) -> int:
        """The shortest length that `percent` of the documents do not exceed."""
        reached = np.cumsum(self.counts) * 100 >= percent * self.documents
        return int(self.values[np.argmax(reached)]) if self.documents else 0

    def powers(self) -> NDArray[np.int64]:
        """[n] documents of 1, of 2 to 3, of 4 to 7, ... tokens, up to the longest."""
        # An empty document has one token, its eos; the maximum is for shards of other programs.
        powers = np.log2(np.maximum(self.values, 1)).astype(np.int64)
        return np.bincount(powers, weights=self.counts).astype(np.int64)


def lines(name: str, split: Split, lengths: Lengths) -> Iterator[str]:
    """A split in one line, or in three if it has enough documents to speak of their lengths."""
    size = "" if split.bytes is None else f", {split.bytes:,} bytes of text"
    yield f"{name}: {split.tokens:,} tokens, {split.documents:,} documents{size}"
    if lengths.documents < FEW:
        return
    ratio = "" if split.bytes is None else f"{split.bytes / split.tokens:.2f} bytes per token; "
    shares = ", ".join(f"{p}% up to {lengths.percentile(p):,}" for p in PERCENTILES)
    longest = int(lengths.values[-1])
    yield f"  {ratio}tokens per document: mean {lengths.mean:,.0f}, {shares}, longest {longest:,}"
    yield f"  {spark(lengths)}"


def spark(lengths: Lengths) -> str:
    """One line: a column for each power of two from the shortest documents to the longest."""
    counts = lengths.powers()
    first = int(np.flatnonzero(counts)[0])
    levels = np.ceil(counts[first:] * (len(_LEVELS) - 1) / counts.max()).astype(int)
    columns = "".join(_LEVELS[level] for level in levels)
    return f"{1 << first:,} [{columns}] {(1 << len(counts)) - 1:,} tokens, by powers of two"


def bars(lengths: Lengths) -> Iterator[str]:
    """One line for each power of two that some length reaches."""
    counts = lengths.powers()
    for power in np.flatnonzero(counts):
        bar = "#" * max(1, round(40 * counts[power] / counts.max()))
        reach = f"{1 << power:,}-{(2 << power) - 1:,}"
        yield f"{reach:>21} {counts[power]:>9,} {bar}"


def of(folder: Path, manifest: Manifest) -> dict[str, Lengths]:
    """The lengths of the documents of each split of a folder, a shard at a time."""
    return {
        name: Lengths(Dataset(folder, manifest, name).lengths_by_shard())
        for name in manifest.splits
    }


def add_picture(command: argparse.ArgumentParser) -> None:
    """Add the option `--picture` to a command, which passes it to `draw`."""
    command.add_argument(
        "--picture",
        type=commands.path,
        metavar="OUT.png",
        help="draw how long the documents are; the ending names the format",
    )


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise what `draw` would raise for a picture at `path`, before the work on its lengths.

    `ValueError` for an ending that is no format of matplotlib's, `OSError` for a folder that is
    not there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = FigureCanvasAgg.get_supported_filetypes()
    path = Path(path)
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"--picture {path}: its ending must be one of {', '.join(sorted(known))}")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder: name a file in it", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder: make it first", str(path.parent))


def draw(path: str | os.PathLike[str], title: str, splits: Mapping[str, Lengths]) -> None:
    """A picture of the lengths of the documents of some splits; its ending names the format.

    Each split is a curve: the share of its documents per quarter of a power of two. Raises what
    `check_picture` raises.
    """
    check_picture(path)
    # matplotlib takes half a second to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    figure = Figure(figsize=(9, 4), dpi=130, layout="constrained")
    # Not pyplot: it keeps figures in a global list and may want a display.
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for color, (name, lengths) in zip(_COLORS * len(splits), splits.items(), strict=False):
        if not lengths.documents:
            continue
        edges = 2 ** np.arange(0, np.log2(lengths.values[-1]) + 0.5, 0.25)
        shares = lengths.counts / lengths.documents
        label = f"{name}: {lengths.documents:,} documents, mean {lengths.mean:,.0f} tokens"
        axes.hist(
            lengths.values,
            edges.tolist(),
            weights=shares,
            histtype="step",
            color=color,
            label=label,
        )
        middle = lengths.percentile(50)
        axes.axvline(middle, color=color, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("tokens of a document, end-of-text token included (dotted: the median)")
    axes.set_ylabel("documents")
    axes.set_title(title)
    if axes.has_data():
        axes.legend(frameon=False)
    figure.savefig(path)


_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
