"""Kills a process at every call that saves and purges checkpoints, and fails every such call.

    LD_PRELOAD=faults.so python -m tests.support.killing kills|faults ACTION FOLDER

A process of its own, for its libc calls go through faults.c: those of Python, torch and Rust. It
forks a child for each kill. It prints what it counted, and fails at the first broken promise.
"""

import collections
import errno
import os
import shutil
import sys
import warnings
from dataclasses import replace as replaced
from pathlib import Path

from tests.support.crashes import CONFIG, holds_step, make_model, make_training, steps_in
from tests.support.shim import (
    FAIL,
    KILL_AFTER,
    KILL_BEFORE,
    KILL_WITHIN,
    SHORTEN,
    arm,
    dies,
    disarm,
    names,
)
from tinylm import checkpoint
from tinylm.tokenizer import Tokenizer

# Room for the 257 tokens of the tokenizer.
WIDE = replaced(CONFIG, vocab_size=257)
WORDS = Tokenizer.train(["abab"], vocab_size=257)


def taken(step):
    return checkpoint.content(make_model(step, WIDE), WORDS, training=make_training(step))


def save_step(run, step):
    checkpoint.write(checkpoint.path_of(run, step), taken(step))


def cycle(run):
    """What training does at step 30 when two checkpoints are kept."""
    save_step(run, 30)
    checkpoint.purge(run, 2)


def behind(run):
    """The same in a thread, while the model moves on."""
    with checkpoint.Writer(background=True) as writer:
        content = taken(30)
        path = checkpoint.path_of(run, 30)
        writer.write(path, content, then=lambda: checkpoint.purge(run, 2))
        for weight in content.model.parameters():
            weight.data.fill_(7.0)


def replace(run):
    """Write step 20 a second time, over the first."""
    save_step(run, 20)


ACTIONS = {action.__name__: action for action in (cycle, behind, replace)}


def newest(run):
    """The step of the newest checkpoint; every one that is there must be whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = checkpoint.latest(run)
    step = checkpoint.step_of(found)
    assert step in (20, 30), found
    assert whole(found, step), found
    return step


def whole(path, step):
    return holds_step(path, step, WIDE)


def check(run, words):
    """A checkpoint is there, the next one can be saved, and nothing is left over after it."""
    step = newest(run)
    save_step(run, 40)
    checkpoint.purge(run, 2)
    assert whole(checkpoint.path_of(run, 40), 40), words
    assert steps_in(run) == [f"step-{kept:08d}" for kept in (step, 40)], words
    return step


def prepare(folder):
    for step in (10, 20):
        save_step(folder, step)


def fresh(folder):
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "template", run)
    return run


def count(action, folder):
    return names(action, fresh(folder))


def kills(action, folder):
    """SIGKILL before, after and within every call; how often, and how it went on."""
    calls, seen = count(action, folder), collections.Counter()
    for number, name in enumerate(calls):
        for mode in (KILL_BEFORE, KILL_AFTER, KILL_WITHIN):
            if mode == KILL_WITHIN and name != "write":
                continue
            run = fresh(folder)
            assert dies(lambda run=run: action(run), mode, number), name
            seen[check(run, (mode, number, name))] += 1
    return calls, seen


def faults(action, folder):
    """Every call fails, once and from then on; how often, and how it went on."""
    calls, seen = count(action, folder), collections.Counter()
    kinds = [(FAIL, errno.ENOSPC), (FAIL, errno.EIO), (SHORTEN, 0)]
    for number, name in enumerate(calls):
        for (mode, error), sticky in ((kind, again) for kind in kinds for again in (False, True)):
            run = fresh(folder)
            handles = len(os.listdir("/proc/self/fd"))
            raised = None
            arm(mode, number, error, sticky)
            try:
                action(run)
            except OSError as caught:
                raised = caught
            disarm()
            words = (mode, error, sticky, number, name)
            if mode == SHORTEN:
                assert raised is None, words
            if raised is not None:
                assert raised.errno == error, words
                assert "checkpoints" in str(raised.filename), (words, raised)
            assert len(os.listdir("/proc/self/fd")) == handles, words
            step = check(run, words)
            # What was not reported is there.
            assert raised is not None or step == newest_of(action), words
            seen["raised" if raised else "went on"] += 1
    return calls, seen


def newest_of(action):
    return 20 if action is replace else 30


def small_disk(folder):
    """Save to a disk of 1 MiB until it is full, in a file system that is mounted at `folder`."""
    step, raised = 10, None
    while raised is None:
        try:
            save_step(folder, step + 10)
            step += 10
        except OSError as caught:
            raised = caught
        assert step < 1000
    assert raised.errno == errno.ENOSPC
    assert f"step-{step + 10:08d}" in raised.filename
    found = checkpoint.latest(folder)
    assert checkpoint.step_of(found) == step
    assert whole(found, step)
    checkpoint.purge(folder, 1)
    save_step(folder, step + 10)
    assert whole(checkpoint.latest(folder), step + 10)
    assert steps_in(folder) == [f"step-{kept:08d}" for kept in (step, step + 10)]
    return step


def main(what, action, folder):
    if what == "disk":
        print(f"full after step {small_disk(folder)}")
        return
    prepare(folder / "template")
    calls, seen = {"kills": kills, "faults": faults}[what](ACTIONS[action], folder)
    print(f"{what} of {action}: {len(calls)} calls, {dict(collections.Counter(calls))}")
    print(f"{sum(seen.values())} {what}: {dict(seen)}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
