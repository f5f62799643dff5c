"""What the commands say of a folder that holds no model: one line with the way out."""

import os
from pathlib import Path

import pytest

from tinylm.config import load, to_yaml
from tinylm.evaluate.__main__ import main as evaluate
from tinylm.sample.__main__ import main as sample

COMMANDS = {
    "sample": lambda path: sample([str(path), "ab"]),
    "evaluate": lambda p: evaluate([str(p)]),
}


def make_run(folder: Path, *steps: int, at: int = 0) -> Path:
    """A run as training leaves it, its checkpoints empty."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(load()))
    for step in steps:
        (folder / "checkpoints" / f"step-{step:08d}").mkdir()
    os.utime(folder / "checkpoints", (at, at))
    return folder


@pytest.fixture(params=COMMANDS)
def command(request):
    return request.param, COMMANDS[request.param]


def error(call, path):
    with pytest.raises((OSError, ValueError)) as caught:
        call(path)
    return str(caught.value)


def test_a_folder_of_runs_names_the_newest(tmp_path, command):
    name, call = command
    for run, at in (("one", 10), ("three", 30), ("two", 20)):
        make_run(tmp_path / "runs" / run, 5, at=at)
    text = error(call, tmp_path / "runs")
    assert "holds 3 runs and is none itself" in text
    assert f"the newest is python -m tinylm.{name} {tmp_path / 'runs' / 'three'}" in text


def test_a_file_is_not_a_folder(tmp_path, command):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    assert "is a file: name the folder of a run" in error(command[1], path)


def test_a_run_that_has_saved_nothing_yet_says_so(tmp_path, command):
    run = make_run(tmp_path / "run")
    assert "no checkpoint yet" in error(command[1], run)
    (run / "checkpoints").rmdir()
    assert "no checkpoint yet" in error(command[1], run)


def test_a_folder_of_something_else_says_what_is_missing(tmp_path, command):
    (tmp_path / "text.txt").write_text("words")
    assert "neither a config.json nor checkpoints" in error(command[1], tmp_path)


def test_a_checkpoint_that_does_not_verify_is_told_by_its_own_error(tmp_path, command):
    assert "no checkpoint that verifies" in error(command[1], make_run(tmp_path / "run", 5))
    assert "no such run" in error(command[1], tmp_path / "none")
