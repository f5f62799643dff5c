"""Who uses whom, file by file: imports of the package, `crate::` paths of a Rust crate, circles."""

import ast
import re
from collections.abc import Iterator, Mapping

Graph = Mapping[str, set[str]]


def circles(graph: Graph) -> list[list[str]]:
    """The sets of nodes that reach each other, of more than one node or of one that uses itself."""
    reached = {node: _reach(graph, node) for node in graph}
    found = {
        tuple(sorted(other for other in reached[node] if node in reached.get(other, ())))
        for node in graph
        if node in reached[node]
    }
    return [list(nodes) for nodes in sorted(found)]


def _reach(graph: Graph, start: str) -> set[str]:
    """Every node that a path of one edge or more leads to."""
    seen: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += graph.get(node, ())
    return seen


def python(files: Mapping[str, str]) -> Graph:
    """Module names and their sources to what each imports, a package standing for its __init__.

    Every import counts: at the top, in a function, under `if TYPE_CHECKING`. A name that is a
    module leads to that module alone, not to the package around it; any other name leads to the
    file that it is imported from.
    """
    return {
        module: {_home(name, files) for name in imported(source, module, files)} - {""}
        for module, source in files.items()
    }


def imported(source: str, module: str, files: Mapping[str, str]) -> set[str]:
    """The full names of all that a module imports, relative imports resolved."""
    names: set[str] = set()
    package = any(other.startswith(f"{module}.") for other in files)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")
            base = above[: len(above) - node.level + package] if node.level else []
            head = [*base, *([node.module] if node.module else [])]
            names |= {".".join([*head, alias.name]) for alias in node.names}
    return names


def _home(name: str, files: Mapping[str, str]) -> str:
    """The module that a full name is, or is in; empty outside the package."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name


def rust(files: Mapping[str, str]) -> Graph:
    """Module paths (`a::b`, the root empty) and their sources to the modules that each names.

    Counted are paths after `crate::`. A name that the root re-exports leads to its own module.
    """
    exported = {
        path[-1]: _inside(path, files)
        for path in _paths(r"pub use (?=[\w{])", files.get("", ""))
        if path[0] not in ("crate", "std")
    }
    graph: dict[str, set[str]] = {}
    for module, source in files.items():
        found = _paths(r"\bcrate::", source)
        homes = {_inside(path, files) or exported.get(path[0], "") for path in found}
        graph[module] = homes - {"", module}
    # The root declares every module: what it names is no use of them.
    graph.pop("", None)
    return graph


def _inside(path: list[str], files: Mapping[str, str]) -> str:
    """The deepest module on a path; empty for the root."""
    for end in range(len(path), 0, -1):
        if "::".join(path[:end]) in files:
            return "::".join(path[:end])
    return ""


def _paths(before: str, source: str) -> Iterator[list[str]]:
    """Every path of names behind a pattern, braces expanded, comments left out."""
    code = re.sub(r"//[^\n]*", "", source)
    for start in re.finditer(before, code):
        yield from _tree(code, start.end())[0]


def _tree(code: str, at: int) -> tuple[list[list[str]], int]:
    """The paths of the use tree that begins at `at`, and where it ends."""
    at += len(code[at:]) - len(code[at:].lstrip())
    if at < len(code) and code[at] == "{":
        paths: list[list[str]] = []
        at += 1
        while True:
            at += len(code[at:]) - len(code[at:].lstrip(" \n\t,"))
            if at >= len(code) or code[at] == "}":
                return paths, at + 1
            more, at = _tree(code, at)
            paths += more
    found = re.compile(r"(\w+|\*)(?:\s+as\s+\w+)?").match(code, at)
    if found is None:
        return [], at + 1
    if code.startswith("::", found.end(1)):
        below, end = _tree(code, found.end(1) + 2)
        return [[found[1], *path] for path in below] or [[found[1]]], end
    return [[found[1]]], found.end()
