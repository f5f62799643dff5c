"""A deliberate wrong line at a time in the fast code: do the ladder and the tests see each?

    make mutants                      all of them; ARGS=python or ARGS=rust one half
    make mutants ARGS="python optim"  only those whose path has the word optim

Each mutant of `wrong_lines`, `wrong_kernels` and `wrong_rust` is one line changed in a copy of the
package, with the rungs or tests that must fail on it. The Rust ones build the extension in the
copy, about 20 s each after the first.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.support.wrong_caches import CACHES
from tests.support.wrong_corpus import CORPUS
from tests.support.wrong_kernels import KERNELS
from tests.support.wrong_lines import PYTHON, Mutant
from tests.support.wrong_quant import QUANT
from tests.support.wrong_rust import RUST

ROOT = Path(__file__).parents[2]
RUNG = "test_the_fast_medium_equals_the_slow_one"


def copied(to: Path) -> Path:
    """A tree like this one, with the parts that are changed as copies."""
    for name in ("python", "kernels", "rust", "tests"):
        shutil.copytree(ROOT / name, to / name, symlinks=True, dirs_exist_ok=True)
    for name in ("Cargo.toml", "Cargo.lock", "pyproject.toml"):
        shutil.copy2(ROOT / name, to / name)
    return to


def change(tree: Path, mutant: Mutant) -> None:
    """Put the wrong line in the place of the right one, which stands there once."""
    file = tree / mutant.path
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.line) != 1:
        sys.exit(f"error: {mutant.path}: {mutant.line!r} stands {text.count(mutant.line)} times")
    file.write_text(text.replace(mutant.line, mutant.instead), encoding="utf-8")


def build(tree: Path) -> None:
    """The extension of a copied tree, in its place."""
    command = ["cargo", "build", "--quiet", "--release", "-p", "tinylm-bindings"]
    subprocess.run(command, cwd=tree, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", tree / "target"))
    (library,) = (p for p in (target / "release").glob("lib_rust.*") if p.suffix != ".d")
    for old in (tree / "python/tinylm").glob("_rust.*.so"):
        old.unlink()
    shutil.copy2(library, tree / "python/tinylm/_rust.abi3.so")


def failures(tree: Path, tests: str, wanted: str) -> list[str]:
    """The tests of a file that fail in a tree, of those that `wanted` names; a rung by its name."""
    environment = os.environ | {"PYTHONPATH": str(tree / "python"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", tests, "-q", "--tb=no", "-k", wanted]
    command += [
        "--hypothesis-profile=ci",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestWarning",
    ]
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    # 0: all passed, 1: some failed. Anything else is no answer.
    if done.returncode not in (0, 1):
        sys.exit(f"error: pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    found = re.findall(r"^FAILED \S+?::(\w+)(?:\[(.*)\])?", done.stdout, re.MULTILINE)
    rungs = [case for name, case in found if name == RUNG]
    return rungs or list(dict.fromkeys(name for name, _ in found))


def fail_unchanged(tree: Path, mutants: Iterable[Mutant]) -> list[str]:
    """The tests of some mutants that fail without any wrong line: they would see every mutant."""
    wanted = defaultdict(set)
    for mutant in mutants:
        wanted[mutant.tests].add(f"({mutant.rungs})")
    return [name for tests in wanted for name in failures(tree, tests, " or ".join(wanted[tests]))]


def main(arguments: list[str]) -> int:
    """Try each mutant; 1 if one lives."""
    halves = {"python": [*PYTHON, *CACHES, *CORPUS, *KERNELS, *QUANT], "rust": RUST}
    words = [word for word in arguments if word not in halves]
    # The Rust ones last: each leaves its extension behind.
    chosen = [
        mutant
        for half in halves
        if half in arguments or not halves.keys() & set(arguments)
        for mutant in halves[half]
        if not words or any(word in mutant.path for word in words)
    ]
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        if failed := fail_unchanged(tree, chosen):
            sys.exit(f"error: {', '.join(failed)} fail without any wrong line")
        for mutant in chosen:
            original = (tree / mutant.path).read_bytes()
            change(tree, mutant)
            if mutant in RUST:
                build(tree)
            failed = failures(tree, mutant.tests, mutant.rungs)
            (tree / mutant.path).write_bytes(original)
            alive += not failed
            verdict = f"seen by {', '.join(failed)}" if failed else "NOT SEEN"
            line = mutant.instead.splitlines()[0].strip()
            print(f"{mutant.path}: {line}\n    {verdict}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} wrong lines were seen")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
