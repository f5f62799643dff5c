"""The loader as a thing that starts, waits, is interrupted, forked and ended."""

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.bytes_tokenizer import counting, flat, take
from tinylm.data import Loader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return counting(tmp_path_factory.mktemp("shards"), 9_999)


def test_batches_stay_as_they_were_handed_out(dataset):
    with Loader(dataset, batch_size=8, context_length=64, threads=2, prefetch=2) as loader:
        batches = [next(loader) for _ in range(20)]
        copies = [batch.tokens.clone() for batch in batches]
        for _ in range(20):
            next(loader)
        assert all(b.tokens.equal(copy) for b, copy in zip(batches, copies, strict=True))


def test_a_batch_is_one_block_that_is_filled_again_once_nobody_has_it(dataset):
    with Loader(dataset, batch_size=8, context_length=64, prefetch=2) as loader:
        places = set()
        for _ in range(100):
            batch = next(loader)
            places.add(batch.tokens.data_ptr())
            assert batch.targets.data_ptr() == batch.tokens.data_ptr() + 8 * 64 * 8
        # Two that wait, one in work and one in hand, by the thread and by the consumer.
        assert len(places) <= 8
        row, first = batch.tokens[3], batch.tokens[3].tolist()
        del batch
        # A view of a part holds the whole.
        assert all(row.data_ptr() != next(loader).tokens[3].data_ptr() for _ in range(20))
        assert row.tolist() == first


def test_a_batch_outlives_its_loader(dataset):
    loader = Loader(dataset, batch_size=8, context_length=64)
    batch = next(loader)
    copy = batch.tokens.clone()
    loader.close()
    del loader
    assert batch.tokens.equal(copy)


def test_a_closed_loader_goes_on_where_it_was(dataset):
    arguments = {"batch_size": 8, "context_length": 64}
    straight = flat(take(Loader(dataset, **arguments), 6))
    loader = Loader(dataset, **arguments)
    assert flat(take(loader, 2) + take(loader, 4)) == straight


def alive():
    """How many threads of loaders there are."""
    if not Path("/proc/self/task").exists():
        pytest.skip("counts threads in /proc")
    return sum(
        Path(f"/proc/self/task/{task}/comm").read_text().startswith("tinylm-loader")
        for task in os.listdir("/proc/self/task")
    )


def test_closing_ends_the_threads(dataset):
    before = alive()
    loader = Loader(dataset, batch_size=8, context_length=64, threads=3, prefetch=3)
    next(loader)
    # A thread names itself a moment after it begins.
    while alive() < before + 3:
        time.sleep(0.01)
    loader.close()
    assert alive() == before
    next(loader)
    del loader
    assert alive() == before


@pytest.mark.parametrize(("threads", "prefetch", "started"), [(1024, 2, 2), (2, 9, 2), (5, 1, 1)])
def test_no_more_threads_are_started_than_batches_may_wait(dataset, threads, prefetch, started):
    before = alive()
    with Loader(
        dataset, batch_size=8, context_length=64, threads=threads, prefetch=prefetch
    ) as loader:
        next(loader)
        while alive() < before + started:
            time.sleep(0.01)
        time.sleep(0.05)
        assert alive() == before + started


def test_other_python_threads_run_while_the_loader_waits(dataset):
    """A consumer that waits for ever in `next` would stop this one if it kept the GIL."""
    stream = Loader(dataset, batch_size=1, context_length=32)
    done = threading.Event()
    threading.Thread(target=lambda: (take(stream, 200), done.set())).start()
    assert done.wait(20)


def test_a_forked_child_goes_on_with_the_same_batches(dataset):
    arguments = {"batch_size": 8, "context_length": 64, "threads": 2}
    straight = flat(take(Loader(dataset, **arguments), 4))
    loader = Loader(dataset, **arguments)
    next(loader)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"1" if flat([next(loader) for _ in range(3)]) == straight[1:] else b"0")
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    os.close(reader)
    os.waitpid(child, 0)
    assert flat([next(loader) for _ in range(3)]) == straight[1:]
    loader.close()


def test_a_dataset_can_be_sent_to_another_process(dataset):
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.fingerprint == dataset.fingerprint
    assert copy.read(5, 5).tolist() == dataset.read(5, 5).tolist()


STARVED = """
import os, signal, sys, threading, time
from tinylm.data import Dataset, Loader

# What a shell starts in the background ignores Ctrl-C, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupt():
    global at
    at = time.monotonic()
    signal.raise_signal(signal.SIGINT)

dataset = Dataset.open(sys.argv[1])
loader = Loader(dataset, batch_size=1 << 23, context_length=1, order="random", prefetch=1)
threading.Timer(0.2, interrupt).start()
try:
    next(loader)
except KeyboardInterrupt:
    print(time.monotonic() - at, flush=True)
    os._exit(0)
"""


def test_ctrl_c_is_answered_while_a_batch_is_awaited(dataset):
    """A batch of 8 million rows takes a second or more; the signal comes in the middle of it."""
    run = subprocess.run(
        [sys.executable, "-c", STARVED, dataset.folder],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert float(run.stdout) < 0.5


def test_the_interpreter_ends_with_a_running_loader(dataset):
    script = (
        "import sys; from tinylm.data import Dataset, Loader\n"
        "loader = Loader(Dataset.open(sys.argv[1]), batch_size=4, context_length=32, threads=3)\n"
        "next(loader)"
    )
    run = subprocess.run([sys.executable, "-c", script, dataset.folder], timeout=30, check=False)
    assert run.returncode == 0
