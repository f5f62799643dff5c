"""How a run is reported: the time left, and the records of a run that resumes."""

import io
import json
import re
from pathlib import Path

import pytest

from tinylm import track


def times_left(paces):
    """What the console says is left of 1,000 steps, in seconds, where 10 steps take each pace."""
    out = io.StringIO()
    console = track.Console(Path(), 1000, out)
    console.SECONDS_BETWEEN_LINES = 0.0
    record = dict.fromkeys(("loss", "lr", "tokens_per_second", "mfu", "memory_bytes"), 1.0)
    for number, pace in enumerate(paces):
        console.log({**record, "step": 10 * number, "seconds_per_step": pace})
    found = re.findall(r"(?:(\d+):)?(\d+):(\d\d) left", out.getvalue())
    return [int(h or 0) * 3600 + int(m) * 60 + int(s) for h, m, s in found]


def test_the_time_left_is_that_of_even_steps():
    assert times_left([0.0] + [2.0] * 50) == [2 * (1000 - 10 * n) for n in range(1, 51)]


def test_one_slow_record_hardly_moves_the_time_left():
    *_, before, after = times_left([1.0] * 30 + [10.0])
    assert before == 710
    assert after < 1.6 * before


def test_the_time_left_follows_a_machine_that_has_become_slower():
    assert times_left([1.0] * 30 + [3.0] * 60)[-1] == pytest.approx(3 * 110, rel=0.05)


def test_a_run_that_resumes_loses_its_later_records_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(4)) + '{"step": 4, "lo')
    track.rewind_metrics(tmp_path, 2)
    assert [record["step"] for record in track.read_metrics(tmp_path)] == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_tracks_no_records_gets_no_file_of_them(tmp_path):
    track.rewind_metrics(tmp_path, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_plot_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    record = {"step": 1, "tokens": 1, "loss": 2.0, "lr": 1.0, "grad_norm": 1.0}
    record |= {"val_loss": 2.0, "bits_per_byte": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record))
    track.plot(tmp_path)
    before = (tmp_path / "loss.png").read_bytes()
    assert before.startswith(b"\x89PNG")

    def torn(figure, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", torn)
    with pytest.raises(OSError, match="No space left"):
        track.plot(tmp_path)
    assert (tmp_path / "loss.png").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "loss.png"}
