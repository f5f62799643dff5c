"""The calls of libc that change a disk, counted and broken by faults.c, for programs under it.

    LD_PRELOAD=faults.so python -m tests.support.killing ...

Imported only there: without the library there is nothing to load.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COUNT, KILL_BEFORE, KILL_AFTER, KILL_WITHIN, FAIL, SHORTEN = range(1, 7)
FAULTS = Path(__file__).parent / "faults.c"


def build(folder):
    """The library, compiled into `folder`; skips the test where that is not possible."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the calls of libc are replaced by a library for Linux, compiled with gcc")
    path = folder / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, FAULTS, "-ldl"], check=True)
    return path


def run_program(shim, module, *arguments):
    """A module of tests.support as a program under the library; what it prints."""
    command = [sys.executable, "-m", f"tests.support.{module}", *map(str, arguments)]
    places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
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


def _library():
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    library.faults_names.restype = ctypes.c_char_p
    return library


def arm(mode, at=-1, error=0, sticky=False):
    """Break the call number `at`, and with `sticky` all after it."""
    _library().faults_arm(mode, ctypes.c_long(at), error, int(sticky))


def disarm():
    """Let all calls pass again."""
    _library().faults_disarm()


def names(action, *arguments):
    """The names of the calls of an action, in their order."""
    arm(COUNT)
    action(*arguments)
    disarm()
    return _library().faults_names().decode().split()


def dies(action, mode, at):
    """Whether a child that does `action` is killed at call number `at`."""
    process = os.fork()
    if not process:
        arm(mode, at)
        action()
        os._exit(0)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL
