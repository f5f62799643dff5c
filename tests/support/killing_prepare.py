"""Kills `prepare` at every call that changes the disk, and fails every such call.

    LD_PRELOAD=faults.so python -m tests.support.killing_prepare kills|faults STEP FOLDER

Every STEP-th call. After each, the folder has no manifest or is whole, and the next `prepare`
makes the very shards of a run without accident, without doing a job again that has its row.
"""

import collections
import errno
import os
import shutil
import sys
import traceback
from pathlib import Path

from tests.support.bytes_tokenizer import Bytes
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
from tinylm import corpus
from tinylm.data import Dataset, prepare, prepare_share
from tinylm.data.manifest import NAME

JOB = 100


def make(folder):
    """A folder with three jobs of text, of which rank 1 of 3 has done its own."""
    texts = folder / "texts"
    texts.mkdir()
    for k in range(6):
        (texts / f"{k}.txt").write_text(f"{k} words of a text " * (k % 3 + 2))
    prepare(opened(folder), Bytes(), folder / "whole", job_bytes=JOB)
    prepare_share(opened(folder), Bytes(), folder / "template", rank=1, world=3, job_bytes=JOB)


def opened(folder):
    return corpus.open(str(folder / "texts"), val_fraction=0.4)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fresh(folder):
    shards = folder / "shards"
    shutil.rmtree(shards, ignore_errors=True)
    shutil.copytree(folder / "template", shards)
    return shards


def rows(shards):
    return {path.name: path.stat().st_ino for path in shards.glob("jobs/*/*.json")}


def check(folder, words):
    """What there is is whole, and goes on to what it must become; whether it was finished."""
    shards = folder / "shards"
    done, finished = rows(shards), (shards / NAME).exists()
    if finished:
        for split in ("train", "val"):
            list(Dataset.open(shards, split=split).verify())
    else:
        # The job that was done before is still done.
        assert "00001.json" in done, words
        prepare_share(opened(folder), Bytes(), shards, rank=0, world=9, job_bytes=JOB)
        kept = rows(shards)
        assert not kept or {name: kept.get(name) for name in done} == done, words
    prepare(opened(folder), Bytes(), shards, job_bytes=JOB)
    assert contents(shards) == contents(folder / "whole"), words
    return finished


def kills(folder, step):
    text, seen = opened(folder), collections.Counter()

    def action():
        prepare(text, Bytes(), folder / "shards", job_bytes=JOB)

    fresh(folder)
    calls = names(action)
    for number, name in list(enumerate(calls))[::step]:
        for mode in (KILL_BEFORE, KILL_AFTER, KILL_WITHIN):
            if mode == KILL_WITHIN and name != "write":
                continue
            fresh(folder)
            assert dies(action, mode, number), name
            seen["finished" if check(folder, (mode, number, name)) else "went on"] += 1
    return calls, seen


def faults(folder, step):
    text, seen = opened(folder), collections.Counter()

    def action():
        prepare(text, Bytes(), folder / "shards", job_bytes=JOB)

    fresh(folder)
    calls = names(action)
    kinds = [(FAIL, errno.ENOSPC), (FAIL, errno.EIO), (SHORTEN, 0)]
    for number, name in list(enumerate(calls))[::step]:
        for (mode, error), sticky in ((kind, again) for kind in kinds for again in (False, True)):
            fresh(folder)
            handles = len(os.listdir("/proc/self/fd"))
            raised = None
            arm(mode, number, error, sticky)
            try:
                action()
            except OSError as caught:
                raised = caught
            disarm()
            words = (mode, error, sticky, number, name, raised, *traceback.format_exception(raised))
            assert len(os.listdir("/proc/self/fd")) == handles, words
            if mode == SHORTEN:
                assert raised is None, words
            if raised is not None:
                assert raised.errno == error, words
                assert str(folder / "shards") in str(raised.filename), words
            finished = check(folder, words)
            # What was not reported is there.
            assert raised is not None or finished, words
            seen["raised" if raised else "went on"] += 1
    return calls, seen


def small_disk(folder, disk):
    """Prepare to a disk that is full, mounted at `disk`, then make room and go on."""
    (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))
    with (disk / "ballast").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 3 * 16384)
    try:
        prepare(opened(folder), Bytes(), disk / "shards", job_bytes=JOB)
    except OSError as caught:
        raised = caught
    assert raised.errno == errno.ENOSPC
    (disk / "ballast").unlink()
    prepare(opened(folder), Bytes(), disk / "shards", job_bytes=JOB)
    assert contents(disk / "shards") == contents(folder / "whole")
    return raised


def main(what, step, folder, disk=""):
    make(folder)
    if what == "disk":
        print(small_disk(folder, Path(disk)))
        return
    calls, seen = {"kills": kills, "faults": faults}[what](folder, int(step))
    print(f"{what} of prepare: {len(calls)} calls, {dict(collections.Counter(calls))}")
    print(f"{sum(seen.values())} {what}: {dict(seen)}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
