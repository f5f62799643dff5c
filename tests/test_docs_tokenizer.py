"""Every example of `docs/tokenizer.md` runs, from top to bottom, and prints what the page shows."""

import doctest
import io
import re
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tests.support.calling import call
from tinylm.tokenizer import __main__ as command

PAGE = Path(__file__).parents[1] / "docs/tokenizer.md"
SECONDS = re.compile(r"\d+\.\d s\b")
BLOCK = re.compile(r"^```(console|pycon)\n(.*?)^```", re.M | re.S)
FLAGS = doctest.NORMALIZE_WHITESPACE


def run(line: str) -> list[str]:
    """What a command of the page prints, errors and notes first."""
    if line.startswith("python -c"):
        with redirect_stdout(io.StringIO()) as zen:
            sys.modules.pop("this", None)
            __import__("this")
        Path("zen.txt").write_text(zen.getvalue(), encoding="utf-8")
        return []
    _, _, module, *words = shlex.split(line)
    assert module == "tinylm.tokenizer"
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        call(command.main, words)
    return (err.getvalue() + out.getvalue()).splitlines()


def test_the_examples_of_the_page_print_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    shown = 0
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "pycon":
            test = doctest.DocTestParser().get_doctest(text, names, "page", None, None)
            said = io.StringIO()
            runner.run(test, out=said.write, clear_globs=False)
            assert not said.getvalue(), said.getvalue()
            names = test.globs
            shown += len(test.examples)
            continue
        for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
            line, *expected = part.splitlines()
            found = [SECONDS.sub("0.0 s", word) for word in run(line)]
            assert found == expected, "\n".join([line, *found])
            shown += 1
    assert shown > 30
