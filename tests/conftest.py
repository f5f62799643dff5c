"""What all tests share: hypothesis profiles, the folder of test data, Triton without a GPU."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("dev", max_examples=30, deadline=None, print_blob=True)
settings.register_profile("ci", max_examples=300, deadline=None, print_blob=True)
settings.register_profile("fuzz", max_examples=20_000, deadline=None, print_blob=True)
# On a GPU an example of another size compiles the kernel anew (benches/gpu/sections/tests.py).
settings.register_profile("gpu", max_examples=40, deadline=None, print_blob=True)
settings.register_profile("dry", max_examples=1, deadline=None)
# pytest's --hypothesis-profile overrides this.
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# The tests' tensors are tiny: more threads only wait for each other. Commands inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton reads the variable at its first import: without a driver its kernels run in Python.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of corpora and fixtures that TINYLM_DATA names; without it the test is skipped."""
    folder = os.environ.get("TINYLM_DATA")
    if not folder:
        pytest.skip("TINYLM_DATA is unset: it names a folder with corpora/ and fixtures/")
    return Path(folder)


def pytest_terminal_summary(terminalreporter):
    """How many examples the rungs that passed were given (`test_ladder` records the number)."""
    passed = [dict(report.user_properties) for report in terminalreporter.getreports("passed")]
    given = [properties["examples"] for properties in passed if "examples" in properties]
    if given:
        total, least = sum(given), min(given)
        terminalreporter.line(f"{total:,} examples of {len(given)} rungs, {least:,} at least")
