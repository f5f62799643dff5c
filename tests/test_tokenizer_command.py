"""`python -m tinylm.tokenizer`, as typed."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.calling import call
from tests.support.tokenizer_data import KINDS, TEXTS, TOKENIZERS
from tinylm import Tokenizer
from tinylm.tokenizer import __main__ as command

MAIN = TOKENIZERS["gpt4"]
COMMANDS = ["train", "encode", "decode", "stats", "compare", "import", "export"]


def main(arguments: list[str]) -> int:
    """The exit code of the command."""
    return call(command.main, arguments)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a text and two tokenizers."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("".join(TEXTS), encoding="utf-8")
    MAIN.save("a.json")
    KINDS["byte"].save("b.json")
    return tmp_path


def out_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a call that succeeds writes."""
    status = main(argv)
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a call that fails writes."""
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    return err


def test_train_writes_what_train_files_learns(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = out_of(
        capsys,
        *("train", "text.txt", "--vocab-size", "300", "--pattern", "o200k", "--ties", "bytes"),
        *("--special", "<|a|>", "--special", "<|b|>", "--threads", "1", "--out", "new/t.json"),
    )
    assert out.startswith("new/t.json: 300 tokens in ")
    assert Tokenizer.load("new/t.json") == Tokenizer.train_files(
        ["text.txt"],
        vocab_size=300,
        pattern="o200k",
        ties="bytes",
        special_tokens=("<|a|>", "<|b|>"),
    )


def test_train_tells_when_the_text_is_too_short(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "text.txt", "--vocab-size", "9999", "--out", "t.json"]) == 0
    assert "warning: the corpus gives a vocabulary of" in capsys.readouterr().err


def test_encode_and_decode_undo_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "The \u4e2d\u6587 fox"
    ids = out_of(capsys, "encode", "a.json", text).split()
    assert ids == [str(id) for id in MAIN.encode(text)]
    assert out_of(capsys, "decode", "a.json", *ids) == text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert out_of(capsys, "encode", "a.json").split() == ids
    monkeypatch.setattr(sys, "stdin", io.StringIO(" ".join(ids)))
    assert out_of(capsys, "decode", "a.json", "-") == text


def test_only_on_a_terminal_the_decoded_text_ends_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert out_of(capsys, "decode", "a.json", "104", "105") == "hi"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert out_of(capsys, "decode", "a.json", "104", "105") == "hi\n"


def test_special_tokens_are_encoded_when_allowed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "special token" in error_of(capsys, "encode", "a.json", "<|end|>")
    assert out_of(capsys, "encode", "a.json", "<|end|>", "--special", "allow") == "368\n"


def test_stats_and_compare_count_tokens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path("text.txt").read_bytes()
    head, row = out_of(capsys, "stats", "a.json", "text.txt").splitlines()
    assert head.split()[:3] == ["file", "bytes", "tokens"]
    assert row.split()[:3] == ["text.txt", str(len(data)), str(MAIN.count(data))]
    head, row = out_of(capsys, "compare", "a.json", "b.json", "text.txt").splitlines()
    assert row.split()[1:3] == [str(MAIN.count(data)), str(len(data))]
    assert "equal" in out_of(capsys, "compare", "a.json", "a.json", "text.txt")


def test_import_and_export_convert_formats(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TOKENIZERS["gpt2"].save("g.json")
    out_of(capsys, "export", "g.json", "--format", "gpt2", "--out", "folder")
    out_of(capsys, "import", "folder", "--format", "gpt2", "--out", "back.json")
    assert Tokenizer.load("back.json") == TOKENIZERS["gpt2"]
    out_of(capsys, "export", "a.json", "--format", "tiktoken", "--out", "a.tiktoken")
    error = error_of(capsys, "import", "a.tiktoken", "--out", "x.json")
    assert "pass --pattern NAME and --special TOKEN=ID" in error
    error = error_of(capsys, "encode", "a.tiktoken", "x")
    assert "make a tokenizer.json of them: python -m tinylm.tokenizer import" in error
    out_of(
        capsys,
        *("import", "a.tiktoken", "--pattern", "gpt4", "--special", "<|endoftext|>=367"),
        *("--out", "c.json"),
    )
    loaded = Tokenizer.load("c.json")
    assert loaded.special_tokens == {"<|endoftext|>": 367}
    assert loaded.encode("The fox") == MAIN.encode("The fox")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("encode", "nowhere.json", "x"), "nowhere.json"),
        (("decode", "a.json", "12", "zz"), "'zz' is not a token id"),
        (("decode", "a.json", "99999"), "token id 99999 is not in the vocabulary"),
        (("train", "text.txt", "--vocab-size", "5", "--out", "x.json"), "vocab_size 5 is too"),
        (("train", "none", "--vocab-size", "300", "--out", "x.json"), "none"),
        (("import", "a.json", "--special", "x", "--out", "y.json"), "write TOKEN=ID"),
        (("export", "b.json", "--format", "gpt2", "--out", "x"), "cannot say the pattern"),
    ],
)
def test_what_goes_wrong_is_one_line_and_status_1(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    assert message in error_of(capsys, *argv)


@pytest.mark.parametrize("argv", [[], ["train"], ["frob"], ["export", "a", "--format", "x"]])
def test_a_wrong_call_is_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"usage: python -m tinylm.tokenizer {name}" in capsys.readouterr().out


def test_the_module_runs_without_torch(folder: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['x', 'encode', 'a.json', 'hi']\n"
        "try: runpy.run_module('tinylm.tokenizer', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


@pytest.mark.parametrize(
    "argv",
    [
        ("train", "text.txt", "--vocab-size", "300", "--out", "out"),
        ("import", "two", "--out", "out"),
        ("export", "g.json", "--format", "tiktoken", "--out", "out"),
        ("export", "g.json", "--format", "gpt2", "--out", "out"),
    ],
)
def test_what_is_there_is_replaced_only_by_force(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    TOKENIZERS["gpt2"].save("g.json")
    TOKENIZERS["gpt2"].save("two", "gpt2")
    out = "out" if argv[-3] == "gpt2" else "out.json"
    argv = (*argv[:-1], out)
    if out == "out":
        # An empty folder holds nothing to lose.
        Path(out).mkdir()
    out_of(capsys, *argv)
    kept = Path(out) / "mine.txt" if out == "out" else Path(out)
    kept.write_text("mine")
    assert f"{out}: exists already; name another, or pass --force" in error_of(capsys, *argv)
    assert kept.read_text() == "mine"
    out_of(capsys, *argv, "--force")
    assert out == "out" or kept.read_bytes() != b"mine"
