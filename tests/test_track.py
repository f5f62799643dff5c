"""How a run is reported: the time left, and the records of a run that resumes."""

import io
import json
import re
import time
from pathlib import Path
from typing import get_args

import pytest

from tinylm import track
from tinylm.config.fields import Tracker
from tinylm.track import drawing, plotting


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


def records(folder, count):
    """metrics.jsonl of `count` records with a loss, and the last one with a score as well."""
    jsonl = track.Jsonl(folder, count)
    for step in range(1, count + 1):
        numbers = {"loss": 8.0 / step, "lr": 0.1, "grad_norm": 1.0, "seconds_per_step": 0.1}
        jsonl.log({"step": step, "tokens": 10 * step, **numbers})
    jsonl.log({"step": count, "tokens": 10 * count, "val_loss": 3.0, "bits_per_byte": 2.0})
    jsonl.close()


def test_the_plot_is_drawn_beside_the_steps_and_whole_at_the_end(tmp_path):
    records(tmp_path, 3)
    plot = track.Plot(tmp_path, 3)
    began = time.perf_counter()
    plot.log({"val_loss": 3.0})
    plot.log({"step": 3})
    # The process that draws has hardly begun.
    assert time.perf_counter() - began < 0.1
    plot.close()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert plot._process.returncode is not None


def test_the_time_of_a_drawing_decides_when_the_next_one_may_be(tmp_path, monkeypatch):
    # A process that answers without drawing: 4 s are 5% of 80.
    code = "import sys\nfor _ in sys.stdin:\n    sys.stdout.write('4.0\\n'); sys.stdout.flush()"
    monkeypatch.setattr(plotting, "CODE", code)
    plot = track.Plot(tmp_path, 3)
    plot.log({"step": 1})
    assert not plot._wanted
    assert not plot._drawing
    plot._next = time.monotonic()
    plot.log({"step": 2})
    assert plot._drawing
    plot._listen(30.0)
    assert not plot._drawing
    assert 70 < plot._next - time.monotonic() <= 80
    plot.close()


def test_a_long_run_is_drawn_with_as_many_points_as_the_figure_shows():
    assert drawing._thinned([1.0, 2.0]) == [1.0, 2.0]
    many = drawing._thinned([float(n) for n in range(3 * drawing.POINTS)])
    assert many[:2] == [1.0, 4.0]
    assert len(many) == drawing.POINTS


def test_the_trackers_are_those_that_the_setting_names():
    assert tuple(track.TRACKERS) == get_args(Tracker)
