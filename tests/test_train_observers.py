"""Whatever watches a run may fail at any step: the run ends with the weights that it would have."""

import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest

from tests.support.calling import call
from tests.test_train import SMALL, TEXT, assert_same_weights, settings
from tinylm import checkpoint, device, evaluate, sample, track
from tinylm.track import plotting
from tinylm.train import Interrupted, Trainer, loop, train
from tinylm.train.__main__ import main

TINY = [
    *SMALL,
    *("train.steps=6", "checkpoint.every=0", "evaluate.every=3", "sample.max_tokens=2"),
    *("tokenizer.kind=byte", "model.n_layers=1"),
]
NAMES = "track.names=[console,jsonl,plot]"


def fault(number):
    return OSError(number, os.strerror(number))


ERRORS = {
    "EPIPE": fault(errno.EPIPE),
    "ENOSPC": fault(errno.ENOSPC),
    "EIO": fault(errno.EIO),
    "closed file": ValueError("I/O operation on closed file"),
    "any": ZeroDivisionError("division by zero"),
    "import": ModuleNotFoundError("No module named 'tensorboard'"),
}


def raises(error):
    def fail(*_, **__):
        raise error

    return fail


def failing(method, error, count=None):
    """A tracker whose `method` raises, each time or once after `count` calls."""

    class Failing:
        calls = 0

        def __init__(self, folder, steps):
            self.fail("start")

        def fail(self, name):
            if name != method:
                return
            Failing.calls += 1
            if count is None or Failing.calls == count:
                raise error

        def log(self, record):
            record.clear()
            self.fail("log")

        def say(self, text):
            self.fail("say")

        def close(self):
            self.fail("close")

    return Failing


class Broken(io.StringIO):
    """A standard output that raises from its third write on."""

    def __init__(self, error):
        super().__init__()
        self.error, self.writes = error, 0

    def write(self, text):
        self.writes += 1
        if self.writes > 2:
            raise self.error
        return super().write(text)


def on(target, name, value):
    return lambda patch: patch.setattr(target, name, value)


# What the process that draws runs on a full disk.
FULL = """
import sys
from tinylm.track import drawing
def full(folder):
    raise OSError(28, "No space left on device", "loss.png")
drawing.plot = full
drawing.serve(sys.argv[1])
"""


def broken_matplotlib(patch):
    """A matplotlib that cannot be imported comes first on the path of new processes."""
    Path("broken/matplotlib").mkdir(parents=True)
    Path("broken/matplotlib/__init__.py").write_text("raise ValueError('Key backend: no x')")
    patch.setenv("PYTHONPATH", str(Path("broken").resolve()))


# What fails, and how: each case patches a run; the warning begins with the name of its observer.
CASES = {
    **{
        f"tracker {method} {name}": (
            "mine",
            lambda patch, m=method, e=error: patch.setitem(track.TRACKERS, "mine", failing(m, e)),
        )
        for method, name, error in [
            ("start", "import", ERRORS["import"]),
            ("log", "any", ERRORS["any"]),
            ("say", "EIO", ERRORS["EIO"]),
            ("close", "ENOSPC", ERRORS["ENOSPC"]),
        ]
    },
    "tracker log once": (
        "mine",
        lambda patch: patch.setitem(track.TRACKERS, "mine", failing("log", ERRORS["any"], 2)),
    ),
    **{
        f"console {name}": ("console", on(sys, "stdout", Broken(error)))
        for name, error in ERRORS.items()
    },
    "console absent": ("console", on(sys, "stdout", None)),
    "plot import": ("plot", lambda patch: broken_matplotlib(patch)),
    "plot ENOSPC": ("plot", on(plotting, "CODE", FULL)),
    "plot killed": ("plot", on(plotting, "CODE", "import sys; sys.exit(3)")),
    "plot unstarted": ("plot", on(sys, "executable", "/no/python")),
    "jsonl start": ("jsonl", on(track.Jsonl, "__init__", raises(ERRORS["EIO"]))),
    "jsonl log": ("jsonl", on(track.Jsonl, "log", raises(ERRORS["ENOSPC"]))),
    "sample": ("sample", on(sample, "stream", raises(IndexError("index 300")))),
    "samples.txt": ("sample", on(loop, "add_sample", raises(ERRORS["ENOSPC"]))),
    "best.json": ("best.json", on(loop, "write_json", raises(ERRORS["EIO"]))),
    "peak": (
        "the measurement of the peak",
        on(device, "peak_flops", raises(RuntimeError("no bf16"))),
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("cats.txt").write_text(TEXT[:6000])
        train(settings(*TINY, NAMES, "out=run"))
    return folder / "run"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, whole):
    """A folder with the text and the shards of the undisturbed run."""
    monkeypatch.chdir(tmp_path)
    Path("cats.txt").write_text(TEXT[:6000])
    Path("data").symlink_to(whole.parent / "data")


# The others take the same ways through the trainer.
QUICK = ("tracker log any", "console absent", "plot killed", "jsonl log", "best.json", "peak")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES]
)
def test_an_observer_that_fails_is_warned_of_once_and_the_run_goes_on(name, whole, monkeypatch):
    observer, disturb = CASES[name]
    names = ",".join(dict.fromkeys(["console", observer, "jsonl"]))
    names = f"[{names}]" if observer in track.TRACKERS or observer == "mine" else "[console,jsonl]"
    with warnings.catch_warnings(record=True) as told, monkeypatch.context() as patch:
        warnings.simplefilter("always")
        if observer == "mine":
            patch.setitem(track.TRACKERS, "mine", None)
        # The prompt is tried before the run has a folder: an error then costs nothing.
        patch.setattr("tinylm.train.prompts.first_words", lambda *_: "the 1 ")
        patch.setattr(device, "peak_flops", lambda *_: 1e9)
        disturb(patch)
        run = settings(*TINY, "imports=[json]", f"track.names={names}", "out=run")
        folder = train(run)
    texts = [str(one.message) for one in told]
    assert len(texts) == 1, texts
    assert texts[0].startswith(f"{observer} failed, and the run goes on: ")
    assert "\n" not in texts[0]
    assert_same_weights(whole, folder)
    if observer != "jsonl":
        losses = [[r.get("loss") for r in track.read_metrics(f)] for f in (whole, folder)]
        assert losses[0] == losses[1]


def test_two_observers_that_fail_are_two_warnings(whole, monkeypatch):
    monkeypatch.setattr(plotting, "CODE", "import sys; sys.exit(3)")
    monkeypatch.setattr(sys, "stdout", Broken(ERRORS["EPIPE"]))
    with pytest.warns(UserWarning, match="failed, and the run goes on") as told:
        assert_same_weights(whole, train(settings(*TINY, NAMES, "out=run")))
    assert sorted(str(one.message).split()[0] for one in told) == ["console", "plot"]


def test_a_console_of_ascii_shows_other_characters_by_their_numbers():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    track.Console(Path(), 10, out).say("caf\u00e9 \U0001f600")
    assert out.buffer.getvalue() == b"caf\\xe9 \\U0001f600\n"


def test_a_warning_that_may_not_be_one_ends_no_run(monkeypatch, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trackers = track.Trackers()
        with trackers.guard("plot"):
            raise ERRORS["ENOSPC"]
        monkeypatch.setattr(sys, "stderr", Broken(ERRORS["EIO"]))
        sys.stderr.writes = 9
        with trackers.guard("jsonl"):
            raise ERRORS["ENOSPC"]
    assert "plot failed, and the run goes on" in capsys.readouterr().err


def test_ctrl_c_is_no_failure_of_an_observer():
    with pytest.raises(KeyboardInterrupt), track.Trackers().guard("plot"):
        raise KeyboardInterrupt


def test_records_that_found_no_room_are_written_when_there_is_some(tmp_path):
    trackers = track.Trackers(("jsonl",), 9)
    trackers.start(tmp_path)
    file = trackers.each["jsonl"].file
    with (
        mock.patch.object(track.Jsonl, "log", raises(ERRORS["ENOSPC"])),
        pytest.warns(UserWarning, match="No space left"),
    ):
        trackers.log({"step": 1})
    trackers.log({"step": 2})
    trackers.close()
    assert file.closed
    assert [record["step"] for record in track.read_metrics(tmp_path)] == [2]


def test_scoring_that_fails_is_passed_over_or_saves_and_ends_a_run_with_patience(
    whole, monkeypatch
):
    original, calls = evaluate.evaluate, []

    def second(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("val-00000.bin: corrupt at byte 1024")
        return original(*arguments, **options)

    monkeypatch.setattr(evaluate, "evaluate", second)
    with pytest.warns(UserWarning, match="validation failed, and the run goes on: .*corrupt"):
        assert_same_weights(whole, train(settings(*TINY, NAMES, "out=run")))
    calls.clear()
    with pytest.raises(ValueError, match="corrupt at byte 1024"):
        train(settings(*TINY, NAMES, "out=other", "evaluate.patience=1"))
    assert checkpoint.latest("other").name == "step-00000003"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGHUP, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_says_so_by_its_exit_code_also_without_a_console(
    number, code, whole, monkeypatch
):
    original = Trainer.step
    # Under nohup, or in the background of a shell, the tests themselves ignore some signals.
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, default)

    def step(self):
        if self.progress.step == 2:
            os.kill(os.getpid(), number)
        return original(self)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", step)
            patch.setattr(sys, "stdout", Broken(ERRORS["EPIPE"]))
            assert call(main, [*TINY, NAMES, "out=run"]) == code
    finally:
        signal.signal(number, before)
    assert checkpoint.latest("run").name == "step-00000003"
    assert_same_weights(whole, train(settings(*TINY, NAMES, "out=run", "train.resume=run")))


@pytest.mark.slow
def test_a_hang_up_that_nohup_ignores_is_ignored(whole, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    original = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda s: os.kill(os.getpid(), 1) or original(s))
    try:
        assert_same_weights(whole, train(settings(*TINY, NAMES, "out=run")))
    finally:
        signal.signal(signal.SIGHUP, before)


def shell(line):
    """Run a line of bash in which `$TRAIN` is the command of a small run."""
    words = shlex.join([sys.executable, "-m", "tinylm.train", *TINY, NAMES])
    line = line.replace("$TRAIN", words)
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


# What a notebook sets for the commands that it starts.
INLINE = "MPLBACKEND=module://matplotlib_inline.backend_inline"
# Streams as a shell gives them: the line, the exit code, and words on standard error.
STREAMS = {
    "reader leaves": (f"set -o pipefail; {INLINE} $TRAIN out=run | head -2", 0, "console failed"),
    "all closed": ("$TRAIN out=run <&- >&- 2>&-", 0, ""),
    "stdout closed": ("$TRAIN out=run >&-", 0, "standard output: closed"),
    "stderr closed": ("$TRAIN out=run 2>&-", 0, ""),
    "stdin closed": ("$TRAIN out=run <&-", 0, ""),
    "stdout full": ("$TRAIN out=run > /dev/full", 0, "No space left"),
    "both full": ("$TRAIN out=run > /dev/full 2>&1", 0, ""),
    "notebook": (f"{INLINE} $TRAIN out=run", 0, ""),
    "no such backend": ("MPLBACKEND=nonsense $TRAIN out=run", 0, ""),
    "ascii": ("PYTHONIOENCODING=ascii LC_ALL=C $TRAIN out=run", 0, ""),
    "warnings are errors": ("PYTHONWARNINGS=error $TRAIN out=run > /dev/full", 0, "No space left"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_is_closed_or_fails_ends_no_run(name, whole):
    line, code, words = STREAMS[name]
    done = shell(line)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == bool(words), done.stderr
    assert_same_weights(whole, Path("run"))
    assert Path("run/loss.png").stat().st_size > 0
    assert json.loads(Path("run/run.json").read_text())["results"]["step"] == 6
    assert [r.get("loss") for r in track.read_metrics(Path("run"))] == [
        r.get("loss") for r in track.read_metrics(whole)
    ]


def test_interrupted_is_an_interrupt():
    assert issubclass(Interrupted, KeyboardInterrupt)
