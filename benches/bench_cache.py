"""What the kinds of caches cost: bits per byte, memory, and what is still found after eviction.

    python benches/bench_cache.py quality --model RUN --data SHARDS    bits per byte of each kind
    python benches/bench_cache.py recall [--model RUN --data SHARDS]   a fact must be kept
    python benches/bench_cache.py memory --out memory.png              bytes against context
    python benches/bench_cache.py prefix waste                         blocks, and what they share

quality reads every window of a run's validation text through the cache, `--chunk` tokens at a
time: a token sees what the cache has kept of the text before its chunk, and the chunk itself. The
first row is the score of `python -m tinylm.evaluate`, which reads windows without a cache: a window
must have the same logits before anything is scored. recall trains small models on the task of
`recall.py`, a seed each, and asks them after the cache was cut; with a run, the perplexity of its
text with caches cut alike stands beside it, for the record: there the newest tokens matter, and no
choice of older ones is rewarded.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import recall as task
import torch
from cache_prefix import prefix, waste
from race import check
from torch import Tensor
from torch.nn.functional import cross_entropy

from tinylm import cache, checkpoint, model
from tinylm.config import ModelConfig
from tinylm.data import Dataset
from tinylm.model import Model, inference

Kinds = dict[str, dict[str, Any]]
# Rows of the tables: a name, the kind and its options.
QUALITY: Kinds = {
    "contiguous": {"kind": "contiguous"},
    "int8": {"kind": "int8"},
    "int8, keys per channel": {"kind": "int4", "bits": 8},
    "int4": {"kind": "int4"},
    "int4, tail of 32": {"kind": "int4", "tail": 32},
    "int4, groups of 64": {"kind": "int4", "group": 64},
}
CHOICES: Kinds = {
    "window": {"kind": "window", "first": 0},
    "window, 4 first": {"kind": "window", "first": 4},
    "random": {"kind": "random"},
    "h2o": {"kind": "h2o"},
    "snapkv, no pooling": {"kind": "snapkv", "pool": 1},
    "snapkv": {"kind": "snapkv"},
}
BUDGETS, ASKED = (24, 16, 8), 512
# Of a text: tokens that are read at once, tokens that follow one at a time, and the budget.
PROMPT, AFTER, KEPT, TEXTS = 128, 128, 64, 32
CONTEXTS, BUDGET = (128, 256, 512, 1024, 2048, 4096), 256
MEMORY: Kinds = {
    "contiguous": {"kind": "contiguous"},
    "paged": {"kind": "paged"},
    "int8": {"kind": "int8"},
    "int4": {"kind": "int4"},
    f"window of {BUDGET}": {"kind": "window", "budget": BUDGET},
    f"snapkv, {BUDGET}": {"kind": "snapkv", "budget": BUDGET},
    f"h2o, {BUDGET}": {"kind": "h2o", "budget": BUDGET},
    f"random, {BUDGET}": {"kind": "random", "budget": BUDGET},
}


def quality(options: argparse.Namespace) -> None:
    """Bits per byte of a run's validation text, read through each kind of cache."""
    net, dataset = opened(options)
    tokens = min(options.tokens or dataset.n_tokens, dataset.n_tokens)
    ids = read(dataset, tokens)
    # Bits per byte of a part: as if the rest of the text were like it.
    share = (dataset.n_bytes or 1) * (tokens - 1) / (dataset.n_tokens - 1)
    window = next(whole_windows(ids, net.context_length, rows=1))[:, :-1]
    with inference(net):
        held = cache.build(net, 1, window.size(1))
        parts = torch.cat([net(part, cache=held) for part in window.split(options.chunk, 1)], 1)
        check(torch.allclose(parts, net(window), rtol=0, atol=1e-3), "logits of one buffer")
    print(f"{tokens - 1} tokens in windows of {net.context_length}, {options.chunk} at a time")
    print("| cache | bits per byte | change | same choice | bytes per token | seconds |")
    print("|---|---|---|---|---|---|")
    plain: tuple[float, Tensor] | None = None
    for name, chosen in QUALITY.items():
        start = time.perf_counter()
        nats, choices, stored = scored(net, ids, options.chunk, **chosen)
        seconds = time.perf_counter() - start
        plain = plain or (nats, choices)
        change, same = nats / plain[0] - 1, (choices == plain[1]).double().mean().item()
        row = f"| {name} | {nats / math.log(2) / share:.5f} | {change:+.4%} | {same:.2%} |"
        print(f"{row} {stored:.0f} | {seconds:.0f} |", flush=True)


def scored(net: Model, ids: Tensor, chunk: int, **chosen: Any) -> tuple[float, Tensor, float]:
    """Nats of all targets, the likeliest token at each, and bytes per token of a full cache."""
    nats, choices, stored = 0.0, [], 0.0
    for windows in whole_windows(ids, net.context_length, rows=8):
        inputs, targets = windows[:, :-1], windows[:, 1:]
        with inference(net):
            held = cache.build(net, len(inputs), inputs.size(1), **chosen)
            parts = [net(part, cache=held) for part in torch.split(inputs, chunk, 1)]
            logits = torch.cat(parts, 1).flatten(0, 1)
            losses = cross_entropy(logits, targets.flatten(), reduction="none")
            nats += losses.double().sum().item()
            choices.append(logits.argmax(-1))
            stored = stored or held.stats().bytes_per_token
    return nats, torch.cat(choices), stored


def whole_windows(ids: Tensor, size: int, rows: int) -> Iterator[Tensor]:
    """Windows [R, size + 1] of the text, and the rest of it as a last, shorter one."""
    count = (len(ids) - 1) // size
    for first in range(0, count, rows):
        last = min(count, first + rows)
        yield ids[: count * size + 1].unfold(0, size + 1, size)[first:last]
    if count * size + 1 < len(ids):
        yield ids[count * size :][None]


def recall(options: argparse.Namespace) -> None:
    """The share of facts that are found after the cache was cut, by kind and budget."""
    asked, nets = task.questions(ASKED, 0), []
    for seed in range(options.seeds):
        start = time.perf_counter()
        nets.append(task.trained(seed))
        full = task.found(nets[-1], asked, "contiguous")
        print(
            f"seed {seed}: {time.perf_counter() - start:.0f} s, full cache {full:.3f}", flush=True
        )
        check(full > 0.98, f"the model of seed {seed} has learned the task")
    print(f"| budget of {task.PROMPT} | {' | '.join(CHOICES)} |")
    print(f"|---|{'---|' * len(CHOICES)}")
    for budget in BUDGETS:
        cells = []
        for chosen in CHOICES.values():
            shares = [task.found(net, asked, budget=budget, **chosen) for net in nets]
            cells.append(f"{statistics.mean(shares):.3f} ({min(shares):.3f})")
        print(f"| {budget} | {' | '.join(cells)} |", flush=True)
    if options.model is not None:
        perplexity(options)


def perplexity(options: argparse.Namespace) -> None:
    """What cutting does to the loss of a text, which mostly needs its newest tokens."""
    net, dataset = opened(options)
    size = PROMPT + AFTER
    check(net.context_length >= size, f"the model reads {size} tokens")
    step = (dataset.n_tokens - 1) // TEXTS
    texts = read(dataset, dataset.n_tokens).unfold(0, size + 1, step)[:TEXTS]
    print(f"\n{TEXTS} texts: {PROMPT} tokens at once, {AFTER} one at a time, {KEPT} kept")
    plain = 0.0
    for name, chosen in ({"full": {"kind": "contiguous"}} | CHOICES).items():
        kept = {} if name == "full" else {"budget": KEPT}
        if name == "random":
            # As many of the newest as h2o keeps: without them chance loses by far.
            kept["recent"] = KEPT // 2
        with inference(net):
            held = cache.build(net, len(texts), size, **chosen, **kept)
            logits = [net(texts[:, :PROMPT], cache=held)[:, -1]]
            logits += [net(texts[:, at : at + 1], cache=held)[:, -1] for at in range(PROMPT, size)]
        targets = texts[:, PROMPT:].flatten()
        loss = cross_entropy(torch.stack(logits, 1).flatten(0, 1), targets).item()
        plain = plain or loss
        print(f"{name:20} perplexity {math.exp(loss):8.2f} {math.exp(loss - plain) - 1:+8.1%}")


def memory(options: argparse.Namespace) -> None:
    """Bytes of a cache of one text against its length, as a table and a picture."""
    config = ModelConfig(vocab_size=2048, d_model=192, n_layers=3, n_heads=3)
    kinds: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
        name: (torch.float32, chosen) for name, chosen in MEMORY.items()
    }
    kinds["contiguous, bfloat16"] = torch.bfloat16, MEMORY["contiguous"]
    found: dict[str, list[int]] = {}
    for name, (dtype, chosen) in kinds.items():
        found[name] = [
            stored_bytes(replace(config, context_length=length), dtype, chosen)
            for length in CONTEXTS
        ]
    wanted = [2 * config.n_layers * config.d_model * 4 * length for length in CONTEXTS]
    check(found["contiguous"] == wanted, "bytes of one buffer")
    print(f"| KiB at tokens | {' | '.join(map(str, CONTEXTS))} |\n|---|{'---|' * len(CONTEXTS)}")
    for name, bytes in found.items():
        print(f"| {name} | {' | '.join(f'{each / 1024:.0f}' for each in bytes)} |")
    draw(found, options.out)


def stored_bytes(config: ModelConfig, dtype: torch.dtype, chosen: dict[str, Any]) -> int:
    """Bytes of a cache that has read a text of the context's length, its last token alone."""
    net = model.build(config, dtype=dtype)
    ids = torch.randint(2048, (1, config.context_length))
    with inference(net):
        held = cache.build(net, 1, config.context_length, **chosen)
        for part in (ids[:, :-1], ids[:, -1:]):
            net(part, cache=held)
    return held.stats().bytes


def draw(found: dict[str, list[int]], path: str) -> None:
    """A line per kind, both axes by powers of 2; kinds of equal bytes share one."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names: dict[tuple[int, ...], list[str]] = {}
    for name, bytes in found.items():
        names.setdefault(tuple(bytes), []).append(name)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    # From the largest on, as they lie in the picture; lines on top are thinner.
    lines = sorted(names.items(), key=lambda line: line[0][-1], reverse=True)
    for number, ((bytes, alike), mark) in enumerate(zip(lines, "osD^vPX*<", strict=False)):
        axes.plot(
            CONTEXTS,
            [each / 1024 for each in bytes],
            marker=mark,
            markersize=6,
            markerfacecolor="none",
            linewidth=3 - 0.3 * number,
            label=" and ".join(alike),
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(CONTEXTS, [str(length) for length in CONTEXTS])
    sizes = [2**power for power in range(7, 16, 1)]
    axes.set_yticks(
        sizes, [f"{size} KiB" if size < 1024 else f"{size // 1024} MiB" for size in sizes]
    )
    axes.set_ylim(2**7, 2**14.5)
    axes.set(xlabel="tokens of a text", title="Memory of the cache of the default model")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    print(f"drawn: {path}")


def opened(options: argparse.Namespace) -> tuple[Model, Dataset]:
    """The model in float32 and its validation text."""
    if options.model is None or options.data is None:
        raise SystemExit("give --model RUN and --data, the folder of its shards")
    net, _ = checkpoint.load(options.model, dtype=torch.float32)
    return net, Dataset.open(options.data, split="val")


def read(dataset: Dataset, tokens: int) -> Tensor:
    """The first tokens of a dataset, int64."""
    return torch.from_numpy(np.asarray(dataset.read(0, tokens)).astype(np.int64))


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "quality": quality,
    "recall": recall,
    "memory": memory,
    "prefix": lambda options: prefix(options.rounds),
    "waste": lambda _: waste(),
}


def main() -> None:
    """Run the parts named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="+", metavar="PART", choices=PARTS, help=", ".join(PARTS))
    parser.add_argument("--model", help="folder of a run")
    parser.add_argument("--data", help="folder of its shards")
    parser.add_argument("--tokens", type=int, help="quality: only the first so many")
    parser.add_argument("--chunk", type=int, default=16, help="quality; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="recall; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="prefix; default: %(default)s")
    parser.add_argument("--out", default="memory.png", help="memory; default: %(default)s")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in options.parts:
        PARTS[name](options)


if __name__ == "__main__":
    main()
