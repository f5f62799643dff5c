"""tests/ladder.py and the sources to what the pages of the ladder quote, in target/docs.

    python docs/make_ladder.py

Writes `rungs-lists.md` and so on, the rungs of a chapter, `rungs.md`, their number,
`keystone.md`, how near the media are to each other, and every definition that a page quotes by
a line such as

    --8<-- "python/tinylm/reference/byte_bpe.py.encode"

so that no table and no quotation can be out of date. A name that is gone fails the build.
"""

import ast
import re
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "target/docs"
QUOTE = re.compile(r'^ *--8<-- "((?:python|kernels|rust|tests)/[\w/]+\.(?:py|rs))\.(\w+)"', re.M)

HEAD = "| rung | definition | held to it | public names covered |\n|---|---|---|---|\n"


def row(rung: Any) -> str:
    """A line of the table: operation, its two media, what it covers of `_rust` and `kernels`."""
    slow, fast = rung.media
    covers = ", ".join(f"`{name}`" for name in rung.covers)
    return f"| {rung.name} | {slow} | {fast} | {covers} |\n"


def write_tables(rungs: Iterable[Any], chapters: Iterable[str]) -> None:
    """How many rungs there are, and the table of each chapter."""
    rows = {
        chapter: [row(rung) for rung in rungs if rung.chapter == chapter] for chapter in chapters
    }
    for chapter, lines in rows.items():
        write(f"rungs-{chapter}.md", HEAD + "".join(lines))
    counts = (f"{len(lines)} in [{name}]({name}.md)" for name, lines in rows.items())
    write("rungs.md", f"{sum(map(len, rows.values()))} rungs: {', '.join(counts)}.\n")


def write_keystone(media: Iterable[Any]) -> None:
    """How near the media of tests/test_one_loss.py are to each other."""
    lines = (
        f"| {slow.name} | {fast.name} | {fast.tolerance:.0e} | {fast.tolerance_of_muon:.0e} |\n"
        for slow, fast in pairwise(media)
    )
    head = "| from | to | loss, gradients, weights after AdamW | weights after Muon |\n"
    write("keystone.md", head + "|---|---|---|---|\n" + "".join(lines))


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
    sys.path.insert(0, str(ROOT))
    from tests.ladder import CHAPTERS, RUNGS
    from tests.test_one_loss import MEDIA

    write_tables(RUNGS, CHAPTERS)
    write_keystone(MEDIA)
    write_quotations((ROOT / "docs").rglob("*.md"))


if __name__ == "__main__":
    main()
