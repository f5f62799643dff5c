"""What a mixture costs: processor time per row, the first batch after a resume, bytes of state.

    python benches/bench_mixture.py                  15 rounds
    python benches/bench_mixture.py --json out.json  the figures of every round too

Rows of 8 tokens, so that finding a row is most of the work; their tokens lie in the page cache and
are the same for all: the sources of a mixture are one dataset several times. A round takes the
processor time of all threads per row. The cost of a mixture is what it takes above its source
alone, by the medians of the rounds.

The first batch is that of 8 rows of 1,024 tokens, from `restore` to the tensors, at random rows of
the first 2^40 with a new loader each time; opening the loader, which takes no longer for a later
step, is not in it.

Before anything is timed, the rows of a source in each mixture are compared with those it has alone.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinylm.data import Dataset, Loader, ShardWriter

TOKENS, LENGTH, BATCH, BATCHES = 4_000_000, 8, 2048, 600
ALONE = "one source alone"


class Counted:
    """As much of a tokenizer as a writer of shards needs."""

    vocab_size, eos_id, sha256 = 50_000, 49_999, "0" * 64


def dataset(folder: Path) -> Dataset:
    """Random tokens in documents of 100 to 1,000."""
    draws = np.random.default_rng(0)
    with ShardWriter(folder, tokenizer=Counted()) as writer:  # type: ignore[arg-type]
        left = TOKENS
        while left > 0:
            size = int(draws.integers(100, 1000))
            writer.add(draws.integers(0, 49_999, size), n_bytes=1)
            left -= size + 1
    return Dataset.open(folder)


def loaders(data: Dataset, **settings: Any) -> dict[str, Loader]:
    """The contenders: weights of a mixture are in the ratio 1 : 2 : ... : S."""
    found = {ALONE: Loader(data, **settings)}
    for sources in (1, 2, 50):
        weights = [*range(1, sources + 1)]
        found[f"{sources} in a mixture"] = Loader([data] * sources, weights=weights, **settings)
    return found


def check(contenders: dict[str, Loader]) -> None:
    """Stop unless the first source of every mixture has its rows in their order."""
    alone = contenders[ALONE]
    for name, loader in contenders.items():
        given, i = 0, 0
        while given < 5:
            before = loader.given(i)[0]["rows"]
            if loader.given(i + 1)[0]["rows"] > before:
                same = loader.row(0, i)[0].equal(alone.row(0, given)[0])
                assert same, f"{name}: row {i} is not row {given} of its first source"
                given += 1
            i += 1


def per_row(loader: Loader) -> float:
    """Nanoseconds of processor time per row."""
    next(loader)
    begin = time.process_time_ns()
    for _ in range(BATCHES):
        next(loader)
    return (time.process_time_ns() - begin) / (BATCHES * BATCH)


def first_batch(make: Any, times: int) -> list[float]:
    """Milliseconds from `restore` to a batch, at random rows."""
    draws, found = random.Random(1), []
    for _ in range(times):
        loader = make()
        state = {**loader.state(), "rows": draws.randrange(2**40)}
        begin = time.perf_counter()
        loader.restore(state)
        next(loader)
        found.append(1000 * (time.perf_counter() - begin))
        loader.close()
    return found


def main() -> None:
    """Compare, time and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures of every round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = dataset(Path(folder))
        common: dict[str, Any] = {"batch_size": BATCH, "context_length": LENGTH, "seed": 3}
        contenders = loaders(data, **common)
        check(contenders)
        rounds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, loader in contenders.items():
                rounds[name].append(per_row(loader))
        for name, taken in rounds.items():
            more = statistics.median(taken) - statistics.median(rounds[ALONE])
            print(
                f"{name:18} {statistics.median(taken):6.1f} ns per row ({min(taken):.1f} to "
                f"{max(taken):.1f}), {more:+.1f}"
            )
        for loader in contenders.values():
            loader.close()
        firsts: dict[str, list[float]] = {}
        for pack in (False, True):
            settings: dict[str, Any] = {"batch_size": 8, "context_length": 1024, "pack": pack}
            for name in contenders:
                firsts[f"{name}{', packed' * pack}"] = first_batch(
                    lambda name=name, settings=settings: loaders(data, **settings)[name], 40
                )
        for name, taken in firsts.items():
            print(
                f"{name:26} first batch {statistics.median(taken):5.2f} ms, at most "
                f"{max(taken):.2f}"
            )
        state = {**contenders["50 in a mixture"].state(), "rows": 2**62 - 1}
        print(f"state of 50 sources: {len(json.dumps(state))} bytes")
    if options.json:
        figures = {"ns_per_row": rounds, "first_batch_ms": firsts}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
