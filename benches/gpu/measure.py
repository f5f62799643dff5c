"""Runs the cases of a section: every contender through the gate, then through the clock."""

import contextlib
import gc
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

import tinylm.kernels  # noqa: F401
from benches.gpu.case import Case, Contest, Missing, Place, flat, relative
from benches.gpu.job import LONG_PATIENCE, PATIENCE, Job, label

# Milliseconds of timed calls per row, with the least and the most number of calls.
MILLISECONDS, CALLS, MOST_CALLS = 50, 7, 200
# Bytes that are written before each call, many times the L2 cache; cycles of the GPU, about 0.6
# ms, in which the host gets ahead of it.
SCRATCH, AHEAD = 2**28, 1_000_000


def run(job: Job, cases: Callable[[Place], Iterator[Case]]) -> None:
    """Every row of every case that no earlier process was done with."""
    place = Place(job.order.dry)
    with _interpreter(place):
        for case in cases(place):
            if job.begin(case.family, case.at, "inputs", LONG_PATIENCE):
                _run_case(job, place, case)
            gc.collect()
            if not place.dry:
                torch.cuda.empty_cache()


@contextlib.contextmanager
def _interpreter(place: Place) -> Iterator[None]:
    """In a dry run the interpreter, with bfloat16 mended, and kernels for `ops` on the CPU."""
    if not place.dry:
        yield
        return
    from tests.support import interpreter

    with interpreter.chosen_by_ops():
        yield


def _run_case(job: Job, place: Place, case: Case) -> None:
    # The same numbers in every process, whichever cases came before.
    torch.manual_seed(zlib.crc32(f"{case.family} {label(case.at)}".encode()))
    try:
        contest = case.build()
        want = None
    except Exception as error:
        job.row(case.family, case.at, "inputs", failed=_said(error))
        return
    job.close(case.family, case.at, "inputs")
    for name, contender in contest.contenders.items():
        patience = getattr(contender, "patience", PATIENCE)
        if not job.begin(case.family, case.at, name, patience):
            continue
        if isinstance(contender, Missing):
            job.row(case.family, case.at, name, missing=str(contender))
            continue
        try:
            if want is None:
                want = flat(contest.want())
            figures = _measure(job, place, contest, contender, want)
            job.row(case.family, case.at, name, **figures, **contest.notes(name))
        except Exception as error:
            job.row(case.family, case.at, name, failed=_said(error))
            if not place.dry:
                _leave_if_broken()


def _said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _leave_if_broken() -> None:
    """End the process where a kernel left the GPU's context unusable; the runner starts a new one.

    `os._exit`, because the destructors of such a process can hang.
    """
    try:
        torch.cuda.synchronize()
    except Exception:
        os._exit(3)


def _measure(
    job: Job, place: Place, contest: Contest, call: Callable[[], Any], want: Any
) -> dict[str, Any]:
    """The figures of a contender; only its error where that is too large."""
    result = call()
    error = relative(contest.pick(result), want)
    figures: dict[str, Any] = {"error": _short(error)}
    if not error <= contest.tolerance:
        return figures | {"failed": f"wrong: relative error {error:.1e}, over {contest.tolerance}"}
    job.waits()
    if contest.repeats:
        figures |= _repeats(place, contest, call, flat(result))
    del result
    if contest.memory and not place.dry:
        figures["mib"] = _short(_extra_memory(call))
    if contest.graph and not place.dry:
        call, figures["graph"] = _captured(call)
    job.waits(2 * PATIENCE)
    times = _timed(place, call)
    figures |= {"ms": _short(times.median), "p20": _short(times.low), "p80": _short(times.high)}
    figures["host_ms"] = _short(times.host)
    if contest.tokens:
        figures["tokens_per_second"] = round(1e3 * contest.tokens / times.median)
    return figures | rates(contest.bytes, contest.flops, times.median, job.order.ceilings)


def rates(moved: float, flops: float, ms: float, ceilings: dict[str, float]) -> dict[str, float]:
    """GB/s or TFLOP/s, and percent of the ceiling of this run where it is known."""
    found: dict[str, float] = {}
    for amount, unit, scale in ((moved, "gbps", 1e6), (flops, "tflops", 1e9)):
        if amount:
            found[unit] = _short(amount / ms / scale)
            if ceilings.get(unit):
                found["percent"] = _short(100 * amount / ms / scale / ceilings[unit])
    return found


def _short(value: float) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")


def _repeats(
    place: Place, contest: Contest, call: Callable[[], Any], first: tuple[torch.Tensor, ...]
) -> dict[str, Any]:
    """Whether further calls give the same bits."""
    times = place.sized(contest.repeats, 1)
    equal = all(
        all(torch.equal(a, b) for a, b in zip(first, flat(call()), strict=True))
        for _ in range(times)
    )
    return {"repeats": times, "equal": equal}


def _extra_memory(call: Callable[[], Any]) -> float:
    """MiB that a call needs at its peak beyond its inputs and its results."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    kept = sum(x.untyped_storage().nbytes() for x in flat(result))
    return (torch.cuda.max_memory_allocated() - before - kept) / 2**20


def _captured(call: Callable[[], Any]) -> tuple[Callable[[], Any], bool]:
    """The call as a CUDA graph; the call itself where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call, False
    return graph.replay, True


class Times(NamedTuple):
    """Milliseconds of a call on the GPU, and of the host until it has launched everything."""

    low: float
    median: float
    high: float
    host: float


def _timed(place: Place, call: Callable[[], Any]) -> Times:
    """The 20th percentile, the median and the 80th of many calls, each with a cold L2 cache.

    The GPU is kept busy before each call, so that what is timed is the GPU and not how fast the
    host launches.
    """
    if place.dry:
        begin = time.perf_counter()
        call()
        once = 1e3 * (time.perf_counter() - begin)
        return Times(once, once, once, once)
    scratch = torch.empty(SCRATCH, dtype=torch.uint8, device=place.device)

    def run() -> tuple[torch.cuda.Event, torch.cuda.Event, float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        scratch.zero_()
        torch.cuda._sleep(AHEAD)
        start.record()
        begin = time.perf_counter()
        call()
        host = 1e3 * (time.perf_counter() - begin)
        end.record()
        return start, end, host

    start, end, _ = run()
    torch.cuda.synchronize()
    enough = MILLISECONDS / max(start.elapsed_time(end), 1e-3)
    runs = [run() for _ in range(max(CALLS, min(MOST_CALLS, int(enough))))]
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) for start, end, _ in runs)
    low, *_, high = statistics.quantiles(times, n=5)
    host = statistics.median(host for *_, host in runs)
    return Times(low, statistics.median(times), high, host)
