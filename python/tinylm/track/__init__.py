"""How a run is reported: a live line, metrics.jsonl, loss.png, and the trackers of other tools.

A tracker receives each record, a flat dictionary of numbers with the keys of metrics.jsonl: step
tokens loss lr grad_norm tokens_per_second mfu memory_bytes seconds, and on evaluation val_loss,
perplexity and bits_per_byte.

A tracker watches a run: it never ends it and hardly slows it. If one raises, `Trackers` warns once
and trains on. What takes more than a moment happens in a thread or a process of its own.
"""

from tinylm.track.console import Console
from tinylm.track.drawing import plot
from tinylm.track.plotting import Plot
from tinylm.track.records import Jsonl, read_metrics, rewind_metrics
from tinylm.track.tracker import Record, Tracker, smooth, warn
from tinylm.track.trackers import TRACKERS, Trackers

__all__ = [
    "TRACKERS",
    "Console",
    "Jsonl",
    "Plot",
    "Record",
    "Tracker",
    "Trackers",
    "plot",
    "read_metrics",
    "rewind_metrics",
    "smooth",
    "warn",
]
