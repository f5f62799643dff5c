"""Checkpoints under attack: a crash at every call, disks that fail, flipped bytes, two writers."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import threading
import warnings

import pytest
import torch

from tests.support.crashes import Crash, Disk, flip, holds_step, save_step, steps_in
from tinylm import checkpoint
from tinylm.checkpoint import files


def count_calls(action, tmp_path):
    with Disk() as disk:
        action(tmp_path)
    return disk.calls


def cycle(run):
    """What training does at step 30 when two checkpoints are kept."""
    save_step(run, 30)
    checkpoint.purge(run, 2)


def prepare(run):
    for step in (10, 20):
        save_step(run, step)


def replace(run):
    """Write step 20 a second time, over the first."""
    save_step(run, 20)


@pytest.mark.parametrize("action", [cycle, pytest.param(replace, marks=pytest.mark.slow)])
def test_a_crash_before_any_call_leaves_a_checkpoint_and_a_later_save_works(action, tmp_path):
    prepare(tmp_path / "template")
    shutil.copytree(tmp_path / "template", tmp_path / "count")
    calls = count_calls(action, tmp_path / "count")
    assert {name for name, _ in calls} == set(Disk.CALLS)
    for k in range(len(calls)):
        run = tmp_path / f"run-{k}"
        shutil.copytree(tmp_path / "template", run)
        with Disk(crash_at=k), pytest.raises(Crash):
            action(run)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            newest = checkpoint.latest(run)
        step = checkpoint.step_of(newest)
        assert step in (20, 30), calls[k]
        assert holds_step(newest, step), calls[k]
        save_step(run, 40)
        checkpoint.purge(run, 2)
        assert holds_step(run, 40), calls[k]
        # Nothing of the crash is left over.
        assert steps_in(run) == [f"step-{kept:08d}" for kept in (step, 40)], calls[k]


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_before_the_deletion(tmp_path):
    prepare(tmp_path)
    calls = count_calls(replace, tmp_path)
    draft = next(name[0] for call, name in calls if call == "mkdir")
    aside = next(at for at, (call, names) in enumerate(calls) if call == "rename")
    rename = next(
        at
        for at, (call, names) in enumerate(calls)
        if call == "rename" and names == [draft, "step-00000020"]
    )
    before = calls[:rename]
    written = {name for call, name in before if call == "write"}
    assert written == set(files.read_manifest(checkpoint.latest(tmp_path))) | {files.MANIFEST}
    for name in written:
        last = max(at for at, seen in enumerate(before) if seen == ("write", name))
        assert ("fsync", name) in before[last:], name
        # The manifest says that the others are whole, so it is written after them.
        if name != files.MANIFEST:
            assert before.index(("fsync", name)) < before.index(("write", files.MANIFEST))
    synced = before.index(("fsync", draft))
    assert synced > before.index(("fsync", files.MANIFEST))
    assert synced < aside < rename
    assert calls[rename + 1] == ("fsync", "checkpoints")
    assert all(call in ("unlink", "rmdir") for call, _ in calls[rename + 2 :])


@pytest.mark.parametrize(
    ("error", "sticky"),
    [
        (errno.ENOSPC, True),
        (errno.EIO, False),
        *(
            pytest.param(*of, marks=pytest.mark.slow)
            for of in ((errno.ENOSPC, False), (errno.EIO, True))
        ),
        *(pytest.param(errno.EDQUOT, sticky, marks=pytest.mark.slow) for sticky in (True, False)),
    ],
)
def test_a_disk_that_fails_raises_with_the_file_and_keeps_the_old_checkpoint(
    error, sticky, tmp_path
):
    prepare(tmp_path)
    calls = [call for call, _ in count_calls(lambda run: save_step(run, 30), tmp_path)]
    shutil.rmtree(checkpoint.path_of(tmp_path, 30))
    handles = len(os.listdir("/dev/fd"))
    for k in range(len(calls)):
        raised = None
        with Disk(full_at=k, error=error, sticky=sticky):
            try:
                save_step(tmp_path, 30)
            except OSError as caught:
                raised = caught
        if raised is not None:
            assert raised.errno == error
            assert "step-00000030" in raised.filename or raised.filename.endswith("checkpoints")
        newest = checkpoint.latest(tmp_path)
        # The rename needs no room; what fails after it is the fsync of the parent.
        done = raised is None or k >= calls.index("rename")
        assert newest == checkpoint.path_of(tmp_path, 30 if done else 20), k
        assert holds_step(newest, 30 if done else 20)
        shutil.rmtree(checkpoint.path_of(tmp_path, 30), ignore_errors=True)
        assert steps_in(tmp_path) == ["step-00000010", "step-00000020"]
    # What an earlier test left open may have been closed meanwhile.
    assert len(os.listdir("/dev/fd")) <= handles
    save_step(tmp_path, 30)
    assert holds_step(tmp_path, 30)


def test_a_disk_that_fails_while_a_checkpoint_is_replaced_leaves_it_readable(tmp_path):
    prepare(tmp_path)
    for k in range(len(count_calls(replace, tmp_path))):
        with Disk(full_at=k), contextlib.suppress(OSError):
            replace(tmp_path)
        assert holds_step(checkpoint.latest(tmp_path), 20), k
    replace(tmp_path)
    assert steps_in(tmp_path) == ["step-00000010", "step-00000020"]


def test_a_rename_that_fails_puts_the_old_checkpoint_back_at_once(tmp_path, monkeypatch):
    path = save_step(tmp_path, 20)
    real = os.rename

    def rename(source, target):
        if files.DRAFT in str(source):
            raise PermissionError(errno.EACCES, "denied", str(source))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(PermissionError, match="denied"):
        save_step(tmp_path, 20)
    assert steps_in(tmp_path) == [path.name]
    checkpoint.verify(path)


def test_purge_takes_a_checkpoint_out_of_sight_before_it_deletes_its_files(tmp_path):
    for step in (10, 20):
        save_step(tmp_path, step)
    calls = count_calls(lambda run: checkpoint.purge(run, 1), tmp_path)
    assert calls[0][0] == "rename"
    assert calls[0][1][0] == "step-00000010"
    assert calls[1] == ("fsync", "checkpoints")
    assert all(call in ("unlink", "rmdir") for call, _ in calls[2:])


def test_every_flipped_byte_is_found(tmp_path):
    path = save_step(tmp_path, 10)
    names = sorted(entry.name for entry in path.iterdir())
    assert names == sorted(
        [
            "MANIFEST.json",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "optimizer.safetensors",
            "state.json",
        ]
    )
    generator = torch.Generator().manual_seed(0)
    for name in names:
        size = (path / name).stat().st_size
        # Both ends and a sample between; all of a small file.
        sample = torch.randint(size, (60,), generator=generator).tolist()
        for position in {*range(min(size, 60)), *range(max(0, size - 20), size), *sample}:
            for mask in (0x01, 0xA0):
                flip(path / name, position, mask)
                with pytest.raises(ValueError, match=re.escape(str(path / name))):
                    checkpoint.verify(path)
                flip(path / name, position, mask)
    checkpoint.verify(path)


def test_purge_leaves_the_draft_of_a_living_writer_alone(tmp_path):
    save_step(tmp_path, 10)
    started, go_on = threading.Event(), threading.Event()

    def slow():
        with files.whole(checkpoint.path_of(tmp_path, 20)) as draft:
            draft.add("config.json", [b"{}"])
            started.set()
            go_on.wait(30)

    writer = threading.Thread(target=slow)
    writer.start()
    started.wait(30)
    checkpoint.purge(tmp_path, 1)
    go_on.set()
    writer.join()
    checkpoint.verify(checkpoint.path_of(tmp_path, 20))


def recovering(folder, rounds, work):
    """Do `work` so many times while another writer clears up after dead ones all the time."""
    done = threading.Event()

    def clear():
        while not done.is_set():
            files.recover(folder)

    other = threading.Thread(target=clear)
    other.start()
    try:
        for number in range(rounds):
            work(number)
    finally:
        done.set()
        other.join()


def test_removing_is_safe_from_another_process_that_clears_up(tmp_path):
    def work(number):
        path = tmp_path / f"step-{number}"
        path.mkdir()
        for k in range(5):
            (path / str(k)).write_bytes(b"content")
        files.remove(path)

    recovering(tmp_path, 60, work)
    assert list(tmp_path.iterdir()) == []


def test_a_new_draft_is_safe_from_another_process_that_clears_up(tmp_path):
    def work(number):
        with files.whole(tmp_path / f"step-{number}") as draft:
            draft.add("a", [b"content"])

    recovering(tmp_path, 60, work)
    for number in range(60):
        files.verify(tmp_path / f"step-{number}")
    assert len(list(tmp_path.iterdir())) == 60


def test_a_draft_that_another_process_deletes_before_it_is_locked_is_made_anew(
    tmp_path, monkeypatch
):
    real, deleted = fcntl.flock, []

    def flock(handle, operation):
        if not deleted:
            deleted.extend(tmp_path.iterdir())
            shutil.rmtree(deleted[0])
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.whole(tmp_path / "step-1") as draft:
        draft.add("a", [b"content"])
    assert len(deleted) == 1
    files.verify(tmp_path / "step-1")


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_a_write_that_the_system_cuts_short_is_continued(size, tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: real(handle, content[:size]))
    with contextlib.suppress(FileNotFoundError):
        save_step(tmp_path, 10)
    monkeypatch.undo()
    assert holds_step(tmp_path, 10)
