"""A leading `~` is the home folder in every path that a command takes."""

from pathlib import Path

import pytest

from tinylm import config
from tinylm.data import __main__ as data
from tinylm.evaluate import __main__ as evaluate
from tinylm.sample import __main__ as sample
from tinylm.tokenizer import __main__ as tokenizer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a text, and an empty working folder beside it."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (home / "fox.txt").write_text("the quick brown fox\n" * 200, encoding="utf-8")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(work)
    return home


def test_tokenizer_and_data_expand_every_path(home):
    size = ["--vocab-size", "260", "--pattern", "gpt2"]
    assert tokenizer.main(["train", "~/fox.txt", *size, "--out=~/t.json"]) == 0
    assert tokenizer.main(["encode", "~/t.json", "a"]) == 0
    assert tokenizer.main(["stats", "~/t.json", "~/fox.txt"]) == 0
    assert tokenizer.main(["compare", "~/t.json", "~/t.json", "~/fox.txt"]) == 0
    assert tokenizer.main(["export", "~/t.json", "--format", "gpt2", "--out=~/gpt2"]) == 0
    assert tokenizer.main(["import", "~/gpt2", "--out=~/again.json"]) == 0
    assert data.main(["prepare", "~/fox.txt", "--tokenizer=~/t.json", "--out=~/shards"]) == 0
    assert data.main(["inspect", "~/shards", "--tokenizer=~/t.json"]) == 0
    assert data.main(["verify", "~/shards"]) == 0
    assert data.main(["export", "~/shards", "~/o.jsonl", "--tokenizer=~/t.json"]) == 0
    assert data.main(["subset", "~/shards", "~/part", "--tokens", "10"]) == 0
    assert {path.name for path in home.iterdir()} >= {"t.json", "again.json", "o.jsonl", "part"}
    assert not list(Path().iterdir())


def test_the_run_of_sample_and_evaluate_is_expanded(home):
    for command in (sample, evaluate):
        with pytest.raises(OSError, match="no such run") as caught:
            command.main(["~/none"])
        assert caught.value.filename == str(home / "none")


def test_a_file_of_settings_is_expanded(home):
    (home / "mine.yaml").write_text("train: {steps: 7}\n", encoding="utf-8")
    assert config.load("~/mine.yaml").train.steps == 7


@pytest.mark.parametrize("source", ["a:b.txt", "\0", "..."])
def test_a_source_whose_name_no_folder_can_have_names_the_run_run(source):
    assert config.load(None, [f"data.source={source}"]).name == "run"
