"""Small files whole or not at all, and folders with one writer: locks among processes."""

import contextlib
import errno
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tinylm import disk

# Holds the lock of its argument and says so; ends when its standard input does.
HOLD = """
import sys
from pathlib import Path
from tinylm import disk
lock = disk.Lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
# The same with a forked child that reads on, and with one that has ended, whose number it prints.
FORK, ENDED = (
    HOLD.replace("sys.stdin", f"import os\nchild = os.fork()\n{then}\nsys.stdin")
    for then in (
        "if child: print(child, flush=True)",
        "if not child: sys.exit()\nprint(os.wait()[0], flush=True)",
    )
)
# A shell in the background has its commands ignore Ctrl-C: the script takes it back.
WAIT = """
import signal
import sys
from pathlib import Path
from tinylm import disk
signal.signal(signal.SIGINT, signal.default_int_handler)
with disk.Lock(Path(sys.argv[1]), wait=True):
    print("mine", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def running(script, *arguments):
    """A Python process of `script`, killed at the end of the block."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.json"
    disk.replace(path, b"one")
    with path.open("rb") as reader:
        disk.replace(path, b"another")
        assert reader.read() == b"one"
    assert path.read_bytes() == b"another"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_synced_before_it_takes_its_name_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    real = os.fsync

    def fsync(handle):
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        calls.append((folder, [path.name for path in tmp_path.iterdir()]))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    disk.replace(tmp_path / "a", b"content")
    (_, [part]), last = calls
    assert re.fullmatch(rf"a\.{os.getpid()}-[0-9a-f]{{8}}\.part", part)
    assert last == (True, ["a"])
    assert calls[0][0] is False


def test_a_folder_that_is_filled_was_empty_and_is_so_again_after_an_error(tmp_path):
    folder = tmp_path / "a/b"

    def stopped():
        with disk.filling(folder):
            (folder / "half").write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(folder.iterdir()) == []
    with disk.filling(folder):
        (folder / "whole").write_bytes(b"2")
    with pytest.raises(FileExistsError, match="the folder is not empty"), disk.filling(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_what_fails_on_the_way_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "a"
    disk.replace(path, b"old")

    def fail():
        with disk.replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def fsync(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left") as caught:
        disk.replace(tmp_path / "a", b"content")
    assert re.fullmatch(r"a\.\d+-[0-9a-f]{8}\.part", Path(caught.value.filename).name)


def test_of_two_writers_of_a_file_each_puts_it_there_whole(tmp_path):
    path = tmp_path / "a"
    with disk.replacing(path) as slow:
        slow.write(b"half of ")
        disk.replace(path, b"another")
        assert path.read_bytes() == b"another"
        slow.write(b"this")
    assert path.read_bytes() == b"half of this"
    assert list(tmp_path.iterdir()) == [path]


def test_only_the_parts_of_killed_writers_are_removed(tmp_path):
    names = ["a", "a.part", "a.4711-film.part", "a.4711-0badcafe.part.txt"]
    for name in [*names, "a.json.4711-0badcafe.part", disk.LOCK]:
        (tmp_path / name).touch()
    left = {path.name for path in tmp_path.iterdir() if disk.is_leftover(path)}
    assert left == {"a.json.4711-0badcafe.part", disk.LOCK}
    disk.remove_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names, disk.LOCK}


def test_a_second_holder_is_told_who_is_the_first_and_what_to_do(tmp_path):
    with running(HOLD, tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError) as caught:
            disk.Lock(tmp_path, advice="name another folder")
    assert caught.value.filename == str(tmp_path)
    assert f"in use by process {process.pid} on " in caught.value.strerror
    assert "import disk" in caught.value.strerror
    assert caught.value.strerror.endswith("): name another folder")


def test_a_lock_excludes_another_of_the_same_process_until_it_is_released(tmp_path):
    lock = disk.Lock(tmp_path)
    with pytest.raises(BlockingIOError, match=f"process {os.getpid()} "):
        disk.Lock(tmp_path)
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []
    with disk.Lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [disk.LOCK]
    assert list(tmp_path.iterdir()) == []


def test_a_thread_that_waited_for_its_own_lock_would_wait_for_ever(tmp_path):
    wanted = f"process {os.getpid()} .*: close it"
    with disk.Lock(tmp_path), pytest.raises(BlockingIOError, match=wanted):
        disk.Lock(tmp_path, advice="close it", wait=True)
    disk.Lock(tmp_path, wait=True).release()


def test_releasing_leaves_the_lock_of_whoever_came_after_the_file_was_removed(tmp_path):
    first = disk.Lock(tmp_path)
    (tmp_path / disk.LOCK).unlink()
    with disk.Lock(tmp_path):
        first.release()
        with pytest.raises(BlockingIOError):
            disk.Lock(tmp_path)


def test_the_lock_of_a_killed_process_is_free_and_its_file_no_obstacle(tmp_path):
    with running(HOLD, tmp_path) as process:
        process.stdout.readline()
        process.kill()
        process.wait()
    assert (tmp_path / disk.LOCK).exists()
    disk.Lock(tmp_path).release()


def test_a_child_of_a_fork_does_not_hold_the_lock_of_its_parent(tmp_path):
    with running(FORK, tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        child = int(process.stdout.readline())
        with pytest.raises(BlockingIOError):
            disk.Lock(tmp_path)
        process.kill()
        process.wait()
        # The child lives on: it waits for the end of the standard input that this process holds.
        os.kill(child, 0)
        # It may not have run yet since the fork, and closes its copy of the lock when it does.
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                disk.Lock(tmp_path).release()
                return
            time.sleep(0.01)
        disk.Lock(tmp_path).release()


def test_a_forked_child_that_ends_does_not_release_the_lock_of_its_parent(tmp_path):
    with running(ENDED, tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        assert int(process.stdout.readline()) > 0
        with pytest.raises(BlockingIOError):
            disk.Lock(tmp_path)


def test_who_waits_says_for_whom_and_goes_on_when_the_lock_is_free(tmp_path):
    with disk.Lock(tmp_path) as lock, running(WAIT, tmp_path) as process:
        line = process.stderr.readline()
        assert line.startswith(f"{tmp_path} is in use by process {os.getpid()} on ")
        assert line.endswith("): waiting for it\n")
        lock.release()
        assert process.stdout.readline() == "mine\n"
        # The file that it waited for is gone: it holds the one that the next comer finds.
        with pytest.raises(BlockingIOError, match=f"in use by process {process.pid} "):
            disk.Lock(tmp_path)
        process.communicate()
    assert process.returncode == 0


def test_ctrl_c_ends_the_waiting(tmp_path):
    with disk.Lock(tmp_path), running(WAIT, tmp_path) as process:
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait() != 0
        assert "KeyboardInterrupt" in process.stderr.read()


def test_of_many_threads_one_at_a_time_holds_the_lock(tmp_path):
    """Releasing removes the file that others wait for: none may hold a file out of reach."""
    inside, most = [], []

    def work():
        for _ in range(20):
            with disk.Lock(tmp_path, wait=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80
    assert set(most) == {1}


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    disk.replace(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        disk.replace(pipe, b"words")
        assert os.read(reader, 100) == b"words"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_with_the_way_out(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk.fcntl, "flock", flock)
    with pytest.raises(OSError, match="its file system has no flock; name a folder on") as caught:
        disk.Lock(tmp_path)
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path))


def test_waiting_needs_no_standard_error(tmp_path, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = write

    held = threading.Event()

    def hold():
        with disk.Lock(tmp_path):
            held.set()
            time.sleep(0.1)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    monkeypatch.setattr(sys, "stderr", Full())
    disk.Lock(tmp_path, wait=True).release()
    holder.join()
