"""What every command shares: exit codes, errors of one line, and the map."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylm import __main__ as tinylm_map
from tinylm import commands
from tinylm.config import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def leave(monkeypatch, capsys):
    """Runs a command that raises or returns `outcome`; gives its exit code and standard error."""
    monkeypatch.setattr(sys, "argv", ["tinylm"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(outcome):
        def main(arguments):
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        with pytest.raises(SystemExit) as caught:
            commands.run(main)
        return caught.value.code or 0, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("outcome", "code", "error"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (75, 75, ""),
        (ConfigError("train.steps=0: must be at least 1"), 2, "train.steps=0: must be at least 1"),
        (ValueError("two\nlines"), 1, "two lines"),
        (KeyError("<|end|>"), 1, "<|end|>"),
        (KeyError(), 1, ""),
        (FileNotFoundError(2, "No such file", "a.txt"), 1, "a.txt: No such file"),
        (OSError("a.bin: ends after 3 bytes"), 1, "a.bin: ends after 3 bytes"),
    ],
)
def test_bad_input_ends_in_one_line_and_its_exit_code(leave, outcome, code, error):
    expected = f"error: {error}\n" if isinstance(outcome, Exception) else ""
    assert leave(outcome) == (code, expected)


def test_an_interrupt_ends_in_130(leave):
    assert leave(KeyboardInterrupt()) == (130, "interrupted\n")


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tinylm"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(ZeroDivisionError):
        commands.run(lambda arguments: 1 // 0)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_warning_is_one_line_without_source():
    done = python(
        "-c",
        "import warnings; from tinylm import commands\n"
        "commands.run(lambda arguments: warnings.warn('no compiler: staying eager'))",
    )
    assert (done.returncode, done.stderr) == (0, "warning: no compiler: staying eager\n")


def test_a_reader_that_leaves_is_no_error():
    script = (
        "from tinylm import commands\n"
        "commands.run(lambda arguments: [print('line') for _ in range(100_000)] and 0)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"line\n"
    writer.stdout.close()
    assert (writer.wait(timeout=60), writer.stderr.read()) == (0, b"")
    writer.stderr.close()


def test_help_is_asked_for_by_either_name():
    assert commands.wants_help(["train.steps=3", "-h"])
    assert commands.wants_help(["--help"])
    assert not commands.wants_help(["help", "-H"])


@given(st.lists(st.sampled_from(["a", "b", "a=1", "a=", "b=2=3", "=4"]), max_size=6))
def test_a_word_is_kept_and_a_key_counts_once(arguments):
    pairs = [word for word in arguments if "=" in word]
    keys = [word[: word.index("=")] for word in pairs]
    if len(set(keys)) < len(keys):
        with pytest.raises(ConfigError, match="given twice"):
            commands.sorted_words(arguments)
        return
    words, values = commands.sorted_words(arguments)
    assert words == [word for word in arguments if "=" not in word]
    assert [f"{key}={value}" for key, value in values.items()] == pairs


# The map.


def test_the_map_is_a_table_of_what_exists():
    done = python("-m", "tinylm")
    assert (done.returncode, done.stderr) == (0, "")
    head, rule, *rows = done.stdout.partition("\n\n")[0].splitlines()
    starts = [head.index(column) for column in tinylm_map.COLUMNS]
    assert all(rule[start] == "-" and rule[start - 1 : start] in (" ", "") for start in starts)
    assert [row.partition("tinylm.")[2].split()[0] for row in rows] == [
        row.module for row in tinylm_map.MAP if tinylm_map.source(row.module)
    ]
    tests = [word for row in rows for word in row.split() if word.startswith("tests/")]
    assert "tests/test_config.py" in tests
    assert all((ROOT / test).is_file() for test in tests)


def test_every_crate_on_the_map_is_in_the_tree():
    crates = {path for row in tinylm_map.MAP for path in row.behind}
    assert crates >= {"rust/tokenizer", "rust/dataloader", "kernels/fused"}
    assert all((ROOT / crate).is_dir() for crate in crates)


def test_the_map_has_help_and_refuses_arguments():
    assert python("-m", "tinylm", "--help").stdout.startswith("usage: python -m tinylm\n")
    refused = python("-m", "tinylm", "trian")
    assert refused.returncode == 2
    assert refused.stderr == "error: no argument 'trian'; see python -m tinylm --help\n"


# What a command does with each standard stream closed or full: its script, the exit code, the line.
STREAMS = {
    "print >&-": ("print('result')", 1, "error: standard output: closed"),
    "print > /dev/full": (
        "print('result')",
        1,
        "error: standard output: No space left on device",
    ),
    "sys.stdin.read() <&-": (
        "sys.stdin.read()",
        1,
        "error: standard input: closed: give the text as an argument",
    ),
    "bytes <&-": ("sys.stdin.buffer.read()", 1, "error: standard input: closed: give the text"),
    "isatty <&- >&-": ("sys.stdin.isatty() or sys.stdout.isatty()", 0, ""),
    "warn 2>&-": ("print('x'); print('y', file=sys.stderr)", 0, ""),
    "raise 2>&-": ("int('x')", 1, ""),
    "raise 2>/dev/full": ("int('x')", 1, ""),
    "none <&- >&- 2>&-": ("os.write(2, b'x')", 0, ""),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_closed_or_full_stream_is_one_line_and_no_traceback(name, tmp_path):
    words, code, line = STREAMS[name]
    script = (
        "import os, sys\nfrom tinylm import commands\n"
        f"def main(arguments):\n    {words}\n    return 0\n"
        "commands.run(main)\n"
    )
    (tmp_path / "script.py").write_text(script)
    redirection = " ".join(part for part in name.split() if part[0] in "<>2" or part[0] == "/")
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {tmp_path}/script.py {redirection}"],
        # Unbuffered, `print` itself would fail, and name no stream.
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == bool(line), done.stderr


def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path):
    script = (
        "import os, sys\nfrom tinylm import commands\n"
        "def main(arguments):\n"
        f"    with open({str(tmp_path / 'a')!r}, 'w') as file:\n"
        "        os.write(2, b'stray')\n"
        "        return 0 if file.fileno() > 2 else 9\n"
        "commands.run(main)\n"
    )
    words = ["bash", "-c", '"$@" <&- >&- 2>&-', "-", sys.executable, "-c", script]
    assert subprocess.run(words, check=False).returncode == 0
    assert (tmp_path / "a").read_bytes() == b""


@pytest.mark.parametrize(
    "words", [["", "--tokenizer", "t.json"], ["a.txt", "--tokenizer", "t.json", "--out", ""]]
)
def test_an_empty_word_is_not_the_current_folder(words, capsys):
    from tinylm.data import __main__ as data_command

    with pytest.raises(SystemExit) as left:
        data_command.main(["prepare", *words])
    assert left.value.code == 2
    assert "'' is no path: name one; the current folder is ." in capsys.readouterr().err
    # Also where no argparse is.
    with pytest.raises(ValueError, match="'' is no path"):
        commands.path("")
