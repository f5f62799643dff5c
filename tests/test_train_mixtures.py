"""A run on several texts: shares, shards and scores of each, resumes, wrong settings."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.test_train import SMALL, assert_same_weights, stop_after
from tinylm import config, data, evaluate
from tinylm.config import ConfigError
from tinylm.config.sources import checked_sources
from tinylm.evaluate import parts
from tinylm.evaluate.__main__ import main
from tinylm.track import read_metrics
from tinylm.train import Interrupted, train

MIXED = [*(word for word in SMALL if not word.startswith("data.source")), "train.batch_size=32"]
TWO = "data.sources=[cats.txt:0.75,rain.txt:0.25]"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder with two small texts."""
    Path(tmp_path / "cats.txt").write_text("the cat sat on the mat, and 7 dogs ran.\n" * 400)
    Path(tmp_path / "rain.txt").write_text("Rain fell; RAIN fell! Rain? It fell.\n" * 100)
    monkeypatch.chdir(tmp_path)


def settings(*overrides):
    return config.load(None, [*MIXED, *overrides])


def test_a_run_on_two_texts_takes_their_shares_and_scores_each(capsys):
    run = train(settings(TWO, "out=run"))
    said = capsys.readouterr().out
    record = json.loads((run / "run.json").read_text())
    # A folder of shards for each text, made by one tokenizer that saw both.
    assert [Path(folder).name[:5] for folder in record["shards"]] == ["cats-", "rain-"]
    sets = [data.Dataset.open(folder) for folder in record["shards"]]
    assert sets[0].tokenizer_sha256 == sets[1].tokenizer_sha256
    # 12 steps of 32 rows are a block and a half.
    found = re.findall(r"data/processed/(\w+)-\w+: (\d+) rows, (\d+\.\d+) epochs", said)
    assert [name for name, *_ in found] == ["cats", "rain"]
    rows = [int(n) for _, n, _ in found]
    assert sum(rows) == 12 * 32
    assert abs(rows[0] - 0.75 * 12 * 32) < 12
    sources = record["results"]["sources"]
    assert set(sources) == {"cats", "rain"}
    n_bytes = sum(source["bytes"] for source in sources.values())
    bits = sum(source["bits_per_byte"] * source["bytes"] for source in sources.values())
    assert record["results"]["bits_per_byte"] == pytest.approx(bits / n_bytes)
    last = read_metrics(run)[-1]
    assert last["bits_per_byte/rain"] == sources["rain"]["bits_per_byte"]
    assert f"rain: {sources['rain']['bits_per_byte']:.3f} bits per byte" in said
    # The command gives the same, and scores another text alone.
    assert main([str(run)]) == 0
    said = capsys.readouterr().out
    assert f"bits per byte  {sources['cats']['bits_per_byte']:.4f} of cats.txt" in said
    assert f"bits per byte  {record['results']['bits_per_byte']:.4f}\n" in said
    assert main([str(run), "data.source=rain.txt"]) == 0
    assert f"{sources['rain']['bits_per_byte']:.4f}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_a_stopped_run_goes_on_to_the_same_weights_without_its_texts(monkeypatch, packed):
    changing = "data.sources=[cats.txt:1@0 0@0.4,rain.txt:0.2@0 1@0.9]"
    more = [changing, f"data.pack={str(packed).lower()}", "train.batch_size=64"]
    whole = train(settings("out=whole", *more))
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        with pytest.raises(Interrupted):
            train(settings("out=cut", *more))
    # The text was changed since, and has shards of its own by now; the other is gone.
    Path("cats.txt").write_text("Other words altogether, for other shards.\n" * 300)
    train(settings("data.source=cats.txt", "out=other"))
    Path("rain.txt").unlink()
    again = train(settings("out=cut", "train.resume=auto", *more))
    assert_same_weights(whole, again)
    state = json.loads((again / "checkpoints/step-00000012/state.json").read_text())
    assert len(json.dumps(state["state"]["loader"])) <= 256


@pytest.mark.slow
def test_weights_that_change_belong_to_a_length(monkeypatch):
    changing = "data.sources=[cats.txt:1@0 0@0.5,rain.txt:0.2@0 1@0.9]"
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(Interrupted):
            train(settings(changing, "out=run"))
    with pytest.raises(ConfigError, match=r"train.steps=20: the weights of data.sources change"):
        train(settings(changing, "out=run", "train.steps=20", "train.resume=auto"))


@pytest.mark.slow
def test_shards_and_texts_go_together_and_folders_are_used_again(capsys):
    first = train(settings("data.source=cats.txt", "out=first"))
    shards = json.loads((first / "run.json").read_text())["shards"]
    shutil.copy(first / "tokenizer.json", Path(shards) / "tokenizer.json")
    before = (Path(shards) / "manifest.json").stat().st_mtime_ns
    run = train(settings(f"data.sources=[{shards}:1,rain.txt:1]", "out=run"))
    record = json.loads((run / "run.json").read_text())
    assert record["shards"][0] == shards
    assert (Path(shards) / "manifest.json").stat().st_mtime_ns == before
    assert (run / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()


def test_settings_of_sources_that_are_wrong_are_named():
    for given, problem in (
        ("[a.txt,b.txt:1]", r"data.sources=a.txt: expected SOURCE:WEIGHT, such as \[novel"),
        ("[a.txt:x]", "data.sources: a.txt=x: expected a weight, at least 0 and finite, or a"),
        ("[a.txt:-1]", "data.sources: a.txt=-1.0: must be at least 0"),
        ("[a.txt:1@2]", "progress must be between 0 and 1"),
        ("[a.txt:1,a.txt:2]", "data.sources=a.txt: is named twice: give it one weight"),
        ("[a.txt:0,b.txt:0@0 1@1]", "all weights are 0 at 0 of the run: one must be above 0"),
        ("[a.txt: 1]", "data.sources=.*: expected a list"),
    ):
        with pytest.raises(ConfigError, match=problem):
            settings(f"data.sources={given}")
    run = settings("data.sources=[~/a:b.txt:0.5@0 1@0.5, c.txt:1]")
    assert run.data.texts == (str(Path("~/a:b.txt").expanduser()), "c.txt")
    Path("saved.yaml").write_text(config.to_yaml(run))
    assert config.load("saved.yaml") == run


@pytest.mark.slow
def test_conversations_and_text_are_mixed_only_if_all_targets_count():
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]
    Path("chat.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 200)
    mixed = "data.sources=[cats.txt:1,chat.jsonl:1]"
    with pytest.raises(ConfigError, match=r"some are conversations and some are text.*loss=all"):
        train(settings(mixed, "out=run"))
    train(settings(mixed, "out=run", "data.loss=all", "train.steps=2"))


def test_scores_of_parts_are_those_of_one_text():
    one, two = evaluate.Scores(2.0, 0, 1.5, 100, 300), evaluate.Scores(1.0, 0, 0.5, 300, 900)
    whole = parts.together([one, two])
    assert (whole.loss, whole.tokens, whole.bytes) == (1.25, 400, 1200)
    assert whole.bits_per_byte == pytest.approx(500 / 0.6931471805599453 / 1200)


def test_errors_name_the_setting_and_its_value_as_they_were_given(tmp_path):
    Path("empty.txt").touch()
    with pytest.raises(ValueError, match=r"^data\.sources: empty\.txt is empty"):
        train(settings("data.sources=[cats.txt:1,empty.txt:1]"))
    with pytest.raises(FileNotFoundError, match=r"data\.sources is neither a file") as caught:
        train(settings("data.sources=[cats.txt:1,none.txt:1]"))
    assert caught.value.strerror.startswith("data.sources is neither")
    with pytest.raises(ValueError, match=r"data\.source=empty\.txt is empty"):
        train(settings("data.source=empty.txt"))
    train(settings(TWO, "out=run", "train.steps=1"))
    other = "data.sources=[cats.txt:0.5,rain.txt:0.5]"
    message = r"\(yours is \[cats\.txt:0\.5, rain\.txt:0\.5\]\)"
    with pytest.raises(ConfigError, match=message):
        train(settings(other, "out=run", "train.steps=1"))


def test_a_text_with_two_names_is_named_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    for other in ("./a.txt", str(tmp_path / "a.txt")):
        with pytest.raises(ValueError, match=r"is named twice, also as a\.txt: give it one"):
            checked_sources(("a.txt:1", f"{other}:2"))
    assert checked_sources(("a.txt:1", "./b.txt:1")) == ("a.txt:1.0", "./b.txt:1.0")
