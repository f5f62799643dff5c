"""Kill a run at random moments: what it resumes to is what it would have been, bit for bit."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.test_train import SMALL, TEXT, assert_same_weights

KILLS = 10


def command(folder, *overrides):
    return [sys.executable, "-m", "tinylm.train", *SMALL, f"out={folder}", *overrides]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_sigkill_at_random_moments_and_resume_ends_in_the_same_weights(tmp_path, compiled):
    (tmp_path / "cats.txt").write_text(TEXT)
    long = ["train.steps=400", "checkpoint.every=7", f"train.compile={compiled}"]
    long += ["model.dropout=0.1"]
    began = time.monotonic()
    subprocess.run(command("whole", *long), cwd=tmp_path, check=True, capture_output=True)
    whole = time.monotonic() - began
    chance = random.Random(0)
    kills = 0
    while True:
        process = subprocess.Popen(
            command("cut", "train.resume=auto", *long),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        # Anywhere: while it imports, prepares, compiles, trains or saves.
        patience = chance.uniform(0.2, 1.0) * whole if kills < KILLS else 600
        try:
            _, errors = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, errors.decode()
        if kills >= KILLS:
            break
        # It ended before it was killed: take its last steps away and kill that.
        for name in sorted(path.name for path in (tmp_path / "cut/checkpoints").iterdir())[1:]:
            subprocess.run(["rm", "-r", str(tmp_path / "cut/checkpoints" / name)], check=True)
    print(f"compile={compiled}: {kills} kills, {whole:.0f} s for the whole run")
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
