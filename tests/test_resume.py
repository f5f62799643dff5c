"""Kill a run at random moments: what it resumes to is what it would have been, bit for bit."""

import random
import subprocess
import sys
import time

import pytest

from tests.test_train import SMALL, TEXT, assert_same_weights

STEPS, KILLS = 400, 10


def command(folder, *overrides):
    return [sys.executable, "-m", "tinylm.train", *SMALL, f"out={folder}", *overrides]


def newest(folder):
    """The step of the newest checkpoint there, sound or not."""
    names = [path.name for path in (folder / "checkpoints").glob("step-*")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def kill_past(process, folder, step, delay):
    """SIGKILL a run `delay` seconds after its checkpoint of `step` or a later one shows."""
    while newest(folder) < step and process.poll() is None:
        time.sleep(0.01)
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_sigkill_at_random_moments_and_resume_ends_in_the_same_weights(tmp_path, compiled):
    (tmp_path / "cats.txt").write_text(TEXT)
    long = [f"train.steps={STEPS}", "checkpoint.every=7", f"train.compile={compiled}"]
    long += ["model.dropout=0.1"]
    subprocess.run(command("whole", *long), cwd=tmp_path, check=True, capture_output=True)
    again = command("cut", "train.resume=auto", *long)
    chance, at = random.Random(0), []
    while len(at) < KILLS:
        process = subprocess.Popen(
            again, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # A tenth of the way further; every third time while it imports, prepares or compiles.
        early = len(at) % 3 == 2
        target = 0 if early else newest(tmp_path / "cut") + chance.randint(7, STEPS // KILLS)
        delay = chance.uniform(0.5, 6.0) if early else chance.uniform(0.0, 0.3)
        if kill_past(process, tmp_path / "cut", min(target, STEPS - 14), delay):
            at.append(newest(tmp_path / "cut"))
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(f"compile={compiled}: {KILLS} kills, the newest checkpoints then of the steps {at}")
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
