"""The loader's goals, each beside what people use, in one run on this machine.

    python benches/bench_loader.py                  all parts, about ten minutes
    python benches/bench_loader.py warm next        these; also: cold resume memory
    python benches/bench_loader.py --json load.json the figures of every round too

| part   | what it measures                                                                      |
|--------|---------------------------------------------------------------------------------------|
| warm   | tokens per second from the page cache, alone, on one core, and beside a busy core      |
| next   | how long the training loop waits for a batch, and for the first one                    |
| cold   | tokens per second of files that are not in memory, and the bytes read for each byte    |
| resume | the size of a state, and the time from it to a batch                                   |
| memory | what a process holds while it streams a file four times its limit                      |

Every contender must give windows of the same tokens before it is timed. Then rounds: each draws for
a while in turn, and ratios are taken inside a round; reported are the median and the middle half.
Peers are timed where they are installed: `pip install torchdata grain litdata mosaicml-streaming`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loader_peers as peers
import numpy as np
import torch
from loader_peers import BATCH, LENGTH, Rows
from race import OURS, check, middle_half, report

from tinylm.data import Dataset, Loader, ShardWriter
from tinylm.reference import order

VOCAB, EOS, SEED = 50_257, 50_256, 1
TOKENS = BATCH * LENGTH
# What a token costs the memory at least: two bytes read, two numbers of eight bytes written.
BYTES_PER_TOKEN = 2 + 2 * 8
# Of the process of the part `memory`, beyond what it has before it opens the data.
LIMIT = 256 << 20


class Vocabulary:
    """What `ShardWriter` asks a tokenizer for."""

    vocab_size, eos_id, sha256 = VOCAB, EOS, "0" * 64


def written(folder: Path, n_tokens: int, shard_tokens: int = 100_000_000) -> Dataset:
    """Random tokens in documents of about 400, as those of web pages are."""
    random = np.random.default_rng(SEED)
    left = n_tokens
    with ShardWriter(folder, tokenizer=Vocabulary(), shard_tokens=shard_tokens) as writer:
        while left:
            lengths = np.clip(random.lognormal(5.5, 1.0, 20_000).astype(int), 1, 20_000)
            ids = random.integers(0, EOS, int(lengths.sum()), dtype=np.uint16)
            for document in np.split(ids, np.cumsum(lengths)[:-1]):
                size = min(left, len(document) + 1)
                writer.add(document[: size - 1], n_bytes=size)
                left -= size
                if not left:
                    break
    return Dataset.open(folder)


def flat(data: Dataset, path: Path) -> Path:
    """The same tokens as a file of uint16 and nothing else, which the peers read."""
    with path.open("wb") as file:
        for start in range(0, data.n_tokens, 1 << 24):
            data.read(start, min(1 << 24, data.n_tokens - start)).tofile(file)
    return path


def check_rows(data: Dataset) -> None:
    """Our batches hold the windows that the definition names."""
    with Loader(data, batch_size=BATCH, context_length=LENGTH, seed=SEED) as loader:
        for number in range(3):
            batch = next(loader)
            for place in range(BATCH):
                i = number * BATCH + place
                begin = order.start("shuffle", SEED, data.n_tokens, LENGTH, LENGTH, 0, i)
                row = torch.from_numpy(data.read(begin, LENGTH + 1).astype(np.int64))
                same = batch.tokens[place].equal(row[:-1]) and batch.targets[place].equal(row[1:])
                check(same, f"row {i} is another")


def ours(data: Dataset, **settings: Any) -> Callable[[], Iterator[Any]]:
    """Makes our loader."""
    arguments: dict[str, Any] = {"batch_size": BATCH, "context_length": LENGTH, "seed": SEED}
    return lambda: Loader(data, **{**arguments, **settings})


def copy_speed() -> float:
    """Bytes a second that a copy of a large array reads and writes."""
    source = np.ones(1 << 25, np.int64)
    target = np.empty_like(source)
    best = 0.0
    for _ in range(4):
        begin = time.perf_counter()
        np.copyto(target, source)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - begin))
    return best


def raced(contenders: dict[str, Iterator[Any]], rounds: int, seconds: float = 0.5) -> Any:
    """M tokens per second of each in every round, and our speed over it; the first warms up."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, batches in contenders.items():
            begin, n = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds:
                next(batches)
                n += 1
            if number:
                speeds[name].append(n * TOKENS / (time.perf_counter() - begin) / 1e6)
    ahead = speeds[OURS]
    return {
        name: {"speed": found, "ratio": [a / b for a, b in zip(ahead, found, strict=True)]}
        for name, found in speeds.items()
    }


class Title:
    """A race as `race.report` prints it."""

    def __init__(self, name: str) -> None:
        self.name, self.unit = name, "M tokens/s"


def warm(folder: Path, rounds: int) -> dict[str, Any]:
    """From the page cache to int64 inputs and targets."""
    data = written(folder / "shards", 100_000_000)
    path = flat(data, folder / "tokens.bin")
    check_rows(data)
    makers = {OURS: ours(data), **peers.all_of(path, folder)}
    rows = Rows(path)
    iterators = {}
    for name, make in makers.items():
        iterators[name] = iter(make())
        rows.check(name, next(iterators[name]))
    results = {f"warm, {BATCH} x {LENGTH}": raced(iterators, rounds)}
    fastest = {name: iterators[name] for name in (OURS, peers.LOOP)}
    speed = copy_speed()
    beside = [sys.executable, "-c", "while True: pass"]
    cores = sorted(os.sched_getaffinity(0))
    with subprocess.Popen(beside, preexec_fn=lambda: os.sched_setaffinity(0, {cores[-1]})) as busy:
        try:
            results["warm, beside a process that keeps a core busy"] = raced(fastest, rounds)
        finally:
            busy.kill()
    # A new thread runs where its parent may: the loader's too.
    os.sched_setaffinity(0, {cores[0]})
    fastest[OURS] = iter(ours(data)())
    results["warm, all threads on one core"] = raced(fastest, rounds)
    os.sched_setaffinity(0, set(cores))
    for name, result in results.items():
        report(Title(name), result)  # type: ignore[arg-type]
        share = statistics.median(result[OURS]["speed"]) * 1e6 * BYTES_PER_TOKEN / speed
        print(f"  {share:.0%} of what the memory allows ({speed / 1e9:.1f} GB/s in a copy)")
    return results


def waits(batches: Iterator[Any], pause: float, n: int) -> list[float]:
    """Microseconds that `next` takes after the loop was busy for `pause` seconds.

    The first batches, which find nothing in memory, are not counted.
    """
    for _ in range(20):
        next(batches)
    found = []
    for _ in range(n):
        until = time.perf_counter() + pause
        while time.perf_counter() < until:
            pass
        begin = time.perf_counter()
        next(batches)
        found.append((time.perf_counter() - begin) * 1e6)
    return found


def percentiles(values: list[float]) -> str:
    """Median and 99th percentile."""
    return f"median {np.percentile(values, 50):9.1f}, 99% {np.percentile(values, 99):9.1f}"


def next_(folder: Path, rounds: int) -> dict[str, Any]:
    """How long the training loop waits."""
    data = written(folder / "shards", 20_000_000, shard_tokens=20_000)
    path = flat(data, folder / "tokens.bin")
    makers = {OURS: ours(data), **peers.all_of(path, folder)}
    results: dict[str, Any] = {}
    print(f"\nnext() with 2 ms of work between, {BATCH} x {LENGTH}, us")
    for name, make in makers.items():
        found = waits(iter(make()), 0.002, 300 if name != OURS else 1000)
        results[name] = found
        print(f"  {name:<34} {percentiles(found)}")
    print(f"\nconstruction and first batch, {len(data.shards):,} shards for ours, ms")
    for name in makers:
        found = []
        for _ in range(rounds + 1):
            # Opened again, so that no block is known.
            again = Dataset.open(folder / "shards")
            make = ours(again) if name == OURS else makers[name]
            begin = time.perf_counter()
            next(iter(make()))
            found.append((time.perf_counter() - begin) * 1e3)
        results[f"first, {name}"] = found[1:]
        print(f"  {name:<34} median {statistics.median(found[1:]):9.1f}")
    with Loader(data, batch_size=BATCH, context_length=LENGTH) as loader:
        waits(loader, 0.002, 20)
        begin, before = time.perf_counter(), loader.stats()["stall_seconds"]
        for _ in range(100):
            until = time.perf_counter() + TOKENS / 2e6
            while time.perf_counter() < until:
                pass
            next(loader)
        share = (loader.stats()["stall_seconds"] - before) / (time.perf_counter() - begin)
    results["stall"] = share
    print(f"\nwaiting at 2 M tokens/s: {share:.3%} of the time of a step")
    return results


def forget(paths: list[Path]) -> None:
    """Take the files out of the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> int:
    """Bytes that the disk read for this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def cold(folder: Path, rounds: int) -> dict[str, Any]:
    """Files that are not in memory."""
    data = written(folder / "shards", 400_000_000)
    path = flat(data, folder / "tokens.bin")
    files = [*(folder / "shards").glob("*.bin"), path]
    os.sync()
    results: dict[str, Any] = {}
    n = data.n_tokens // TOKENS
    runs = {
        OURS: (lambda: iter(ours(Dataset.open(folder / "shards"))()), n),
        # A few batches: each of its rows costs a read of its own.
        peers.LOOP: (lambda: peers.loop(path, faults=True), 20),
    }
    print(f"\ncold, {data.n_tokens / 1e6:,.0f} M tokens")
    for name, (make, batches) in runs.items():
        speeds, amplified = [], []
        for _ in range(rounds):
            forget(files)
            iterator, before = make(), read_bytes()
            begin = time.perf_counter()
            for _ in range(batches):
                next(iterator)
            took = time.perf_counter() - begin
            del iterator
            speeds.append(batches * TOKENS / took / 1e6)
            amplified.append((read_bytes() - before) / (2 * batches * TOKENS))
        results[name] = {"speed": speeds, "read": amplified}
        low, high = middle_half(speeds)
        print(
            f"  {name:<34} {statistics.median(speeds):8.1f} M tokens/s ({low:.1f} to {high:.1f}), "
            f"{statistics.median(amplified):.2f} bytes read for each that is used"
        )
    return results


def resume(folder: Path, rounds: int) -> dict[str, Any]:
    """From a state to a batch."""
    data = written(folder / "shards", 100_000_000)
    results: dict[str, Any] = {}
    print("\nresume: bytes of state, ms to the first batch at steps all over three epochs")
    for name, settings in (("rows cut anywhere", {}), ("packed rows", {"pack": True})):
        loader = ours(data, **settings)()
        assert isinstance(loader, Loader)
        state = {**loader.state(), "rows": 3 * loader.n_rows}
        steps = np.random.default_rng(SEED).integers(0, state["rows"], 10 * rounds)
        found = []
        for row in steps.tolist():
            begin = time.perf_counter()
            loader.restore({**state, "rows": row})
            next(loader)
            found.append((time.perf_counter() - begin) * 1e3)
        begin = time.perf_counter()
        again = ours(Dataset.open(folder / "shards"), **settings)()
        assert isinstance(again, Loader)
        again.restore({**state, "rows": int(steps[0])})
        next(again)
        fresh = (time.perf_counter() - begin) * 1e3
        size = len(json.dumps({**state, "rows": 2**62}))
        results[name] = {"bytes": size, "ms": found, "process": fresh}
        print(f"  {name:<34} {size} bytes, {percentiles(found)}, with opening {fresh:.1f}")
    for name, size, took in peers.resumed(flat(data, folder / "tokens.bin")):
        results[name] = {"bytes": size, "ms": took}
        print(f"  {name:<34} {size} bytes, {took:.1f}")
    return results


STREAM = """
import os, resource, sys
from tinylm.data import Dataset, Loader

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) << 10

import torch
# What a first batch needs of torch is not the loader's.
torch.from_numpy(__import__("numpy").zeros(4)).sum()
resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + int(sys.argv[2]),) * 2)
before, seen = status("VmRSS"), []
loader = Loader(Dataset.open(sys.argv[1]), batch_size=64, context_length=1024)
for step in range(loader.n_rows // 64):
    next(loader)
    if step % 100 == 99:
        seen.append(status("VmRSS") - before)
half = len(seen) // 2
print(max(seen[:half]), max(seen[half:]))
"""


def memory(folder: Path, rounds: int) -> dict[str, Any]:
    """A process that may set aside 256 MiB streams a file of 1 GiB."""
    written(folder / "shards", 4 * LIMIT // 2)
    out = subprocess.run(
        [sys.executable, "-c", STREAM, folder / "shards", str(LIMIT)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    first, second = (int(size) / 2**20 for size in out.stdout.split())
    print(
        f"\nmemory while a file of {4 * LIMIT >> 20} MiB is streamed under a limit of "
        f"{LIMIT >> 20} MiB: {first:.0f} MiB more than before in the first half, {second:.0f} in "
        "the second"
    )
    return {"first half, MiB": first, "second half, MiB": second}


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "warm": warm,
    "next": next_,
    "cold": cold,
    "resume": resume,
    "memory": memory,
}


def main() -> None:
    """Run the parts named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--folder", help="where the data goes, a disk for `cold`")
    parser.add_argument("--json", type=Path, help="write the figures of every round")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: {', '.join(PARTS)}")
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    figures = {}
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            figures[name] = PARTS[name](Path(folder), options.rounds)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
