"""state.json: what is missing or wrong in it is named, and a purge meanwhile does no harm."""

import json
import os
import re
from types import SimpleNamespace

import pytest

from tests.support.crashes import make_model, make_training, save_step
from tinylm import checkpoint
from tinylm.checkpoint import Training, folder
from tinylm.train import beginning

ABSENT = object()
PROGRESS = {
    "step": 3,
    "tokens": 300,
    "seconds": 1.5,
    "best_loss": None,
    "best_step": -1,
    "without_better": 0,
    "skipped": 0,
}
STATE = {"progress": PROGRESS, "loader": {"rows": 9}, "threads": 1, "steps": 5, "torch": "2"}


def edited(content, key, value):
    """A copy of `content` with another value, or without one, at a dotted key."""
    content = json.loads(json.dumps(content))
    *homes, name = key.split(".")
    place = content
    for home in homes:
        place = place[home]
    if value is ABSENT:
        del place[name]
    else:
        place[name] = value
    return content


@pytest.mark.parametrize("value", [ABSENT, "x", None, -1, 1.5, True, [], 2**64])
@pytest.mark.parametrize("key", ["step", "tokens"])
def test_a_count_that_is_none_is_named_with_its_file(key, value, tmp_path):
    path = save_step(tmp_path, 3)
    file = path / "state.json"
    file.write_text(json.dumps(edited(json.loads(file.read_text()), key, value)))
    (path / "MANIFEST.json").unlink()
    problem = f"lacks the key {key}" if value is ABSENT else f"{key}={value!r}: expected a whole"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {problem}')}.*another checkpoint"):
        checkpoint.load_training(path, verify=False)


@pytest.mark.parametrize("content", ["{}", '{"step": 1, "tokens": 2, "state": []}', "[]", ""])
def test_a_state_of_other_content_is_no_traceback(content, tmp_path):
    path = save_step(tmp_path, 3)
    (path / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json: "):
        checkpoint.load_training(path, verify=False)


def resumed(tmp_path, state):
    path = checkpoint.path_of(tmp_path, 3)
    training = Training(3, 300, make_training(3).optimizer, state)
    checkpoint.save(path, make_model(3), None, training=training)
    return beginning.resume(path, print)


def test_a_whole_state_is_resumed_from(tmp_path):
    assert resumed(tmp_path, STATE).training.state == STATE
    old = {key: value for key, value in STATE.items() if key not in ("steps", "torch")}
    assert resumed(tmp_path, old).training.state == old


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("progress", [ABSENT, None, 3, []]),
        ("loader", [ABSENT, None, "x", []]),
        ("threads", [ABSENT, None, "x", 0, -1, 1.5, 10**9]),
        ("steps", [None, "x", -1]),
        ("torch", [None, 2]),
        ("progress.step", [ABSENT, None, "x", -1, 1.5, 4]),
        ("progress.tokens", [ABSENT, 301]),
        ("progress.seconds", [ABSENT, None, "x", -1, float("nan")]),
        ("progress.best_loss", [ABSENT, "x", float("inf")]),
        ("progress.best_step", [ABSENT, None, -2]),
        ("progress.skipped", [ABSENT, True]),
        ("progress.epochs", [1]),
        ("loader.rows", [ABSENT, "x", True, -1]),
    ],
)
def test_a_run_refuses_a_state_by_the_key_that_is_wrong(key, values, tmp_path):
    for value in values:
        with pytest.raises(ValueError, match=rf"state\.json: .*\bstate\.{re.escape(key)}\b"):
            resumed(tmp_path, edited(STATE, key, value))


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.load_training])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_checkpoint_that_is_purged_while_it_is_read_gives_way_to_the_newest(
    read, keep, tmp_path, monkeypatch
):
    save_step(tmp_path, 10)
    name = "read_json"
    original, calls = getattr(folder, name), []

    def purging(path):
        calls.append(path)
        if len(calls) == 1:
            for step in range(20, 20 + 10 * keep, 10):
                save_step(tmp_path, step)
            checkpoint.purge(tmp_path, keep)
        return original(path)

    monkeypatch.setattr(folder, name, purging)
    found = read(tmp_path)
    assert calls[0].parent.name == "step-00000010"
    assert calls[-1].parent.name == f"step-000000{10 + 10 * keep}"
    assert getattr(found, "step", None) in (None, 10 + 10 * keep)


def test_a_checkpoint_that_is_purged_while_it_is_verified_is_not_called_damaged(
    tmp_path, monkeypatch
):
    save_step(tmp_path, 10)
    original = checkpoint.files.verify

    def purging(path):
        if path.name == "step-00000010":
            save_step(tmp_path, 20)
            checkpoint.purge(tmp_path, 1)
        original(path)

    monkeypatch.setattr(checkpoint.steps, "files", SimpleNamespace(**vars(checkpoint.files)))
    monkeypatch.setattr(checkpoint.steps.files, "verify", purging)
    assert checkpoint.latest(tmp_path) == checkpoint.path_of(tmp_path, 20)


def test_damage_and_dead_links_are_still_errors_of_their_own(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    os.symlink("nowhere", tmp_path / "checkpoints/step-00000010")
    with pytest.raises(FileNotFoundError, match="no checkpoint that verifies"):
        checkpoint.latest(tmp_path)
    path = save_step(tmp_path, 20)
    (path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        checkpoint.load(path, verify=False)
