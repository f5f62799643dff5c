"""The jobs of `prepare` on the machines of a Ray cluster: `prepare ... --engine ray`.

Ray only maps the list of jobs. A task is given paths and a number, and answers with counts: text
and tokens go from disk to disk in the worker and never through Ray's object store. All machines
must see the text, the tokenizer and the folder under the same paths. Needs the extra `ray`.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm import corpus
from tinylm.corpus.remembered import remembering
from tinylm.data.encoding import Progress
from tinylm.data.jobs import FOUND, NAME, Job, Jobs
from tinylm.data.shards import empty_manifest

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer


def on_ray(
    source: str, tokenizer: str, *, world: int | None, job_bytes: int, **reading: Any
) -> Callable[[Jobs, list[Job]], None]:
    """A `run` for `prepare`: the jobs of the text `source` as tasks of Ray.

    At most `world` jobs run at a time; by default one per machine, with all its cores. Uses the
    cluster that RAY_ADDRESS names or that the caller has connected to; without one, this machine.
    Raises `ValueError` where ray is not installed, and what a job raises.
    """
    ray = _library()
    if world is not None and world < 1:
        raise ValueError(f"--world {world} must be at least 1")
    # A worker has a working folder of its own.
    path = Path(source)
    given = (str(path.resolve()) if path.exists() else source, str(Path(tokenizer).resolve()))

    def run(work: Jobs, todo: list[Job]) -> None:
        ours = not ray.is_initialized()
        if ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        try:
            cores = int(ray.cluster_resources().get("CPU", 1))
            each = max(1, cores // (world or len(ray.nodes())))
            task = ray.remote(num_cpus=each)(_do)
            place = (str(work.folder.resolve()), str(work.home.name), job_bytes)
            names = tuple(sorted(reading.items()))
            _gather(ray, [task.remote(*given, names, *place, job.number) for job in todo], todo)
        finally:
            if ours:
                ray.shutdown()

    return run


def _library() -> Any:
    try:
        import ray
    except ImportError:
        missing = "needs ray, which is not installed: pip install 'tinylm[ray]'"
        raise ValueError(f"--engine ray {missing}") from None
    return ray


def _gather(ray: Any, tasks: list[Any], todo: list[Job]) -> None:
    """Wait for all tasks; the first error ends the others and is raised as the job raised it."""
    progress = Progress(sum(job.bytes for job in todo))
    waiting = tasks
    try:
        while waiting:
            done, waiting = ray.wait(waiting)
            for task in done:
                progress.add(*ray.get(task))
    except ray.exceptions.RayTaskError as error:
        # Its own text is a traceback; an error of the text or the disk is one line.
        raise error.cause from None
    finally:
        for task in waiting:
            ray.cancel(task)
    progress.end()


def _do(
    source: str,
    tokenizer: str,
    reading: tuple[tuple[str, Any], ...],
    folder: str,
    plan: str,
    job_bytes: int,
    number: int,
) -> tuple[int, int]:
    """One job, in a worker of Ray; the bytes and tokens of it that were done here."""
    with remembering(Path(folder) / NAME / FOUND):
        text, words = _opened(source, tokenizer, reading, plan)
    work = Jobs(Path(folder), text, words, empty_manifest(words), job_bytes)
    if work.home.name != plan:
        raise ValueError(f"{source} is another text on {os.uname().nodename} than at the start")
    progress = Progress(text.bytes)
    work.run(work.jobs[number], progress)
    return progress.bytes, progress.tokens


@lru_cache(maxsize=1)
def _opened(
    source: str, tokenizer: str, reading: tuple[tuple[str, Any], ...], plan: str
) -> "tuple[corpus.Corpus, Tokenizer]":
    """Opened once per worker and plan: it reads the text through."""
    from tinylm.tokenizer import Tokenizer

    return corpus.open(source, **dict(reading)), Tokenizer.load(tokenizer)
