"""The command under torchrun: who writes, what a checkpoint opens in, what ends all processes."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.ranks import finished, torchrun
from tests.test_train import SMALL, TEXT
from tinylm import checkpoint, config, track
from tinylm.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FP32 = ["train.device=cpu", "train.dtype=float32", "optim.name=adamw", "optim.eps=1e-3"]
COMMAND = ["cats.yaml", *SMALL, *FP32, "checkpoint.keep=9"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder with a small text, so that runs/ and data/ are the test's own."""
    monkeypatch.chdir(tmp_path)
    Path("cats.txt").write_text(TEXT)
    # Not the default recipe, whose batches are of one row.
    Path("cats.yaml").write_text("data: {source: cats.txt}\n")
    return tmp_path


def records(folder, key):
    """{step: value} of the metrics that have `key`."""
    return {r["step"]: r[key] for r in track.read_metrics(Path(folder)) if key in r}


def weights(folder, step):
    """The model of a checkpoint."""
    path = checkpoint.path_of(Path(folder), step)
    return {name: t.clone() for name, t in load_file(path / "model.safetensors").items()}


@pytest.mark.parametrize(("mode", "tied"), [("ddp", "true"), ("fsdp", "false")])
def test_a_run_of_two_goes_on_in_one_and_in_four_and_scores_as_one(mode, tied):
    keys = [*COMMAND, f"model.tied={tied}"]
    two = finished(2, *keys, f"distributed.mode={mode}", "out=two")
    assert two.returncode == 0, two.stderr
    # One process speaks: each of its lines is there once.
    assert [two.stdout.count(word) for word in ("training a bpe", "done  ", "bits per byte: ")] == [
        1,
        1,
        1,
    ]
    train(config.load(keys[0], [*keys[1:], "out=one"]))
    again = "train.resume=two/checkpoints/step-00000008"
    train(config.load(keys[0], [*keys[1:], again, "out=from-one"]))
    four = finished(4, *keys, again, f"distributed.mode={mode}", "out=from-four")
    assert four.returncode == 0, four.stderr
    losses, scores = records("one", "loss"), records("one", "val_loss")
    assert losses.keys() == {1, 2, 4, 6, 8, 10, 12}
    assert records("two", "tokens") == records("one", "tokens")
    for folder in ("two", "from-one", "from-four"):
        found = records(folder, "loss")
        assert found == pytest.approx({step: losses[step] for step in found}, abs=2e-5)
        found = records(folder, "val_loss")
        assert found == pytest.approx({step: scores[step] for step in found}, abs=2e-5)
        torch.testing.assert_close(weights(folder, 12), weights("one", 12), rtol=0, atol=2e-5)
        state = checkpoint.load_training(checkpoint.latest(folder)).optimizer
        expected = checkpoint.load_training(checkpoint.latest("one")).optimizer
        torch.testing.assert_close(state, expected, rtol=0, atol=2e-5)


def test_a_killed_rank_ends_the_others_and_leaves_the_checkpoint_before():
    keys = [*COMMAND, "train.steps=100000", "distributed.mode=fsdp", "checkpoint.every=5"]
    process = started(2, *keys, "out=cut")
    victim = child(process.pid, "1")
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    words = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert time.monotonic() - began < 100
    assert f"error: rank 1 (process {victim}) has ended, so this run cannot go on" in words
    last = checkpoint.step_of(checkpoint.latest("cut"))
    again = finished(2, *COMMAND, f"train.steps={last + 3}", "train.resume=cut", *keys[-2:])
    assert again.returncode == 0, again.stderr
    assert not list(Path("cut/checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("mode", "number", "whom"),
    [("fsdp", signal.SIGINT, "torchrun"), ("ddp", signal.SIGTERM, "rank 1")],
)
def test_a_signal_to_one_process_saves_once_at_one_step_of_all(mode, number, whom):
    keys = [*COMMAND, "train.steps=100000", f"distributed.mode={mode}", "checkpoint.every=0"]
    process = started(2, *keys, "evaluate.every=0", "out=cut")
    os.kill(process.pid if whom == "torchrun" else child(process.pid, "1"), number)
    out, words = process.communicate(timeout=120)
    saved = list(Path("cut/checkpoints").iterdir())
    assert len(saved) == 1, words
    checkpoint.verify(saved[0])
    assert out.count(f"saved cut/checkpoints/{saved[0].name}") == 1
    assert "train.resume=cut" in out
    assert "error: " not in words
    if whom == "rank 1":
        # torchrun names the code of the first that left.
        assert re.search(r"exitcode\s*: 75", words), words


def test_an_error_of_one_rank_before_the_first_step_ends_all(tmp_path):
    (tmp_path / "broken.py").write_text(
        "import os\nif os.environ['RANK'] == '1':\n    raise ValueError('rank 1 breaks')\n"
    )
    began = time.monotonic()
    found = subprocess.run(
        torchrun(2, *COMMAND, "distributed.mode=ddp", "imports=[broken]"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{tmp_path}"},
    )
    assert found.returncode == 1
    assert "rank 1 breaks" in found.stderr
    assert time.monotonic() - began < 100


WATCHED = """
from pathlib import Path
import torch
from tinylm.train.callbacks import CALLBACKS

def on_step(event):
    if event.step == {poisoned}:
        with torch.no_grad():
            event.trainer.model.norm.weight.fill_(float("nan"))
    if event.step == 7 and event.trainer.session.rank == 1:
        event.trainer.ended = True

def on_checkpoint(event):
    with Path(f"told-{{event.trainer.session.rank}}").open("a") as file:
        file.write(f"{{event.step}} {{event.path.name}}\\n")

CALLBACKS.extend([on_step, on_checkpoint])
"""


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_all_ranks_know_what_is_saved_and_one_of_them_may_end_the_run(mode, tmp_path):
    keys = [*COMMAND, f"distributed.mode={mode}", "imports=[watched]", "checkpoint.every=3"]
    env = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{tmp_path}"}
    again = {"capture_output": True, "text": True, "check": False, "timeout": 300, "env": env}
    (tmp_path / "watched.py").write_text(WATCHED.format(poisoned=0))
    found = subprocess.run(torchrun(2, *keys, "out=good", "checkpoint.background=false"), **again)
    assert found.returncode == 0, found.stderr
    told = [Path(f"told-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert told[0] == told[1]
    assert [line.split()[1] for line in told[0]][-1] == "step-00000007"
    assert "3 step-00000003" in told[0]
    (tmp_path / "watched.py").write_text(WATCHED.format(poisoned=5))
    found = subprocess.run(torchrun(2, *keys, "out=bad", "checkpoint.background=false"), **again)
    assert found.returncode == 1
    assert found.stderr.count("is not finite; step 3 is saved") == 2, found.stderr


def started(world, *arguments):
    """The training, when its first step is behind it."""
    process = subprocess.Popen(
        torchrun(world, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        if records("cut", "loss") and max(records("cut", "loss")) > 20:
            return process
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate()[1])


def child(parent, rank):
    """The process of `rank` that `parent` started."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            whose = re.search(r"PPid:\s*(\d+)", (path / "status").read_text())
            known = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if whose and int(whose[1]) == parent and f"RANK={rank}".encode() in known:
            return int(path.name)
    raise AssertionError("no such rank")
