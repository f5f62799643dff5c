"""Rows of results as text."""

from typing import Any

from benches.gpu.job import label

Row = dict[str, Any]


# Names of rows that stand for a whole case or section.
NO_CONTENDER = ("inputs", "section")


def ours(row: Row) -> bool:
    """Whether a row is of this project."""
    return str(row["name"]).startswith("tinylm")


def same_case(row: Row, other: Row) -> bool:
    """Whether two rows are of one case."""
    return bool(row["family"] == other["family"] and row["at"] == other["at"])


def rate(row: Row) -> str:
    """GB/s or TFLOP/s with percent of the ceiling; empty without."""
    text = ""
    if "gbps" in row:
        text = f"{row['gbps']:.0f} GB/s"
    elif "tflops" in row:
        text = f"{row['tflops']:.0f} TFLOP/s"
    return text + (f" {row['percent']:.0f}%" if "percent" in row else "")


# Keys that a line shows in its own way, or leaves to the file.
KNOWN = {"family", "at", "name", "error", "ms", "p20", "p80", "host_ms"}
KNOWN |= {"gbps", "tflops", "percent"}


def line(row: Row, rows: list[Row]) -> str:
    """A row, and how many times the time of ours in the same case it takes."""
    head = f"{row['family']} {label(row['at'])}"
    text = f"{head:<58} {row['name']:<24}"
    for key in ("failed", "missing"):
        if key in row:
            return f"{text} {key.upper() if key == 'failed' else key}: {row[key]}"
    if "ms" in row:
        text += f" {row['ms']:9.4f} ms ({row['p20']:.4f} to {row['p80']:.4f})  {rate(row):<18}"
        best = [r["ms"] for r in rows if ours(r) and "ms" in r and same_case(r, row)]
        if best and not ours(row):
            text += f" {row['ms'] / min(best):5.2f}x ours"
    if "error" in row:
        text += f"  error {row['error']:.1e}"
    for key in row:
        text += "" if key in KNOWN else f"  {key} {row[key]}"
    return text.rstrip()
