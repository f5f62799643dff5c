"""What the pages say holds: Python examples run, commands parse, files that are named exist."""

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.test_architecture import ROWS
from tinylm import config

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "USAGE.md", "CONTRIBUTING.md", "docs/setup.md", "docs/design.md")
NAMES += ("docs/tokenizer.md",)
PAGES = [ROOT / name for name in NAMES]
# Rates with "a" for "per", such as "nats a token" and "one key a round.".
UNITS = (
    "batch|block|byte|call|character|core|document|element|epoch|file|head|id|layer|line|minute|"
    "number|operation|pass|piece|prompt|property|round|row|rung|sample|second|step|text|thread|"
    "token|update|weight|window|word"
)
NUMBERED = r"(?:once|twice|nats|bits|tokens|times|gigabytes|[\d,.]*\d (?:[a-z]+s|[GMk]?B))"
NOUN = r"(?!(?:at|by|for|from|in|of|on|over|to|with)\b)[a-z]+"
RATE = re.compile(
    rf"\b{NUMBERED}\s+(?:# |//[/!]? )?an?\s+(?:{UNITS})\b"
    rf"|\bone (?:[a-z]+ )?{NOUN}\s+(?:# |//[/!]? )?an?\s+(?:{UNITS})[.,;:]",
    re.I,
)
SPEC = importlib.util.spec_from_file_location("make_ladder", ROOT / "docs/make_ladder.py")
make_ladder = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_ladder)


def blocks(path, language):
    """The fenced blocks of a page in one language."""
    return re.findall(
        rf"^```{language}[^\n]*\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S
    )


def commands(module):
    """Every `python -m tinylm.<module> ...` of the pages, without what the shell adds."""
    found = []
    for page in PAGES:
        text = "\n".join(blocks(page, "console") + blocks(page, "sh"))
        lines = re.findall(rf"^(?:\$ )?python -m tinylm\.{module}\b(.*)", text, re.M)
        found += [shlex.split(line.split("|")[0], comments=True) for line in lines]
    return found


def test_the_python_of_the_usage_page_runs_from_top_to_bottom(tmp_path):
    # The last block is a whole run, of half a minute; test_train has those.
    script = "\n".join(blocks(ROOT / "USAGE.md", "python")[:-1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_training_command_has_settings_that_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(blocks(ROOT / "USAGE.md", "yaml")[0])
    found = [words for words in commands("train") if "train.stpes=100" not in words]
    assert len(found) > 8
    for words in found:
        settings = [word for word in words if not word.startswith("--")]
        recipe = settings.pop(0) if settings and "=" not in settings[0] else None
        config.load(recipe, settings)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_names_files_that_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:python|rust|kernels|tests|benches|docs|notebooks)/[\w/.]+)`", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_names_tests_that_exist(page):
    named = re.findall(r"\b(tests/\w+\.py)::(test_\w+)", page.read_text(encoding="utf-8"))
    missing = [name for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]
    assert not missing


def test_the_map_in_the_readme_is_the_one_that_is_printed():
    command = [sys.executable, "-m", "tinylm"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (drawn,) = blocks(ROOT / "README.md", "text")
    assert drawn.splitlines() == printed.partition("\n\n")[0].splitlines()


def test_the_rows_of_imports_in_the_design_are_those_that_are_checked():
    (drawn,) = re.findall(r"^```\n(.*?)^```", (ROOT / "docs/design.md").read_text(), re.M | re.S)
    assert [set(line.split()) for line in drawn.splitlines()] == ROWS[:-1]


def test_every_definition_that_a_page_quotes_is_there():
    pages = list((ROOT / "docs").rglob("*.md"))
    quoted = [pair for page in pages for pair in make_ladder.QUOTE.findall(page.read_text())]
    assert len(quoted) > 10
    for path, name in quoted:
        assert name in make_ladder.definition(ROOT / path, name)


def test_a_quotation_of_a_name_that_is_gone_is_refused():
    with pytest.raises(ValueError, match="no definition of nothing"):
        make_ladder.definition(ROOT / "python/tinylm/ops/norms.py", "nothing")


def test_every_page_of_the_menu_exists_and_every_page_is_in_the_menu():
    menu = set(re.findall(r"[\w/]+\.md$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert menu == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


def test_what_builds_the_site_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    for line in project["optional-dependencies"]["docs"]:
        requirement = Requirement(line)
        assert pins[requirement.name] in requirement.specifier


# The log is a record: its entries stay as they were written.
PROSE = [
    path
    for home, pattern in [
        (ROOT, "*.md"),
        (ROOT / "docs", "**/*.md"),
        (ROOT / "notebooks", "*.ipynb"),
        (ROOT / "rust", "**/*.rs"),
        *((ROOT / name, "**/*.py") for name in ("python", "kernels", "benches", "tests")),
    ]
    for path in sorted(home.glob(pattern))
    if path not in (ROOT / "docs/log.md", Path(__file__))
]


def test_a_rate_is_written_with_per():
    found = [
        f"{path.relative_to(ROOT)}: {' '.join(rate.split())}"
        for path in PROSE
        for rate in RATE.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(PROSE) > 150
    assert found == []


@pytest.mark.parametrize(
    "rate",
    ["nats a token", "12 bytes\n# a sample", "one key a round.", "once an epoch", "2 GB a second"],
)
def test_a_rate_without_per_is_seen(rate):
    assert RATE.search(f"It reads {rate}")
