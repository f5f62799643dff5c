"""Processes that die, and disks that fail, at every call of a save and a purge."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parent / "support/faults.c"


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The library that stands before libc, compiled."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the calls of libc are replaced by a library for Linux, compiled with gcc")
    path = tmp_path_factory.mktemp("shim") / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, FAULTS, "-ldl"], check=True)
    return path


def run_program(shim, *arguments):
    command = [sys.executable, "-m", "tests.support.killing", *map(str, arguments)]
    places = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": os.pathsep.join(places),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("action", ["cycle", "behind", "replace"])
@pytest.mark.parametrize("what", ["kills", "faults"])
def test_no_call_at_which_a_save_dies_or_fails_costs_a_checkpoint(what, action, shim, tmp_path):
    print(run_program(shim, what, action, tmp_path))


@pytest.mark.slow
def test_a_real_disk_of_one_mebibyte_that_is_full_keeps_what_it_has(shim, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no program mount")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        print(run_program(shim, "disk", "-", tmp_path))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
