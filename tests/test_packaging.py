"""The wheel and the sdist hold all that they must; the pins satisfy what the project asks for."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tinylm
from tinylm import _rust

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python/tinylm"
# Beside the running Python, whether or not its environment is activated.
MATURIN = shutil.which("maturin", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytestmark = pytest.mark.skipif(MATURIN is None, reason="maturin is not installed")


def package_files() -> set[str]:
    """What `import tinylm` may need, as paths inside the package: sources, recipes, typing."""
    files = [path for end in ("py", "pyi", "yaml") for path in PACKAGE.rglob(f"*.{end}")]
    names = {str(path.relative_to(PACKAGE)) for path in [*files, PACKAGE / "py.typed"]}
    kernels = ROOT / "kernels/fused"
    # rglob does not follow the link to the kernels, and neither does maturin by itself.
    return names | {f"kernels/{path.relative_to(kernels)}" for path in kernels.rglob("*.py")}


def build(what: str, folder: Path, *options: str) -> Path:
    """The one file that `maturin <what>` makes in `folder`; touches no index."""
    command = [str(MATURIN), what, "--out", str(folder), *options]
    environment = os.environ | {"CARGO_NET_OFFLINE": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # The release profile: what `make setup` has built already.
    return build("build", tmp_path_factory.mktemp("wheel"), "--release")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_holds_the_whole_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"tinylm/{name}" for name in package_files()} <= names
    assert "tinylm/kernels/__init__.py" in names
    assert [name for name in names if name.startswith("tinylm/_rust.") and "pyi" not in name]
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_serves_every_python_from_3_11_on(wheel):
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        text = archive.read(metadata).decode()
    assert f"Version: {tinylm.__version__}\n" in text
    assert "Requires-Python: >=3.11\n" in text
    assert "License-Expression: MIT\n" in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = (
        "import tinylm, tinylm.config, tinylm.kernels\n"
        "print(tinylm.__file__, tinylm._rust.build_profile)\n"
        "tinylm.config.load('shakespeare', ['model=tiny'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout == f"{tmp_path / 'tinylm/__init__.py'} release\n"


def test_the_sdist_holds_all_that_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        links = [member.name for member in archive.getmembers() if not member.isfile()]
    assert links == []
    assert {f"python/tinylm/{name}" for name in package_files()} <= names
    rust = [*ROOT.glob("rust/*/Cargo.toml"), *ROOT.glob("rust/*/src/**/*.rs")]
    assert {str(path.relative_to(ROOT)) for path in rust} <= names
    assert {"Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/*.py")} <= names


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_built_from_the_sdist_is_complete(sdist, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"PATH": f"{Path(str(MATURIN)).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(sdist)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        assert {f"tinylm/{name}" for name in package_files()} <= set(archive.namelist())


def test_the_extension_in_use_is_a_release_build():
    assert _rust.build_profile == "release"


def test_one_version_from_cargo_to_python():
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())
    assert cargo["workspace"]["package"]["version"] == tinylm.__version__
    assert "version" in PROJECT["dynamic"]


def pins() -> dict[str, str]:
    """The versions of constraints.txt by name, names spelled as an index spells them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {re.sub("[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        pin = pins().get(requirement.name)
        assert pin is not None, f"{requirement.name} has no line in constraints.txt"
        assert pin in requirement.specifier


def test_torch_is_not_needed_to_build():
    build_system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert [Requirement(line).name for line in build_system["requires"]] == ["maturin"]
