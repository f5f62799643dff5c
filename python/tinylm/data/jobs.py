"""The work of `prepare` in jobs of a few files each, which any process does in any order.

    FOLDER/jobs/PLAN/plan         what decides the bytes, for who comes with another plan
    FOLDER/jobs/PLAN/00003/       the shards of job 3, until all jobs are done
    FOLDER/jobs/PLAN/00003.json   its row: job 3 is done

The plan is a function of the corpus alone, so the shards are the same however many processes
share the work and whatever ends some of them: a job that has a row is never done again, and one
without is done anew. PLAN is a hash of all that decides the bytes. When every row is there, the
hashes of the shards are checked, the shards move to FOLDER under names in the order of the jobs,
and the manifest is written.
"""

import errno
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm import disk
from tinylm.corpus import filters
from tinylm.corpus.documents import Corpus, Section
from tinylm.data import encoding, manifest
from tinylm.data.manifest import Manifest, Shard, Split
from tinylm.data.shards import Dataset, remove_leftovers

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

NAME = "jobs"
# Beside the plans: what was found of the files of the text.
FOUND = "found"
_PLAN = "plan"
# Text of a job: what a killed process loses is some seconds of work, and its shard of uint16 has
# about half of the 100 million tokens at which shards are cut.
JOB_BYTES = 256 << 20
# What the five digits of a shard's name can tell apart.
_MOST = 100_000


@dataclass(frozen=True, slots=True)
class Job:
    """Some sections of a corpus that follow each other, and their place in the plan."""

    number: int
    sections: tuple[Section, ...]
    bytes: int


def plan(sections: Sequence[Section], job_bytes: int = JOB_BYTES) -> list[Job]:
    """Sections to jobs of at most `job_bytes` of text; a section that is larger is one by itself.

    An empty corpus is one job without a section.
    """
    if job_bytes < 1:
        raise ValueError(f"job_bytes={job_bytes} must be at least 1")
    jobs: list[Job] = []
    group: list[Section] = []
    size = 0
    for section in sections:
        if group and size + section.bytes > job_bytes:
            jobs.append(Job(len(jobs), tuple(group), size))
            group, size = [], 0
        group.append(section)
        size += section.bytes
    return [*jobs, Job(len(jobs), tuple(group), size)]


class Jobs:
    """The jobs of one corpus and tokenizer in `folder`, which must exist."""

    def __init__(
        self, folder: Path, corpus: Corpus, tokenizer: "Tokenizer", empty: Manifest, job_bytes: int
    ) -> None:
        self.jobs = plan(corpus.sections, job_bytes)
        self.folder = folder
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._empty = empty
        sizes = [job.bytes for job in self.jobs]
        settings = corpus.reading.recorded()
        content = [corpus.fingerprint, settings, corpus.kind, tokenizer.sha256, sizes]
        # Of documents in another order, what was dropped is known of all together.
        self._counts_apart = corpus.counts is not None and all(
            section.counts is not None for section in corpus.sections
        )
        self.home = folder / NAME / manifest.digest(content)[:16]
        # The same in words.
        text = f"{corpus.files:,} files, {corpus.bytes:,} bytes, {corpus.fingerprint[:16]}"
        self._plan = {
            **settings,
            "kind": corpus.kind,
            "text": text,
            "tokenizer": tokenizer.sha256[:16],
            "job_bytes": job_bytes,
        }
        # Jobs whose hashes this process knows to be right.
        self._written: set[int] = set()

    def begin(self, *, alone: bool) -> None:
        """Make the folder of the jobs; needs the folder's lock.

        Jobs that were done by another plan are removed, with a warning, by a process that works
        `alone`. One of several must not: they may be the jobs of the others, and that is
        `FileExistsError`, which names what differs. `BlockingIOError` while another process works
        at one of them.
        """
        kept = (self.home, self.folder / NAME / FOUND)
        others = [path for path in sorted((self.folder / NAME).glob("*")) if path not in kept]
        found = {path: text for path in others if (text := self._describe(path))}
        if found and not alone:
            advice = (
                "give every rank the same text and settings, name another folder, or remove "
                f"{self.folder / NAME}"
            )
            text = f"the folder holds {next(iter(found.values()))}: {advice}"
            raise FileExistsError(errno.EEXIST, text, str(self.folder))
        for other in others:
            _remove(other)
            if other in found:
                warnings.warn(f"{self.folder}: removed {found[other]}", stacklevel=3)
        self.home.mkdir(parents=True, exist_ok=True)
        disk.remove_parts(self.home)
        if not (self.home / _PLAN).exists():
            manifest.save(self.home / _PLAN, self._plan)
        if self.open_jobs():
            # What a process that was killed left there; no shard of these jobs has moved yet.
            remove_leftovers(self.folder)

    def _describe(self, other: Path) -> str:
        """What is done of another plan, and how it differs from this one; empty if nothing is."""
        rows = len([*other.glob("*.json")])
        if not rows:
            return ""
        jobs = f"{rows:,} done job{'s' * (rows > 1)} of another plan"
        try:
            found = manifest.load(other / _PLAN)
        except (OSError, ValueError):
            return f"{jobs} (it does not say which)"
        names = [n for n in {**found, **self._plan} if found.get(n) != self._plan.get(n)]
        if len(names) > 1 and "text" in names:
            # The fingerprint of a text changes with its settings too: they say more.
            names.remove("text")
        differs = [f"{name} {found.get(name)}, not {self._plan.get(name)}" for name in names]
        return f"{jobs} ({'; '.join(differs) or 'files of other sizes'})"

    def open_jobs(self) -> list[Job]:
        """The jobs that have no row or whose files are not those of their row."""
        found = [job for job in self.jobs if self._row(job) is None]
        # Shards leave the folders of their jobs only when all rows are there.
        if found:
            found = [job for job in self.jobs if not self._is_done(job)]
        return found

    def run(self, job: Job, progress: encoding.Progress) -> None:
        """Do one job, unless it is done; waits while another process does it.

        An error or Ctrl-C takes the files of this job away, and not those of others.
        """
        folder = self._place(job)
        folder.mkdir(exist_ok=True)
        with disk.Lock(folder, advice="close its writer first", wait=True):
            if self._is_done(job):
                return
            self._row_path(job).unlink(missing_ok=True)
            try:
                splits = encoding.write(
                    job.sections, self._corpus.kind, self._tokenizer, folder, self._empty, progress
                )
                row = {"job": job.number, "splits": {n: asdict(s) for n, s in splits.items()}}
                if self._counts_apart:
                    row["filtered"] = [asdict(count) for count in self._counted(job)]
                manifest.save(self._row_path(job), row)
                self._written.add(job.number)
            except BaseException:
                # A row that could not be brought to the disk must not outlive its shards.
                self._row_path(job).unlink(missing_ok=True)
                remove_leftovers(folder)
                raise

    def needs(self, left: Sequence[Job], progress: encoding.Progress) -> str:
        """What the disk must have room for, in words: the shards of the jobs that are left.

        By the tokens per byte so far, or one token per byte, more than which no text has.
        """
        ratio = progress.tokens / progress.bytes if progress.bytes else 1
        wanted = int(sum(job.bytes for job in left) * ratio * self._empty.itemsize)
        free = shutil.disk_usage(self.folder).free
        return (
            f"{len(left):,} of {len(self.jobs):,} jobs are left and need about {wanted:,} bytes, "
            f"{free:,} are free: make room and give the command again; it goes on from there"
        )

    def drop_damaged(self) -> None:
        """Check the hashes of all shards that others wrote; a job with a wrong one is open again.

        When all jobs are done, and before `finish`; needs the folder's lock. Reads the shards.
        """
        dropped = False
        for job in self.jobs:
            if job.number in self._written:
                continue
            splits = self._row(job) or {}
            try:
                for name in splits:
                    for _ in self._dataset(job, splits, name).verify():
                        pass
            except FileNotFoundError:
                # It has moved: a process was killed in `finish`, before which it was checked.
                continue
            except ValueError as error:
                warnings.warn(f"{error}: job {job.number} is done again", stacklevel=3)
                self._row_path(job).unlink()
                dropped = True
        if dropped:
            # Of a process that was killed in `finish`; without all rows its jobs count as open.
            remove_leftovers(self.folder)

    def finish(self) -> dict[str, Split]:
        """The shards of all jobs to `folder`, in their order; needs its lock.

        May be called again after a process was killed in it: a shard that is not in the folder of
        its job has moved already. The caller writes the manifest, then calls `end`.
        """
        rows = [self._row(job) or {} for job in self.jobs]
        splits = {}
        moves: dict[str, Path] = {}
        for name in encoding.SPLITS.values():
            shards: list[Shard] = []
            for job, row in zip(self.jobs, rows, strict=True):
                for shard in row[name].shards:
                    moved = replace(shard, name=f"{name}-{len(shards):05}.bin")
                    moves[moved.name] = self._place(job) / shard.name
                    shards.append(moved)
            if len(shards) > _MOST:
                raise ValueError(f"{len(shards):,} shards of {name}; the limit is {_MOST:,}")
            parts = [row[name] for row in rows]
            splits[name] = Split(
                sum(part.tokens for part in parts),
                sum(part.documents for part in parts),
                sum(part.bytes or 0 for part in parts),
                shards,
            )
        self._check(splits)
        for name, source in moves.items():
            # The lengths first: a `.bin` always has them beside it.
            for suffix in (".doc", ".bin"):
                with suppress(FileNotFoundError):
                    source.with_suffix(suffix).rename((self.folder / name).with_suffix(suffix))
        # Before the manifest: after a loss of power, it must not name what has not moved.
        disk.sync(self.folder)
        done = replace(self._empty, splits=splits)
        for name in splits:
            # Opening checks that every file is there, its size and its header.
            Dataset(self.folder, done, name)
        return splits

    def filtered(self) -> list[dict[str, Any]] | None:
        """What filters dropped of all jobs, as their rows say; None where they do not.

        So a process that did not read a text need not filter it to write the manifest.
        """
        if not self._counts_apart:
            return None
        parts = []
        for job in self.jobs:
            row = manifest.load(self._row_path(job))
            parts.append([filters.Count(**count) for count in row["filtered"]])
        return [asdict(count) for count in filters.total(self._corpus.reading.filters, parts)]

    def _counted(self, job: Job) -> list[filters.Count]:
        parts = [section.counts() for section in job.sections if section.counts is not None]
        return filters.total(self._corpus.reading.filters, parts)

    def _check(self, splits: dict[str, Split]) -> None:
        corpus = self._corpus
        for name, split in splits.items():
            may_be_empty = (name, corpus.val_fraction) in (("train", 1), ("val", 0))
            if split.documents == 0 and not may_be_empty:
                self.end()
                raise ValueError(
                    f"data.val_fraction={corpus.val_fraction} leaves no document of "
                    f"data.source={corpus.source} in {name}: change the fraction, "
                    f"{'loosen data.filters ' if corpus.reading.filters else ''}or add text"
                )

    def end(self) -> None:
        """Remove the rows and the folders of the jobs; needs the folder's lock."""
        _remove(self.home)
        _remove(self.folder / NAME / FOUND)
        with suppress(OSError):
            (self.folder / NAME).rmdir()

    def end_if_empty(self) -> None:
        """Remove the folder of the jobs if none is done; needs the folder's lock."""
        # Another process may be at one of them.
        with suppress(BlockingIOError):
            if self.home.exists() and not any(self.home.glob("*.json")):
                self.end()

    def _place(self, job: Job) -> Path:
        return self.home / f"{job.number:05}"

    def _row_path(self, job: Job) -> Path:
        return self.home / f"{job.number:05}.json"

    def _row(self, job: Job) -> dict[str, Split] | None:
        """The splits of a job that is done; None where its row is missing or damaged."""
        try:
            return manifest.splits(manifest.load(self._row_path(job))["splits"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _is_done(self, job: Job) -> bool:
        """Whether the row is there, and its shards are in the folder of the job."""
        splits = self._row(job)
        if splits is None:
            return False
        try:
            for name in splits:
                self._dataset(job, splits, name).lengths()
        except (OSError, ValueError):
            return False
        return True

    def _dataset(self, job: Job, splits: dict[str, Split], name: str) -> Dataset:
        return Dataset(self._place(job), replace(self._empty, splits=splits), name)


def clear(folder: Path) -> None:
    """Remove the jobs in a folder that has its manifest, as far as that is possible."""
    # A reader must not fail because the disk is read-only or somebody else is at it.
    with suppress(OSError), disk.Lock(folder):
        for home in sorted((folder / NAME).glob("*")):
            _remove(home)
        (folder / NAME).rmdir()


def _remove(home: Path) -> None:
    """Remove the jobs of one plan; `BlockingIOError` while another process does one of them."""
    for folder in _folders(home):
        disk.Lock(folder, advice="wait for it, or name another folder").release()
    # The rows first: without its row, what is left of a job is nothing.
    for row in home.glob("*.json"):
        row.unlink()
    shutil.rmtree(home, ignore_errors=True)


def _folders(home: Path) -> Iterator[Path]:
    return (path for path in sorted(home.glob("*")) if path.is_dir())
