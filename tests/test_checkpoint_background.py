"""Checkpoints that a thread writes: the same bytes, one at a time, no error lost."""

import errno
import threading
from dataclasses import replace

import pytest
import torch

from tests.support.crashes import CONFIG, Disk, holds_step, make_model, make_training, save_step
from tests.test_train import TEXT, settings
from tinylm import checkpoint
from tinylm.checkpoint import Writer, background, files
from tinylm.train import train


def taken(step, config=CONFIG):
    return checkpoint.content(make_model(step, config), None, training=make_training(step))


def held(monkeypatch):
    """Let no thread write before the returned event is set."""
    go, write = threading.Event(), background.write

    def later(folder, content):
        assert go.wait(30)
        return write(folder, content)

    monkeypatch.setattr(background, "write", later)
    return go


# gpt2's matrices are written in another layout: those are copies already.
@pytest.mark.parametrize("architecture", ["llama3", "gpt2"])
def test_the_bytes_are_those_of_the_moment_that_it_was_called(architecture, tmp_path, monkeypatch):
    config = replace(CONFIG, architecture=architecture)
    expected = tmp_path / "expected"
    checkpoint.save(expected, make_model(1, config), None, training=make_training(1))
    go, content = held(monkeypatch), taken(1, config)
    with Writer(background=True) as writer:
        writer.write(tmp_path / "found", content, then=lambda: None)
        with torch.no_grad():
            for tensor in (*content.model.parameters(), *content.training.optimizer.values()):
                tensor.fill_(7.0)
        assert not (tmp_path / "found").exists()
        go.set()
    assert files.read_manifest(tmp_path / "found") == files.read_manifest(expected)
    checkpoint.verify(tmp_path / "found")


def test_one_checkpoint_is_in_the_making_and_its_memory_serves_again(tmp_path):
    done, memory = [], set()
    with Writer(background=True) as writer:
        for step in range(1, 6):
            path = checkpoint.path_of(tmp_path, step)
            writer.write(path, taken(step), then=lambda step=step: done.append(step))
            # All before this one are on the disk.
            assert done[: step - 1] == list(range(1, step))
            assert threading.active_count() <= 2
            places = {tensor.data_ptr() for tensor in writer.copies.buffers.values()}
            memory |= places
            assert places == memory
    assert done == list(range(1, 6))
    assert all(holds_step(checkpoint.path_of(tmp_path, step), step) for step in done)


@pytest.mark.parametrize("ask", ["check", "wait", "write", "leave"])
def test_an_error_of_the_thread_is_raised_once_with_its_type_and_file(ask, tmp_path):
    save_step(tmp_path, 10)

    def use():
        with Writer(background=True) as writer:
            with Disk(full_at=3):
                writer.write(checkpoint.path_of(tmp_path, 20), taken(20), then=lambda: None)
                writer.thread.join()
            if ask == "check":
                writer.check()
            elif ask == "wait":
                writer.wait()
            elif ask == "write":
                writer.write(checkpoint.path_of(tmp_path, 30), taken(30), then=lambda: None)

    with pytest.raises(OSError, match="No space") as error:
        use()
    assert error.value.errno == errno.ENOSPC
    assert "step-00000020" in error.value.filename
    assert holds_step(checkpoint.latest(tmp_path), 10)


def test_an_exception_waits_for_the_thread_and_hides_no_error_of_it(tmp_path, monkeypatch, capsys):
    go = held(monkeypatch)

    def slow():
        with Writer(background=True) as writer:
            writer.write(checkpoint.path_of(tmp_path, 10), taken(10), then=lambda: None)
            threading.Timer(0.1, go.set).start()
            raise KeyError

    def failing():
        with Writer(background=True) as writer:
            with Disk(full_at=3):
                writer.write(checkpoint.path_of(tmp_path, 20), taken(20), then=lambda: None)
                writer.thread.join()
            raise KeyError

    with pytest.raises(KeyError):
        slow()
    assert holds_step(checkpoint.latest(tmp_path), 10)
    with pytest.raises(KeyError):
        failing()
    said = capsys.readouterr().err
    assert "the last checkpoint was not saved: " in said
    assert "step-00000020" in said


def test_a_run_saves_the_same_bytes_in_both_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.txt").write_text(TEXT)
    found = []
    for way in ("true", "false"):
        run = settings(f"checkpoint.background={way}", "checkpoint.every=2", "checkpoint.keep=9")
        folder = train(run)
        entries = {}
        for path in sorted((folder / "checkpoints").iterdir()):
            entries[path.name] = files.read_manifest(path)
            # It holds the seconds of the run.
            del entries[path.name]["state.json"]
        found.append(entries)
    assert len(found[0]) == 6
    assert found[0] == found[1]


def test_a_full_disk_ends_a_run_with_the_name_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.txt").write_text(TEXT)
    original = background.write

    def full(folder, content):
        if folder.name != "step-00000008":
            return original(folder, content)
        with Disk(full_at=3):
            return original(folder, content)

    monkeypatch.setattr(background, "write", full)
    with pytest.raises(OSError, match="No space") as error:
        train(settings("out=run", "evaluate.every=0"))
    assert "step-00000008" in error.value.filename
    assert checkpoint.latest("run").name == "step-00000004"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert train(settings("out=run", "evaluate.every=0", "train.resume=auto")).name == "run"
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-00000008", "step-00000012"]
