"""Bad input, one table: one line that names the thing and the fix, the right exit code, no harm."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.calling import call
from tests.test_train import SMALL, TEXT
from tinylm import Tokenizer
from tinylm.train.__main__ import main as train_main


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished small run and its shards, made once; the tests work on copies."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "cats.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train_main([*SMALL, "out=run", "checkpoint.keep=5", "data.folder=shards"]) == 0
    return folder


@pytest.fixture
def workplace(finished, tmp_path, monkeypatch):
    """A copy of the finished run to break."""
    subprocess.run(["cp", "-r", f"{finished}/.", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def truncate(path, by=1):
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:-by])


def flip(path, offset=-3):
    data = bytearray(Path(path).read_bytes())
    data[offset] ^= 1
    Path(path).write_bytes(data)


def write(path, content):
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def other_tokenizer(path):
    Tokenizer.train([TEXT], vocab_size=280).save(path)


RUN = "run/checkpoints/step-00000012"
AGAIN = [*SMALL, "out=run", "checkpoint.keep=5", "data.folder=shards", "train.resume=auto"]
LONGER = [*AGAIN, "train.steps=14"]

# name: (prepare, module, arguments, exit code, words of the one line)
CASES = {
    "unknown key": (None, "train", [*SMALL, "train.stpes=3"], 2, ["train.stpes", "train.steps"]),
    "unknown section": (None, "train", ["trian.steps=3"], 2, ["trian.steps", "train"]),
    "bad value": (None, "train", ["train.steps=many"], 2, ["train.steps=many", "whole number"]),
    "bad choice": (None, "train", ["model.norm=batchnorm"], 2, ["batchnorm", "rmsnorm"]),
    "bad range": (None, "train", ["data.val_fraction=2"], 2, ["data.val_fraction=2", "below 1"]),
    "unfit widths": (None, "train", ["model.d_model=190"], 2, ["d_model=190", "n_heads=3"]),
    "unknown option": (None, "train", ["--setps"], 2, ["--setps", "--help"]),
    "a setting in two words": (
        None,
        *("train", ["train.steps", "100"], 2, ["train.steps", "write train.steps=100"]),
    ),
    "a setting in two words after a recipe": (
        None,
        *("train", ["stdlib", "optim.lr", "0.1"], 2, ["write optim.lr=0.1"]),
    ),
    "a setting as an option": (
        None,
        *("train", ["--train.steps=100"], 2, ["--train.steps=100", "write train.steps=100"]),
    ),
    "a setting without a value": (None, "train", ["out"], 2, ["write out=VALUE"]),
    "a text for settings": (None, "train", ["cats.txt"], 2, ["cats.txt", "data.source=cats.txt"]),
    "a link to nothing in out": (
        lambda: Path("gone").symlink_to("nowhere"),
        *("train", [*SMALL, "out=gone"], 2, ["out=gone: a link to nowhere, which is not there"]),
    ),
    "unknown recipe": (None, "train", ["stdlibb"], 2, ["stdlibb", "stdlib"]),
    "missing recipe file": (None, "train", ["no.yaml"], 2, ["no.yaml", "no such"]),
    "bad file": (
        lambda: write("bad.yaml", "train:\n  stepz: 3\n"),
        *("train", ["bad.yaml"], 2, ["train.stepz", "bad.yaml", "train.steps"]),
    ),
    "missing source": (None, "train", ["data.source=no.txt"], 1, ["no.txt"]),
    "empty corpus": (
        lambda: write("empty.txt", ""),
        *("train", ["data.source=empty.txt"], 1, ["empty.txt", "empty"]),
    ),
    "invalid utf-8": (
        lambda: write("latin.txt", b"caf\xe9 " * 1000),
        *("train", [*SMALL, "data.source=latin.txt"], 1, ["latin.txt", "3", "UTF-8"]),
    ),
    "vocabulary too small": (
        None,
        *("train", [*SMALL, "tokenizer.vocab_size=200"], 1, ["200", "257"]),
    ),
    "truncated shard": (
        lambda: truncate("shards/train-00000.bin"),
        *("train", LONGER, 1, ["train-00000.bin"]),
    ),
    "corrupt shard": (
        lambda: flip("shards/train-00000.bin"),
        *("train", LONGER, 1, ["train-00000.bin"]),
    ),
    "explicit corrupt checkpoint": (
        lambda: flip(f"{RUN}/model.safetensors"),
        *("train", [*LONGER[:-2], "train.steps=14", f"train.resume={RUN}"], 1),
        ["model.safetensors"],
    ),
    "missing resume": (None, "train", ["train.resume=nowhere"], 2, ["train.resume=nowhere"]),
    "other run in out": (
        None,
        *("train", [*SMALL, "out=run", "model.n_layers=1"], 2, ["run", "differs"]),
    ),
    "run in out": (
        None,
        *("train", [*AGAIN[:-1], "train.resume=never"], 2, ["out=run", "train.resume=auto"]),
    ),
    "folder in out": (None, "train", [*SMALL, "out=shards"], 2, ["out=shards", "no run"]),
    "other tokenizer for init": (
        lambda: other_tokenizer("other.json"),
        *("train", [*SMALL, "train.init=run", "tokenizer.path=other.json"], 1, ["280", "270"]),
    ),
    "no device": (None, "train", [*SMALL, "train.device=mps"], 1, ["train.device=mps", "cpu"]),
    "sample without run": (None, "sample", ["nowhere", "x"], 1, ["nowhere"]),
    "sample unknown key": (None, "sample", ["run", "x", "temprature=1"], 2, ["temperature"]),
    "special token in a prompt": (
        None,
        *("sample", ["run", "a<|endoftext|>b"], 1, ["<|endoftext|>", "take it out"]),
    ),
    "lone surrogate": (None, "sample", ["run", "a\udc80b"], 1, ["surrogate"]),
    "evaluate unknown key": (None, "evaluate", ["run", "data.sorce=x"], 2, ["data.source"]),
    "evaluate corrupt checkpoint": (
        lambda: flip(f"{RUN}/model.safetensors"),
        *("evaluate", [RUN, "data.source=cats.txt"], 1, ["model.safetensors"]),
    ),
    "tokenizer does not match": (
        lambda: other_tokenizer("other.json"),
        *("data", ["prepare", "cats.txt", "--tokenizer", "other.json", "--out", "shards"], 1),
        ["shards"],
    ),
    "special token in a text to encode": (
        None,
        *("tokenizer", ["encode", "run/tokenizer.json", "<|endoftext|>"], 1),
        ["pass --special allow", " --special text to"],
    ),
    "no tokenizer to train with": (
        None,
        *("train", [*SMALL, "tokenizer.path=cats.txt"], 1),
        ["cats.txt: cannot tell the format", "name a .json"],
    ),
    "no tokenizer to encode with": (
        None,
        *("tokenizer", ["encode", "cats.txt", "x"], 1),
        ["cats.txt: cannot tell the format", "name a .json"],
    ),
    "no tokenizer to prepare with": (
        None,
        *("data", ["prepare", "cats.txt", "--tokenizer", "cats.txt"], 1),
        ["cats.txt: cannot tell the format", "name a .json"],
    ),
    "no tokenizer to import": (
        None,
        *("tokenizer", ["import", "cats.txt", "--out", "x.json"], 1),
        ["cats.txt: cannot tell the format", "--format tiktoken or --format gpt2"],
    ),
    "truncated tokenizer": (
        lambda: truncate("run/tokenizer.json", 20),
        *("tokenizer", ["encode", "run/tokenizer.json", "x"], 1, ["run/tokenizer.json"]),
    ),
}


def contents(folder):
    """Every file there and what is in it, the log of the failed try itself aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(module, arguments):
    """Run a command in this process as its `__main__` would; the exit code."""
    name = f"tinylm.{module}"
    found = importlib.import_module(name)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{name}.__main__")
    return call(found.main, arguments)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_with_the_right_exit_code(name, workplace, capfd):
    prepare, module, arguments, code, words = CASES[name]
    if prepare:
        prepare()
    before = contents(workplace)
    assert run(module, arguments) == code
    errors = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    shown = [line for line in errors if line.startswith("error: ")]
    assert len(shown) == 1, errors
    assert "Traceback" not in "".join(errors)
    for word in words:
        assert word in shown[0], shown[0]
    after = contents(workplace)
    changed = [path for path in before if after.get(path) != before[path]]
    assert not [path for path in changed if "runs" not in path and "run/" not in path], changed
    assert all(after[path] == before[path] for path in before if "checkpoints" in path)


def test_auto_falls_back_past_a_corrupt_checkpoint_with_a_warning(workplace, capfd):
    flip(f"{RUN}/model.safetensors")
    assert run("train", LONGER) == 0
    assert "warning:" in capfd.readouterr().err


def test_a_vocabulary_too_large_for_the_corpus_is_a_warning_with_the_size(workplace, capfd):
    arguments = [*SMALL, "out=large", "tokenizer.vocab_size=5000", "train.steps=1"]
    assert run("train", arguments) == 0
    warning = next(line for line in capfd.readouterr().err.splitlines() if "warning:" in line)
    size = json.loads(Path("large/checkpoints/step-00000001/config.json").read_text())["vocab_size"]
    assert "5000" in warning
    assert str(size) in warning


def test_a_special_token_in_the_training_text_is_text(workplace):
    write("special.txt", TEXT + "<|endoftext|> is a word here\n" + TEXT)
    arguments = [*SMALL, "out=special", "data.source=special.txt", "train.steps=1"]
    assert run("train", arguments) == 0


def test_a_typo_prints_no_traceback_in_a_real_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tinylm.train", "train.stpes=3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
