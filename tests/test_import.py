"""What is imported when: a bare `import tinylm`, help and a typing slip wait for nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

from tinylm.__main__ import PACKAGE, is_command

# What takes half a second or more to import.
HEAVY = {"torch", "triton", "matplotlib", "transformers"}
MODULES = sorted(path.stem for path in PACKAGE.iterdir() if path.stem[0] != "_")
COMMANDS = ["", *(f".{name}" for name in MODULES if is_command(name))]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments; its standard error lists every import."""
    command = [sys.executable, "-X", "importtime", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The top-level packages that this Python imported."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Standard error without the list of imports."""
    return [line for line in done.stderr.splitlines() if not line.startswith("import time:")]


def test_the_check_sees_a_heavy_import():
    assert imported(python("-c", "import json, matplotlib")) & HEAVY == {"matplotlib"}


def test_importing_tinylm_imports_nothing_heavy():
    done = python("-c", "import tinylm; assert tinylm.__version__")
    assert done.returncode == 0
    assert "tinylm" in imported(done)
    assert not imported(done) & (HEAVY | {"numpy", "omegaconf", "yaml", "rich"})


def test_importing_settings_imports_nothing_heavy():
    done = python("-c", "import tinylm.config, tinylm.commands")
    assert not imported(done) & (HEAVY | {"numpy", "rich"})


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import tinylm

    assert tinylm.__all__ == ["Tokenizer", "__version__"]
    with pytest.raises(AttributeError, match="no attribute 'Tokeniser'"):
        _ = tinylm.Tokeniser


def test_importing_tinylm_is_cheap_beside_starting_python():
    # Counted, not timed: a module costs about 1 ms, and machines are noisy. `typing` alone brings
    # eight, PyYAML thirty.
    script = "import sys; old = set(sys.modules); import tinylm; print(*set(sys.modules) - old)"
    done = python("-S", "-c", f"import sys; sys.path += {sys.path!r}; {script}")
    new = set(done.stdout.split())
    assert {"tinylm", "tinylm._rust"} <= new
    assert len(new) <= 6, new


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    done = python("-m", f"tinylm{command}", "--help")
    assert done.returncode == 0
    assert done.stdout
    assert not imported(done) & HEAVY


@pytest.mark.skipif(".train" not in COMMANDS, reason="tinylm.train is not there")
@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("train.stesp=3", "unknown key 'train.stesp': did you mean 'train.steps'?"),
        ("train.steps=many", "train.steps=many: expected a whole number"),
        ("optim.lr=nan", "optim.lr=nan: must be above 0"),
        ("shakespear", "did you mean 'shakespeare'?"),
    ],
)
def test_a_slip_ends_in_one_line_before_anything_heavy(argument, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = python("-m", "tinylm.train", argument)
    assert done.returncode == 2
    assert len(errors(done)) == 1
    assert errors(done)[0].startswith("error: ")
    assert expected in errors(done)[0]
    assert not imported(done) & HEAVY
    assert list(Path().iterdir()) == []
