"""Two processes and one folder, at random moments: one wins, the other is told so in one line."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.calling import call
from tests.test_train import SMALL, TEXT, assert_same_weights
from tinylm import checkpoint, config, data, disk, tokenizer
from tinylm.data.__main__ import main as data_main
from tinylm.train.__main__ import main as train_main

TINY = [
    *SMALL,
    *("train.steps=6", "checkpoint.every=1", "evaluate.every=3", "sample.max_tokens=2"),
    *("tokenizer.kind=byte", "model.n_layers=1", "out=run", "data.folder=shards"),
]
LINES = {
    1: r"error: run: in use by (process \d+ on .*|another process): wait for it, or .* out=",
    2: r"error: out=run has become a run while this one was getting ready: .*"
    r"|error: out=run holds a run of this configuration already: .*",
}


# Children are forked from a process that imported everything and computed nothing: after a backward
# pass in the parent, torch refuses one in a forked child.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["pytest", "tinylm.train.pipeline", "tinylm.train.__main__", "tinylm.data.__main__"]
)


def start(main, arguments, log, delay):
    """A process that begins a command in this folder after `delay` seconds."""
    process = FORKS.Process(target=run, args=(main, arguments, log, delay, Path.cwd()))
    process.start()
    return process


def run(main, arguments, log, delay, folder):
    """The whole life of a child: its output goes to `log`, its exit code is the command's."""
    os.chdir(folder)
    time.sleep(delay)
    with open(log, "w") as file:
        sys.stdout = sys.stderr = file
        code = call(main, arguments)
        file.flush()
    # Without the end of Python, in which threads may still write.
    os._exit(code)


def end(process):
    """The exit code of a process, or minus the signal that ended it."""
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run and its shards that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("cats.txt").write_text(TEXT[:6000])
        assert call(train_main, TINY) == 0
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    shutil.copy(whole / "cats.txt", "cats.txt")
    shutil.copy(whole / "run/tokenizer.json", "tokenizer.json")


def times(quick, slow):
    """The quick and the slow number of tries, each a case of its own."""
    return [
        quick,
        pytest.param(slow, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ]


def assert_whole(whole):
    """No file is torn, none is left over, and the weights are those of the undisturbed run."""
    assert_same_weights(whole / "run", Path("run"))
    for path in [*Path("run").iterdir(), *Path("shards").iterdir()]:
        assert not disk.is_leftover(path), path
    assert not list(Path("run/checkpoints").glob(".*"))
    for name in ("train", "val"):
        for _ in data.Dataset.open("shards", split=name).verify():
            pass
    for name in ("samples.txt", "tokenizer.json"):
        ours, theirs = (f / name for f in (Path("run"), whole / "run"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert config.find("run", whole=True)


@pytest.mark.parametrize("tries", times(2, 60))
def test_of_two_trainings_in_one_folder_one_wins_and_the_other_says_why_not(tries, whole, place):
    chance = random.Random(tries)
    for number in range(tries):
        shutil.rmtree("run", ignore_errors=True)
        if number % 2:
            shutil.rmtree("shards", ignore_errors=True)
        words = [[], ["train.resume=auto"]]
        chance.shuffle(words)
        delays = [0.0, chance.choice([0.0, chance.uniform(0, 0.2), chance.uniform(0, 2)])]
        logs = [f"log{k}" for k in (0, 1)]
        processes = [
            start(train_main, [*TINY, *extra], log, delay)
            for extra, log, delay in zip(words, logs, delays, strict=True)
        ]
        codes = [end(process) for process in processes]
        assert 0 in codes, [Path(log).read_text() for log in logs]
        for code, log in zip(codes, logs, strict=True):
            errors = re.findall(r"^error: .*$", Path(log).read_text(), re.MULTILINE)
            assert len(errors) == (code != 0)
            assert code == 0 or re.fullmatch(LINES[code], errors[0]), errors
            assert "Traceback" not in Path(log).read_text()
        assert_whole(whole)


@pytest.mark.parametrize("tries", times(1, 80))
def test_a_run_killed_at_random_moments_beside_another_ends_in_the_same_weights(
    tries, whole, place
):
    chance = random.Random(tries)
    for number in range(tries):
        shutil.rmtree("run", ignore_errors=True)
        shutil.rmtree("shards", ignore_errors=True)
        if number % 4 == 3:
            # A folder elsewhere: the lock is of the folder, whatever its name.
            shutil.rmtree("elsewhere", ignore_errors=True)
            Path("elsewhere").mkdir()
            Path("run").symlink_to("elsewhere")
        first = start(train_main, [*TINY, "train.resume=auto"], "log0", 0.0)
        second = start(train_main, [*TINY, "train.resume=auto"], "log1", chance.uniform(0, 0.5))
        time.sleep(chance.uniform(0, 1.5))
        first.kill()
        # On a busy machine the second may have begun before it: then the first was refused.
        assert end(first) in (0, 1, 2, -signal.SIGKILL)
        assert end(second) in (0, 1, 2)
        code = call(train_main, [*TINY, "train.resume=auto"])
        assert code == 0, Path("log1").read_text()
        assert_whole(whole)
        if Path("run").is_symlink():
            Path("run").unlink()


@pytest.mark.parametrize("tries", times(2, 60))
def test_two_that_prepare_one_folder_both_find_it_whole(tries, whole, place):
    chance = random.Random(tries)
    words = ["prepare", "cats.txt", "--tokenizer", "tokenizer.json", "--out", "shards"]
    for number in range(tries):
        shutil.rmtree("shards", ignore_errors=True)
        delays = (0.0, chance.uniform(0, 0.05))
        killed = number % 3 == 2
        pair = [start(data_main, words, f"log{k}", delay) for k, delay in enumerate(delays)]
        if killed:
            time.sleep(chance.uniform(0, 0.1))
            pair[0].kill()
        codes = [end(process) for process in pair]
        assert codes[1] == 0, Path("log1").read_text()
        assert codes[0] == 0 or killed, Path("log0").read_text()
        for path in (whole / "shards").iterdir():
            if path.suffix == ".bin":
                assert (Path("shards") / path.name).stat().st_size > 0
        for name in ("train", "val"):
            for _ in data.Dataset.open("shards", split=name).verify():
                pass
        assert not [path for path in Path("shards").iterdir() if disk.is_leftover(path)]


def test_a_tokenizer_and_a_checkpoint_of_the_winner_are_whole(whole):
    assert tokenizer.Tokenizer.load(whole / "run/tokenizer.json").vocab_size == 257
    checkpoint.verify(checkpoint.latest(whole / "run"))
