"""One global order: no kill, resume or other number of ranks loses a row or gives one twice.

A case is a chain of processes, each with its own batch size, ranks, threads and batches ahead. Each
goes on from the state that the one before it left, whose later batches are lost. What all of them
get together is `Loader.row`, which knows no stream, row by row.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.bytes_tokenizer import VOCAB, Bytes
from tinylm.data import Dataset, Loader, ShardWriter

# Tokens of the sources: with rows of up to 40 tokens, epochs of 3 to 2,000 rows.
SIZES = (120, 700, 2_000)


def written(folder, number, n_tokens):
    """A dataset in which no token but eos comes twice, in a range of its own."""
    rng = np.random.default_rng(number)
    at, end = 10_000 * number, 10_000 * number + n_tokens
    with ShardWriter(folder, tokenizer=Bytes(VOCAB), shard_tokens=500) as writer:
        while at < end:
            size = int(rng.integers(1, 50))
            writer.add(np.arange(at, min(at + size, end)), n_bytes=1)
            at += size
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return [written(tmp_path_factory.mktemp("shards"), *each) for each in enumerate(SIZES)]


# Batch size, ranks (at most that many), batches of it, threads, batches ahead, the rank whose state
# is saved, and batches after that which are lost.
STAGES = st.tuples(
    st.integers(1, 24),
    st.integers(1, 5),
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(0, 2),
)
WEIGHTS = st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any)
MIXTURES = st.dictionaries(st.sampled_from([300, 600, 900]), WEIGHTS, max_size=2)
ROWS = st.fixed_dictionaries(
    {
        "order": st.sampled_from(["shuffle", "sequential", "random"]),
        "pack": st.booleans(),
        "mask_eos": st.booleans(),
        "context_length": st.integers(1, 40),
        "seed": st.integers(0, 2**64 - 1),
        "dtype": st.sampled_from(["int64", "int32", "uint16"]),
    }
).map(
    lambda rows: {
        **rows,
        "order": "shuffle" if rows["pack"] and rows["order"] == "random" else rows["order"],
        "dtype": "int32" if rows["pack"] and rows["dtype"] == "uint16" else rows["dtype"],
    }
)
CASES = st.tuples(
    ROWS,
    # One source alone, or all in shares that may change at some rows.
    st.integers(0, 2) | st.builds(lambda first, rest: {0: first, **rest}, WEIGHTS, MIXTURES),
    st.lists(STAGES, min_size=2, max_size=4),
    # Where the first process begins: at the start, far on, or some rows before the end of an epoch
    # or of a block.
    st.integers(0, 2) | st.integers(0, 2**40),
    st.integers(0, 40),
)


def holds(datasets, case):
    """Check one chain of processes."""
    rows, sources, stages, begin, before = case

    def open_loader(**more):
        if isinstance(sources, int):
            return Loader(datasets[sources], **rows, **more)
        return Loader(datasets, weights=sources, **rows, **more)

    whole = open_loader(batch_size=1)
    n = whole.n_rows if isinstance(sources, int) else 256
    first = at = max(0, begin * n - before)
    state = {**whole.state(), "rows": first}
    found = []
    for batch_size, ranks, steps, threads, prefetch, saves, lost in stages:
        world = min(ranks, batch_size)
        loaders = [
            open_loader(
                batch_size=batch_size,
                rank=rank,
                world_size=world,
                threads=threads,
                prefetch=prefetch,
            )
            for rank in range(world)
        ]
        for loader in loaders:
            loader.restore(json.loads(json.dumps(state)))
        for _ in range(steps):
            parts = [next(loader).long() for loader in loaders]
            # Row k of a batch is row k // world of rank k % world.
            found += [
                (parts[k % world].tokens[k // world], parts[k % world].targets[k // world])
                for k in range(batch_size)
            ]
        state = loaders[saves % world].state()
        at += steps * batch_size
        assert state["rows"] == at
        assert len(json.dumps(state)) <= 256
        for loader in loaders:
            for _ in range(lost):
                next(loader)
            loader.close()
    for number, (tokens, targets) in enumerate(found, first):
        epoch, i = divmod(number, n) if isinstance(sources, int) else (0, number)
        expected = whole.row(epoch, i)
        assert torch.equal(tokens, expected[0]), number
        assert torch.equal(targets, expected[1]), number


def property_of(n):
    return settings(
        max_examples=n, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


@given(CASES)
@property_of(10)
def test_a_chain_of_resumes_is_one_order(datasets, case):
    holds(datasets, case)


@pytest.mark.slow
@given(CASES)
@property_of(1000)
def test_a_thousand_chains_of_resumes_are_one_order(datasets, case):
    holds(datasets, case)


@given(
    st.booleans(),
    st.sampled_from(["shuffle", "sequential"]),
    st.integers(1, 24),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(0, 2**30),
)
@property_of(10)
def test_an_epoch_ends_for_all_ranks_with_every_row_given_once(
    datasets, pack, order, batch_size, ranks, length, number
):
    world = min(ranks, batch_size)
    loaders = [
        Loader(
            datasets[1],
            batch_size=batch_size,
            context_length=length,
            pack=pack,
            order=order,
            rank=rank,
            world_size=world,
        )
        for rank in range(world)
    ]
    batches = [list(loader.epoch(number)) for loader in loaders]
    n = loaders[0].n_rows
    assert {len(of_rank) for of_rank in batches} == {-(-n // batch_size)}
    given_rows = [
        batches[k % world][step].targets[k // world].tolist()
        for step in range(-(-n // batch_size))
        for k in range(batch_size)
    ]
    assert given_rows[:n] == [loaders[0].row(number, i)[1].tolist() for i in range(n)]
    # What fills the last batch up counts nothing.
    assert {target for row in given_rows[n:] for target in row} <= {-100}
    # No id but eos comes twice in the text. The last shuffled window begins early.
    if pack or order == "sequential":
        ids = [t for row in given_rows for t in row if t not in (-100, VOCAB - 1)]
        assert len(ids) == len(set(ids)) >= SIZES[1] - 1


@pytest.mark.parametrize("pack", [False, True])
def test_every_source_of_a_mixture_gives_every_row_once_per_epoch(datasets, pack):
    loader = Loader(datasets, weights=[3, 2, 2], batch_size=1, context_length=30, pack=pack, seed=7)
    counts = [{}, {}, {}]
    for i in range(900):
        row = tuple(loader.row(0, i)[0].tolist())
        source = max(token for token in row if token < VOCAB - 1) // 10_000
        counts[source][row] = counts[source].get(row, 0) + 1
    loader.restore({**loader.state(), "rows": 900})
    for seen, source in zip(counts, loader.stats()["sources"], strict=True):
        # Each as often as the source has had epochs, or once more.
        assert sum(seen.values()) == source["rows"]
        assert set(seen.values()) <= {int(source["epochs"]), int(source["epochs"]) + 1}


CHILD = """
import hashlib, json, os, sys
from tinylm.data import Dataset, Loader

folders, settings, stage, log, place = map(json.loads, sys.argv[1:])
batch_size, world, threads, prefetch = stage
sources = [Dataset.open(folder) for folder in folders]
loaders = [
    Loader(sources, **settings, batch_size=batch_size, rank=rank, world_size=world,
           threads=threads, prefetch=prefetch)
    for rank in range(world)
]
if os.path.exists(place):
    for loader in loaders:
        loader.restore(json.load(open(place)))
rows = loaders[0].state()["rows"]
with open(log, "a") as lines:
    while True:
        parts = [next(loader) for loader in loaders]
        for k in range(batch_size):
            row = parts[k % world]
            pair = row.tokens[k // world].tolist(), row.targets[k // world].tolist()
            print(rows + k, hashlib.sha256(repr(pair).encode()).hexdigest(), file=lines)
        rows += batch_size
        lines.flush()
        if rows % 3 == 0:
            with open(place + ".part", "w") as file:
                json.dump(loaders[-1].state(), file)
            os.replace(place + ".part", place)
"""


@pytest.mark.slow
@pytest.mark.parametrize("pack", [False, True])
def test_processes_that_are_killed_at_random_moments_go_on_in_one_order(datasets, tmp_path, pack):
    import hashlib

    rows = {
        "weights": [5, 3, 1],
        "context_length": 24,
        "seed": 11,
        "pack": pack,
        "mask_eos": True,
    }
    log, place = tmp_path / "log", tmp_path / "place"
    draws = random.Random(5)
    for stage in ([6, 1, 2, 4], [9, 3, 1, 1], [4, 4, 3, 2], [24, 5, 2, 3], [1, 1, 1, 4]):
        words = [[str(d.folder) for d in datasets], rows, stage, str(log), str(place)]
        before = log.stat().st_size if log.exists() else 0
        child = subprocess.Popen([sys.executable, "-c", CHILD, *map(json.dumps, words)])
        try:
            # A kill before the first row would say nothing.
            while (log.stat().st_size if log.exists() else 0) == before:
                assert child.poll() is None
                time.sleep(0.005)
            time.sleep(draws.uniform(0, 0.1))
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
    found = [line.split() for line in log.read_text().splitlines()]
    # A kill may tear a line.
    found = [(int(line[0]), line[1]) for line in found if len(line) == 2 and len(line[1]) == 64]
    loader = Loader(datasets, **rows, batch_size=1)
    expected = {}
    for number in {number for number, _ in found}:
        pair = tuple(part.tolist() for part in loader.row(0, number))
        expected[number] = hashlib.sha256(repr(pair).encode()).hexdigest()
    assert all(expected[number] == digest for number, digest in found)
    # From the first row on without a gap, whoever gave them; some after a state were given again.
    assert sorted(expected) == list(range(len(expected)))
    assert len(found) > len(expected) > 100
