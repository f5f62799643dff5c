"""Frozen tables, one per kernel: a dtype, a size and a GPU to the launch settings.

There is no autotuner. It would slow down the first step, make the order of sums depend on timing,
and be untestable without a GPU. The tests compile the rows for compute capability 9.0 and 8.0 and
check that registers do not spill. The rows of a kernel are in its own file.
"""

from functools import cache
from typing import NamedTuple, TypeVar

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Key(NamedTuple):
    """What a row covers: most bytes per element, largest size, least compute capability.

    The size is D of a norm, the head's of attention, V of the loss, and the rows of a product.
    """

    itemsize: int
    size: int
    capability: tuple[int, int]


class Device(NamedTuple):
    """What a launch depends on: compute capability and number of multiprocessors."""

    capability: tuple[int, int]
    processors: int


# Triton's interpreter plays an H100 of one multiprocessor: few rows make a program walk.
INTERPRETER = Device((9, 0), 1)

Launch = TypeVar("Launch")
# The first row that fits is taken. `Launch` is the kernel's own: rows, warps, stages, ...
Table = tuple[tuple[Key, Launch], ...]


def device_of(device: torch.device) -> Device:
    """The GPU `device`; the interpreter's for any other."""
    return _gpu(device.index) if device.type == "cuda" else INTERPRETER


@cache
def _gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device((properties.major, properties.minor), properties.multi_processor_count)


def find(
    table: Table[Launch], dtype: torch.dtype, size: int, capability: tuple[int, int]
) -> Launch | None:
    """Return the launch of the first row that covers these, or None if no row does."""
    if dtype not in DTYPES:
        return None
    if capability >= (12, 0):
        # Their shared memory is that of 8.6 and 8.9, for which the rows of 8.0 are made.
        capability = (8, 0)
    for key, launch in table:
        fits = key.itemsize >= dtype.itemsize and key.size >= size
        if fits and key.capability <= capability:
            return launch
    return None


def covers(
    table: Table[Launch], size: int, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> bool:
    """Whether the kernels take all of `dtypes`, and the table the first of them."""
    known = all(dtype in DTYPES for dtype in dtypes)
    return known and find(table, dtypes[0], size, device_of(device).capability) is not None


def largest(table: Table[Launch]) -> int:
    """Return the largest size that a table covers, for error messages."""
    return max(key.size for key, _ in table)
