"""tests/ladder.py and the sources to what the pages of the ladder quote, in target/docs.

    python docs/make_ladder.py

Writes `rungs.md` (every rung), `rungs-lists.md` and so on (the rungs that begin or end in one
medium), and every definition that a page quotes by a line such as

    --8<-- "python/tinylm/reference/byte_bpe.py.encode"

so that no table and no quotation can be out of date. A name that is gone fails the build.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "target/docs"
QUOTE = re.compile(r'^ *--8<-- "((?:python|kernels|rust|tests)/[\w/]+\.(?:py|rs))\.(\w+)"', re.M)

# The module of a function says in which medium it computes.
MEDIA = {
    "lists": ("word_bpe", "byte_bpe", "patterns", "autograd", "scalars", "shards", "order"),
    "arrays": ("arrays", "arrays_model", "optimizers"),
    "tensors": ("tensors",),
}
HEAD = "| rung | defined by | held to it |\n|---|---|---|\n"


def medium(module: str) -> str:
    """The medium of `module`, a full dotted name."""
    parts = module.split(".")
    if "reference" in parts:
        return next(name for name, modules in MEDIA.items() if parts[-1] in modules)
    if parts[1] in ("_rust", "kernels", "tokenizer", "data"):
        return "metal"
    return "tensors"


def homes(function: Callable[..., Any]) -> Iterator[str]:
    """The modules of tinylm that `function` calls, itself included; wrappers are looked through."""
    seen: set[object] = set()

    def visit(item: object) -> Iterator[str]:
        if isinstance(item, partial):
            item = item.func
        item = getattr(item, "__func__", item)
        name = item.__name__ if isinstance(item, ModuleType) else getattr(item, "__module__", None)
        if name and name.split(".")[0] == "tinylm":
            yield name
        elif isinstance(item, FunctionType) and item not in seen:
            seen.add(item)
            cells = (cell.cell_contents for cell in item.__closure__ or ())
            for used in [*names(item.__code__, item.__globals__), *cells]:
                yield from visit(used)

    return visit(function)


def names(code: CodeType, scope: dict[str, object]) -> Iterator[object]:
    """What the global names in `code` stand for, those of functions inside it too."""
    yield from (scope[name] for name in code.co_names if name in scope)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names(inner, scope)


def modules(function: Callable[..., Any], slow: bool) -> list[str]:
    """The modules that a side of a rung stands for: references on the slow side, others else."""
    found = list(dict.fromkeys(homes(function)))
    kept = [name for name in found if ("reference" in name.split(".")) == slow]
    return kept or found


def row(rung: Any) -> tuple[str, set[str]]:
    """A line of the table, and the media that the rung joins."""
    cells, media = [f"`{rung.name}`"], set()
    for function, slow in ((rung.slow, True), (rung.fast, False)):
        found = modules(function, slow)
        if not found:
            raise ValueError(f"rung {rung.name}: {function!r} calls nothing of tinylm")
        media |= {medium(name) for name in found}
        cells.append(", ".join(f"`{name.removeprefix('tinylm.')}`" for name in found))
    return f"| {' | '.join(cells)} |\n", media


def write_tables(rungs: Iterable[Any]) -> None:
    """The table of all rungs and one for each medium."""
    rows = [row(rung) for rung in rungs]
    for name in ("", *MEDIA, "metal"):
        lines = [line for line, media in rows if not name or name in media]
        write(f"rungs-{name}.md" if name else "rungs.md", HEAD + "".join(lines))


def definition(path: Path, name: str) -> str:
    """The source of the function or class `name` in a file, decorators included."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".rs":
        found = re.search(rf"^( *)(pub(\(crate\))? )?(fn|enum|struct) {name}\b", text, re.M)
        if found:
            end = re.compile(rf"^{found[1]}}}\n", re.M).search(text, found.end())
            return text[found.start() : end.end() if end else len(text)]
    else:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                first = min([node.lineno, *(part.lineno for part in node.decorator_list)])
                lines = text.splitlines(keepends=True)[first - 1 : node.end_lineno]
                return "".join(lines)
    raise ValueError(f"{path}: no definition of {name}, which a page quotes")


def write_quotations(pages: Iterable[Path]) -> None:
    """Every definition that some page quotes."""
    for page in pages:
        for path, name in QUOTE.findall(page.read_text(encoding="utf-8")):
            language = "rust" if path.endswith(".rs") else "python"
            source = definition(ROOT / path, name)
            write(f"{path}.{name}", f'```{language} title="{path}"\n{source}```\n')


def write(name: str, text: str) -> None:
    """One file below target/docs."""
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Write all that the pages quote."""
    sys.path.insert(0, str(ROOT / "tests"))
    from ladder import RUNGS

    write_tables(RUNGS)
    write_quotations((ROOT / "docs").rglob("*.md"))


if __name__ == "__main__":
    main()
