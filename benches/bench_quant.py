"""Quality, size and speed of a run's model under every way to quantise it, in one table.

    python benches/bench_quant.py runs/stdlib
    python benches/bench_quant.py runs/stdlib --tokens 20000 --only int8 gptq --out /tmp/table

Columns: bytes of the matrices and how many times fewer that is than in float32, bytes of the whole
model; bits per byte of the validation text against float32; how often the most likely token is that
of the float model, and the KL divergence from it in nats per token, both over the first tokens;
greedy tokens per second at batch 1 on one thread, the median of rounds in which all take their
turn; seconds that the method took. torchao is a peer where it is installed.

Writes table.md and quality_against_size.png to --out.
"""

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib import pyplot
from torch import Tensor, nn
from torch.nn.functional import kl_div

from tinylm import checkpoint, data
from tinylm.config import SampleConfig
from tinylm.evaluate import evaluate
from tinylm.layers import PackedLinear
from tinylm.layers.lora import matrices
from tinylm.model import Model, inference
from tinylm.quant import Settings, calibration, quantise
from tinylm.sample import generate

NEW = 64
Make = Callable[[Model, Tensor], None]


def by(method: str, **settings: object) -> Make:
    """A row of our own: a method with these settings."""

    def make(net: Model, rows: Tensor) -> None:
        chosen = Settings(method, **settings)  # type: ignore[arg-type]
        quantise(net, chosen, rows if chosen.calibrates else None)

    return make


def torchao(config: Callable[[], object]) -> Make:
    """A row of torchao: its own weights in plain `nn.Linear`s, the embedding in float."""

    def make(net: Model, rows: Tensor) -> None:
        from torchao.quantization import quantize_

        for name, part in [*matrices(net)]:
            plain = nn.Linear(part.in_features, part.out_features, bias=part.bias is not None)
            plain.weight, plain.bias = part.weight, part.bias
            parent, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(parent), leaf, plain)
        quantize_(net, config())

    return make


def ao_int8() -> object:
    """int8 per row."""
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def ao_int4() -> object:
    """int4 in groups of 32, by the largest magnitude."""
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))


def float32(net: Model, rows: Tensor) -> None:
    """The model as it is."""


PLAIN = {"turn": False, "keep": 0.0}
# A new method is a new row.
ROWS: dict[str, Make] = {
    "float32": float32,
    "int8": by("int8"),
    "int8, not turned": by("int8", turn=False),
    "static int8": by("static"),
    "int4 g32 absmax": by("int4", clip=False, **PLAIN),
    "int4 g32 clip": by("int4", **PLAIN),
    "int4 g32 clip, turned": by("int4", keep=0.0),
    "int4 g32 clip, turned, 12% int8": by("int4"),
    "int4 g64 clip, turned, 12% int8": by("int4", group=64),
    "gptq g32": by("gptq", **PLAIN),
    "gptq g32, turned": by("gptq", keep=0.0),
    "gptq g32, turned, 12% int8": by("gptq"),
    "awq g32, turned, 12% int8": by("awq"),
    "torchao int8 (matrices)": torchao(ao_int8),
    "torchao int4 g32 (matrices)": torchao(ao_int4),
}


def logits(net: Model, ids: Tensor) -> Tensor:
    """ids [N, T] to log probabilities [N T, V], a row at a time."""
    with inference(net):
        return torch.cat([net(row[None])[0].log_softmax(-1) for row in ids])


def sizes(net: Model) -> tuple[int, int]:
    """Bytes of the matrices and of everything; 0 for what is no tensor of ours."""
    parts = [part for part in net.modules() if isinstance(part, PackedLinear)]
    inner = sum(t.numel() * t.itemsize for part in parts for t in (part.packed, part.scales))
    inner += sum(part.weight.numel() * part.weight.itemsize for _, part in matrices(net))
    return inner, sum(t.numel() * t.itemsize for t in net.state_dict().values())


def seconds_of(net: Model, prompt: list[int]) -> float:
    """Seconds for `NEW` greedy tokens."""
    start = time.perf_counter()
    generate(net, [prompt], SampleConfig(temperature=0, max_tokens=NEW))
    return time.perf_counter() - start


def draw(found: dict[str, dict[str, float]], path: Path) -> None:
    """Bits per byte above float32 against bytes of the model, a point for each row."""
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, row in found.items():
        if name == "float32" or not row["bytes"]:
            continue
        axes.scatter(row["bytes"] / 1e6, row["change"], s=24)
        axes.annotate(name, (row["bytes"] / 1e6, row["change"]), fontsize=7,
                      xytext=(4, 3), textcoords="offset points")  # fmt: skip
    axes.set_xlabel("model, MB")
    axes.set_ylabel("bits per byte above float32, %")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)


def main() -> None:
    """Make, score and time every row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--shards", type=Path, help="default: those that the run was trained on")
    parser.add_argument("--tokens", type=int, help="validation tokens to score; default all")
    parser.add_argument("--compared", type=int, default=2**14, help="tokens for argmax and KL")
    parser.add_argument("--only", nargs="+", help="rows whose name begins so")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("."))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    base, tokenizer = checkpoint.load(given.run, dtype=torch.float32)
    shards = given.shards or data.recorded(given.run)
    if tokenizer is None or shards is None:
        raise SystemExit("error: the run's tokenizer or shards are missing: name some by --shards")
    held_out = data.Dataset.open(shards, split="val")
    length = min(calibration.LENGTH, base.context_length)
    rows = calibration.rows(data.Dataset.open(shards), 64, length, 0)
    count = min(given.compared, held_out.n_tokens) // base.context_length * base.context_length
    read = torch.from_numpy(held_out.read(0, count).astype("int64"))
    ids = read.view(-1, base.context_length)
    exact, prompt = logits(base, ids), ids[0, :16].tolist()
    found: dict[str, dict[str, float]] = {}
    nets: dict[str, Model] = {}
    wide = sizes(base)[0]
    for name, make in ROWS.items():
        if given.only and name != "float32" and not name.startswith(tuple(given.only)):
            continue
        net = copy.deepcopy(base)
        start = time.perf_counter()
        try:
            make(net, rows)
        except (ImportError, ValueError) as error:
            print(f"{name}: left out: {error}", flush=True)
            continue
        took = time.perf_counter() - start
        scores = evaluate(net, held_out, tokenizer=tokenizer, max_tokens=given.tokens)
        own, bits = logits(net, ids), scores.bits_per_byte
        inner, whole = sizes(net) if "torchao" not in name else (0, 0)
        found[name] = {
            "matrices": inner, "bytes": whole, "bits": bits, "seconds": took,
            "change": 100 * (bits / found["float32"]["bits"] - 1) if found else 0.0,
            "agreement": float((own.argmax(-1) == exact.argmax(-1)).float().mean()),
            "kl": float(kl_div(own, exact, reduction="batchmean", log_target=True)),
        }  # fmt: skip
        nets[name] = net
        print(f"{name}: {bits:.4f} ({found[name]['change']:+.3f}%), {took:.1f} s", flush=True)
    speeds: dict[str, list[float]] = {name: [] for name in nets}
    for number in range(given.rounds + 1):
        for name, net in nets.items():
            speed = NEW / seconds_of(net, prompt)
            if number:
                speeds[name].append(speed)
    lines = [
        f"{platform.processor() or platform.machine()}, one thread, load "
        f"{os.getloadavg()[0]:.0f}, torch {torch.__version__}; "
        f"{given.tokens or held_out.n_tokens:,} validation tokens of {given.run.name}\n",
        "| method | matrices, bytes | fewer | model, bytes | bits per byte | change | "
        "same argmax | KL, nats | tokens/s | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        times = f"{wide / row['matrices']:.2f}x" if row["matrices"] else ""
        mass = f"{row['matrices']:,.0f} | {times} | {row['bytes']:,.0f}"
        lines.append(
            f"| {name} | {mass if row['matrices'] else ' | | '} | {row['bits']:.4f} | "
            f"{row['change']:+.3f}% | {row['agreement']:.2%} | {row['kl']:.5f} | "
            f"{statistics.median(speeds[name]):.0f} | {row['seconds']:.1f} |"
        )
    (given.out / "table.md").write_text("\n".join(lines) + "\n")
    draw(found, given.out / "quality_against_size.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
