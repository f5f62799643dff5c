"""Quality, size and speed of a run's model under every way to keep it in fewer bits, in one table.

    python benches/bench_quant.py runs/stdlib --out table --train
    python benches/bench_quant.py runs/stdlib --tokens 20000 --only int8 gptq --out /tmp/table
    python benches/bench_quant.py runs/stdlib --out table --part speed

Columns: bytes of the matrices and how many times fewer that is than in float32, bytes of the whole
model and of a cached token; bits per byte of the validation text against float32; how often the
most likely token is that of the float model, and the KL divergence from it in nats per token, both
over the first tokens; greedy tokens per second at batch 1 on one thread, the median of rounds in
which all take their turn; processor seconds that the method took. Rows of a cache read the text
through it, `--chunk` tokens at a time.

Rows that are trained are runs in --runs (default OUT/runs): the settings of the run given and a few
of their own. --train trains those that are not there or not finished. torchao is a peer where it
is installed.

--out keeps all of it: models/, scores.json, table.md, quality_against_size.png. The parts `scores`
and `speed` may be made apart; a row that is made again replaces the older one.
"""

import argparse
import copy
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_cache import read, scored
from matplotlib import pyplot
from quant_rows import KEPT, ROWS, Row
from torch import Tensor
from torch.nn.functional import kl_div

from tinylm import cache, checkpoint, data
from tinylm.config import SampleConfig
from tinylm.data import Dataset
from tinylm.evaluate import evaluate
from tinylm.layers import PackedLinear
from tinylm.layers.lora import matrices
from tinylm.model import Model, inference
from tinylm.quant import Settings, calibration, sensitivity
from tinylm.quant.turning import turn_values
from tinylm.sample import generate
from tinylm.tokenizer import Tokenizer

FIRST, NEW = next(iter(ROWS)), 64
Found = dict[str, dict[str, Any]]
COLORS = dict(zip(dict.fromkeys(row.family for row in ROWS.values()), pyplot.cm.tab10.colors,
                  strict=False))  # type: ignore[attr-defined]  # fmt: skip


def log_probabilities(net: Model, ids: Tensor, chunk: int, kind: str) -> Tensor:
    """ids [N, T] to log probabilities [N T, V], a row at a time; through a cache that rounds."""
    found = []
    with inference(net):
        for row in ids:
            if kind == "contiguous":
                found.append(net(row[None])[0])
                continue
            held = cache.build(net, 1, len(row), kind)
            parts = row[None].split(chunk, 1)
            found.append(torch.cat([net(part, cache=held) for part in parts], 1)[0])
    return torch.cat(found).log_softmax(-1)


def sizes(net: Model, width: int) -> tuple[int, int]:
    """Bytes of the matrices and of everything, where a float takes `width` bytes.

    Scales and numbers of packed matrices take what they take.
    """
    parts = [part for part in net.modules() if isinstance(part, PackedLinear)]
    inner = sum(t.numel() * t.itemsize for part in parts for t in (part.packed, part.scales))
    inner += sum(part.weight.numel() * width for _, part in matrices(net))
    floats = sum(p.numel() * (p.itemsize - width) for p in net.parameters())
    return inner, sum(t.numel() * t.itemsize for t in net.state_dict().values()) - floats


def score(given: argparse.Namespace, base: Model, tokenizer: Tokenizer, found: Found) -> None:
    """Make and score the rows asked for, and keep their models."""
    held_out = Dataset.open(given.shards, split="val")
    rows = calibrated(given, base)
    count = min(given.compared, held_out.n_tokens) // base.context_length * base.context_length
    ids = read(held_out, count).view(-1, base.context_length)
    exact = log_probabilities(base, ids, given.chunk, "contiguous")
    tokens = min(given.tokens or held_out.n_tokens - 1, held_out.n_tokens - 1)
    text = read(held_out, tokens + 1)
    plain_nats = None
    for name, row in asked(given).items():
        start = time.process_time()
        try:
            net = row.make(copy.deepcopy(base), rows, given.runs)
        except (ImportError, OSError, ValueError) as error:
            print(f"{name}: left out: {error}", flush=True)
            continue
        took = time.process_time() - start
        own = log_probabilities(net, ids, given.chunk, row.cache)
        if row.cache == "contiguous":
            bits = evaluate(
                net, held_out, tokenizer=tokenizer, max_tokens=given.tokens
            ).bits_per_byte
        else:
            # Only nats are comparable here: against those of one buffer, read in the same pieces.
            plain_nats = plain_nats or scored(base, text, given.chunk)[0]
            nats = scored(net, text, given.chunk, kind=row.cache)[0]
            bits = found[FIRST]["bits"] * nats / plain_nats
        inner, whole = sizes(net, row.width) if row.ours else (0, 0)
        found[name] = {
            "matrices": inner, "bytes": whole, "bits": bits, "seconds": took,
            "cached": cached_bytes(net, row.cache) * row.width / 4,
            "agreement": float((own.argmax(-1) == exact.argmax(-1)).float().mean()),
            "kl": float(kl_div(own, exact, reduction="batchmean", log_target=True)),
            "tokens": tokens,
        }  # fmt: skip
        if row.ours:
            checkpoint.save(given.out / "models" / name, net, tokenizer)
        change = 100 * (bits / found[FIRST]["bits"] - 1)
        print(f"{name}: {bits:.4f} ({change:+.3f}%), {took:.1f} s", flush=True)
        keep(given.out, found)


def calibrated(given: argparse.Namespace, net: Model) -> Tensor:
    """The rows that `python -m tinylm.quant` calibrates on."""
    settings, length = Settings("gptq"), min(calibration.LENGTH, net.context_length)
    return calibration.rows(Dataset.open(given.shards), settings.rows, length, settings.seed)


def cached_bytes(net: Model, kind: str) -> float:
    """Bytes per token of a full cache of one text, its last token read alone."""
    with inference(net):
        held = cache.build(net, 1, net.context_length, kind)
        ids = torch.zeros(1, net.context_length, dtype=torch.int64)
        for part in (ids[:, :-1], ids[:, -1:]):
            net.hidden(
                net.embed(part),
                net.context(part.size(1), tokens=part, cache=held),
            )
            held.advance(part.size(1))
        return held.stats().bytes / net.context_length


def speed(given: argparse.Namespace, base: Model, found: Found) -> None:
    """Tokens per second of each row whose model is kept, in alternating rounds."""
    prompt = read(Dataset.open(given.shards, split="val"), 16).tolist()
    nets: dict[str, Model] = {}
    for name, row in asked(given).items():
        if name in found and row.ours:
            nets[name] = checkpoint.load(given.out / "models" / name, verify=False)[0]
            if row.width == 2:
                for parameter in nets[name].parameters():
                    parameter.data = parameter.data.bfloat16()
        elif name in found:
            nets[name] = row.make(copy.deepcopy(base), torch.empty(0), given.runs)
    settings = SampleConfig(temperature=0, max_tokens=NEW)
    times: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(given.rounds + 1):
        for name, net in nets.items():
            start = time.perf_counter()
            ids = generate(net, [prompt], replace(settings, cache=ROWS[name].cache))[0]
            times[name].append((time.perf_counter() - start) / len(ids))
    for name, each in times.items():
        # The first round makes what later ones keep.
        found[name]["speed"] = 1 / statistics.median(each[1:])
    keep(given.out, found)


def asked(given: argparse.Namespace) -> dict[str, Row]:
    """The rows to make; the first always."""
    wanted = tuple(given.only or [""])
    return {n: row for n, row in ROWS.items() if n == FIRST or n.startswith(wanted)}


def train(given: argparse.Namespace, base: Model) -> None:
    """Train the runs of the rows asked for, each in a process of its own."""
    runs = dict.fromkeys(tuple(row.train) for row in asked(given).values() if row.train)
    kept = sensitive(given, base) if any(KEPT in word for run in runs for word in run) else ""
    for name, *settings in runs:
        settings = [word.replace(KEPT, kept) for word in settings]
        words = [str(given.run / "config.yaml"), f"out={given.runs / name}", *settings]
        words += ["train.resume=auto", f"data.folder={given.shards}"]
        words += [f"tokenizer.path={given.run / 'tokenizer.json'}"]
        print(f"training {name}: {' '.join(settings)}", flush=True)
        subprocess.run([sys.executable, "-m", "tinylm.train", *words], check=True)


def sensitive(given: argparse.Namespace, base: Model) -> str:
    """The names of the matrices that `python -m tinylm.quant` leaves in int8, for a setting."""
    net = copy.deepcopy(base)
    for block in net.blocks:
        turn_values(block)
    settings = Settings("int4")
    rows = calibrated(given, net)
    return ",".join(sensitivity.kept(net, rows, settings.group, settings.keep))


def keep(out: Path, found: Found) -> None:
    """Write the scores so far."""
    (out / "scores.json").write_text(json.dumps(found, indent=1) + "\n")


def table(found: Found, run: str) -> str:
    """The rows found so far, in their order."""
    plain = found[FIRST]
    lines = [
        f"{platform.processor() or platform.machine()}, one thread, load "
        f"{os.getloadavg()[0]:.0f}, torch {torch.__version__}; "
        f"{plain['tokens']:,} validation tokens of {run}\n",
        "| | method | matrices, bytes | fewer | model, bytes | a cached token | bits per byte | "
        "change | same argmax | KL, nats | tokens/s | seconds |",
        f"|{'---|' * 12}",
    ]
    for number, name in enumerate(ordered(found)):
        row = found[name]
        mass = " | | "
        if row["matrices"]:
            times = plain["matrices"] / row["matrices"]
            mass = f"{row['matrices']:,.0f} | {times:.2f}x | {row['bytes']:,.0f}"
        lines.append(
            f"| {number} | {name} | {mass} | {row['cached']:,.0f} | {row['bits']:.4f} | "
            f"{change(found, name):+.3f}% | {row['agreement']:.2%} | {row['kl']:.5f} | "
            f"{format(row['speed'], ',.0f') if 'speed' in row else ''} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def ordered(found: Found) -> list[str]:
    """The names of the rows found, as in `ROWS`."""
    return [name for name in ROWS if name in found]


def change(found: Found, name: str) -> float:
    """Bits per byte above the first row, in percent."""
    return 100.0 * (found[name]["bits"] / found[FIRST]["bits"] - 1)


def draw(found: Found, path: Path) -> None:
    """Bits per byte above float32 against bytes, of the model and of a cached token.

    A point has the number of its row in the table, whose names stand beside it.
    """
    figure, axes = pyplot.subplots(
        1, 2, figsize=(12, 6), layout="constrained", width_ratios=(4, 1), sharey=True
    )
    labels: dict[str, str] = {}
    points: dict[int, tuple[float, float]] = {}
    for number, name in enumerate(ordered(found)):
        if found[name]["bytes"]:
            of_cache = ROWS[name].family == "cache"
            x = found[name]["cached"] if of_cache else found[name]["bytes"] / 1e6
            # Below this all is noise of rounding.
            points[number] = x, max(change(found, name), 0.005)
    for number, (x, y) in points.items():
        name = ordered(found)[number]
        family = ROWS[name].family
        place = axes[int(family == "cache")]
        right = is_right(points, number)
        place.plot(x, y, "o", markersize=5, color=COLORS[family])
        side = (5 if right else -5, -3)
        place.annotate(str(number), (x, y), xytext=side, textcoords="offset points", fontsize=8,
                       ha="left" if right else "right", color=COLORS[family])  # fmt: skip
        labels[f"{number}  {name}"] = COLORS[family]
    for place, what in zip(axes, ("model, MB", "cache, bytes per token"), strict=True):
        place.set(xlabel=what, yscale="log")
        place.grid(alpha=0.3, which="both")
        place.margins(x=0.08 if place is axes[0] else 0.2)
        place.yaxis.set_major_formatter("{x:g}")
    axes[0].set_xscale("log")
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].xaxis.set_minor_formatter("{x:g}")
    axes[0].set_ylabel("bits per byte above float32, % (0.005 and less at the bottom)")
    handles = [pyplot.Line2D([], [], marker="o", ls="", markersize=4, color=c)
               for c in labels.values()]  # type: ignore[attr-defined]  # fmt: skip
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)


def is_right(points: dict[int, tuple[float, float]], number: int) -> bool:
    """Whether a point's label goes to its right: away from the point that is nearest in height."""
    x, y = points[number]
    others = [other for other in points if other != number]
    if not others:
        return True
    near = min(others, key=lambda other: abs(math.log(points[other][1] / y)))
    return x > points[near][0] or (x == points[near][0] and number < near)


def main() -> None:
    """Make, score and time the rows asked for, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--part", choices=("all", "scores", "speed", "table"), default="all")
    parser.add_argument("--only", nargs="+", help="rows whose name begins so")
    parser.add_argument("--runs", type=Path, help="trained rows; default OUT/runs")
    parser.add_argument("--train", action="store_true", help="train the rows that are missing")
    parser.add_argument("--shards", type=Path, help="default: those that the run was trained on")
    parser.add_argument("--tokens", type=int, help="validation tokens to score; default all")
    parser.add_argument("--compared", type=int, default=2**14, help="tokens for argmax and KL")
    parser.add_argument("--chunk", type=int, default=16, help="tokens at a time of a cache's rows")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    given.runs = given.runs or given.out / "runs"
    base, tokenizer = checkpoint.load(given.run, dtype=torch.float32)
    given.shards = given.shards or data.recorded(given.run)
    if tokenizer is None or given.shards is None:
        raise SystemExit("error: the run's tokenizer or shards are missing: name some by --shards")
    if given.train:
        train(given, base)
    kept = given.out / "scores.json"
    found: Found = json.loads(kept.read_text()) if kept.is_file() else {}
    if given.part in ("all", "scores"):
        score(given, base, tokenizer, found)
    if given.part in ("all", "speed"):
        speed(given, base, found)
    text = table(found, given.run.name)
    (given.out / "table.md").write_text(text)
    draw(found, given.out / "quality_against_size.png")
    print(text)


if __name__ == "__main__":
    main()
