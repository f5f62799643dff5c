"""The folder of a run: which one a command opens, who writes to it, the small files it holds.

runs/<name>[-N]/config.yaml run.json metrics.jsonl loss.png samples.txt tokenizer.json
                best.json checkpoints/step-00000100/
"""

import json
import os
import platform
import re
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tinylm import config, disk, threads
from tinylm.config import ConfigError, Run
from tinylm.config.limits import show
from tinylm.track import warn

CONFIG = "config.yaml"


def plan(run: Run) -> tuple[Path, Path | None]:
    """The run's folder, and what it resumes from: a run's folder, a checkpoint or None.

    Writes nothing. A folder that holds something else, or a run where `resume=never`, is a
    `ConfigError` naming the key that differs: nothing that exists is overwritten.
    """
    resume = run.train.resume
    if resume not in ("never", "auto"):
        return _plan_path(run, Path(resume))
    if run.out is not None:
        folder = Path(run.out)
        if not _is_run(folder):
            _refuse_full(folder)
            return folder, None
        _refuse_other(run, folder)
        if resume == "never":
            raise ConfigError(
                f"out={folder} holds a run of this configuration already: train.resume=auto "
                f"goes on with it, another out= starts anew"
            )
        return folder, folder
    if resume == "auto" and (same := [path for path in _numbered(run) if _is_same(run, path)]):
        return same[-1], same[-1]
    return _next_number(run), None


def _plan_path(run: Run, source: Path) -> tuple[Path, Path]:
    """Go on in the run of `source` where that is the same run, or else in a new folder."""
    if not source.exists():
        raise ConfigError(
            f"train.resume={source}: no such run or checkpoint; never, auto or a path"
        )
    # A checkpoint is RUN/checkpoints/step-N: its run is two folders up.
    home = source if _is_run(source) else source.resolve().parent.parent
    if _is_run(home):
        _refuse_unfit(run, home)
    if run.out is not None and Path(run.out).resolve() != home.resolve():
        _refuse_full(Path(run.out))
        return Path(run.out), source
    newest = max((home / "checkpoints").glob("step-*[0-9]"), default=None)
    whole = source == home or (newest is not None and newest.resolve() == source.resolve())
    if _is_run(home) and whole:
        _refuse_other(run, home)
        return home, source
    # An older checkpoint: its run's later ones stay as they are.
    return _next_number(run), source


class Home(AbstractContextManager["Home"]):
    """The planned folder of a run, and the right to write to it.

    `source` is what the run resumes from, as `plan` says. A folder that is a run already is
    locked at once, so that nothing is read of it that another process still changes; a new one is
    made and locked by `claim`. Raises `BlockingIOError` if another process holds it.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.folder, self.source = plan(run)
        self._lock = _lock(self.folder) if _is_run(self.folder) else None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            self._lock.release()

    def claim(self) -> Path:
        """Make the folder, or the next number if another run has just taken it; save the run's
        settings in it.
        """
        if self._lock is None:
            self._make()
            # Another process may have made it a run between the plan and this lock.
            self._lock = _lock(self.folder)
            if _is_run(self.folder):
                raise ConfigError(
                    f"out={self.folder} has become a run while this one was getting ready: give "
                    f"the command again, or choose another out="
                )
        disk.remove_parts(self.folder)
        # The settings do not name their own folder, so that it may be moved.
        settings = config.to_yaml(replace(self._run, out=None))
        disk.replace(self.folder / CONFIG, settings.encode())
        return self.folder

    def _make(self) -> None:
        while True:
            try:
                # Without `out` the folder must be new: two runs that start at once get two numbers.
                self.folder.mkdir(parents=True, exist_ok=self._run.out is not None)
            except FileExistsError:
                if self._run.out is not None:
                    raise
                self.folder = _next_number(self._run)
            else:
                disk.sync(self.folder.parent)
                return


def _lock(folder: Path) -> disk.Lock:
    return disk.Lock(folder, advice="wait for it, or choose another out=")


def _refuse_unfit(run: Run, home: Path) -> None:
    """Raise `ConfigError` if the run changes the model, tokenizer or optimizer it resumes from.

    Adapters count as the model: they are those of the checkpoint, whatever the settings say.
    """
    for key in _differences(run, home):
        # The state of one optimizer does not fit another. Rates and lengths may change.
        if key.startswith(("model.", "tokenizer.", "lora.")) or key == "optim.name":
            raise ConfigError(
                f"train.resume={run.train.resume}: {key} differs from the run's ({home}); repeat "
                f"it, or start from its weights alone with train.init="
            )


def _refuse_full(folder: Path) -> None:
    """Raise `ConfigError` unless the folder is new or empty: only such a folder becomes a run."""
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(f"out={folder}: a link to {os.readlink(folder)}, which is not there")
    if folder.exists() and (
        not folder.is_dir() or not all(disk.is_leftover(path) for path in folder.iterdir())
    ):
        raise ConfigError(f"out={folder}: exists and is no run; name a folder that is new or empty")


def _next_number(run: Run) -> Path:
    """runs/<name>, or runs/<name>-N above every one there is."""
    taken = _numbered(run)
    number = _number(taken[-1]) + 1 if taken else 1
    return Path("runs") / (f"{run.name}-{number}" if number > 1 else str(run.name))


def _numbered(run: Run) -> list[Path]:
    """The folders runs/<name>[-N] that exist, the newest last."""
    pattern = re.compile(re.escape(str(run.name)) + r"(-\d+)?$")
    found = [path for path in Path("runs").glob("*") if pattern.match(path.name)]
    return sorted(found, key=_number)


def _number(folder: Path) -> int:
    found = re.search(r"-(\d+)$", folder.name)
    return int(found.group(1)) if found else 1


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _differences(run: Run, folder: Path) -> list[str]:
    """Keys in which `run` differs from the one in `folder`; "config.yaml" where it has none."""
    saved = config.find(folder, whole=True)
    return [CONFIG] if saved is None else config.differences(run, config.load(saved))


def _is_same(run: Run, folder: Path) -> bool:
    """Whether `folder` holds this very run; one that this TinyLM cannot read is another."""
    try:
        saved = config.find(folder, whole=True)
        return saved is not None and not config.differences(run, config.load(saved))
    except ConfigError:
        return False


def _refuse_other(run: Run, folder: Path) -> None:
    keys = _differences(run, folder)
    if not keys:
        return
    ours = show(config.flat(run).get(keys[0]))
    raise ConfigError(
        f"{folder} holds another run: {keys[0]} differs (yours is {ours}); repeat its settings "
        f"(config.yaml there) or choose another out="
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a half."""
    disk.replace(path, f"{json.dumps(content, indent=1)}\n".encode())


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; {} if there is none, or, with a warning, only a torn one."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    warn(f"{path}: empty or torn; it is written anew")
    return {}


def add_sample(folder: Path, step: int, text: str) -> None:
    """Append a sample to samples.txt under the step that it is of, in place of an earlier one.

    A run that was killed between its last sample and its results draws that sample again.
    """
    rewind_samples(folder, step - 1)
    with (folder / "samples.txt").open("a", encoding="utf-8") as file:
        file.write(f"--- step {step}\n{text}\n\n")


def rewind_samples(folder: Path, step: int) -> None:
    """Drop the samples after `step`: a resumed run draws them again."""
    path = folder / "samples.txt"
    if path.exists():
        # Bytes: a torn sample need not be UTF-8.
        parts = re.split(rb"(?m)^(?=--- step \d+$)", path.read_bytes())
        disk.replace(path, b"".join(part for part in parts if _step_of(part) <= step))


def _step_of(sample: bytes) -> int:
    """The step in the head of a sample; 0 for words before the first head."""
    found = re.match(rb"--- step (\d+)$", sample, re.MULTILINE)
    return int(found.group(1)) if found else 0


def provenance() -> dict[str, Any]:
    """What was run where: command, versions, machine, and the state of the git checkout."""
    import numpy
    import torch

    import tinylm

    return {
        "command": [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]],
        "tinylm": tinylm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "waiting": threads.policy(torch.get_num_threads()),
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """Commit of the working directory and whether it has changes; None outside a checkout."""
    try:
        # With a time limit: a slow disk must not hold up the run for a note in run.json.
        ask = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=5)
        ask = ["git", "status", "--porcelain", "--untracked-files=no"]
        status = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(status.stdout.strip())}
