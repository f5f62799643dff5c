"""One process of a run: the device that it computes on, its rank, and its random numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch

from tinylm import device

# Python's integers do not wrap at 64 bits by themselves.
_MASK = 0xFFFFFFFFFFFFFFFF


class Stream(IntEnum):
    """The uses of randomness during a run; the numbers of one say nothing about another's."""

    # A number is part of the seeds of every run: never change one.
    DROPOUT = 0


@dataclass(frozen=True)
class Session:
    """What one process of a run keeps from its start to its end.

    It computes on `device`, with the stream and its products in `dtype`. It is number `rank` of
    `world` processes, and `say` prints a line for people, or does nothing in a run without a
    console.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int
    world: int
    say: Callable[[str], None]

    @classmethod
    def start(cls, device_name: str, dtype_name: str, say: Callable[[str], None]) -> "Session":
        """The session of `train.device` and `train.dtype`, in the only process of a run.

        Raises `ValueError` if this machine has no such device.
        """
        place = device.find(device_name)
        dtype = device.pick_dtype(dtype_name, place)
        return cls(device=place, dtype=dtype, rank=0, world=1, say=say)

    def manual_seed(self, seed: int, stream: Stream, step: int, micro: int) -> None:
        """Seed torch's generator for one micro-step: a resumed run repeats its numbers."""
        torch.manual_seed(mix(seed, stream, step, micro, self.rank))


def mix(seed: int, stream: Stream, step: int, micro: int, rank: int) -> int:
    """A 63-bit seed of a micro-step; a change of any argument changes about half of its bits.

    A chain of splitmix64 over seed, step and micro-step. It starts from a value that belongs to
    (stream, rank), 0 for the first of each, so that a run in one process needs neither.
    """
    start = _chain(0, stream, rank) ^ _chain(0, 0, 0)
    return _chain(start, seed, step, micro) >> 1


def _chain(state: int, *numbers: int) -> int:
    for number in numbers:
        # The constants of splitmix64. Source: Steele et al. 2014.
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state
