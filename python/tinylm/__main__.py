"""`python -m tinylm` to the map of the project: a line for each module, in the order of the data.

Which of a line's files exist is looked up when it is printed: an installed package has no
tests beside it, a checkout has.
"""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tinylm import commands

PACKAGE = Path(__file__).parent
CHECKOUT = PACKAGE.parents[1]
HELP = """usage: python -m tinylm

Print the map of the project: each stage from text to sampled text with its module, its
command, the Rust crate or GPU kernels behind it, its slow definition in tinylm.reference
and its test."""


class Row(NamedTuple):
    """One module: its stage, its Rust crate or kernels, and its files in `tinylm.reference`."""

    stage: str
    module: str
    behind: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()


MAP = (
    Row("settings", "config"),
    Row("text", "corpus"),
    Row("tokens", "tokenizer", ("rust/tokenizer",), ("word_bpe", "byte_bpe", "patterns")),
    Row("shards, batches", "data", ("rust/dataloader",), ("shards", "order")),
    Row("operations", "mask", (), ("masks",)),
    Row("operations", "ops", ("kernels/fused",), ("arrays", "tensors")),
    Row("model", "context"),
    Row("model", "layers"),
    Row("model", "model", (), ("smallest", "scalars", "arrays_model")),
    Row("loss, steps", "optim", (), ("optimizers",)),
    Row("loss, steps", "train"),
    Row("loss, steps", "track"),
    Row("checkpoint", "checkpoint"),
    Row("checkpoint", "convert"),
    Row("score", "evaluate"),
    Row("sampler", "cache"),
    Row("sampler", "sample"),
    Row("any command", "commands"),
    Row("any command", "device"),
    Row("any command", "disk"),
    Row("any command", "threads"),
    Row("any package", "lazy"),
)
COLUMNS = ("stage", "module", "command", "Rust, kernels", "reference", "test")


def main(arguments: Sequence[str]) -> int:
    """Print the map, or with --help what it is."""
    if commands.wants_help(arguments):
        print(HELP)
        return 0
    if arguments:
        print(f"error: no argument {arguments[0]!r}; see python -m tinylm --help", file=sys.stderr)
        return commands.USAGE
    lines = [COLUMNS, *(cells(row) for row in MAP if source(row.module))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    print("\npython -m tinylm.reference.smallest   a language model in one file of plain Python")
    print("python -m tinylm.train --help         every setting of a run, and the recipes")
    print("python -m tinylm.train                train on the Python standard library")
    return 0


def cells(row: Row) -> tuple[str, ...]:
    """The line of a module: its stage, itself, and what exists of the rest."""
    test = f"tests/test_{row.module}.py"
    return (
        row.stage,
        f"tinylm.{row.module}",
        f"python -m tinylm.{row.module}" if is_command(row.module) else "",
        " ".join(path for path in row.behind if path.startswith("rust/") or has_kernels()),
        " ".join(n for n in row.reference if (PACKAGE / "reference" / f"{n}.py").is_file()),
        test if (CHECKOUT / test).is_file() else "",
    )


def source(module: str) -> Path | None:
    """The file of a module, for a package its `__init__.py`; None where there is none."""
    for path in (PACKAGE / f"{module}.py", PACKAGE / module / "__init__.py"):
        if path.is_file():
            return path
    return None


def is_command(module: str) -> bool:
    """Whether `python -m tinylm.<module>` runs: its file, or its `__main__.py`, has a main()."""
    path = source(module)
    if path is not None and path.name == "__init__.py":
        path = path.with_name("__main__.py")
    if path is None or not path.is_file():
        return False
    return any(
        isinstance(node, ast.FunctionDef) and node.name == "main"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def has_kernels() -> bool:
    """Whether there are kernels: the link to them is missing in some checkouts."""
    return any((PACKAGE / "kernels").glob("[!_]*.py"))


if __name__ == "__main__":
    commands.run(main)
