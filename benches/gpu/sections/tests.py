"""All tests of the kernels on this machine, a row per test.

With pytest-xdist, eight processes share them, because most of the time goes into compiling. Without
it, a test that hangs is killed by the runner, and a new process goes on with the next test.
"""

import importlib.util
import os
from pathlib import Path

import pytest

from benches.gpu.job import Job

ROOT = Path(__file__).parents[3]
# Seconds for one test: some compile a kernel for every example.
TEST_PATIENCE = 100


class Reporter:
    """A plugin of pytest: a line for every test that begins or ends."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.done = {name for family, _, name in job.order.done if family == "test"}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what an earlier process was done with."""
        items[:] = [item for item in items if item.nodeid not in self.done]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Called by the process that reports, also where others run the tests."""
        self.job.begin("test", {}, nodeid, TEST_PATIENCE)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A row when the test itself ran, or when what comes before or after it failed."""
        if report.nodeid in self.done or (report.when != "call" and report.passed):
            return
        figures = {"seconds": round(report.duration, 2)}
        if report.skipped:
            figures["missing"] = str(report.longrepr)[-200:]
        elif not report.passed:
            lines = report.longreprtext.splitlines()
            said = [line for line in lines if line.startswith("E ")] or lines[-1:]
            figures["failed"] = " ".join(said)[:300]
        self.job.row("test", {}, report.nodeid, **figures)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported is a failure of its own."""
        if report.failed and self.job.begin("test", {}, report.nodeid, TEST_PATIENCE):
            self.job.row("test", {}, report.nodeid, failed=report.longreprtext[-300:])


def run(job: Job) -> None:
    """The rungs and the kernels' own tests; in a dry run one example of each rung."""
    job.waits(TEST_PATIENCE)
    arguments = ["-c", "benches/gpu/pytest.ini", "--rootdir", str(ROOT), "-q", "--no-header"]
    profile = "dry" if job.order.dry else "gpu"
    arguments += ["-p", "tests.conftest", f"--hypothesis-profile={profile}"]
    if importlib.util.find_spec("xdist") and not job.order.dry:
        arguments += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "loadgroup"]
    arguments += ["benches/gpu/test_rungs.py"]
    if not job.order.dry:
        arguments += [str(path) for path in sorted((ROOT / "tests").glob("test_kernels*.py"))]
    os.chdir(ROOT)
    code = pytest.main(arguments, plugins=[Reporter(job)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        job.row("test", {}, "pytest", failed=f"it ended with {code!r}")
