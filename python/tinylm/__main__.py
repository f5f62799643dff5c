"""`python -m tinylm` prints a map of the project: one line per module, in the order of data flow.

A file is named only if it exists: a checkout has tests, an installed package has none.
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
    """A module with its stage, its Rust crate or kernels, and its files in `tinylm.reference`."""

    stage: str
    module: str
    behind: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()


# README.md shows this map, and a test compares the two.
MAP = (
    Row("settings", "config"),
    Row("text", "corpus", (), ("duplicates",)),
    Row(
        "tokens",
        "tokenizer",
        ("rust/tokenizer",),
        (
            *("word_bpe", "byte_bpe", "char_bpe", "unigram", "wordpiece"),
            *("sentencepiece", "patterns", "normalizers", "pieces", "surfaces"),
            "offsets",
        ),
    ),
    Row("shards, batches", "data", ("rust/dataloader",), ("shards", "order", "packing", "mixture")),
    Row("operations", "mask", (), ("masks",)),
    Row("operations", "ops", ("kernels/fused",), ("arrays", "tensors", "quant", "fake")),
    Row("model", "context"),
    Row("model", "layers"),
    Row("model", "model", (), ("smallest", "scalars", "arrays_model")),
    Row("loss, steps", "optim", (), ("optimizers",)),
    Row("loss, steps", "train"),
    Row("loss, steps", "track"),
    Row("loss, steps", "profiling"),
    Row("loss, steps", "lightning"),
    Row("checkpoint", "checkpoint"),
    Row("checkpoint", "convert"),
    Row("checkpoint", "lora"),
    Row("checkpoint", "quant", (), ("quant",)),
    Row("score", "evaluate"),
    Row("sampler", "cache", (), ("decoding", "caches")),
    Row("sampler", "native", ("rust/inference",)),
    Row("sampler", "sample", (), ("choice", "speculation")),
    Row("any command", "commands"),
    Row("any command", "device"),
    Row("any command", "disk"),
    Row("any command", "terminal"),
    Row("any command", "threads"),
    Row("any package", "lazy"),
)
COLUMNS = ("stage", "module", "command", "Rust, kernels", "reference", "test")


def main(arguments: Sequence[str]) -> int:
    """Print the map, or the help text if `--help` is given; return the exit code."""
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
    """Return the cells of a module's line; the cell of a missing file is empty."""
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
    """Return the file of a module, or `__init__.py` of a package; None if there is none."""
    for path in (PACKAGE / f"{module}.py", PACKAGE / module / "__init__.py"):
        if path.is_file():
            return path
    return None


def is_command(module: str) -> bool:
    """Return whether `python -m tinylm.<module>` is a command.

    It is one if the module's file, or the `__main__.py` of a package, has a function `main`.
    """
    path = source(module)
    if path is not None and path.name == "__init__.py":
        path = path.with_name("__main__.py")
    if path is None or not path.is_file():
        return False
    # The file is parsed and never imported: a map must not wait for torch.
    return any(
        isinstance(node, ast.FunctionDef) and node.name == "main"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def has_kernels() -> bool:
    """Return whether the kernels are there; some checkouts lack the symlink to them."""
    return any((PACKAGE / "kernels").glob("[!_]*.py"))


if __name__ == "__main__":
    commands.run(main)
