"""What no compiler holds: who imports whom, how long a file is, what is banned, what is named."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tinylm.__main__ import MAP, is_command

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python/tinylm"
# rglob does not follow the link python/tinylm/kernels.
HOMES = {PACKAGE: "tinylm", ROOT / "kernels/fused": "tinylm.kernels"}
MODULES = [path for home in HOMES for path in sorted(home.rglob("*.py"))]
RUST = sorted((ROOT / "rust").glob("*/src/**/*.rs"))
TESTS = sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "benches").rglob("*.py")])

# A module imports only from the rows above its own.
ROWS = [
    {"reference", "kernels", "config", "disk", "lazy", "mask", "terminal", "threads", "_rust"},
    {"ops", "context", "corpus", "track", "commands", "device"},
    {"tokenizer", "layers", "cache", "optim"},
    {"data", "model"},
    {"convert"},
    {"checkpoint", "native"},
    {"sample", "profiling"},
    {"evaluate", "lora", "quant"},
    {"train", "lightning"},
    {"__init__", "__main__"},
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
LONGEST, LONGEST_ATTENTION = 400, 600


def dotted(path: Path) -> list[str]:
    """The name of the module in the file at `path`, in parts, `__init__` kept."""
    home = next(home for home in HOMES if home in path.parents)
    return [*HOMES[home].split("."), *path.relative_to(home).with_suffix("").parts]


def named(path: Path) -> str:
    """A file's path from the root, as the name of its case."""
    return str(path.relative_to(ROOT))


def each(paths: list[Path]) -> pytest.MarkDecorator:
    """One case for each file."""
    return pytest.mark.parametrize("path", paths, ids=named)


def parse(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module, module: list[str]) -> set[str]:
    """The parts of tinylm that a module imports, also in functions and under `TYPE_CHECKING`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module[: -node.level] if node.level else []
            head = [*base, *([node.module] if node.module else [])]
            names |= {".".join([*head, alias.name]) for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("tinylm.")}


@each(MODULES)
def test_imports_point_to_the_rows_above(path):
    name = dotted(path)[1]
    assert name in RANK, f"tinylm.{name} is in no row: give it one"
    others = {other for other in imports(parse(path), dotted(path)) if other in RANK} - {name}
    too_high = {other for other in others if RANK[other] >= RANK[name]}
    assert not too_high, f"{name} must not import {too_high}"


def test_an_import_from_a_lower_row_is_seen():
    lazy = ast.parse("def f():\n    from .. import model\n    import tinylm.train.loop")
    assert imports(lazy, ["tinylm", "config", "keys"]) == {"model", "train"}
    typed = ast.parse("if TYPE_CHECKING:\n    from tinylm.model import Model")
    assert imports(typed, ["tinylm", "cache"]) == {"model"}


@each([path for path in MODULES if "reference" in path.parts])
def test_reference_imports_nothing_else_of_tinylm(path):
    assert imports(parse(path), dotted(path)) <= {"reference"}


def test_the_rust_cores_know_neither_python_nor_each_other():
    manifests = {
        p.parent.name: tomllib.loads(p.read_text()) for p in ROOT.glob("rust/*/Cargo.toml")
    }
    assert {"tokenizer", "dataloader", "inference", "bindings"} <= manifests.keys()
    for name in manifests.keys() - {"bindings"}:
        tables = ("dependencies", "dev-dependencies", "build-dependencies")
        needs = {crate for table in tables for crate in manifests[name].get(table, {})}
        assert not [crate for crate in needs if re.match("tinylm|pyo3|numpy", crate)], name
        # `forbid` would leave no room for the files below.
        assert "#![deny(unsafe_code)]" in (ROOT / f"rust/{name}/src/lib.rs").read_text()


def test_eleven_files_of_rust_have_unsafe_code():
    found = [named(path) for path in RUST if re.search(r"\bunsafe \{", path.read_text())]
    assert sorted(found) == [
        "rust/bindings/src/ids.rs",
        "rust/bindings/src/layout.rs",
        "rust/bindings/src/lists.rs",
        "rust/bindings/src/objects.rs",
        "rust/bindings/src/slots.rs",
        "rust/dataloader/src/memory.rs",
        "rust/inference/src/avx512.rs",
        "rust/inference/src/memory.rs",
        "rust/tokenizer/src/masks.rs",
        "rust/tokenizer/src/memory.rs",
        "rust/tokenizer/src/narrow.rs",
    ]


@each([*MODULES, *RUST, *TESTS])
def test_a_file_is_short_enough_to_read_in_one_sitting(path):
    longest = LONGEST_ATTENTION if "attention" in path.name else LONGEST
    assert len(path.read_text(encoding="utf-8").splitlines()) <= longest


@each([*MODULES, *RUST])
def test_sources_are_ascii(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [(number, line) for number, line in enumerate(lines, 1) if not line.isascii()] == []


def public(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """The public functions and classes of a module, and the public methods of those classes.

    A method whose body is `...` is left out: a protocol declares it, its class documents it.
    """
    found = list(tree.body)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name[0] != "_":
            found += [n for n in node.body if ast.unparse(n).splitlines()[-1].strip() != "..."]
    kinds = ast.FunctionDef | ast.ClassDef
    return [node for node in found if isinstance(node, kinds) and node.name[0] != "_"]


@each(MODULES)
def test_every_public_name_has_a_docstring(path):
    tree = parse(path)
    assert ast.get_docstring(tree), "the module has none"
    assert [node.name for node in public(tree) if not ast.get_docstring(node)] == []


@each(MODULES)
def test_every_function_is_annotated(path):
    bare = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            typed = [arg.annotation or arg.arg in ("self", "cls") for arg in args]
            # The pointers and sizes of a Triton kernel have no Python types.
            kernel = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not kernel and not (all(typed) and node.returns):
                bare.append(f"{node.name}, line {node.lineno}")
    assert bare == []


# Nothing that a file from elsewhere could make run.
BANNED = {
    "pickle": "files are JSON, YAML or safetensors",
    "marshal": "files are JSON, YAML or safetensors",
    "torch.load": "weights are safetensors",
    "torch.save": "weights are safetensors",
    "eval": "nothing read is run",
    "exec": "nothing read is run",
    "yaml.load": "OmegaConf loads YAML safely",
    "os.system": "use subprocess with a list",
}


def calls_and_imports(tree: ast.Module) -> set[str]:
    """Names of all that a module calls or imports, as it writes them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@each(MODULES)
def test_nothing_that_is_read_can_run(path):
    found = calls_and_imports(parse(path)) & BANNED.keys()
    assert not found, [f"{name}: {BANNED[name]}" for name in found]


def test_a_banned_call_is_seen():
    tree = ast.parse("import pickle\nfrom torch import load\nx = torch.load('f')\nmodel.eval()")
    assert calls_and_imports(tree) & BANNED.keys() == {"pickle", "torch.load"}


def modules() -> set[str]:
    """The first names of all that lies in the package."""
    names = {path.stem for path in PACKAGE.glob("*.py")}
    names |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return {name for name in names if not name.startswith("_")}


def test_the_map_has_every_module():
    drawn = {row.module for row in MAP}
    assert modules() - {"reference", "kernels", "experiments"} <= drawn
    assert drawn <= RANK.keys()


def test_the_rows_name_what_exists():
    assert {*modules(), "_rust", "__init__", "__main__"} == RANK.keys()


def test_the_map_has_every_reference():
    written = {path.stem for path in (PACKAGE / "reference").glob("*.py")} - {"__init__"}
    assert written <= {name for row in MAP for name in row.reference}


@pytest.mark.parametrize("module", sorted(filter(is_command, modules())))
def test_every_command_answers_help(module):
    command = [sys.executable, "-m", f"tinylm.{module}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"python -m tinylm.{module}" in done.stdout
    assert done.stderr == ""


def test_no_other_module_is_a_command():
    mains = {path for path in MODULES if any(n.name == "main" for n in public(parse(path)))}
    homes = {PACKAGE / f"{name}.py" for name in modules()} | set(PACKAGE.glob("*/__main__.py"))
    # A file that stands alone has its command in itself.
    assert mains <= homes | {PACKAGE / "__main__.py", PACKAGE / "reference/smallest.py"}


def test_ci_runs_every_file_that_has_slow_tests():
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    listed = re.findall(r"^\d+ (tests/test_\w+\.py)$", text, re.MULTILINE)
    marked = [p for p in (ROOT / "tests").glob("test_*.py") if "mark.slow" in p.read_text()]
    # This file names the mark, and has no such test.
    assert sorted(listed) == sorted(named(p) for p in marked if p != Path(__file__))
