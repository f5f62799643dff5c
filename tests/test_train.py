"""A run as a whole: what it leaves behind, how it stops, how it goes on."""

import itertools
import json
import os
import re
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinylm import checkpoint, config, optim, track
from tinylm.data import Loader
from tinylm.model import Model
from tinylm.train import Interrupted, NonFiniteError, Trainer, session, signals, train
from tinylm.train.__main__ import main

TEXT = "".join(f"the {i % 7} cats of house {i % 13} sleep on {i % 5} mats\n" for i in range(3000))
SMALL = [
    "data.source=cats.txt",
    "data.val_fraction=0.1",
    "tokenizer.vocab_size=270",
    "model.d_model=16",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.context_length=32",
    "train.batch_size=4",
    "train.steps=12",
    "checkpoint.every=4",
    "evaluate.every=6",
    "track.every=2",
    "sample.max_tokens=8",
    "track.names=[console,jsonl]",
]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder with a small text, so that runs/ and data/ are the test's own."""
    monkeypatch.chdir(tmp_path)
    Path("cats.txt").write_text(TEXT)
    return tmp_path


def settings(*overrides):
    return config.load(None, [*SMALL, *overrides])


def weights(folder):
    """Every tensor of the newest checkpoint, the optimizer's too."""
    path = checkpoint.latest(folder)
    # Cloned: the tensors of load_file are the file's own pages.
    return {
        f"{part}.{name}": tensor.clone()
        for part in ("model", "optimizer")
        for name, tensor in load_file(path / f"{part}.safetensors").items()
    }


def assert_same_weights(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def stop_after(monkeypatch, steps, number=signal.SIGINT):
    """Send this process a signal in the middle of a step."""
    original = Trainer.step

    def step(self):
        if self.progress.step == steps - 1:
            os.kill(os.getpid(), number)
        return original(self)

    monkeypatch.setattr(Trainer, "step", step)


def test_a_run_leaves_the_documented_folder_and_ends_with_bits_per_byte(capsys):
    assert main([*SMALL, "track.names=[console,jsonl,plot]"]) == 0
    folder = Path("runs/cats")
    for name in [
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "loss.png",
        "samples.txt",
        "tokenizer.json",
    ]:
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "best.json").exists()
    assert (folder / "samples.txt").read_text().count("--- step") == 2
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert "step-00000012" in names
    flat = {path.name for path in (folder / "checkpoints/step-00000012").iterdir()}
    assert flat == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("generation_config.json", "optimizer.safetensors", "state.json", "MANIFEST.json"),
    }
    assert re.fullmatch(r"bits per byte: \d+\.\d{3}", capsys.readouterr().out.splitlines()[-1])


def test_without_arguments_the_default_run_is_trained(monkeypatch):
    runs = []
    monkeypatch.setattr("tinylm.train.train", runs.append)
    assert main([]) == 0
    assert runs == [config.load("stdlib")]


def test_metrics_hold_the_documented_keys(tmp_path):
    records = track.read_metrics(train(settings()))
    steps = [r for r in records if "loss" in r]
    keys = [
        "step",
        "tokens",
        "loss",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "mfu",
        "memory_bytes",
        "seconds",
    ]
    assert all(set(r) == set(keys) for r in steps)
    assert [r["step"] for r in steps] == [1, 2, 4, 6, 8, 10, 12]
    assert steps[-1]["tokens"] == 12 * 4 * 32
    scored = [r for r in records if "val_loss" in r]
    assert [r["step"] for r in scored] == [6, 12]
    assert all(r["bits_per_byte"] > 0 for r in scored)


def test_the_same_settings_give_the_same_weights():
    assert_same_weights(train(settings()), train(settings()))


# Random numbers and micro-batches go on too.
NOISY = ["model.dropout=0.1", "train.micro_batch_size=2"]
LONGER = [pytest.param(n, e, marks=pytest.mark.slow) for n in (1, 11) for e in ([], NOISY)]


@pytest.mark.parametrize(("steps", "extra"), [(4, []), (5, NOISY), *LONGER])
def test_a_run_stopped_at_a_step_goes_on_to_the_same_weights(monkeypatch, steps, extra):
    whole = train(settings("out=whole", *extra))
    with monkeypatch.context() as patched:
        stop_after(patched, steps)
        with pytest.raises(Interrupted) as stopped:
            train(settings("out=cut", *extra))
    assert stopped.value.checkpoint.name == f"step-{steps:08d}"
    assert_same_weights(whole, train(settings("out=cut", "train.resume=auto", *extra)))
    numbers = [r["step"] for r in track.read_metrics(Path("cut")) if "loss" in r]
    assert numbers == sorted(set(numbers))
    samples = [(folder / "samples.txt").read_text() for folder in (whole, Path("cut"))]
    assert samples[0] == samples[1]


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        (signal.SIGINT, "stopping after this step; once more stops at once, unsaved\n"),
        (signal.SIGTERM, "stopping after this step\n"),
    ],
)
def test_a_signal_is_answered_at_once(monkeypatch, capfd, number, answer):
    original, heard = Trainer.step, []

    def step(self):
        heard.append(capfd.readouterr().err)
        return original(self)

    # stop_after wraps this one: it sends the signal first.
    monkeypatch.setattr(Trainer, "step", step)
    stop_after(monkeypatch, 3, number)
    with pytest.raises(Interrupted):
        train(settings())
    assert heard == ["", "", answer]


def test_a_signal_is_no_error_where_standard_error_is_closed(monkeypatch):
    monkeypatch.setattr(signals.os, "write", lambda *_: os.close(-1))
    signals.answer(signal.SIGINT)


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    original = Trainer.step

    def step(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return original(self)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(settings("out=cut"))
    assert not isinstance(stopped.value, Interrupted)
    assert not Path("cut/checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, None])
def test_a_step_that_ctrl_c_broke_is_an_interrupt_and_other_broken_steps_are_errors(
    monkeypatch, capsys, number
):
    def step(self):
        if number is not None:
            os.kill(os.getpid(), number)
        raise RuntimeError("g++ has ended")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt if number else RuntimeError) as stopped:
        train(settings())
    assert not isinstance(stopped.value, Interrupted)
    assert ("nothing of it is saved" in capsys.readouterr().out) == (number is not None)


def test_ctrl_c_exits_130_and_sigterm_75_with_the_command_that_goes_on(monkeypatch, capsys):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        with monkeypatch.context() as patched:
            stop_after(patched, 3, number)
            assert main([*SMALL, f"out=run{code}"]) == code
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.strip().startswith("python -m tinylm.train data.source=cats.txt")
        assert last.endswith(f"train.resume=run{code}")


def test_a_run_of_make_says_how_make_goes_on(monkeypatch, capsys):
    monkeypatch.setenv("TINYLM_COMMAND", "make train")
    stop_after(monkeypatch, 3)
    assert main([*SMALL, "out=a run"]) == 130
    *_, saved, command = capsys.readouterr().out.splitlines()
    assert "(make says Error 130: stopped before its end); go on with:" in saved
    words = shlex.split(command)
    assert words[:2] == ["make", "train"]
    again = [*SMALL, "out=a run", "train.resume=a run"]
    assert shlex.split(words[2].removeprefix("ARGS=")) == again


def test_a_finished_run_is_left_alone_and_a_larger_number_of_steps_lengthens_it(capsys):
    folder = train(settings())
    before = (folder / "metrics.jsonl").read_bytes()
    assert train(settings("train.resume=auto")) == folder
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert "a larger train.steps lengthens it" in capsys.readouterr().out
    assert train(settings("train.resume=auto", "train.steps=15")) == folder
    assert checkpoint.latest(folder).name == "step-00000015"


def test_runs_are_numbered_and_auto_reopens_the_newest_equal_one():
    first, second = train(settings("train.steps=2")), train(settings("train.steps=2"))
    assert (first.name, second.name) == ("cats", "cats-2")
    other = train(settings("train.steps=2", "train.seed=1", "train.resume=auto"))
    assert other.name == "cats-3"
    assert train(settings("train.steps=4", "train.resume=auto")) == second


def test_an_older_checkpoint_starts_a_new_run_and_leaves_its_own_alone():
    folder = train(settings("checkpoint.keep=5"))
    old = folder / "checkpoints/step-00000004"
    branch = train(settings("checkpoint.keep=5", f"train.resume={old}"))
    assert branch != folder
    assert_same_weights(folder, branch)


def test_a_corrupt_newest_checkpoint_is_passed_over_with_a_warning():
    folder = train(settings("checkpoint.keep=5"))
    model = folder / "checkpoints/step-00000012/model.safetensors"
    good = weights(folder)
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="step-00000012"):
        train(settings("checkpoint.keep=5", "train.resume=auto", "train.steps=12"))
    again = weights(folder)
    assert all(torch.equal(good[name], again[name]) for name in good)


def poison(monkeypatch, step):
    """Make the loss of one step NaN."""
    original = Trainer.step

    def poisoned(self):
        sound = self.stepper.loss
        if self.progress.step == step:
            self.stepper.loss = lambda *batch, **places: sound(*batch, **places) * float("nan")
        try:
            return original(self)
        finally:
            self.stepper.loss = sound

    monkeypatch.setattr(Trainer, "step", poisoned)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_sound_checkpoint(monkeypatch):
    poison(monkeypatch, 6)
    with pytest.raises(NonFiniteError, match="step 6: the loss is not finite"):
        train(settings("out=bad"))
    state = weights(Path("bad"))
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_the_pieces_of_packed_rows_reach_the_model(monkeypatch):
    told, take = [], Loader.__next__

    def packed(self):
        batch = take(self)
        return replace(batch, positions=batch.tokens * 0, documents=batch.tokens)

    def loss(self, tokens, targets, *, positions, documents, dtype):
        told.append((tokens, positions, documents))
        return self.embedding(tokens).sum() * 0

    monkeypatch.setattr(Loader, "__next__", packed)
    monkeypatch.setattr(Model, "loss", loss)
    train(settings("train.steps=2", "train.batch_size=4", "train.micro_batch_size=2"))
    assert len(told) == 4
    assert all(tokens.shape == (2, 32) for tokens, _, _ in told)
    assert all(torch.equal(tokens, documents) for tokens, _, documents in told)
    assert all(not positions.any() for _, positions, _ in told)


def test_skipping_leaves_weights_and_moments_as_if_the_batch_had_not_been_seen(monkeypatch):
    poison(monkeypatch, 11)
    skipped = train(settings("train.nonfinite=skip", "checkpoint.every=1", "checkpoint.keep=9"))
    last, before = (skipped / f"checkpoints/step-{step:08d}" for step in (12, 11))
    for name in ("model", "optimizer"):
        one, other = (load_file(path / f"{name}.safetensors") for path in (last, before))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_patience_ends_a_run_that_no_longer_learns(capsys):
    slow = ["optim.lr=1e-12", "optim.matrix_lr=1e-12", "evaluate.every=1", "evaluate.patience=2"]
    folder = train(settings("train.steps=50", *slow))
    assert int(checkpoint.latest(folder).name[5:]) < 50
    assert "no better validation loss in 2 evaluations" in capsys.readouterr().out


def test_a_run_starts_from_the_weights_of_another():
    parent = train(settings())
    child = train(settings("out=child", f"train.init={parent}", "train.steps=1", "optim.lr=1e-9"))
    one, other = (checkpoint.load(folder)[0] for folder in (parent, child))
    drift = (one.embedding.weight - other.embedding.weight).abs().max()
    assert drift < 1e-6


def test_micro_batches_add_up_to_the_whole_batch(monkeypatch):
    # In bfloat16, the last digit of a gradient may move a matrix by a few percent of its step.
    monkeypatch.setattr(optim.muon, "working_dtype", lambda *_: torch.float32)
    one = train(settings("train.dtype=float32", "train.steps=3", "data.mask_after_eos=true"))
    many = train(
        settings(
            *("train.dtype=float32", "train.steps=3", "data.mask_after_eos=true"),
            *("out=many", "train.micro_batch_size=1"),
        )
    )
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(many)[name], atol=2e-3, rtol=2e-2)


def test_seeds_differ_in_every_argument():
    stream = session.Stream.DROPOUT
    seeds = {
        session.mix(*numbers[:1], stream + numbers[1], *numbers[2:])
        for numbers in itertools.product(range(4), repeat=5)
    }
    assert len(seeds) == 4**5
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("seed", "step", "micro", "expected"),
    [
        (0, 0, 0, 1279368494785126216),
        (0, 0, 1, 2382078301196010449),
        (0, 1, 0, 5352869105593375612),
        (1, 0, 0, 6396520470166291297),
        (42, 7, 3, 4038492075152325935),
        (2**63 - 1, 10**6, 31, 4063163868497230346),
    ],
)
def test_the_seeds_of_dropout_in_the_first_process_stay_what_they_are(seed, step, micro, expected):
    """A run that was begun by an older TinyLM goes on with the numbers that it would have had."""
    assert session.mix(seed, session.Stream.DROPOUT, step, micro, 0) == expected


def test_run_json_says_what_was_run_and_what_came_of_it():
    record = json.loads((train(settings()) / "run.json").read_text())
    assert record["threads"] == torch.get_num_threads()
    assert record["results"]["step"] == 12
    assert record["parameters"] > record["parameters_without_embedding"]


def test_silence_is_possible(capsys):
    train(settings("track.names=[jsonl]"))
    assert capsys.readouterr().out == ""


def test_settings_may_be_replaced_in_code():
    run = settings()
    assert train(replace(run, out="mine")) == Path("mine")
