"""A corpus and a tokenizer to a folder of shards, once: `prepare`."""

import errno
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm import disk
from tinylm.corpus import Corpus
from tinylm.corpus import open as open_corpus
from tinylm.data import jobs
from tinylm.data.encoding import Progress
from tinylm.data.jobs import JOB_BYTES, Job, Jobs
from tinylm.data.manifest import NAME, Manifest
from tinylm.data.shards import Dataset, empty_manifest

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Versions before the locks left their unfinished manifest under this name.
_OLD_PART = f"{NAME}.part"
_OURS = re.compile(
    rf"[A-Za-z0-9_]+-\d{{5}}\.(bin|doc)(\.part)?|{re.escape(NAME)}(\.part)?|{jobs.NAME}"
)
# Options of a command that say who works, and change no byte of the shards.
_WORKERS = ("--rank", "--world", "--engine")


def run_here(work: Jobs, todo: list[Job]) -> None:
    """Do some jobs, one after another, in this process.

    An `OSError` of a full disk says how much room the rest needs.
    """
    progress = Progress(sum(job.bytes for job in todo))
    for number, job in enumerate(todo):
        try:
            work.run(job, progress)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            text = f"{error.strerror}: {work.needs(todo[number:], progress)}"
            raise OSError(error.errno, text, error.filename) from None
    progress.end()


def prepare(
    corpus: Corpus,
    tokenizer: "Tokenizer",
    folder: str | Path,
    *,
    job_bytes: int = JOB_BYTES,
    run: Callable[[Jobs, list[Job]], None] = run_here,
) -> Manifest:
    """Text to the splits `train` and `val` in `folder`.

    Special tokens in the text are text; every document ends with eos. Of a chat corpus the turns
    stand between the tokenizer's marks (`tokenizer.chat`). A folder that holds this
    very text, tokenizer and fraction is used as it is; one that holds anything else is refused
    with `FileExistsError`. A corpus with `val_fraction=1` leaves `train` empty, one with 0 `val`.

    The files of the corpus are done in jobs of about `job_bytes` of text (`data.jobs`), each with
    shards of its own. If the run fails, is interrupted or killed, the jobs that were done are
    done: the next call goes on after them, to the same shards. `run` does jobs, here or elsewhere
    (`data.cluster`); `prepare_share` does those of one of several processes. Jobs done by another
    text, tokenizer or setting make room, with a warning. A job whose shards do not have their
    hashes at the end is done again, with a warning.

    Memory is a few dozen megabytes beside the tokenizer, also for a text of one document: it is
    encoded in parts, by all cores, with the same ids as in the whole. A document between marks or
    in a row is held whole, and so is each with a tokenizer whose `chunks` are whole texts.

    While another process prepares the same folder, this one says so on standard error, waits, and
    then uses what the other has made. Raises `BlockingIOError` if this very thread has an open
    `ShardWriter` in the folder, for which it would wait for ever.
    """
    folder = Path(folder)
    if (folder / NAME).exists():
        # Without the lock: a manifest is written last, so what it names is finished.
        return _reuse(folder, corpus, tokenizer)
    work = _jobs(corpus, tokenizer, folder, job_bytes)
    with disk.Lock(folder, advice="close its writer first", wait=True):
        if (folder / NAME).exists():
            # Again, under the lock: the process that this one waited for may have made it.
            return _reuse(folder, corpus, tokenizer)
        _clean(folder)
        try:
            work.begin(alone=True)
            if todo := work.open_jobs():
                run(work, todo)
            return _finish(work, corpus, tokenizer, folder, run)
        finally:
            # Nothing is left of an error at the first job.
            work.end_if_empty()


def prepare_share(
    corpus: Corpus,
    tokenizer: "Tokenizer",
    folder: str | Path,
    *,
    rank: int,
    world: int,
    job_bytes: int = JOB_BYTES,
) -> Manifest | None:
    """As `prepare`, of which this process does the jobs `rank`, `rank + world`, ... alone.

    The process that ends last writes the manifest; before that the answer is None. The shards are
    those of `prepare`, to the byte. The processes need to share nothing but the folder. If one is
    killed, give its command again, or call `prepare`, which does what is left. A folder with done
    jobs of another text, tokenizer or setting is refused with `FileExistsError`, which names the
    difference: nothing of it is removed.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} must be at least 0 and below world {world}")
    folder = Path(folder)
    if (folder / NAME).exists():
        return _reuse(folder, corpus, tokenizer)
    work = _jobs(corpus, tokenizer, folder, job_bytes)
    with disk.Lock(folder, advice="close its writer first", wait=True):
        if (folder / NAME).exists():
            return _reuse(folder, corpus, tokenizer)
        _clean(folder)
        work.begin(alone=False)
        mine = [job for job in work.open_jobs() if job.number % world == rank]
    # Without the lock: the other processes work at the same time, each at its own jobs.
    try:
        run_here(work, mine)
    except FileNotFoundError:
        # Somebody did the jobs of this rank too, and the folders of the jobs are gone.
        if not (folder / NAME).exists():
            raise
    with disk.Lock(folder, advice="close its writer first", wait=True):
        if (folder / NAME).exists():
            return _reuse(folder, corpus, tokenizer)
        if work.open_jobs():
            return None
        return _finish(work, corpus, tokenizer, folder, run_here)


def _jobs(corpus: Corpus, tokenizer: "Tokenizer", folder: Path, job_bytes: int) -> Jobs:
    # Before the folder is made: a tokenizer without eos must leave nothing behind.
    work = Jobs(folder, corpus, tokenizer, empty_manifest(tokenizer), job_bytes)
    _make(folder)
    return work


def _clean(folder: Path) -> None:
    """Remove what processes that were killed left, but for the jobs that they did."""
    disk.remove_parts(folder)
    (folder / _OLD_PART).unlink(missing_ok=True)


def _finish(
    work: Jobs,
    corpus: Corpus,
    tokenizer: "Tokenizer",
    folder: Path,
    run: Callable[[Jobs, list[Job]], None],
) -> Manifest:
    """The manifest, when all jobs are done; the caller holds the folder's lock."""
    work.drop_damaged()
    if todo := work.open_jobs():
        run(work, todo)
    manifest = replace(
        empty_manifest(tokenizer),
        splits=work.finish(),
        source=corpus.provenance(work.filtered()),
        command=_command(sys.argv),
    )
    manifest.save(folder)
    work.end()
    return manifest


def _command(words: list[str]) -> list[str]:
    """A command line without what says who works: equal shards have equal manifests."""
    # The name alone: the path of a command says nothing about the shards.
    kept = [Path(words[0]).name]
    skip = False
    for word in words[1:]:
        if not skip and word.partition("=")[0] not in _WORKERS:
            kept.append(word)
        skip = not skip and word in _WORKERS
    return kept


def encode_file(
    path: str | PathLike[str],
    folder: str | Path,
    tokenizer: "Tokenizer",
    *,
    separator: str = "auto",
) -> Manifest:
    """A text file, a `.jsonl` or a folder of both to the split `train` in `folder`, all of it.

    As `prepare` with nothing held out: documents, memory, errors and interrupts are the same.
    """
    text = open_corpus(os.fspath(path), val_fraction=0, separator=separator)
    return prepare(text, tokenizer, folder)


def _reuse(folder: Path, corpus: Corpus, tokenizer: "Tokenizer") -> Manifest:
    manifest = Manifest.load(folder)
    # The source may be another path: equal text gives equal shards.
    for name in ("fingerprint", "val_fraction"):
        found, wanted = manifest.source.get(name), getattr(corpus, name)
        if found != wanted:
            raise _occupied(folder, f"shards of another text ({name} {found}, not {wanted})")
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise _occupied(folder, "shards of another tokenizer")
    if (folder / jobs.NAME).exists():
        # Killed after the manifest, or by a process that did the jobs of another.
        jobs.clear(folder)
    # Opening checks the files' sizes and headers: shards that are damaged are not used again.
    for split in ("train", "val"):
        Dataset(folder, manifest, split)
    return manifest


def _make(folder: Path) -> None:
    """Make the folder, unless it is there and holds something that is not ours to remove."""
    folder.mkdir(parents=True, exist_ok=True)
    # Sorted: the file that an error names must not depend on the disk.
    for path in sorted(folder.iterdir()):
        if not (_OURS.fullmatch(path.name) or disk.is_leftover(path)):
            raise _occupied(folder, f"{path.name}, which is no shard")


def _occupied(folder: Path, content: str) -> FileExistsError:
    problem = (
        f"the folder holds {content}: name another (--out, or data.folder of a run) or remove it"
    )
    return FileExistsError(errno.EEXIST, problem, str(folder))
