"""Training on a shared machine: tokens per second by thread policy, alone and beside other work.

    python benches/bench_shared.py                       3 rounds of 120 steps
    python benches/bench_shared.py --rounds 1 --steps 40

Each measurement is a run of `python -m tinylm.train` with its default settings, compiled, in a
process of its own; policies are environment variables of GNU's OpenMP, which torch's wheels for
Linux bring. A policy says how long a thread that has nothing to do spins before it sleeps. The busy
process is a loop in pure Python. In a round every policy runs once alone and once beside it.

Before a speed is printed, all policies of several threads must give the same losses, bit for bit.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from race import check

# Without any variable GNU's OpenMP spins 300,000 turns. The number is spelled out for torch's
# default, because TinyLM may choose another one when no variable is set.
POLICIES: dict[str, dict[str, str]] = {
    "tinylm's default": {},
    "torch's default, spin 300,000": {"GOMP_SPINCOUNT": "300000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
# What a worker must not inherit: it would change the policies.
CHOSEN_BY_POLICY = ("OMP_", "GOMP_", "KMP_", "MKL_")
# Steps between two records, and the last step that is left out: compilation falls into the first.
WINDOW, WARM_UP = 10, 20
# Seconds until a run counts as stuck: many times what 120 steps take beside a busy process.
PATIENCE = 900


@contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone when the block is left, also by Ctrl-C."""
    running = subprocess.Popen(command, **options)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def records(path: Path) -> list[dict[str, float]]:
    """The whole lines of metrics.jsonl."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def trained(policy: str, folder: Path, steps: int) -> list[dict[str, float]]:
    """The records of a run's first `steps` steps under a policy; then the run is killed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(CHOSEN_BY_POLICY)}
    with tempfile.TemporaryDirectory(dir=folder) as run:
        command = [
            *(sys.executable, "-m", "tinylm.train", "train.compile=true"),
            *(f"out={run}/run", f"data.folder={folder / 'data'}", f"track.every={WINDOW}"),
            *("track.names=[jsonl]", "evaluate.every=0", "checkpoint.every=0"),
        ]
        log, end = Path(run, "log"), time.monotonic() + PATIENCE
        with (
            log.open("wb") as output,
            process(
                command, env=environment | POLICIES[policy], stdout=output, stderr=output
            ) as worker,
        ):
            found: list[dict[str, float]] = []
            while not found or found[-1]["step"] < steps:
                if worker.poll() is not None or time.monotonic() > end:
                    said = log.read_text(encoding="utf-8", errors="replace").strip()
                    raise SystemExit(f"error: {policy}: no step {steps}: {said[-500:]}")
                time.sleep(0.2)
                found = records(Path(run, "run", "metrics.jsonl"))
        return [record for record in found if record["step"] <= steps]


def speed(found: list[dict[str, float]]) -> float:
    """Median tokens per second of the records after the warm-up."""
    return statistics.median(r["tokens_per_second"] for r in found if r["step"] > WARM_UP)


def measure(folder: Path, rounds: int, steps: int) -> dict[str, list[tuple[float, float]]]:
    """Tokens per second (alone, beside a busy process) of each policy in each round."""
    speeds: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
    losses: list[float] = []
    for _ in range(rounds):
        for policy, measured in speeds.items():
            alone = trained(policy, folder, steps)
            with process([sys.executable, "-c", "while True: pass"]):
                busy = trained(policy, folder, steps)
            for found in (alone, busy):
                each = [record["loss"] for record in found]
                # One thread adds in another order.
                if "OMP_NUM_THREADS" not in POLICIES[policy]:
                    losses = losses or each
                    check(each == losses, f"losses of {policy}")
            measured.append((speed(alone), speed(busy)))
            print(f"  {policy:<30} {measured[-1][0]:8.0f} {measured[-1][1]:8.0f}", file=sys.stderr)
    return speeds


def report(speeds: dict[str, list[tuple[float, float]]]) -> None:
    """A line per policy: medians of the rounds, with their lowest and highest in brackets."""
    best = [max(alone for alone, _ in round_) for round_ in zip(*speeds.values(), strict=True)]
    print("| policy | tokens/s alone | of the best | tokens/s busy | busy / alone |")
    print("|---|---|---|---|---|")
    for policy, measured in speeds.items():
        columns = (
            spread([alone for alone, _ in measured], ",.0f"),
            spread([alone / top for (alone, _), top in zip(measured, best, strict=True)], ".2f"),
            spread([busy for _, busy in measured], ",.0f"),
            spread([busy / alone for alone, busy in measured], ".2f"),
        )
        print(f"| {policy} | {' | '.join(columns)} |")


def spread(values: list[float], form: str) -> str:
    """The median, and the lowest and the highest in brackets."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})"


def main() -> None:
    """Measure every policy and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=120, help="default: %(default)s")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: it must be at least 1")
    if options.steps < WARM_UP + WINDOW:
        parser.error(f"--steps {options.steps}: it must be at least {WARM_UP + WINDOW}")
    # A terminated bench must end its processes as Ctrl-C does: the busy one would run for ever.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Records come every WINDOW steps: stop at the last of them.
    steps = options.steps // WINDOW * WINDOW
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}: "
        f"medians of {options.rounds} rounds, steps {WARM_UP + 1} to {steps}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        report(measure(Path(folder), options.rounds, steps))


if __name__ == "__main__":
    main()
