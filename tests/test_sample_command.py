"""`python -m tinylm.sample`: what it prints, and what it says of bad arguments."""

import dataclasses
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import tinylm
from tests.support.fakes import ByteTokenizer
from tests.support.models import build
from tinylm import sample
from tinylm.config import ConfigError, ModelConfig, SampleConfig, to_yaml
from tinylm.config import load as load_settings
from tinylm.sample.__main__ import _parse, main
from tinylm.train.reporting import sample_command

SMALL = ModelConfig(
    vocab_size=257, d_model=12, n_layers=2, n_heads=2, context_length=16, tied=False
)


@pytest.fixture(scope="module")
def small():
    return build(SMALL, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return ByteTokenizer()


@pytest.fixture
def run(small, tokenizer, monkeypatch, tmp_path):
    """A folder that `checkpoint.load` takes for a run."""

    def load(path, *, device="cpu", dtype=None):
        return small.to(device), tokenizer

    fake = types.SimpleNamespace(load=load)
    monkeypatch.setitem(sys.modules, "tinylm.checkpoint", fake)
    monkeypatch.setattr(tinylm, "checkpoint", fake, raising=False)
    greedy = ["sample.temperature=0", "sample.max_tokens=12", "train.device=cpu"]
    (tmp_path / "config.yaml").write_text(to_yaml(load_settings(overrides=greedy)))
    return tmp_path


def test_the_command_prints_the_prompt_and_what_follows(run, small, tokenizer, capsys):
    assert main([str(run), "ab"]) == 0
    config = SampleConfig(temperature=0, max_tokens=12)
    wanted = "ab" + "".join(sample.stream(small, tokenizer, "ab", config)) + "\n"
    captured = capsys.readouterr()
    assert captured.out == wanted
    assert captured.err == ""


def test_the_command_takes_settings_with_and_without_their_section(run, capsys):
    main([str(run), "ab", "max_tokens=1", "sample.samples=2", "temperature=1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("---")]
    assert [line.strip("- ") for line in lines] == ["sample 1 of 2", "sample 2 of 2"]


def test_log_probabilities_are_a_table_below_the_text(run, small, tokenizer, capsys):
    main([str(run), "ab", "logprobs=2", "prompt_logprobs=0", "samples=2", "heal=false"])
    written = capsys.readouterr().out
    assert written.count("token ") == written.count("likeliest") == 2
    # Two tokens of the prompt after the end of text, then twice those of the continuation.
    lines = [line for line in written.splitlines() if "%" in line]
    assert len(lines) == 2 + 2 * 12
    assert [line.count("%") for line in lines] == [1, 1, *[3] * 24]
    assert lines[2].split()[3] == "1"
    with pytest.raises(ConfigError, match=r"sample.allowed_token_ids=999: the vocabulary is 0 to"):
        main([str(run), "ab", "allowed_token_ids=[999]"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_log_probabilities_with_a_stop_text_name_both_settings(run, name, capsys):
    message = rf"sample\.{name}=1: .*sample\.stop has the text 'foo': .*leave {name} out"
    with pytest.raises(ConfigError, match=message):
        main([str(run), "ab", f"{name}=1", "stop=foo"])
    assert main([str(run), "ab", f"{name}=1", "stop=7"]) == 0
    assert "token " in capsys.readouterr().out


def test_a_draft_says_what_it_was_worth(run, capsys):
    for settings in (["logprobs=1"], []):
        main([str(run), "abab", "draft=lookup", *settings])
        (line,) = capsys.readouterr().err.splitlines()
        guessed = re.fullmatch(r".*draft lookup: \d+ of (\d+) guesses kept .*", line)
        assert guessed is not None
        assert int(guessed[1]) > 0


def test_a_checkpoint_has_the_settings_of_its_run(run, capsys):
    folder = run / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    main([str(run), "ab"])
    wanted = capsys.readouterr().out
    main([str(folder), "ab"])
    assert capsys.readouterr().out == wanted


def test_a_prompt_may_look_like_a_setting_after_two_dashes(run, capsys):
    main([str(run), "max_tokens=1", "--", "x=--help"])
    assert capsys.readouterr().out.startswith("x=--help")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
@example("def main(")
@example("-x")
@example("x=1")
@example("it's")
def test_the_command_that_a_run_suggests_goes_on_with_its_prompt(prompt):
    words = shlex.split(sample_command(Path("a run"), prompt))
    assert words[:3] == ["python", "-m", "tinylm.sample"]
    assert _parse(words[3:]) == (Path("a run"), prompt, [], False)
    if "--" not in words[:-1]:
        assert _parse([*words[3:], "top_k=3"]) == (Path("a run"), prompt, ["top_k=3"], False)


def test_the_suggested_command_of_the_default_run_is_plain():
    command = sample_command(Path("runs/stdlib"), "def main(")
    assert command == "python -m tinylm.sample runs/stdlib 'def main('"


def test_a_prompt_comes_from_standard_input(run, capsys, monkeypatch):
    stdin = types.SimpleNamespace(isatty=lambda: False, read=lambda: "from here\n")
    monkeypatch.setattr(sys, "stdin", stdin)
    main([str(run), "max_tokens=1"])
    assert capsys.readouterr().out.startswith("from here")


def test_the_speed_is_told_to_a_terminal_alone(run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main([str(run), "ab", "max_tokens=3"])
    assert "tokens/s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["temprature=0"], "unknown key 'sample.temprature': did you mean 'sample.temperature'"),
        (["temperature=cold"], "sample.temperature=cold: expected a number"),
        (["top_p=2"], "sample.top_p=2.0: must be above 0 and at most 1"),
        (["train.steps=3"], "train.steps: only the settings of sample apply"),
        (["--top-p", "0.5"], "unknown option --top-p: settings are key=value"),
        (["one", "two"], "2 prompts: put quotes around .*; settings go before --"),
        (["--", "one", "max_tokens=1"], "2 prompts: .*; settings go before --"),
    ],
)
def test_a_bad_argument_is_one_line(run, arguments, message):
    with pytest.raises(ConfigError, match=message):
        main([str(run), *arguments])


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run, checkpoint or model folder"):
        main([str(tmp_path / "none"), "ab"])
    with pytest.raises(ConfigError, match="which run"):
        main([])


def test_help_needs_no_torch():
    code = (
        "import sys; from tinylm.sample.__main__ import main; main(['--help']);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for field in dataclasses.fields(SampleConfig):
        assert f"sample.{field.name}=" in done.stdout


def test_the_command_leaves_with_its_exit_code(tmp_path):
    def code(*arguments):
        command = [sys.executable, "-m", "tinylm.sample", *arguments]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    missing = code(str(tmp_path / "none"))
    assert missing.returncode == 1
    assert missing.stderr.count("\n") == 1
    assert code(str(tmp_path), "tmperature=1").returncode == 2
