"""Callbacks: when they are called, with what, in which order, and that they end no run."""

import warnings
from pathlib import Path

import pytest

from tests.test_train import SMALL, TEXT, assert_same_weights, settings
from tinylm.train import CALLBACKS, train
from tinylm.train.callbacks import Callbacks

TINY = [
    *SMALL,
    *("train.steps=6", "checkpoint.every=0", "evaluate.every=3", "sample.max_tokens=2"),
    *("tokenizer.kind=byte", "model.n_layers=1", "track.names=[jsonl]", "track.every=4"),
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with a text."""
    monkeypatch.chdir(tmp_path)
    Path("cats.txt").write_text(TEXT[:6000])


def noting(told, label=""):
    """One callback for every moment, which notes what it is told."""

    def note(event):
        kind = next((k for k in ("record", "scores", "path") if getattr(event, k)), None)
        told.append(f"{label}{event.moment} {event.step}" + (f" {kind}" if kind else ""))

    def on_start(event):
        note(event)

    def on_step(event):
        note(event)

    def on_eval(event):
        note(event)

    def on_checkpoint(event):
        assert (event.path / "model.safetensors").is_file()
        note(event)

    def on_end(event):
        assert '"results"' in (event.trainer.folder / "run.json").read_text()
        note(event)

    return [on_start, on_step, on_eval, on_checkpoint, on_end]


def test_each_moment_has_its_callbacks_in_order():
    told = []
    CALLBACKS.extend(noting(told, "A "))
    try:
        train(settings(*TINY, "checkpoint.background=false", "out=run"), noting(told, "B "))
    finally:
        CALLBACKS.clear()
    expected = ["on_start 0", "on_step 1 record", "on_step 2", "on_step 3", "on_eval 3 scores"]
    expected += ["on_checkpoint 3 path", "on_step 4 record", "on_step 5", "on_step 6 record"]
    expected += ["on_checkpoint 6 path", "on_eval 6 scores", "on_end 6 scores"]
    # Of each moment first those of the registry, then the caller's.
    assert told == [f"{label}{words}" for words in expected for label in ("A ", "B ")]


def test_a_callback_may_end_the_run_and_one_that_raises_ends_nothing():
    def on_step(event):
        if event.step == 2:
            event.trainer.ended = True
        raise ZeroDivisionError("a mistake")

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        short = train(settings(*TINY, "out=short"), [on_step])
    texts = [str(one.message) for one in told]
    assert len(texts) == 1, texts
    assert "on_step failed, and the run goes on: ZeroDivisionError: a mistake" in texts[0]
    assert (short / "checkpoints/step-00000002").is_dir()


@pytest.mark.slow
def test_watching_changes_no_weight():
    seen = []
    one = train(settings(*TINY, "out=one"), noting(seen))
    assert_same_weights(one, train(settings(*TINY, "out=two", "track.norms=true")))


def test_a_function_with_another_name_is_refused():
    def after_step(event):
        """Named like no moment."""

    with pytest.raises(ValueError, match=r"callback after_step: name the function .* on_start, "):
        Callbacks([after_step])
