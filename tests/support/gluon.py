"""Run a Gluon kernel in plain Python, because Triton's interpreter does not take Gluon.

    with simulated(kernels.attention_hopper, seed=7):
        torch.ops.tinylm.attention_hopper(q, k, v, True, 0.125)     # CPU tensors

The functions of the kernel run as they are written, with what is below in the place of Gluon. The
partitions of a program are threads, of which one runs at a time. At each barrier chance decides
which goes on, and which of the copies and products that are under way complete. Shared memory is
NaN before a copy into it has completed, and a program whose partitions all wait is a `Deadlock`.

This tests barriers, indices, masks and sums. Layouts, registers and the shapes that instructions
take are left to the offline compiler (`tests.support.offline`).
"""

import contextlib
import math
import random
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.jit import JITFunction


class Deadlock(AssertionError):
    """Every partition waits, and no copy is under way that could end it."""


class Stopped(Exception):
    """Ends the threads of a program that has failed."""


class Pointer:
    """An address in the memory behind a tensor, or a tensor of addresses."""

    def __init__(self, memory: Tensor, offset: Any) -> None:
        self.memory, self.offset = memory, offset

    def __add__(self, other: Any) -> "Pointer":
        return Pointer(self.memory, self.offset + other)


class Descriptor:
    """A tensor that is loaded in tiles; a tile is zero outside of it."""

    def __init__(self, host: Any) -> None:
        self.tensor = host.base.as_strided(host.shape, host.strides)
        self.block, self.dtype, self.layout = host.block_shape, host.base.dtype, host.layout

    def tile(self, first: list[Any]) -> Tensor:
        """The tile whose first element is at `first`."""
        tile = torch.zeros(self.block, dtype=self.dtype)
        spans = [slice(int(f), int(f) + n) for f, n in zip(first, self.block, strict=True)]
        part = self.tensor[tuple(spans)]
        tile[tuple(slice(0, n) for n in part.shape)] = part
        return tile


class Shared:
    """Shared memory, or a view of it."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.dtype = values, values.dtype
        self.type = SimpleNamespace(shape=list(values.shape))

    def index(self, place: Any) -> "Shared":
        """The part `place` along the first axis."""
        return Shared(self.values[int(place)])

    def reshape(self, shape: list[int]) -> "Shared":
        """The same memory in another shape."""
        return Shared(self.values.view(shape))

    def permute(self, order: tuple[int, ...]) -> "Shared":
        """The same memory with its axes in another order."""
        return Shared(self.values.permute(order))


class Barrier:
    """An mbarrier: its phase completes when all have arrived and all expected bytes have come."""

    def __init__(self) -> None:
        self.count = self.missing = self.bytes = self.phase = 0

    def settle(self) -> None:
        """Begin the next phase if this one is complete."""
        assert self.missing >= 0, "more arrivals at a barrier than it counts"
        if self.missing == 0 and self.bytes == 0:
            self.phase, self.missing = self.phase ^ 1, self.count

    def passed(self, parity: int) -> bool:
        """Whether the last phase of this parity is complete; that before the first is."""
        return self.phase != parity


class Barriers(list):
    """Barriers in shared memory."""

    def index(self, place: Any) -> Barrier:
        """The barrier at `place`."""
        return self[int(place)]


class Product:
    """A product under way, which has no value yet."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self.compute = compute
        self.value: Tensor | None = None


class Partition:
    """A thread, and the products that it has issued, the oldest first."""

    def __init__(self, program: "Program", work: Callable[[], None]) -> None:
        self.program, self.work = program, work
        self.turn = threading.Semaphore(0)
        self.ready: Callable[[], bool] = lambda: True
        self.products: deque[Product] = deque()
        self.done = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.turn.acquire()
        try:
            if not self.program.stopped:
                self.work()
                assert not self.products, "a partition ended with products under way"
        except Stopped:
            pass
        except BaseException as error:
            self.program.error = self.program.error or error
        self.done = True
        self.program.turn.release()

    def go_on(self) -> None:
        """Run up to the next pause, from the thread of the program."""
        self.program.current = self
        self.turn.release()
        self.program.turn.acquire()

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let the others run until `ready`, and after that for as long as chance has it."""
        self.ready = ready
        self.program.turn.release()
        self.turn.acquire()
        if self.program.stopped:
            raise Stopped

    def complete_one(self) -> None:
        """Compute the oldest product from what the memory holds now."""
        product = self.products.popleft()
        product.value = product.compute()


class Program:
    """One program of a kernel: its partitions, and the copies that are under way."""

    def __init__(self, module: Any, place: int, chance: random.Random) -> None:
        self.chance, self.turn = chance, threading.Semaphore(0)
        self.partitions: list[Partition] = []
        self.copies: list[Callable[[], None]] = []
        self.error: BaseException | None = None
        self.stopped = False
        self.current: Partition
        self.names = {**vars(module), **self._language(torch.tensor(place))}
        for name, value in vars(module).items():
            if isinstance(value, JITFunction):
                self.names[name] = self._plain(value)

    def _plain(self, function: JITFunction) -> Callable[..., Any]:
        """A function of the kernel, with the names of this program in the place of Gluon's."""
        return types.FunctionType(function.fn.__code__, self.names, function.__name__)

    def run(self, kernel: JITFunction, values: list[Any], named: dict[str, Any]) -> None:
        """Run the program to its end; raise the first error of a partition."""
        body = self._plain(kernel)
        self.partitions.append(Partition(self, lambda: body(*values, **named)))
        while self.error is None and not all(partition.done for partition in self.partitions):
            able = [p.go_on for p in self.partitions if not p.done and p.ready()]
            if not able and not self.copies:
                self.error = Deadlock("every partition waits, and no copy is under way")
                break
            able += [lambda copy=copy: self._complete(copy) for copy in self.copies]
            able += [p.complete_one for p in self.partitions if p.products]
            self.chance.choice(able)()
        self.stopped = True
        for partition in self.partitions:
            partition.turn.release()
            partition.thread.join()
        if self.error is not None:
            raise self.error
        assert not self.copies, "a program ended with copies under way"

    def _complete(self, copy: Callable[[], None]) -> None:
        self.copies.remove(copy)
        copy()

    def _warp_specialize(self, parts: list, warps: list[int], registers: list[int]) -> None:
        assert len(warps) == len(registers) == len(parts) - 1
        fresh = [
            Partition(self, lambda function=function, values=values: function(*values))
            for function, values in parts
        ]
        self.partitions += fresh
        self.current.pause(lambda: all(partition.done for partition in fresh))

    def _init(self, barrier: Barrier, *, count: int) -> None:
        barrier.count = barrier.missing = count

    def _wait(self, barrier: Barrier, phase: Any) -> None:
        self.current.pause(lambda: barrier.passed(int(phase)))

    def _expect(self, barrier: Barrier, size: int) -> None:
        barrier.bytes += size
        self._arrive(barrier, count=1)

    def _arrive(self, barrier: Barrier, *, count: int) -> None:
        barrier.missing -= count
        barrier.settle()
        self.current.pause()

    def _load(self, source: Descriptor, first: list, barrier: Barrier, target: Shared) -> None:
        target.values.fill_(math.nan)

        def copy() -> None:
            tile = source.tile(first)
            target.values.copy_(tile)
            barrier.bytes -= tile.numel() * tile.element_size()
            barrier.settle()

        self.copies.append(copy)
        self.current.pause()

    def _multiply(
        self, a: Any, b: Shared, sums: Tensor, *, use_acc: bool = True, is_async: bool
    ) -> Product:
        assert is_async

        def compute() -> Tensor:
            left = a.values if isinstance(a, Shared) else a
            y = left.float() @ b.values.float()
            return y + sums if use_acc else y

        product = Product(compute)
        self.current.products.append(product)
        self.current.pause()
        return product

    def _wait_products(self, left: int, *, deps: list) -> Any:
        while len(self.current.products) > left:
            self.current.complete_one()
            self.current.pause()
        found = [dep.value if isinstance(dep, Product) else dep for dep in deps]
        assert all(value is not None for value in found), "waited for a product still under way"
        return found[0] if len(found) == 1 else tuple(found)

    def _allocate(self, dtype: Any, shape: list[int], layout: Any) -> Any:
        if dtype is not torch.int64:
            return Shared(torch.full(shape, math.nan, dtype=dtype))
        barriers = Barriers(Barrier() for _ in range(shape[0]))
        return barriers if len(shape) > 1 else barriers[0]

    def _language(self, place: Tensor) -> dict[str, Any]:
        """The names of Gluon that kernels use."""

        def nothing(*values: Any) -> None:
            return None

        def pair(a: Any, b: Any) -> tuple[Tensor, Tensor]:
            return torch.as_tensor(a), torch.as_tensor(b)

        def store(pointer: Pointer, values: Tensor, *, mask: Tensor) -> None:
            where = mask.expand_as(values)
            pointer.memory[pointer.offset.expand_as(values)[where]] = values[where]

        language = SimpleNamespace(
            **{name: getattr(torch, name) for name in ("float32", "int64", "exp2", "log2", "sum")},
            **dict.fromkeys(("NVMMADistributedLayout", "DotOperandLayout", "SliceLayout"), nothing),
            program_id=lambda axis: place,
            static_range=range,
            cdiv=lambda a, b: -(-a // b),
            minimum=lambda a, b: torch.minimum(*pair(a, b)),
            maximum=lambda a, b: torch.maximum(*pair(a, b)),
            max=lambda x, axis: x.amax(axis),
            where=torch.where,
            arange=lambda first, end, layout: torch.arange(first, end),
            full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
            zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
            convert_layout=lambda x, layout: x,
            store=store,
            allocate_shared_memory=self._allocate,
            warp_specialize=self._warp_specialize,
        )
        barriers = SimpleNamespace(
            MBarrierLayout=nothing,
            init=self._init,
            wait=self._wait,
            expect=self._expect,
            arrive=self._arrive,
        )
        return {
            "gl": language,
            "mbarrier": barriers,
            "tma": SimpleNamespace(async_copy_global_to_shared=self._load),
            "warpgroup_mma": self._multiply,
            "warpgroup_mma_wait": self._wait_products,
        }


class Simulation:
    """Stands for a kernel: a launch runs its programs one after the other."""

    def __init__(self, module: Any, kernel: JITFunction, seed: int) -> None:
        self.module, self.kernel, self.chance = module, kernel, random.Random(seed)

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*values: Any, num_warps: int, **named: Any) -> None:
            for place in range(*grid):
                program = Program(self.module, place, self.chance)
                program.run(self.kernel, [_argument(value) for value in values], named)

        return launch


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        whole = value.untyped_storage().nbytes() // value.element_size()
        return Pointer(value.as_strided((whole,), (1,), 0), value.storage_offset())
    return Descriptor(value) if hasattr(value, "block_shape") else value


@contextlib.contextmanager
def simulated(module: Any, kernel: str = "forward_kernel", seed: int = 0) -> Iterator[None]:
    """Launches of the kernel of `module` run here, with the order of events drawn from `seed`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, kernel, Simulation(module, getattr(module, kernel), seed))
        yield
