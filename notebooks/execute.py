"""Run the notebooks and store what they print: `python notebooks/execute.py`.

A notebook is JSON: cells of Markdown and of code, each code cell with its outputs. Here a cell
is `exec`, the value of its last line is shown as a notebook shows it, and that is all that these
need: no server, no kernel, no package beyond Python. `tests/test_notebooks.py` runs them too.
"""

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def run(source: str, scope: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The outputs of one code cell: what it prints, then the value of its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {count}", "exec"), scope)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), scope)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is not None:
        shown = {"data": {"text/plain": repr(value).splitlines(keepends=True)}, "metadata": {}}
        outputs.append(shown | {"execution_count": count, "output_type": "execute_result"})
    return outputs


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with fresh outputs, run from the top."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = run("".join(cell["source"]), scope, count)
            cell = cell | {"execution_count": count, "outputs": outputs}
        cells.append(cell)
    return notebook | {"cells": cells}


def main() -> None:
    """Store fresh outputs in every notebook."""
    for path in NOTEBOOKS:
        notebook = executed(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(notebook, indent=1) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
