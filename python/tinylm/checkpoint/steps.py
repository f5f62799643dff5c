"""The checkpoints of a run, `RUN/checkpoints/step-00000100`: which is newest, which may go."""

import errno
import os
import re
import warnings
from collections.abc import Collection
from pathlib import Path

from tinylm.checkpoint import files

FOLDER = "checkpoints"
_STEP = re.compile(r"step-(\d+)")


def path_of(run: str | Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step: RUN/checkpoints/step-00000100."""
    # Eight digits, so that listings sort by step. Longer numbers work too, because `_newest_first`
    # compares numbers.
    return Path(run) / FOLDER / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; `ValueError` for any other name."""
    match = _STEP.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint}: expected a folder named step-00000100")
    return int(match[1])


def is_checkpoint(path: Path) -> bool:
    """Whether a path is where a run keeps a checkpoint: checkpoints/step-00000100."""
    return path.parent.name == FOLDER and _STEP.fullmatch(path.name) is not None


def latest(run: str | Path) -> Path:
    """The checkpoint of the highest step that verifies, every file of it read and compared.

    Warns when one of a higher step is there and does not verify, naming what is wrong with it.
    Raises `FileNotFoundError` when none does.
    """
    problems, purged = [], False
    for checkpoint in _newest_first(Path(run)):
        try:
            # The manifest alone proves nothing of the bytes, so every file is read, each time.
            files.verify(checkpoint)
        except (ValueError, OSError) as error:
            # A trainer that purges it meanwhile has done no damage. A dead link is still there.
            if os.path.lexists(checkpoint):
                problems.append(str(error))
            else:
                purged = True
            continue
        if problems:
            reasons = "; ".join(problems)
            message = f"falling back to {checkpoint}: newer checkpoints are damaged: {reasons}"
            warnings.warn(message, stacklevel=2)
        return checkpoint
    if purged:
        # What it saved before it purged is not in the list.
        return latest(run)
    reasons = f": {'; '.join(problems)}" if problems else ""
    where = str(Path(run) / FOLDER)
    raise FileNotFoundError(errno.ENOENT, f"no checkpoint that verifies{reasons}", where)


def purge(run: str | Path, keep: int, *, also_keep: Collection[int] = ()) -> list[Path]:
    """Delete all but the `keep` newest checkpoints that verify; returns those deleted.

    Checkpoints are read again first, and one that does not verify does not count, so a torn
    one never pushes out a good one. Right after a save the bytes come from the page cache: that
    proves what was written, not what the disk kept. Those of the steps in `also_keep` stay.
    Leftovers of writers that died are cleared away.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: must be at least 1")
    files.recover(Path(run) / FOLDER)
    valid, deleted = 0, []
    for checkpoint in _newest_first(Path(run)):
        # Older than enough good ones: need not be read to be deleted. A damaged one that is newer
        # stays, for its owner to look at.
        if valid >= keep:
            if step_of(checkpoint) not in also_keep:
                files.remove(checkpoint)
                deleted.append(checkpoint)
        elif _verifies(checkpoint):
            valid += 1
    return deleted


def _verifies(checkpoint: Path) -> bool:
    try:
        files.verify(checkpoint)
    except (ValueError, OSError):
        return False
    return True


def _newest_first(run: Path) -> list[Path]:
    """The checkpoints by falling step, those set aside by a writer that died put back."""
    for name in {path.name[1:] for path in (run / FOLDER).glob(f".step-*{files.ASIDE}*")}:
        files.restore(run / FOLDER / name.rpartition(files.ASIDE)[0])
    found = [path for path in (run / FOLDER).glob("step-*") if _STEP.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)
