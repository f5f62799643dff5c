"""Counts of a corpus in files: counted in parts, by several processes, and trained on later.

    count_files(paths, "counts", pattern="gpt4")
    Tokenizer.train_counts(sorted(Path("counts").glob("*.counts")), vocab_size=32_000)

A file of counts has the distinct pieces of a text file and how often each occurs, in the order of
their bytes, with a hash at its end (`rust/tokenizer/src/count_file.rs`). It appears whole or not at
all, so a run that was ended goes on with the files that have none yet. Training on files of counts
gives the tokenizer of the texts themselves, bit by bit.

Memory: counting stays below a bound, since a table that has grown to half of it is written to the
disk as a sorted run; joining takes 64 KiB and a piece for each run. Training needs the distinct
pieces, one to two bytes per hundred bytes of English.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from tinylm import _rust, disk, terminal
from tinylm.tokenizer.alphabets import COUNTED, MARK, Blocked, Characters
from tinylm.tokenizer.training import LEARNED, Training

ENDING = ".counts"
# Runs that are joined at once: each is an open file.
FILES = 128
LEAST = 64 << 20


def count_files(
    paths: Iterable[str | PathLike[str]],
    folder: str | PathLike[str],
    *,
    pattern: str = "gpt4",
    special_tokens: Iterable[str] = ("<|endoftext|>",),
    alphabet: Characters | None = None,
    memory: int = 1 << 30,
    threads: int = 0,
    progress: Callable[[int, int], object] | Literal[True] | None = None,
) -> list[Path]:
    """Counts each of `paths` into a file of `folder`, and returns those files in the same order.

    A file is named by the text file, its size and time, and how it is counted; one that is there
    is not counted again. So a call that was ended goes on where it was, and several processes that
    count the same paths into one folder share the work. `pattern`, `special_tokens` and `alphabet`
    are those of the training; of the latter only whether there is one matters. `memory` bounds the
    tables in bytes, at least 64 MiB. `progress(done, total)` is told the bytes of text, True draws
    a line on standard error. Raises OSError for a file that cannot be read, and ValueError as
    `Tokenizer.train_files` does.
    """
    if isinstance(paths, str | bytes | PathLike):
        raise TypeError("paths must be an iterable of paths; for one file pass [path]")
    if memory < LEAST:
        raise ValueError(f"memory {memory} must be at least {LEAST} bytes (64 MiB)")
    folder, found = Path(folder), [Path(path) for path in paths]
    special = list(special_tokens)

    def new() -> Training:
        return Training("bpe", pattern, special, 1, None, threads, alphabet=alphabet)

    note = json.dumps(new().note, ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    outs = [folder / _name(path, note) for path in found]
    total = sum(path.stat().st_size for path in found)
    call = (_draw if progress is True else progress) or (lambda done, total: None)
    done = 0
    waiting = list(zip(found, outs, strict=True))
    for wait in (False, True):
        later = []
        for path, out in waiting:
            counter = _Counter(new(), out, note, memory, lambda size: call(done + size, total))  # noqa: B023
            if not _claimed(out, lambda: counter.count(path), wait=wait):  # noqa: B023
                # Another process is at it: what is left may be free.
                later.append((path, out))
                continue
            done += path.stat().st_size
            call(done, total)
        waiting = later
    return outs


def join_counts(paths: Iterable[str | PathLike[str]], out: str | PathLike[str]) -> tuple[int, int]:
    """Joins files of counts into the file `out`; returns the numbers of distinct pieces and of all.

    ValueError for files that were counted in different ways, and for a damaged one.
    """
    files, path = [Path(path) for path in paths], Path(out)
    note = json.dumps(note_of(files), ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = path.with_name(f"{path.name}.{os.getpid()}.parts")
    parts.mkdir()
    try:
        return _join(files, path, parts, note)
    finally:
        shutil.rmtree(parts)


def note_of(paths: Iterable[Path]) -> dict[str, Any]:
    """How files of counts were counted; ValueError if there are none, or two differ."""
    first: tuple[Path, dict[str, Any]] | None = None
    for path in paths:
        note = json.loads(_rust.count_note(path))
        if first is None:
            first = path, note
        for key, value in first[1].items():
            if note.get(key) != value:
                raise ValueError(
                    f"{path}: its {key} is {note.get(key)!r}, that of {first[0]} {value!r}; count "
                    "all of them alike"
                )
    if first is None:
        raise ValueError("no files of counts; name at least one")
    return first[1]


def counted(
    paths: list[Path],
    kind: Literal["bpe", "unigram"],
    min_frequency: int,
    max_token_length: int | None,
    blocked: Blocked,
    alphabet: Characters | None,
) -> Training:
    """A training that has counted what files of counts hold; ValueError if it counts otherwise."""
    if kind not in LEARNED:
        raise ValueError(f"kind {kind!r}: files of counts are for {' and '.join(LEARNED)}")
    note = note_of(paths)
    pattern, special = note["pattern"], note["special_tokens"]
    if (pattern == COUNTED) != (alphabet is not None):
        fix = "pass none" if alphabet else "pass alphabet=Characters(...)"
        raise ValueError(f"{paths[0]}: the pieces were counted for another alphabet; {fix}")
    if alphabet is not None:
        pattern, special = "gpt4", [token.replace(MARK, " ") for token in special]
    training = Training(
        *(kind, pattern, special, min_frequency, max_token_length, 1, blocked, alphabet)
    )
    for path in paths:
        training.counts.load(path)
    return training


class _Counter:
    """Counts one text file: runs on the disk, then one file."""

    def __init__(
        self,
        training: Training,
        out: Path,
        note: str,
        memory: int,
        tell: Callable[[int], object],
    ) -> None:
        self.training, self.out, self.note, self.memory = training, out, note, memory
        self.parts, self.runs, self.read, self.tell = parts_of(out), list[Path](), 0, tell
        training.counted = self._counted

    def _counted(self, size: int) -> None:
        self.read += size
        self.tell(self.read)
        # Writing a table away takes as much memory as the table.
        if self.training.counts.memory > self.memory // 2:
            self._spill()

    def _spill(self) -> None:
        name = f"run{len(self.runs)}"
        self.runs += self.training.counts.spill(self.parts, name, self.note)

    def count(self, path: Path) -> None:
        self.training.add_file(path)
        self._spill()
        _join(self.runs, self.out, self.parts, self.note)


def _join(files: list[Path], out: Path, parts: Path, note: str) -> tuple[int, int]:
    """Joins files into one, `FILES` at once; what is made on the way is in `parts`."""
    step = 0
    while len(files) > FILES:
        groups = [files[at : at + FILES] for at in range(0, len(files), FILES)]
        files = [parts / f"joined{step}-{number}" for number in range(len(groups))]
        for group, path in zip(groups, files, strict=True):
            _rust.join_counts(group, note, path)
        step += 1
    whole = parts / "whole"
    counted = _rust.join_counts(files, note, whole)
    whole.replace(out)
    disk.sync(out.parent)
    return counted


def _claimed(out: Path, work: Callable[[], None], *, wait: bool) -> bool:
    """Does `work`, which makes `out`, unless it is there; False if another process is doing it."""
    parts = parts_of(out)
    while not out.exists():
        parts.mkdir(exist_ok=True)
        try:
            lock = disk.Lock(parts, wait=wait)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            # Whoever held it has finished and removed the folder.
            continue
        with lock:
            if out.exists():
                break
            # Those of a process that was killed.
            for left in parts.iterdir():
                if left.name != disk.LOCK:
                    left.unlink()
            work()
            shutil.rmtree(parts)
    return True


def parts_of(out: Path) -> Path:
    """The folder of what is needed while `out` is made."""
    return out.with_name(f"{out.name}.parts")


def _name(path: Path, note: str) -> str:
    state = path.stat()
    told = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}|{note}"
    return f"{path.stem}-{hashlib.sha256(told.encode()).hexdigest()[:12]}{ENDING}"


def _draw(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    terminal.draw(f"\rcounting {done / 1e6:.0f}/{total / 1e6:.0f} MB{end}")
