"""One process of a run: the device that it computes on, its rank, and its random numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from tinylm import device
from tinylm.train.processes import Place

ALONE = Place()
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
    `world` processes, `beside` of them on this machine, and `say` prints a line for people, or does
    nothing in a run without a console. `mode` is `distributed.mode`.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int
    world: int
    say: Callable[[str], None]
    mode: str = "none"
    beside: int = 1

    @classmethod
    def start(
        cls, device_name: str, dtype_name: str, say: Callable[[str], None], place: Place = ALONE
    ) -> "Session":
        """The session of `train.device` and `train.dtype` in the process at `place`.

        Raises `ValueError` if this machine has no such device.
        """
        on = device.find(device_name)
        if on.type == "cuda" and not place.alone:
            on = _own_gpu(place.local)
        elif on.index is not None:
            # Triton launches on the current GPU.
            torch.cuda.set_device(on)
        dtype = device.pick_dtype(dtype_name, on)
        return cls(
            device=on,
            dtype=dtype,
            rank=place.rank,
            world=place.world,
            say=say,
            mode=place.mode,
            beside=place.beside,
        )

    @property
    def leads(self) -> bool:
        """Whether this process speaks, writes the run's files and is asked by the others."""
        return self.rank == 0

    @property
    def builds_on(self) -> torch.device:
        """Where the whole model is put together before it is spread over the processes.

        Under FSDP that is the CPU: its parts go to `device` one by one as they are sharded, so the
        device never holds the whole.
        """
        return torch.device("cpu") if self.mode == "fsdp" else self.device

    @property
    def share(self) -> tuple[int, int]:
        """The (rank, world) whose rows of the optimizer's tensors are in this process."""
        return (self.rank, self.world) if self.mode == "fsdp" else (0, 1)

    def sum(self, number: Tensor) -> Tensor:
        """The sum over all processes of a tensor, which is overwritten; itself in one process."""
        if self.mode != "none":
            torch.distributed.all_reduce(number)
        return number

    def least(self, number: Tensor) -> Tensor:
        """The smallest that any process gives of a scalar, which is overwritten."""
        if self.mode != "none":
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MIN)
        return number

    def most(self, *numbers: int) -> list[int]:
        """Each number as the largest that any process gives; every process must ask.

        It goes over the CPU, so no GPU is waited for.
        """
        if self.mode == "none":
            return [*numbers]
        box = torch.tensor(numbers)
        torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MAX)
        return [int(number) for number in box]

    def manual_seed(self, seed: int, stream: Stream, step: int, micro: int) -> None:
        """Seed torch's generator for one micro-step: a resumed run repeats its numbers."""
        torch.manual_seed(mix(seed, stream, step, micro, self.rank))


def _own_gpu(number: int) -> torch.device:
    """The GPU of one process of this machine, made torch's current one."""
    found = torch.cuda.device_count()
    if number >= found:
        raise ValueError(
            f"process {number} of this machine has no GPU, there are {found}: start "
            f"{found} processes, or set train.device=cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


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
