"""Trackers of other tools, each with the real package where it is installed; none needs a network.

pip install tensorboard trackio wandb
"""

import json
import sqlite3
import sys
import threading
import types

import pytest

from tinylm import config, track
from tinylm.track import services

RECORDS = [
    {"step": 1, "tokens": 8, "loss": 4.0, "grad_norm/matrix": 0.5, "seconds_per_step": 0.0},
    {"step": 2, "tokens": 16, "loss": 3.5, "grad_norm/matrix": 0.25, "seconds_per_step": 0.1},
    {"step": 2, "tokens": 16, "val_loss": 3.75, "bits_per_byte": 2.5, "perplexity": 42.5},
]


@pytest.fixture
def folder(tmp_path):
    """The folder of a run, with its settings."""
    home = tmp_path / "demo"
    home.mkdir()
    (home / "config.yaml").write_text(config.to_yaml(config.load(None, ["train.steps=2"])))
    return home


def tracked(name, folder, records=RECORDS):
    """Log the records as a run does, through `Trackers`; a warning is an error here."""
    trackers = track.Trackers((name,), 2)
    trackers.start(folder)
    for record in records:
        trackers.log(record)
    trackers.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_back_every_number(folder):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked("tensorboard", folder)
    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    found = {
        (tag, event.step): event.value
        for tag in read.Tags()["scalars"]
        for event in read.Scalars(tag)
    }
    expected = {
        (key, record["step"]): value
        for record in RECORDS
        for key, value in record.items()
        if key not in ("step", "seconds_per_step")
    }
    assert found == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_the_run_and_goes_on_with_it(folder, tmp_path, monkeypatch):
    # Read when it is imported, so the test is one of its own process's first to import it.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="pip install trackio")
    tracked("trackio", folder)
    (folder / "metrics.jsonl").write_text('{"step": 2}\n')
    tracked("trackio", folder, [{"step": 3, "tokens": 24, "loss": 3.0, "seconds_per_step": 0.1}])
    database = next((tmp_path / "trackio").glob("tinylm*.db"))
    with sqlite3.connect(database) as rows:
        query = "select run_name, step, metrics from metrics order by id"
        found = [(name, step, json.loads(text)) for name, step, text in rows.execute(query)]
    assert {name for name, _, _ in found} == {"demo"}
    assert [step for _, step, _ in found] == [1, 2, 2, 3]
    assert found[0][2]["loss"] == 4.0
    assert found[2][2]["bits_per_byte"] == 2.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_a_run_that_can_be_uploaded_later(folder, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracked("wandb", folder)
    files = list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    assert b"bits_per_byte" in files[0].read_bytes()
    assert (folder / "wandb-id").read_text() in files[0].name


class Stand:
    """A module with the part of W&B's interface that is used; its calls are kept."""

    def __init__(self, fail=False):
        self.module, self.calls, self.fail = types.ModuleType("wandb"), [], fail
        self.module.__spec__ = types.SimpleNamespace()
        self.module.init, self.module.Settings = self.init, dict

    def init(self, **options):
        self.calls.append(("init", options, threading.current_thread()))
        return self

    def log(self, numbers, *, step):
        if self.fail:
            raise OSError(28, "No space left on device", "run.wandb")
        self.calls.append(("log", numbers, step))

    def finish(self):
        self.calls.append(("finish",))


def test_a_resumed_run_is_one_run_of_wandb_and_offline_unless_asked(folder, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    both = []
    for _ in range(2):
        stand = Stand()
        monkeypatch.setitem(sys.modules, "wandb", stand.module)
        tracked("wandb", folder)
        both.append(stand.calls)
    first, second = (calls[0][1] for calls in both)
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["mode"] == "offline"
    assert first["config"]["train.steps"] == 2
    # In a thread of its own: the steps do not wait.
    assert both[0][0][2] is not threading.main_thread()
    assert both[0][1:] == [
        ("log", {"tokens": 8, "loss": 4.0, "grad_norm/matrix": 0.5}, 1),
        ("log", {"tokens": 16, "loss": 3.5, "grad_norm/matrix": 0.25}, 2),
        ("log", {"tokens": 16, "val_loss": 3.75, "bits_per_byte": 2.5, "perplexity": 42.5}, 2),
        ("finish",),
    ]


def test_a_tool_that_fails_in_its_thread_is_warned_of_once(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Stand(fail=True).module)
    with pytest.warns(UserWarning, match="failed, and the run goes on") as told:
        tracked("wandb", folder)
    assert [str(one.message).split(" failed")[0] for one in told] == ["wandb"]
    assert "run.wandb: No space left on device" in str(told[0].message)


def test_a_tool_that_hangs_holds_up_neither_the_steps_nor_for_long_the_end(folder, monkeypatch):
    stand, free = Stand(), threading.Event()
    stand.log = lambda *_, **__: free.wait()
    monkeypatch.setitem(sys.modules, "wandb", stand.module)
    monkeypatch.setattr(services.ThreadedTracker, "PATIENCE", 0.05)
    with pytest.warns(UserWarning, match="wandb failed.*not finished within"):
        tracked("wandb", folder)
    free.set()


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tool_that_is_not_installed_names_the_command(folder, name, monkeypatch):
    monkeypatch.setattr(services.importlib.util, "find_spec", lambda _: None)
    with pytest.warns(UserWarning, match=rf"pip install 'tinylm\[{name}\]'"):
        tracked(name, folder)
