"""No two files use each other, in a circle of any length: neither in Python nor in Rust."""

from pathlib import Path

import pytest

from tests.support.graph import circles, python, rust

ROOT = Path(__file__).parents[1]
HOMES = {"tinylm": ROOT / "python/tinylm", "tinylm.kernels": ROOT / "kernels/fused"}


def package() -> dict[str, str]:
    """Every module of the package with its source; a package is its `__init__`."""
    files = {"tinylm._rust": ""}
    for name, home in HOMES.items():
        # rglob does not follow the link python/tinylm/kernels.
        for path in home.rglob("*.py"):
            parts = [name, *path.relative_to(home).with_suffix("").parts]
            files[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return files


def crate(folder: Path) -> dict[str, str]:
    """Every module of a crate with its source; the root is empty."""
    files = {}
    for path in (folder / "src").rglob("*.rs"):
        parts = path.relative_to(folder / "src").with_suffix("").parts
        name = "::".join(part for part in parts if part not in ("lib", "mod"))
        files[name] = path.read_text(encoding="utf-8")
    return files


def test_no_files_of_the_package_import_each_other():
    files = package()
    assert len(files) > 50
    assert circles(python(files)) == []


CRATES = sorted(path.parent for path in ROOT.glob("rust/*/Cargo.toml"))


@pytest.mark.parametrize("folder", CRATES, ids=lambda path: path.name)
def test_no_modules_of_a_crate_use_each_other(folder):
    graph = rust(crate(folder))
    assert any(graph.values())
    assert circles(graph) == []


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"p": "", "p.a": "import p.b", "p.b": "from p import a"}, [["p.a", "p.b"]]),
        ({"p": "", "p.a": "from p.b import x", "p.b": "import json"}, []),
        (
            {"p": "", "p.a": "if TYPE_CHECKING:\n from p.b import B", "p.b": "from p.a import A"},
            [["p.a", "p.b"]],
        ),
        (
            {"p": "", "p.a": "def f():\n from . import b", "p.b": "from .a import x"},
            [["p.a", "p.b"]],
        ),
        # A package that re-exports its files is none; a file that takes a name from it is one.
        ({"p": "from p.a import A", "p.a": "from p import b", "p.b": ""}, []),
        ({"p": "from p.a import A", "p.a": "from p import B"}, [["p", "p.a"]]),
        ({"p": "from .a import A", "p.a": "from . import B"}, [["p", "p.a"]]),
        (
            {"p": "", "p.a": "import p.b", "p.b": "import p.c", "p.c": "import p.a"},
            [["p.a", "p.b", "p.c"]],
        ),
    ],
)
def test_a_circle_of_imports_is_seen(files, wanted):
    assert circles(python(files)) == wanted


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"": "mod a; mod b;", "a": "use crate::b::B;", "b": "use crate::{a, b};"}, [["a", "b"]]),
        ({"": "pub use b::{B, C as D};", "a": "use crate::B;", "b": "crate::a::f()"}, [["a", "b"]]),
        ({"": "pub use b::B;", "a": "use crate::{B, other};", "b": "// crate::a::f"}, []),
        ({"a": "use crate::{b::{c::X, Y}};", "b": "", "b::c": "crate::a::f();"}, [["a", "b::c"]]),
        ({"a": "use std::b::B;", "b": "use crate::{std, a::*};"}, []),
    ],
)
def test_a_circle_of_rust_modules_is_seen(files, wanted):
    assert circles(rust(files)) == wanted
