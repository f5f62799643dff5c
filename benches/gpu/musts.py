"""What the kernels must reach, as data: each demand, the cases that show it, and its limit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benches.gpu.job import At, label
from benches.gpu.report import Row, ours

# Sections of one card: name to file.
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """One case of a demand: where, the value, and whether it is enough."""

    where: str
    value: float
    reached: bool


def anywhere(at: At) -> bool:
    """Every case of a family."""
    return True


@dataclass(frozen=True)
class Must:
    """A demand: `figure` of the fastest of ours is at least `least` in every case of a family.

    With `peer`, the peer's figure divided by ours: 1.25 with "ms" is 1.25 times as fast, 8 with
    "mib" an eighth of the memory. With `base`, our figure divided by ours in that family. Of
    "equal" every one of ours counts, and true is 1. `ours` and `peer` are beginnings of names.
    """

    words: str
    section: str
    family: str
    figure: str
    least: float
    at: Callable[[At], bool] = anywhere
    ours: str = "tinylm"
    peer: str = ""
    base: str = ""
    # An aim is reported like a demand, and is none.
    aim: bool = False

    def find(self, results: Results) -> Iterator[Finding]:
        """A finding per case that was measured."""
        bases = [best(rows, self.ours) for rows in cases_of(results, self.section, self.base)]
        for rows in cases_of(results, self.section, self.family):
            if not self.at(rows[0]["at"]):
                continue
            where = f"{self.family} {label(rows[0]['at'])}"
            if self.figure == "equal":
                for row in rows:
                    if ours(row) and "equal" in row:
                        yield self._finding(f"{where}: {row['name']}", float(row["equal"]))
                continue
            mine = best(rows, self.ours)
            other = best(rows, self.peer) if self.peer else next(iter(bases), None)
            if mine is None or self.figure not in mine:
                # A kernel that was wrong or died has no time, and has not reached anything.
                if any(row["name"].startswith(self.ours) and "failed" in row for row in rows):
                    yield self._finding(f"{where}: failed", 0.0)
                continue
            if not self.peer and not self.base:
                yield self._finding(f"{where}: {mine['name']}", mine[self.figure])
            elif other is not None and self.figure in other:
                ratio = (mine, other) if self.base else (other, mine)
                value = ratio[0][self.figure] / max(ratio[1][self.figure], 1e-9)
                name = self.base or f"{mine['name']} and {other['name']}"
                yield self._finding(f"{where}: {name}", value)

    def _finding(self, where: str, value: float) -> Finding:
        return Finding(where, value, value >= self.least)


def cases_of(results: Results, section: str, family: str) -> list[list[Row]]:
    """The rows of a family, case by case."""
    cases: dict[str, list[Row]] = {}
    for row in results.get(section, {}).get("rows", []):
        if row["family"] == family:
            cases.setdefault(label(row["at"]), []).append(row)
    return list(cases.values())


def best(rows: list[Row], name: str) -> Row | None:
    """The fastest timed row whose name begins with `name`."""
    found = [row for row in rows if row["name"].startswith(name) and "ms" in row]
    return min(found, key=lambda row: row["ms"], default=None)


def verdict(must: Must, results: Results) -> tuple[str, list[Finding]]:
    """ "reached", "not reached", "not measured" or "reached so far", and the findings.

    "so far" is said of a section that did not get to its end.
    """
    found = list(must.find(results))
    if not found:
        return "not measured", found
    if not all(f.reached for f in found):
        return "not reached", found
    return "reached" if results[must.section]["complete"] else "reached so far", found


def lines(results: Results) -> Iterator[str]:
    """A line per demand with its verdict, and under it its cases."""
    for must in MUSTS:
        said, found = verdict(must, results)
        yield f"{'aim ' if must.aim else ''}{said}: {must.words}"
        for finding in found:
            mark = " " if finding.reached else "!"
            yield f"   {mark} {finding.value:8.2f} of {must.least:g}  {finding.where}"


def wide_heads(at: At) -> bool:
    """Heads of 128."""
    return at["head"] == 128


def narrow_heads(at: At) -> bool:
    """Heads of 64."""
    return at["head"] == 64


def long_rows(at: At) -> bool:
    """Heads of 128, from 4,096 tokens."""
    return wide_heads(at) and int(at["tokens"]) >= 4096


def large_cache(at: At) -> bool:
    """Caches over 256 MB."""
    return int(at["cache_mb"]) > 256


def lone_row(at: At) -> bool:
    """One row, or one text."""
    return at["rows"] == 1


MUSTS = (
    Must(
        "RMSNorm forward, 32,768 rows of 1,024 to 8,192: 92% of copy bandwidth",
        *("norms", "rms_norm forward", "percent", 92),
    ),
    Must(
        "RMSNorm backward, the same rows: 85% of copy bandwidth",
        *("norms", "rms_norm backward", "percent", 85),
    ),
    Must(
        "attention forward, heads of 128: the portable kernel 1.25x torch's flash backend",
        *("attention", "attention forward", "ms", 1.25, wide_heads, "tinylm portable"),
        peer="SDPA FLASH",
    ),
    Must(
        "attention forward, heads of 128: the portable kernel 0.70x cuDNN",
        *("attention", "attention forward", "ms", 0.70, wide_heads, "tinylm portable"),
        peer="SDPA CUDNN",
    ),
    Must(
        "attention forward, heads of 64: 0.9x cuDNN",
        *("attention", "attention forward", "ms", 0.9, narrow_heads),
        peer="SDPA CUDNN",
    ),
    Must(
        "attention forward, heads of 128, from 4k tokens: Hopper's kernel 0.95x cuDNN",
        *("attention", "attention forward", "ms", 0.95, long_rows, "tinylm hopper"),
        peer="SDPA CUDNN",
        aim=True,
    ),
    Must(
        "attention backward, heads of 128: 1.05x torch's flash backend",
        *("attention_backward", "attention backward", "ms", 1.05, wide_heads),
        peer="SDPA FLASH",
    ),
    Must(
        "attention backward: 20 runs give the same bits",
        *("attention_backward", "attention backward", "equal", 1),
    ),
    *(
        Must(
            f"packed documents of 16k tokens, {way}: 90% of the rate of equal rows",
            *("packed", f"documents {way}", "tflops", 0.90),
            base=f"equal rows {way}",
        )
        for way in ("forward", "backward")
    ),
    *(
        Must(
            f"packed documents of 16k tokens, {way}: 1.2x FlexAttention",
            *("packed", f"documents {way}", "ms", 1.2),
            peer="FlexAttention",
        )
        for way in ("forward", "backward")
    ),
    *(
        Must(
            f"a window of 1,024 at 16k tokens, {way}: at most 1.15x its share of the whole row",
            *("packed", f"window {way}", "tflops", 1 / 1.15),
            base=f"long row {way}",
        )
        for way in ("forward", "backward")
    ),
    *(
        Must(
            f"decoding from a cache over 256 MB, {kind}: 80% of copy bandwidth",
            *("decode", f"decode {kind}", "percent", 80, large_cache),
        )
        for kind in ("contiguous", "paged", "int8")
    ),
    Must(
        "decoding one row of 32k tokens: 2x SDPA",
        *("decode", "decode contiguous", "ms", 2.0, lone_row),
        peer="SDPA",
    ),
    Must(
        "head and cross-entropy, 16k tokens: at most 1.10x the time of all logits at once",
        *("loss", "loss", "ms", 1 / 1.10),
        peer="unchunked eager",
    ),
    Must(
        "head and cross-entropy, 16k tokens: at most 1/8 of their extra memory",
        *("loss", "loss", "mib", 8),
        peer="unchunked eager",
    ),
    Must(
        "head and cross-entropy, 16k tokens: at most 1.10x the time of the compiled form",
        *("loss", "loss", "ms", 1 / 1.10),
        peer="unchunked compiled",
        aim=True,
    ),
    Must(
        "products of 1 to 8 rows with weights of 8 bits: 80% of copy bandwidth",
        *("products", "product W8", "percent", 80),
    ),
    Must(
        "products of 1 to 8 rows with weights of 4 bits: 70% of copy bandwidth",
        *("products", "product W4", "percent", 70),
    ),
    Must(
        "a training step of 124M parameters: 1.10x the one with SDPA and all logits",
        *("step", "step", "ms", 1.10),
        peer="SDPA",
    ),
    Must(
        "a training step of 124M parameters: at most 0.7x its peak memory",
        *("step", "step", "peak_mib", 1 / 0.7),
        peer="SDPA",
    ),
    Must(
        "decoding, 124M parameters, one text: 3,000 tokens per second",
        *("generate", "generate", "tokens_per_second", 3000, lone_row),
    ),
    Must(
        "decoding, 124M parameters, one text: 5,000 tokens per second",
        *("generate", "generate", "tokens_per_second", 5000, lone_row),
        aim=True,
    ),
    Must(
        "decoding, 124M parameters, one text: 8x our own loop of single operations",
        *("generate", "generate", "ms", 8.0, lone_row),
        peer="eager loop",
    ),
    Must(
        'decoding, 124M parameters, one text: 1.5x `torch.compile(mode="reduce-overhead")`',
        *("generate", "generate", "ms", 1.5, lone_row),
        peer="torch.compile",
    ),
)
