"""What a run records of itself: norms by role, resumed means, a profile, where the time went."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.test_callbacks import TINY
from tests.test_train import TEXT, settings
from tinylm import checkpoint, device, evaluate, track
from tinylm.data import Dataset
from tinylm.train import train
from tinylm.train.clock import Clock


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with a text."""
    monkeypatch.chdir(tmp_path)
    Path("cats.txt").write_text(TEXT[:6000])


def test_the_norms_of_the_roles_make_up_the_norm_of_all():
    records = track.read_metrics(train(settings(*TINY, "track.norms=true", "model.tied=false")))
    scored = [record for record in records if "val_loss" in record]
    assert len(scored) == 2
    assert all(r["perplexity"] == pytest.approx(torch.tensor(r["val_loss"]).exp()) for r in scored)
    stepped = [record for record in records if "loss" in record]
    assert [record["step"] for record in stepped] == [1, 4, 6]
    for record in stepped:
        parts = {key: value for key, value in record.items() if key.startswith("grad_norm/")}
        assert set(parts) == {f"grad_norm/{r}" for r in ("embedding", "matrix", "gain", "head")}
        whole = sum(value**2 for value in parts.values()) ** 0.5
        assert whole == pytest.approx(record["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_records_the_means_of_all_steps_since_the_last_record():
    every = [*TINY, "checkpoint.every=1", "checkpoint.keep=9", "evaluate.every=0", "train.steps=9"]
    whole = train(settings(*every, "out=whole"))
    cut = train(settings(*every, "out=cut", f"train.resume={whole}/checkpoints/step-00000006"))
    # An older checkpoint goes on in a folder of its own, without the records before it.
    mine, theirs = (
        [(r["step"], r["loss"], r["grad_norm"]) for r in track.read_metrics(folder) if "loss" in r]
        for folder in (cut, whole)
    )
    assert [step for step, *_ in theirs] == [1, 4, 8, 9]
    assert mine == theirs[2:]


@pytest.mark.slow
def test_a_profile_has_a_trace_and_a_table_with_the_ranges(capsys):
    names = ("track.names=[console,jsonl]", "profile.steps=2", "profile.start=3")
    folder = train(settings(*TINY, *names, "out=run"))
    events = json.loads((folder / "profile/trace.json").read_text())["traceEvents"]
    marked = {event["name"] for event in events if event.get("cat") == "user_annotation"}
    ranges = {"data", "forward", "embed", "attention", "feedforward", "loss", "optimizer"}
    assert ranges <= marked
    text = (folder / "profile/table.txt").read_text()
    assert text.startswith("2 steps.")
    assert ranges <= set(re.findall(r"^(\w+) +[\d.]+   \d+ calls$", text, re.MULTILINE))
    assert "aten::" in text
    out = capsys.readouterr().out
    assert f"profile    {folder}/profile: table.txt, trace.json" in out
    # The parts of the run add up, and the last line stays what it was.
    line = re.search(r"^time +(.*) s; ", out, re.MULTILINE)[1]
    parts = dict(part.rsplit(" ", 1) for part in line.split(", "))
    assert set(parts) >= {"setup", "first step", "steps", "evaluation", "samples", "saving"}
    assert out.splitlines()[-1].startswith("bits per byte: ")


@pytest.mark.slow
def test_a_run_that_compiles_nothing_imports_no_compiler():
    code = (
        "import sys; from tinylm import config; from tinylm.train import train; "
        "train(config.load(None, sys.argv[1:])); "
        "print([m for m in ('torch._dynamo', 'torch._inductor', 'matplotlib', 'sympy') "
        "if m in sys.modules])"
    )
    for name in ("muon", "adamw", "sgd"):
        changes = (f"out={name}", f"optim.name={name}", "track.names=[jsonl,plot]")
        command = [sys.executable, "-c", code, *TINY, "train.compile=false", *changes]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


def test_steps_that_are_not_there_cannot_be_profiled():
    with pytest.raises(ValueError, match=r"profile.steps=3: profile.start=10 and these pass"):
        settings(*TINY, "profile.steps=3")


def test_the_clock_counts_a_part_inside_another_once(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()
    with clock("outer"), clock("inner"):
        pass
    assert clock.spent == {"inner": 2.0, "outer": 5.0}
    assert clock.words() == "inner 2.0, outer 5.0"


def test_the_use_of_a_device_is_left_out_where_nobody_knows_it(monkeypatch):
    assert device.utilisation(torch.device("cpu")) is None
    place = torch.device("cuda")
    monkeypatch.setattr(device, "_has_nvml", lambda: True)
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 87)
    assert device.utilisation(place) == 0.87

    def hidden(_):
        raise RuntimeError("NVML is not here")

    monkeypatch.setattr(torch.cuda, "utilization", hidden)
    assert device.utilisation(place) is None
    monkeypatch.setattr(device, "_has_nvml", lambda: False)
    assert device.utilisation(place) is None


def test_as_many_validation_tokens_are_scored_as_wanted(capsys):
    folder = train(settings("evaluate.max_tokens=50"))
    results = json.loads((folder / "run.json").read_text())["results"]
    assert results["val_tokens"] == 50
    net, tokenizer = checkpoint.load(folder, dtype=torch.float32)
    held_out = Dataset.open(json.loads((folder / "run.json").read_text())["shards"], split="val")
    scores = evaluate.evaluate(net, held_out, tokenizer=tokenizer, max_tokens=50)
    assert results["val_loss"] == pytest.approx(scores.loss, abs=1e-6)
    assert "nats per token on the first 50 tokens of the validation text" in capsys.readouterr().out
    # The scores on the way are of the same tokens, so the end counts among them.
    best = json.loads((folder / "best.json").read_text())
    assert best["val_loss"] == min(
        r["val_loss"] for r in track.read_metrics(folder) if "val_loss" in r
    )
