"""Processes that die, and disks that fail, at every call of a save and a purge."""

import subprocess

import pytest

from tests.support.shim import build, run_program


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The library that stands before libc, compiled."""
    return build(tmp_path_factory.mktemp("shim"))


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("action", ["cycle", "behind", "replace"])
@pytest.mark.parametrize("what", ["kills", "faults"])
def test_no_call_at_which_a_save_dies_or_fails_costs_a_checkpoint(what, action, shim, tmp_path):
    print(run_program(shim, "killing", what, action, tmp_path))


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
        print(run_program(shim, "killing", "disk", "-", tmp_path))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
