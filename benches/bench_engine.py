"""Continuous batching against a static batch, and what a request waits for, in one run.

    python benches/bench_engine.py                         256 requests of the default shape
    python benches/bench_engine.py --shape 110m --requests 64 --rounds 1

The workload is that of nano-vllm's benchmark, scaled to a small model: prompts and outputs of
U(16, 112) tokens each, 32 rows. Static: `generate` over as many prompts of the mean length, which
get the mean number of tokens; their rows have one length throughout and end together, which is the
best that a batch can be: attention has even less to do than for lengths that vary about the mean.
Sorted: the requests by their size, 32 by 32, each batch of its own mean lengths, which is near the
same work. Continuous: an `Engine` takes all requests at once. Throughput counts the tokens read and
drawn per second of this process's CPU time; every contender runs once per round, in alternation,
and the medians are compared. Before anything is timed, some requests of the engine must have the
ids that each has alone.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from bench_sample import built
from race import check

from tinylm import sample
from tinylm.config import ModelConfig, SampleConfig
from tinylm.model import Model
from tinylm.sample.engine import Engine, EngineStats

LEAST, MOST, ROWS = 16, 112, 32
VOCAB = 2048
SHAPES = {
    "default": ModelConfig(vocab_size=VOCAB),
    "110m": ModelConfig(vocab_size=32000, d_model=768, n_layers=12, n_heads=12),
}


def workload(count: int) -> list[tuple[list[int], int]]:
    """Prompts, and how many tokens each is to get."""
    random_ = random.Random(0)
    return [
        (
            [random_.randrange(VOCAB) for _ in range(random_.randint(LEAST, MOST))],
            random_.randint(LEAST, MOST),
        )
        for _ in range(count)
    ]


def continuous(
    net: Model, requests: list[tuple[list[int], int]], cache: str
) -> tuple[list[list[int]], EngineStats, list[float]]:
    """The ids of each request, the counts of the engine, and the seconds of each step."""
    engine = Engine(net, cache=cache, max_batch=ROWS, max_tokens=ROWS * 2 * MOST)
    for number, (prompt, new) in enumerate(requests):
        engine.add(prompt, SampleConfig(temperature=1.0, max_tokens=new), prompt=number)
    seconds, found = [], {}
    while engine.live:
        start = time.process_time()
        engine.step()
        seconds.append(time.process_time() - start)
        found |= {ended.number: ended.ids for ended in engine.take_ended()}
    return [found[number] for number in range(len(requests))], engine.stats(), seconds


def static(net: Model, requests: list[tuple[list[int], int]], *, by_size: bool) -> int:
    """Decode batches of the mean lengths, of all or of their own; the tokens read and drawn."""
    if by_size:
        requests = sorted(requests, key=lambda request: len(request[0]) + request[1])
    random_, total = random.Random(1), 0
    for start in range(0, len(requests), ROWS):
        batch = requests[start : start + ROWS]
        some = batch if by_size else requests
        length = round(statistics.mean(len(prompt) for prompt, _ in some))
        new = round(statistics.mean(new for _, new in some))
        prompts = [[random_.randrange(VOCAB) for _ in range(length)] for _ in batch]
        sample.generate(net, prompts, SampleConfig(temperature=1.0, max_tokens=new))
        total += len(batch) * (length + new)
    return total


def speed(run: Callable[[], int]) -> float:
    """Tokens per second of CPU time."""
    start = time.process_time()
    tokens = run()
    return tokens / (time.process_time() - start)


def main() -> None:
    """Compare both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--shape", choices=SHAPES, default="default", help="default: %(default)s")
    parser.add_argument("--caches", nargs="*", default=["contiguous", "paged"])
    options = parser.parse_args()
    net, requests = built(SHAPES[options.shape]), workload(options.requests)
    total = sum(len(prompt) + new for prompt, new in requests)
    for cache in options.caches:
        ids, _, _ = continuous(net, requests[: 2 * ROWS], cache)
        for i in range(8):
            engine = Engine(net, cache=cache, max_batch=1)
            prompt, new = requests[i]
            engine.add(prompt, SampleConfig(temperature=1.0, max_tokens=new), prompt=i)
            while engine.live:
                engine.step()
            check(engine.take_ended()[0].ids == ids[i], f"ids of request {i}, {cache}")
    statics = {"static": False, "sorted": True}
    speeds: dict[str, list[float]] = {name: [] for name in (*statics, *options.caches)}
    waits: dict[str, list[float]] = {cache: [] for cache in options.caches}
    for _ in range(options.rounds):
        for name, by_size in statics.items():
            speeds[name].append(speed(partial(static, net, requests, by_size=by_size)))
        for cache in options.caches:
            start = time.process_time()
            _, stats, seconds = continuous(net, requests, cache)
            speeds[cache].append(total / (time.process_time() - start))
            waits[cache] += seconds
            preempted = stats.preempted
    medians = {name: statistics.median(each) for name, each in speeds.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(requests)} requests")
    for name, tokens in medians.items():
        line = f"{name:12} {tokens:8,.0f} tokens/s  {tokens / medians['static']:6.1%} of static"
        if name in waits:
            cuts = statistics.quantiles(waits[name], n=100)
            line += f"  step p50 {1e3 * cuts[49]:.1f} ms, p99 {1e3 * cuts[98]:.1f} ms"
            line += f", {preempted} preempted"
        print(line)


if __name__ == "__main__":
    main()
