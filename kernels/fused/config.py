"""An operation, a dtype, a size and a GPU in, how to launch the kernel out: one frozen table.

There is no autotuner: it would make the first step slow and the order of sums a matter of
chance, and nobody could check it without a GPU. The tests compile the rows for compute
capability 9.0 and hold their registers below a spill.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Key(NamedTuple):
    """Operation, most bytes an element, largest size (D, or a head's), least capability."""

    operation: str
    itemsize: int
    size: int
    capability: tuple[int, int]


class Launch(NamedTuple):
    """Rows of the input at once in a program and the warps that share them; where a program
    walks over many blocks of rows, the stages of loads in flight and the programs on each
    multiprocessor."""

    rows: int
    warps: int
    stages: int = 1
    programs: int = 1


class Device(NamedTuple):
    """What a launch depends on: compute capability and number of multiprocessors."""

    capability: tuple[int, int]
    processors: int


# Triton's interpreter plays an H100 of one multiprocessor: few rows make a program walk.
INTERPRETER = Device((9, 0), 1)

# The first row that fits is taken. A thread holds 32 elements of a block forward and 16 backward,
# where x, dy, the weight and the share of dw are all in registers at once.
TABLE: tuple[tuple[Key, Launch], ...] = (
    (Key("rms_norm", 4, 128, (8, 0)), Launch(rows=32, warps=4)),
    (Key("rms_norm", 4, 512, (8, 0)), Launch(rows=8, warps=4)),
    (Key("rms_norm", 4, 1024, (8, 0)), Launch(rows=4, warps=4)),
    (Key("rms_norm", 4, 2048, (8, 0)), Launch(rows=2, warps=4)),
    (Key("rms_norm", 4, 4096, (8, 0)), Launch(rows=1, warps=4)),
    (Key("rms_norm", 4, 8192, (8, 0)), Launch(rows=1, warps=8)),
    (Key("rms_norm", 4, 16384, (8, 0)), Launch(rows=1, warps=16)),
    (Key("rms_norm_backward", 4, 128, (8, 0)), Launch(rows=16, warps=4, stages=2, programs=3)),
    (Key("rms_norm_backward", 4, 512, (8, 0)), Launch(rows=4, warps=4, stages=2, programs=4)),
    (Key("rms_norm_backward", 4, 1024, (8, 0)), Launch(rows=2, warps=4, stages=2, programs=4)),
    (Key("rms_norm_backward", 4, 2048, (8, 0)), Launch(rows=1, warps=4, stages=2, programs=4)),
    (Key("rms_norm_backward", 4, 4096, (8, 0)), Launch(rows=1, warps=8, stages=2, programs=2)),
    (Key("rms_norm_backward", 4, 8192, (8, 0)), Launch(rows=1, warps=16, stages=2)),
    # 32 elements a thread: 200 bytes of them spill. 32 warps of 16 elements have half the
    # registers each and spill as much.
    (Key("rms_norm_backward", 4, 16384, (8, 0)), Launch(rows=1, warps=16)),
)


def device_of(device: torch.device) -> Device:
    """The GPU `device`; the interpreter's for any other."""
    return _gpu(device.index) if device.type == "cuda" else INTERPRETER


@cache
def _gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device((properties.major, properties.minor), properties.multi_processor_count)


@cache
def find(
    operation: str, dtype: torch.dtype, size: int, capability: tuple[int, int]
) -> Launch | None:
    """The first row of the table that covers these, or None: no kernel is meant for them."""
    if dtype not in DTYPES:
        return None
    for key, launch in TABLE:
        fits = key.itemsize >= dtype.itemsize and key.size >= size
        if key.operation == operation and fits and key.capability <= capability:
            return launch
    return None


def covers(operation: str, size: int, *tensors: Tensor) -> bool:
    """Whether the kernels take the dtypes of all `tensors`, and the table the first of them."""
    capability = device_of(tensors[0].device).capability
    known = all(tensor.dtype in DTYPES for tensor in tensors)
    return known and find(operation, tensors[0].dtype, size, capability) is not None


def largest(operation: str) -> int:
    """The largest size that the table covers, for the words of an error."""
    return max(key.size for key, _ in TABLE if key.operation == operation)
