"""`python -m tinylm.tokenizer`, as typed."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.calling import call
from tests.support.tokenizer_data import KINDS, TEXTS, TOKENIZERS
from tinylm import Tokenizer
from tinylm.tokenizer import __main__ as command
from tinylm.tokenizer import report

MAIN = TOKENIZERS["gpt4"]
COMMANDS = ["train", "encode", "decode", "view", "stats", "compare", "import", "export"]


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
    head, row, longest, never = out_of(capsys, "stats", "a.json", "text.txt").splitlines()
    assert head.split()[:3] == ["file", "bytes", "tokens"]
    assert row.split()[:3] == ["text.txt", str(len(data)), str(MAIN.count(data))]
    single = sum(len(MAIN.vocab[id]) == 1 for id in MAIN.encode(data))
    words = len(data.split())
    assert row.split()[4:6] == [
        f"{MAIN.count(data) / words:.3f}",
        f"{single / MAIN.count(data):.1%}",
    ]
    assert longest.startswith("longest tokens: ' internationalization' (30) ")
    assert never.startswith("never used: ")
    *_, whole, _, _ = out_of(capsys, "stats", "a.json", "text.txt", "a.json").splitlines()
    assert whole.split()[:2] == ["all", str(len(data) + Path("a.json").stat().st_size)]
    assert "equal" in out_of(capsys, "compare", "a.json", "a.json", "text.txt")


def test_compare_shows_where_tokenizers_cut_differently(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("t.txt").write_text("the fox the fox \xe9t\xe9\n", encoding="utf-8")
    call = ("compare", "a.json", "b.json", "t.txt", "--with", "a.json", "--examples", "2")
    head, row, _, told, _, first, second = out_of(capsys, *call).splitlines()
    assert head.split()[:7] == ["file", "A", "tokens", "B", "tokens", "C", "tokens"]
    data = Path("t.txt").read_bytes()
    counts = [MAIN.count(data), len(data), MAIN.count(data)]
    assert row.split()[1:4] == [*map(str, counts)]
    assert row.split()[-1] == "equal"
    assert told.endswith(" stretches are cut differently; the most frequent:")
    assert first.split() == ["2x", "fox", "|f|o|x", "fox"]
    assert second.split()[0] == "1x"


def test_a_word_over_two_blocks_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = report.measure(MAIN, "text.txt")
    monkeypatch.setattr(report, "BLOCK", 100)
    parts = report.measure(MAIN, "text.txt")
    assert (parts.bytes, parts.words, parts.tokens) == (whole.bytes, whole.words, whole.tokens)
    assert parts.words == len(Path("text.txt").read_bytes().split())


def test_tokens_are_shown_in_colour_or_between_bars(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("t.txt").write_bytes(b"The fox\n\x1b[0m\xff\xe4\xb8 \xc2\xa0<|end|>")
    plain = out_of(capsys, "view", "a.json", "t.txt", "--colour", "never")
    bars = "The| fox|\\n\n\\x1b|[|0|m|\\xff|\\xe4|\\xb8| |\\u00a0|<|"
    assert plain.startswith(bars.replace("\\u00a0", "\\xc2|\\xa0"))
    # A file or a pipe has no colours.
    assert out_of(capsys, "view", "a.json", "t.txt") == plain
    coloured = out_of(capsys, "view", "a.json", "t.txt", "--colour", "always")
    assert "\x1b[30;48;5;153mThe\x1b[0m\x1b[30;48;5;223m fox\x1b[0m" in coloured
    # Nothing of the text itself reaches the terminal as a command.
    assert "\x1b[0m\x1b[0m" not in coloured
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert out_of(capsys, "view", "a.json", "t.txt") == coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert out_of(capsys, "view", "a.json", "t.txt") == plain
    shown = out_of(capsys, "encode", "a.json", "The fox", "--colour", "never")
    assert shown == f"The| fox\n{' '.join(map(str, MAIN.encode('The fox')))}\n"


def test_a_page_holds_the_text_and_nothing_of_it_as_html(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "</script><script>alert(1)</script> & <b>The fox</b>\n\u4e2d\x07"
    Path("t.txt").write_text(text, encoding="utf-8")
    call = ("view", "a.json", "t.txt", "--html", "t.html", "--with", "b.json")
    assert out_of(capsys, *call) == "t.html\n"
    found = Path("t.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in found
    assert found.count("</script>") == 2
    assert not re.search(r"(src|href)=|https?://|@import|url\(", found)
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', found)
    views = json.loads(data)["views"]
    assert [view["ids"] for view in views] == [
        MAIN.encode(text, special="text"),
        KINDS["byte"].encode(text),
    ]
    assert "".join(map("".join, views[0]["texts"])).startswith(text[:-2])
    # A token of one byte that both have does not differ.
    assert len(views[1]["differs"]) < len(views[1]["ids"])
    assert views[0]["tokens"][str(MAIN.encode("The")[0])][:2] == ["The", 3]
    assert "exists already" in error_of(capsys, *call)
    assert main(["view", "a.json", "t.txt", "--limit", "9", "--html", "s.html"]) == 0
    assert "the first 9 bytes; --limit takes more" in capsys.readouterr().err
    assert "pass --html" in error_of(capsys, "view", "a.json", "t.txt", "--with", "b.json")


def test_a_long_page_has_parts_that_begin_together(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("long.txt").write_text("".join(TEXTS) * 40, encoding="utf-8")
    out_of(capsys, "view", "a.json", "long.txt", "--html", "t.html", "--with", "b.json")
    (data,) = re.findall(r'id="data">(.*)</script>', Path("t.html").read_text(encoding="utf-8"))
    first, second = json.loads(data)["views"]
    assert len(first["pages"]) == len(second["pages"]) > 2
    # The second has a token for each byte.
    ids = MAIN.encode("".join(TEXTS) * 40)
    places = [len(MAIN.decode_bytes(ids[:at])) for at in first["pages"]]
    assert places == second["pages"]


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
