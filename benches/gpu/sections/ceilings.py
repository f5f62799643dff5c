"""The machine, and the two ceilings that every percentage refers to, anew in each run."""

from collections.abc import Iterator

import torch

from benches.gpu import machine, measure
from benches.gpu.case import Case, Contest, Place
from benches.gpu.job import LONG_PATIENCE, Job


def run(job: Job) -> None:
    """A row that describes the machine, then the cases."""
    if job.begin("machine", {}, "machine", LONG_PATIENCE):
        job.row("machine", {}, "machine", **machine.describe(job.order.dry))
    measure.run(job, cases)


def cases(place: Place) -> Iterator[Case]:
    """A copy of 1 GiB, read and written; bfloat16 products of two sizes."""
    count = place.sized(2**29, 2**10)
    yield Case("copy", {"bytes": 2 * count}, lambda: copy(place, count))
    for size in place.sized((4096, 8192), (64,)):
        yield Case("matmul", {"size": size}, lambda size=size: matmul(place, size))


def copy(place: Place, count: int) -> Contest:
    """Each byte is counted twice: it is read and written."""
    a = place.randn(count)
    b = torch.empty_like(a)
    contenders = {"torch copy_": lambda: b.copy_(a)}
    return Contest(contenders, lambda: a[-1024:], 0.0, pick=lambda y: y[-1024:], bytes=4 * count)


def matmul(place: Place, size: int) -> Contest:
    """Random numbers: a product of zeros runs faster, because it needs less power."""
    a, b = place.randn(size, size), place.randn(size, size)
    return Contest(
        {"torch matmul": lambda: a @ b},
        lambda: a[:64].float() @ b.float(),
        1e-2,
        pick=lambda y: y[:64],
        flops=2 * size**3,
    )
