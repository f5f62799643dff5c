"""metrics.jsonl to loss.png, here or in a process of its own."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from tinylm import disk
from tinylm.track.records import read_metrics
from tinylm.track.tracker import in_words, smooth

# From this ratio of the largest loss to the smallest, the axis of the loss is logarithmic: what
# the first steps lose would otherwise hide what the last thousand gain.
STEEP = 1.6
# Points of a line. A figure of 1,170 pixels shows no more, and a long run draws as fast as a short
# one.
POINTS = 2000


def plot(folder: Path) -> None:
    """metrics.jsonl to loss.png: losses above, learning rate and gradient norm below."""
    # matplotlib takes half a second to import, and a run without the plot never needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    records = read_metrics(folder)
    train = [r for r in records if "loss" in r]
    scored = [r for r in records if "val_loss" in r]
    if not train:
        return
    figure = Figure(figsize=(9, 6), dpi=130, layout="constrained")
    # Not pyplot: it keeps figures in a global list and may want a display.
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    steps, losses, rates, sizes = (
        _thinned([r[key] for r in train]) for key in ("step", "loss", "lr", "grad_norm")
    )
    above.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="training")
    # Smoothed from both ends: from one alone, the line would lag behind the losses it is made of.
    ends = zip(smooth(losses), smooth(losses[::-1])[::-1], strict=True)
    middle = [(one + other) / 2 for one, other in ends]
    above.plot(steps, middle, color="tab:blue", linewidth=1.8, label="training, smoothed")
    if scored:
        xs, ys = [r["step"] for r in scored], [r["val_loss"] for r in scored]
        above.plot(xs, ys, "o-", color="tab:orange", markersize=5, label="validation")
        last = scored[-1]
        above.annotate(
            f"{last['val_loss']:.3f} nats per token\n{last['bits_per_byte']:.3f} bits per byte",
            (last["step"], last["val_loss"]),
            xytext=(-8, 24),
            textcoords="offset points",
            ha="right",
            arrowprops={"arrowstyle": "-", "color": "gray"},
            # The line of the scores falls behind the words, where there are few of them.
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    above.set_ylabel("loss, nats per token")
    shown = losses + [r["val_loss"] for r in scored]
    if min(shown) > 0 and max(shown) > STEEP * min(shown):
        above.set_yscale("log")
        # Round numbers at even distances: powers of ten would leave one tick between 3 and 8.
        above.yaxis.set_major_locator(MaxNLocator(nbins=12, steps=[1, 2, 5, 10]))
        above.yaxis.set_minor_locator(NullLocator())
        above.yaxis.set_major_formatter(plain)
    above.set_title(f"{folder.name}: {train[-1]['tokens'] / 1e6:.2f} million tokens")
    above.legend(frameon=False)
    below.plot(steps, rates, color="tab:green")
    below.set_ylabel("learning rate", color="tab:green")
    below.set_xlabel("step")
    norms = below.twinx()
    norms.plot(steps, sizes, color="tab:gray", alpha=0.6, linewidth=1)
    norms.set_ylabel("gradient norm", color="tab:gray")
    norms.set_yscale("log")
    # Plain numbers: matplotlib would write a tick between powers as 4 x 10^0.
    norms.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    norms.yaxis.set_major_formatter(plain)
    norms.yaxis.set_minor_formatter(plain)
    for axis in (above, below):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    with disk.replacing(folder / "loss.png") as file:
        figure.savefig(file, format="png")


def _thinned(values: list[float]) -> list[float]:
    """At most `POINTS` numbers: means of as many neighbours as that takes."""
    size = -(-len(values) // POINTS)
    parts = (values[at : at + size] for at in range(0, len(values), size))
    return [sum(part) / len(part) for part in parts]


def serve(folder: str) -> None:
    """Draw the run in `folder` once per line of standard input, until it ends.

    Answers each on standard output with a line: the seconds that it took, and what went wrong.
    """
    # The steps of the run come first.
    os.nice(10)
    # Beside the first steps, and not when the first drawing is wanted.
    with suppress(Exception):
        import matplotlib.figure  # noqa: F401
    _answer(Path(folder), sys.stdin, sys.stdout)


def _answer(folder: Path, requests: TextIO, answers: TextIO) -> None:
    for _ in requests:
        problem, began = "", time.perf_counter()
        try:
            plot(folder)
        except Exception as error:
            problem = f" {in_words(error)}"
        answers.write(f"{time.perf_counter() - began:.3f}{problem}\n")
        answers.flush()
