"""Processes that die, and disks that fail, at every call of `prepare` that changes the disk."""

import re
import subprocess

import pytest

from tests.support.shim import build, run_program


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The library that stands before libc, compiled."""
    return build(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize(("what", "step"), [("kills", 37), ("faults", 97)])
def test_some_calls_at_which_prepare_dies_or_fails_cost_no_shard(what, step, shim, tmp_path):
    print(run_program(shim, "killing_prepare", what, step, tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("what", ["kills", "faults"])
def test_no_call_at_which_prepare_dies_or_fails_costs_a_shard(what, shim, tmp_path):
    print(run_program(shim, "killing_prepare", what, 1, tmp_path))


@pytest.mark.slow
def test_a_real_disk_that_is_full_names_the_bytes_and_goes_on_when_there_is_room(shim, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no program mount")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        (tmp_path / "work").mkdir()
        said = run_program(shim, "killing_prepare", "disk", 1, tmp_path / "work", disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert re.search(
        r"No space left on device: \d+ of \d+ jobs are left and need about [\d,]+ bytes", said
    )
