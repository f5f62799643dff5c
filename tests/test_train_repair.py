"""Small files of a run that are empty or torn are named, and written anew where possible."""

import json
import warnings
from pathlib import Path

import pytest

from tests.test_train import (
    assert_same_weights,
    settings,
    stop_after,
    workplace,  # noqa: F401
)
from tinylm import checkpoint, track
from tinylm.train import Interrupted, folder, train

TORN = [b"", b"{", b"[1]", b"null", b'{"step": 1', b"\xff\xfe"]
GIVEN = ("train.steps=8", "evaluate.every=4", "tokenizer.kind=byte", "sample.max_tokens=2")


@pytest.fixture
def cut(workplace, monkeypatch):  # noqa: F811
    """A run stopped after 5 of its 8 steps."""
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        with pytest.raises(Interrupted):
            train(settings("out=cut", *GIVEN))
    return Path("cut")


def resumed():
    return train(settings("out=cut", "train.resume=auto", *GIVEN))


@pytest.mark.parametrize("content", TORN)
def test_a_torn_json_file_is_read_as_none_with_a_warning(content, tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="run.json: empty or torn; it is written anew"):
        assert folder.read_json(path) == {}


def test_every_small_file_torn_at_once_is_mended_by_the_run_that_resumes(cut, capsys):
    whole = train(settings("out=whole", *GIVEN))
    best = json.loads((cut / "best.json").read_text())
    (cut / "run.json").write_bytes(b"")
    (cut / "best.json").write_bytes(b'{"step"')
    records = (cut / "metrics.jsonl").read_bytes()
    (cut / "metrics.jsonl").write_bytes(b'\xff{"step"\n5\n{}\n' + records + b'{"step": 4, "lo')
    (cut / "samples.txt").write_bytes(b"\xe2\x82 torn\n" + (cut / "samples.txt").read_bytes())
    with pytest.warns(UserWarning, match="empty or torn; it is written anew") as told:
        assert_same_weights(whole, resumed())
    assert sorted(Path(str(one.message).split(":")[0]).name for one in told) == [
        "best.json",
        "run.json",
    ]
    assert "cut/metrics.jsonl: 4 torn lines are dropped" in capsys.readouterr().out
    for name in ("metrics.jsonl", "samples.txt"):
        assert b"torn" not in (cut / name).read_bytes()[40:]
    keys = ("step", "val_loss")
    one, other = (
        [[r.get(key) for key in keys] for r in track.read_metrics(f)] for f in (whole, cut)
    )
    assert one == other
    assert json.loads((cut / "run.json").read_text())["results"]["step"] == 8
    assert json.loads((whole / "best.json").read_text()) == json.loads(
        (cut / "best.json").read_text()
    )
    assert best["step"] == 4


@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_best_json_is_written_anew_from_the_checkpoint(cut, content, monkeypatch):
    before = json.loads((cut / "best.json").read_text())
    (cut / "best.json").unlink() if content is None else (cut / "best.json").write_bytes(content)
    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        stop_after(patched, 6)
        with pytest.raises(Interrupted):
            resumed()
    expected = [] if content is None else ["cut/best.json: empty or torn; it is written anew"]
    assert [str(one.message) for one in told] == expected
    assert json.loads((cut / "best.json").read_text()) == before


def test_a_finished_run_whose_results_are_torn_gets_them_again(cut):
    resumed()
    before = json.loads((cut / "run.json").read_text())["results"]
    (cut / "run.json").write_bytes(b"{")
    with pytest.warns(UserWarning, match="run.json: empty or torn"):
        resumed()
    after = json.loads((cut / "run.json").read_text())["results"]
    assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_a_run_killed_between_its_last_sample_and_its_results_has_that_sample_once(cut):
    resumed()
    samples = (cut / "samples.txt").read_bytes()
    record = json.loads((cut / "run.json").read_text())
    del record["results"]
    (cut / "run.json").write_text(json.dumps(record))
    resumed()
    assert "results" in json.loads((cut / "run.json").read_text())
    assert (cut / "samples.txt").read_bytes() == samples


def test_a_run_killed_between_its_last_save_and_the_purge_keeps_no_more_than_the_others(
    workplace,  # noqa: F811
    monkeypatch,
):
    # Not evaluated: the checkpoint of the best step stays, however old.
    others = ("checkpoint.keep=1", "checkpoint.background=false", "evaluate.every=0")
    ways = ("out=cut", *GIVEN, *others)

    def killed(run, **_):
        if checkpoint.path_of(run, 8).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "purge", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings(*ways))
    left = sorted(path.name for path in Path("cut/checkpoints").iterdir())
    assert left == ["step-00000004", "step-00000008"]
    train(settings(*ways, "train.resume=auto"))
    assert [path.name for path in Path("cut/checkpoints").iterdir()] == ["step-00000008"]


def test_records_stay_as_they_are_where_the_run_tracks_none(workplace, monkeypatch):  # noqa: F811
    names = "track.names=[console]"
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        with pytest.raises(Interrupted):
            train(settings("out=cut", *GIVEN, names))
    mine = b'{"step": 7}\nnot a record\n'
    Path("cut/metrics.jsonl").write_bytes(mine)
    train(settings("out=cut", "train.resume=auto", *GIVEN, names))
    assert Path("cut/metrics.jsonl").read_bytes() == mine


def test_a_run_that_resumes_says_that_it_keeps_its_number_of_threads(cut, capsys, monkeypatch):
    given = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setattr("torch.set_num_threads", given.append)
    resumed()
    line = "threads: 1, as this run began, and not the 3 offered now: "
    assert line in capsys.readouterr().out
    assert given == [1]


def test_the_command_that_goes_on_names_this_very_run(workplace, monkeypatch, capsys):  # noqa: F811
    from tests.test_train import SMALL
    from tinylm.train.__main__ import main

    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        assert main([*SMALL, *GIVEN]) == 130
    again = capsys.readouterr().out.splitlines()[-1]
    assert again.endswith(" train.resume=runs/cats")
    # Newer runs of the same settings do not matter.
    assert main([*SMALL, *GIVEN]) == 0
    assert main([*SMALL, *GIVEN, "train.resume=runs/cats"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["cats", "cats-2"]
    assert_same_weights(Path("runs/cats"), Path("runs/cats-2"))
