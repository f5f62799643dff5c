"""The tokenizer's rows of README.md: everything that it does, against the peers that are installed.

    python benches/bench_tokenizer.py                     all parts, half an hour on two cores
    python benches/bench_tokenizer.py --quick             less text and one vocabulary, minutes
    python benches/bench_tokenizer.py encode lines        these; also: decode train unigram load
    python benches/bench_tokenizer.py --json rows.json    the rows with their spread too

Each part is a bench of its own, which says how it measures and refuses contenders with other
results; here they run one after the other and become one table in Markdown. A ratio is our speed
over theirs, the median of the rounds and in parentheses the middle half. `TINYLM_DATA` names the
folder with the texts and vocabularies.
"""

import argparse
import functools
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_encode
from race import OURS, Race, check, measure, middle_half, report

HERE = Path(__file__).parent
# A peer's ratio: the median, and the borders of the middle half.
Ratio = tuple[float, float, float]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    task: str
    figure: str
    ratios: dict[str, Ratio]
    command: str

    def __str__(self) -> str:
        against = ", ".join(
            f"{middle:.2f}x {name} ({low:.2f} to {high:.2f})"
            for name, (middle, low, high) in self.ratios.items()
        )
        figure = f"{self.figure}: {against}" if against else self.figure
        return f"| {self.task} | {figure} | `{self.command}` |"


def spread(ratios: Sequence[float]) -> Ratio:
    """Median and middle half; of one round all three are that one."""
    low, high = middle_half([*ratios]) if len(ratios) > 1 else (ratios[0], ratios[0])
    return statistics.median(ratios), low, high


def run(bench: str, *words: str) -> dict[str, Any]:
    """The figures of another bench, whose own lines are shown as they come."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, str(HERE / bench), *words, "--json", str(out)]
        subprocess.run(command, check=True)
        return json.loads(out.read_text(encoding="utf-8"))


def corpus(name: str) -> str:
    """The path of a text."""
    return str(bench_encode.data() / "corpora" / f"{name}.txt")


def of_race(results: dict[str, Any], unit: str, digits: int = 0) -> tuple[str, dict[str, Ratio]]:
    """Our speed, and the ratio to each peer, from `race.measure`."""
    speed = statistics.median(results[OURS]["speed"])
    peers = {name: spread(found["ratio"]) for name, found in results.items() if name != OURS}
    return f"{speed:,.{digits}f} {unit}", peers


def encode(options: argparse.Namespace) -> Iterator[Row]:
    """New text and text like it, to NumPy and to lists."""
    texts = ("english",) if options.quick else bench_encode.TEXTS
    found = run("bench_encode.py", *texts, "--rounds", str(options.rounds))
    for name, runs in found.items():
        for state in ("cold", "warm"):
            speed = statistics.median(one[state] for one in runs[OURS])
            ratios = {
                peer: spread([a[state] / b[state] for a, b in zip(runs[OURS], own, strict=True)])
                for peer, own in runs.items()
                if peer != OURS
            }
            text, _, to = name.partition(" to ")
            command = f"python benches/bench_encode.py {text} --to {to}"
            yield Row(f"encode {text} to {to}, {state}", f"{speed:.0f} MB/s", ratios, command)


def lines(options: argparse.Namespace) -> Iterator[Row]:
    """A line by itself, as a server gets them: the time of a call."""
    some = [line for line in bench_encode.text_of("english").split("\n") if line][:2000]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bench_encode.prepare(folder)
        names = [name for name in bench_encode.PEERS["list"] if importlib.util.find_spec(name)]
        encoders = {name: bench_encode.encoder(name, "list", folder) for name in names}
        ids = {name: [list(run(line)) for line in some] for name, run in encoders.items()}
        for name in names:
            check(ids[name] == ids[OURS], f"{name} gives other ids")
        runs = {name: functools.partial(_each, some) for name in names}
        fresh = {name: functools.partial(encoders.__getitem__, name) for name in names}
        race = Race("encode a line", len(some) / 1e3, "thousand lines/s", runs, fresh)
        results = measure(race, options.rounds)
    report(race, results)
    speed, ratios = of_race(results, "thousand lines/s")
    length = statistics.mean(len(line.encode()) for line in some)
    yield Row(f"encode a line of {length:.0f} bytes, warm", speed, ratios, f"{COMMAND} lines")


def _each(some: Sequence[str], encode_one: Callable[[str], Any]) -> None:
    for line in some:
        encode_one(line)


def decode(options: argparse.Namespace) -> Iterator[Row]:
    """Ids to text."""
    path = corpus("english")
    found = run("bench_vocabulary.py", "decode", path, "--rounds", str(options.rounds))
    for name, results in found.items():
        speed, ratios = of_race(results, "MB/s")
        yield Row(name.partition(",")[0], speed, ratios, f"{VOCABULARY} decode {Path(path).name}")


def load(options: argparse.Namespace) -> Iterator[Row]:
    """Files to tokenizers."""
    for name, results in run(
        "bench_vocabulary.py", "load", "--rounds", str(options.rounds)
    ).items():
        milliseconds = 1e3 / statistics.median(results[OURS]["speed"])
        _, ratios = of_race(results, "")
        yield Row(name, f"{milliseconds:.1f} ms", ratios, f"{VOCABULARY} load")


def train(options: argparse.Namespace) -> Iterator[Row]:
    """Text to a vocabulary of merges: processor time of one thread."""
    path = corpus("tinyshakespeare" if options.quick else "english")
    words = ["--size", "4000"] if options.quick else []
    found = run("bench_vocabulary.py", "train", path, "--rounds", str(options.rounds), *words)
    runs = found["rounds"]
    ratios = {
        name: spread([b["cpu"] / a["cpu"] for a, b in zip(runs[OURS], own, strict=True)])
        for name, own in runs.items()
        if name != OURS
    }
    seconds = statistics.median(row["cpu"] for row in runs[OURS])
    megabytes = statistics.median(row["megabytes"] for row in runs[OURS])
    yield Row(
        f"train {found['size']:,} tokens on {found['corpus']}",
        f"{seconds:.2f} s, {megabytes:.0f} MB",
        ratios,
        f"{VOCABULARY} train {found['corpus']}",
    )


def unigram(options: argparse.Namespace) -> Iterator[Row]:
    """Unigram: training and encoding."""
    path = corpus("english")
    words = ["--sizes", "8000", "--megabytes", "4"] if options.quick else []
    found = run("bench_unigram.py", path, "--rounds", str(options.rounds), *words)
    command = f"python benches/bench_unigram.py {Path(path).name}"
    for size, part in found.items():
        peer = "sentencepiece"
        ratio = spread([part["train"][peer] / part["train"][OURS]])
        seconds = f"{part['train'][OURS]:.2f} s"
        yield Row(f"train Unigram, {int(size):,} tokens", seconds, {peer: ratio}, command)
        speed, ratios = of_race(part["encode"], "MB/s", 1)
        yield Row(f"encode with Unigram, {int(size):,} tokens", speed, ratios, command)


COMMAND, VOCABULARY = "python benches/bench_tokenizer.py", "python benches/bench_vocabulary.py"
PARTS = {part.__name__: part for part in (encode, lines, decode, train, unigram, load)}


def machine() -> str:
    """The processor and its cores, and what runs on them."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.machine()
    return (
        f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    )


def main() -> None:
    """Run the parts named, or all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, help="default: 5, or 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="less text: to see that it runs")
    parser.add_argument("--json", type=Path, help="write the rows")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: {', '.join(PARTS)}")
    rows = [row for name in options.parts or PARTS for row in PARTS[name](options)]
    print(f"\n{machine()}; medians of {options.rounds} rounds\n")
    print("| task | figure | command |\n|---|---|---|")
    print(*rows, sep="\n")
    if options.json:
        content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
