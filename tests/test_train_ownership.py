"""Who writes to a run's folder, what a run needs to go on, and when it has ended."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.calling import call
from tests.support.crashes import CONFIG
from tests.test_train import (
    SMALL,
    TEXT,
    assert_same_weights,
    settings,
    stop_after,
    workplace,  # noqa: F401
)
from tinylm import Tokenizer, checkpoint, config, corpus, data, disk, model
from tinylm.corpus import files, texts
from tinylm.evaluate.__main__ import main as evaluate_main
from tinylm.sample.__main__ import main as sample_main
from tinylm.train import Interrupted, Trainer, beginning, folder, prompts, reporting, session, train
from tinylm.train.__main__ import main

PIPE = subprocess.PIPE
# Trains as its arguments say and waits for a line before each step.
STEPPED = """
import sys
from tinylm.train import Trainer
from tinylm.train.__main__ import main
original = Trainer.step
def step(self):
    print("step", flush=True)
    sys.stdin.readline()
    return original(self)
Trainer.step = step
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files whose content is hashed, one entry each time."""
    names, real = [], texts.inspect

    def inspect(path, *given):
        names.append(path.name)
        return real(path, *given)

    monkeypatch.setattr(files, "inspect", inspect)
    return names


def interrupted(monkeypatch, *overrides):
    """A run stopped after 5 of its 12 steps."""
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        with pytest.raises(Interrupted):
            train(settings(*overrides))


@pytest.mark.slow
def test_a_second_process_is_told_who_trains_and_the_first_ends_well(monkeypatch, capsys):
    interrupted(monkeypatch, "out=run")
    again = [*SMALL, "out=run", "train.resume=auto"]
    command = [sys.executable, "-c", STEPPED, *again]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as first:
        while first.stdout.readline() not in ("step\n", ""):
            pass
        before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
        assert call(main, again) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: run: in use by process {first.pid} on ")
        assert error.endswith("): wait for it, or choose another out=\n")
        assert error.count("\n") == 1
        assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before
        _, errors = first.communicate("\n" * 99)
    assert first.returncode == 0, errors
    assert not (Path("run") / disk.LOCK).exists()
    assert checkpoint.latest("run").name == "step-00000012"


def test_a_folder_that_became_a_run_in_the_meantime_is_not_taken_over():
    with folder.Home(settings("out=run")) as slow:
        train(settings("out=run", "train.seed=1", "train.steps=1"))
        before = Path("run/config.yaml").read_bytes()
        with pytest.raises(config.ConfigError, match="out=run has become a run"):
            slow.claim()
    assert Path("run/config.yaml").read_bytes() == before


def test_the_lock_of_a_run_that_was_killed_early_is_no_obstacle():
    Path("run").mkdir()
    (Path("run") / disk.LOCK).write_text('{"process": 1}')
    assert train(settings("out=run", "train.steps=1")) == Path("run")


def test_a_run_goes_on_without_its_text(monkeypatch):
    whole = train(settings("out=whole"))
    interrupted(monkeypatch, "out=cut")
    Path("cats.txt").unlink()
    assert_same_weights(whole, train(settings("out=cut", "train.resume=auto")))
    samples = [(path / "samples.txt").read_text() for path in (whole, Path("cut"))]
    assert samples[0] == samples[1]


def test_another_torch_than_the_one_that_saved_is_named(monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", "1.0")
        interrupted(monkeypatch, "out=cut")
    capsys.readouterr()
    train(settings("out=cut", "train.resume=auto"))
    assert f"saved by torch 1.0, this is {torch.__version__}: " in capsys.readouterr().out


def test_without_text_and_without_shards_the_text_is_asked_for(monkeypatch):
    interrupted(monkeypatch, "out=cut")
    Path("cats.txt").unlink()
    shutil.rmtree("data")
    with pytest.raises(FileNotFoundError, match=r"data\.source is neither"):
        train(settings("out=cut", "train.resume=auto"))


def test_the_text_is_hashed_once_at_a_start_and_not_at_all_by_a_run_that_goes_on(
    monkeypatch, hashed
):
    interrupted(monkeypatch, "out=cut")
    assert hashed.count("cats.txt") == 1
    train(settings("out=cut", "train.resume=auto"))
    assert hashed.count("cats.txt") == 1
    # A new run on shards that are there makes sure that they are of this text.
    train(settings("out=new", "train.steps=1"))
    assert hashed.count("cats.txt") == 2


def test_after_an_edit_of_the_text_both_runs_have_their_shards(monkeypatch, capsys):
    """Nothing has to be removed by hand, and a run goes on with the shards that it began with."""
    interrupted(monkeypatch, "out=cut")
    whole = train(settings("out=whole"))
    given = ["train.steps=1", "tokenizer.path=whole/tokenizer.json"]
    Path("cats.txt").write_text(TEXT + "and a dog\n")
    edited = train(settings("out=edited", *given))
    assert len(list(Path("data/processed").iterdir())) == 2
    assert_same_weights(whole, train(settings("out=cut", "train.resume=auto")))
    assert len({score(home, capsys) for home in (whole, edited)}) == 2
    # Without the text, a new run takes the newest.
    Path("cats.txt").unlink()
    assert_same_weights(edited, train(settings("out=again", *given)))
    assert "cats.txt cannot be read: training on the shards" in capsys.readouterr().out


def score(home, capsys):
    """How much text of which size a run is scored on, which is what it was trained beside."""
    capsys.readouterr()
    assert call(evaluate_main, [str(home)]) == 0
    return capsys.readouterr().out.splitlines()[0]


def test_a_folder_of_shards_that_was_named_and_holds_another_text_is_refused():
    train(settings("train.steps=1", "data.folder=shards", "out=first"))
    Path("cats.txt").write_text(TEXT + "and a dog\n")
    given = ["data.folder=shards", "tokenizer.path=first/tokenizer.json"]
    with pytest.raises(FileExistsError, match=r"shards of another text \(fingerprint .* not .*\)"):
        train(settings("out=new", "train.steps=1", *given))
    assert not Path("new").exists()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT], vocab_size=270)


LINES = {
    "two lines": "first line\n  second line \nthird",
    "one line": "  the only line",
    "blank lines": "\n\n \n",
    "special": "one\ntwo <|endoftext|> three",
    "begins special": "one\n<|endoftext|>",
    "long": "x" * 999 + "\nlater",
    "wide": "\n" + "\U0001f600\u4e16\u00e9" * 999,
    "far": "\U0001f600" * 900 + "\nthe second line",
    "other breaks": "a\x0b\u2028b\r\nc",
}


@pytest.mark.parametrize("name", LINES)
def test_the_prompt_is_an_early_line_of_the_validation_text(name, tokenizer):
    """From the tokens; it is the one that the text itself would give."""
    documents = [f"{LINES[name]} {k}" for k in range(9)]
    Path("a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
    text = corpus.open("a.jsonl", val_fraction=0.5)
    data.prepare(text, tokenizer, "shards")
    net = model.build(replace(CONFIG, vocab_size=tokenizer.vocab_size))
    validation = data.Dataset.open("shards", split="val")
    found = prompts.first_words(settings(), validation, net, tokenizer)
    lines = [line.strip() for line in next(text.validation())[:1000].splitlines()]
    line = next((line[:60] for line in lines[1:] if line), lines[0][:60] if lines else "")
    assert found == (line.partition("<|endoftext|>")[0] or "The")


EARLY = ["optim.lr=1e-12", "optim.matrix_lr=1e-12", "evaluate.every=1", "evaluate.patience=1"]


def test_a_run_that_stopped_early_is_finished_until_train_steps_grows(capsys):
    home = train(settings("train.steps=50", *EARLY))
    step = checkpoint.step_of(checkpoint.latest(home))
    assert step < 50
    for _ in range(2):
        assert train(settings("train.steps=50", "train.resume=auto", *EARLY)) == home
        assert checkpoint.step_of(checkpoint.latest(home)) == step
        assert "is finished; a larger train.steps lengthens it" in capsys.readouterr().out
    train(settings("train.steps=51", "train.resume=auto", *EARLY))
    assert checkpoint.step_of(checkpoint.latest(home)) > step


def test_a_run_that_was_killed_after_it_stopped_early_only_adds_its_results(monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(reporting, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings("out=run", "train.steps=50", *EARLY))
    step = checkpoint.step_of(checkpoint.latest("run"))
    train(settings("out=run", "train.steps=50", "train.resume=auto", *EARLY))
    assert checkpoint.step_of(checkpoint.latest("run")) == step < 50
    assert json.loads(Path("run/run.json").read_text())["results"]["step"] == step


def test_lengthening_a_run_whose_rate_has_fallen_says_that_it_rises_again(capsys):
    train(settings())
    capsys.readouterr()
    train(settings("train.resume=auto", "train.steps=24"))
    line = "train.steps grew from 12 to 24: the learning rate rises again, "
    assert line in capsys.readouterr().out


TRIMMED = "data: {source: cats.txt}\n"


@pytest.mark.parametrize("content", ["", "\n", "null", "[1]", TRIMMED, None])
def test_settings_of_a_run_that_are_empty_or_torn_are_an_error_that_names_the_file(content):
    home = train(settings("train.steps=1"))
    saved = home / "config.yaml"
    if content is None:
        content = saved.read_text().partition("track:")[0]
    saved.write_text(content)
    wanted = f"{saved}: empty or torn"
    for whole in (False, True) if content in ("", "\n", "null", "[1]") else (True,):
        with pytest.raises(config.ConfigError, match=wanted):
            config.find(home, whole=whole)
    for overrides in (["train.resume=auto", "out=runs/cats"], [f"train.resume={home}"]):
        with pytest.raises(config.ConfigError, match=wanted):
            train(settings("train.steps=1", *overrides))
    assert saved.read_text() == content


def test_a_few_settings_are_enough_to_sample_and_to_evaluate(capsys):
    home = train(settings("train.steps=1"))
    (home / "config.yaml").write_text(TRIMMED)
    assert call(sample_main, [str(home), "The", "max_tokens=2"]) == 0
    assert call(evaluate_main, [str(home)]) == 0
    assert "nats per token" in capsys.readouterr().out


def test_a_torn_neighbour_is_another_run(monkeypatch):
    # With the defaults of the last section: without it, the settings would read the same.
    defaults = config.load().track
    last = [f"track.every={defaults.every}", f"track.names=[{','.join(defaults.names)}]"]
    interrupted(monkeypatch, *last)
    torn = Path("runs/cats-4/config.yaml")
    torn.parent.mkdir()
    whole = Path("runs/cats/config.yaml").read_text()
    for content in ("", "optim: [", TRIMMED, whole.partition("track:")[0]):
        torn.write_text(content)
        assert train(settings("train.resume=auto", *last)) == Path("runs/cats")


def test_what_a_killed_process_left_is_no_obstacle_and_removed():
    Path("run").mkdir()
    for name in (disk.LOCK, "config.yaml.4711-0badcafe.part"):
        (Path("run") / name).touch()
    train(settings("out=run", "train.steps=1"))
    assert not list(Path("run").glob("*.part"))


def test_a_process_gets_its_rows_and_its_random_numbers_from_its_rank():
    run = settings("train.steps=1")
    tokenizer = Tokenizer.load(train(run) / "tokenizer.json")
    (shards,) = Path("data/processed").iterdir()
    cpu, float32 = torch.device("cpu"), torch.float32
    ranks = [session.Session(cpu, float32, rank, 2, print) for rank in range(2)]
    alone = session.Session(cpu, float32, 0, 1, print)

    def tokens(one):
        with beginning.loader(run, (shards,), tokenizer, 32, one) as batches:
            return next(batches).tokens

    whole, parts = tokens(alone), [tokens(one) for one in ranks]
    assert torch.equal(whole[0::2], parts[0])
    assert torch.equal(whole[1::2], parts[1])

    def drawn(one):
        one.manual_seed(0, session.Stream.DROPOUT, 3, 1)
        return torch.rand(4)

    assert torch.equal(drawn(alone), drawn(ranks[0]))
    assert not torch.equal(drawn(ranks[0]), drawn(ranks[1]))


def test_dropout_draws_what_it_drew_before_there_were_streams_and_ranks(monkeypatch):
    """The whole function of earlier runs, written out: a run with either has the same weights."""

    def mix(*numbers):
        state = 0
        for number in numbers:
            state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
            state ^= state >> 31
        return state >> 1

    def step(self):
        seed, progress, micro = self.run.train.seed, self.progress, iter(range(9))
        draw = lambda *_: torch.manual_seed(mix(seed, progress.step, next(micro)))  # noqa: E731
        monkeypatch.setattr(session.Session, "manual_seed", draw)
        return original(self)

    given = ["model.dropout=0.3", "train.steps=3", "train.micro_batch_size=2", "train.seed=3"]
    ours = train(settings(*given))
    original = Trainer.step
    monkeypatch.setattr(Trainer, "step", step)
    assert_same_weights(ours, train(settings(*given)))
