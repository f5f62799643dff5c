"""Several processes that train one model: how they meet, and how the model is spread over them.

    with meeting(place, session) as first:
        tokenizer = first("tokenizer", make, write, read)
        spread_model = spread(net, loss, session)

DDP and FSDP2 of torch average gradients over the processes. The loss of a process is therefore its
share of the targets of the whole batch, times the number of processes: the average is then the
gradient of the mean over all targets, as one process computes it.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from tinylm.config.limits import show
from tinylm.model import Model
from tinylm.train.processes import Place, Watch
from tinylm.train.session import Session

if TYPE_CHECKING:
    from tinylm.train.shards import Shards

T = TypeVar("T")
# A text may take hours to tokenise, while the other processes wait for the first.
SECONDS_TO_PREPARE = 7 * 24 * 3600
# The longest that a process waits in a collective for one that lives but does not come.
MINUTES_TO_MEET = 30


@dataclass(frozen=True)
class First:
    """Makes a value in process 0 and hands it to the others; a run of one process just makes it."""

    session: Session
    store: Store | None = None

    def __call__(
        self, name: str, make: Callable[[], T], write: Callable[[T], str], read: Callable[[str], T]
    ) -> T:
        """`make()` in process 0; in the others `read(write(...))` of it, once it is there."""
        if self.store is None:
            return make()
        if self.session.leads:
            made = make()
            self.store.set(name, write(made))
            return made
        self.store.wait([name], timedelta(seconds=SECONDS_TO_PREPARE))
        return read(self.store.get(name).decode())


@contextmanager
def meeting(place: Place, session: Session) -> Iterator[First]:
    """Inside, the processes of a run can talk to each other; a run of one has nothing to do.

    Raises `ConnectionError` if a process of this machine ends before the others.
    """
    if place.alone:
        yield First(session)
        return
    store, rank, world = next(rendezvous("env://", place.rank, place.world))
    # Small things that are decided on the host go over gloo, so that they wait for no GPU.
    backend = "cpu:gloo,cuda:nccl" if session.device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=PrefixStore("collectives", store),
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=MINUTES_TO_MEET),
    )
    failures = Failures(store, rank)
    with Watch(_neighbours(place), failures.first) as watch:
        try:
            yield First(session, PrefixStore("first", store))
            # Nobody leaves while another still writes or asks.
            dist.barrier()
        except RuntimeError as error:
            # gloo's own error for a killed process names the address of a socket.
            dead = watch.dead(seconds=2.0)
            if dead is None:
                failures.tell(error)
                raise
            raise ConnectionError(f"{dead}, so this run cannot go on") from error
        except Exception as error:
            failures.tell(error)
            raise
    dist.destroy_process_group()


class Failures:
    """The first error of any process of a run, which the others read in a thread of their own.

    With torch 2.7 they hear nothing, and end when the process has ended or at a time limit.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._rank = rank
        # A connection of its own: a process that waits for a value of the first holds the other.
        second = getattr(store, "clone", None)
        self._store = None if second is None else PrefixStore("failures", second())

    def tell(self, error: Exception) -> None:
        """Let the others know that this process cannot go on."""
        words = f"rank {self._rank} has failed ({type(error).__name__}: {show(error)})"
        # RuntimeError: the process that keeps the store has ended.
        with suppress(RuntimeError):
            if self._store is not None:
                self._store.compare_set("error", "", words)

    def first(self) -> str:
        """What `tell` told first, of any process; "" as long as all is well."""
        with suppress(RuntimeError):
            if self._store is not None and self._store.check(["error"]):
                return self._store.get("error").decode()
        return ""


def _neighbours(place: Place) -> dict[int, int]:
    """{rank: process id} of the other processes on this machine."""
    everyone: list[Any] = [None] * place.world
    dist.all_gather_object(everyone, (socket.gethostname(), os.getpid()))
    host = socket.gethostname()
    return {
        rank: process
        for rank, (where, process) in enumerate(everyone)
        if where == host and rank != place.rank
    }


def _compile(block: nn.Module) -> None:
    """Compile the forward pass of a block for training alone: a sampler has ever new lengths."""
    plain, compiled = block.forward, torch.compile(block.forward, dynamic=False)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if block.training else plain)(*args, **kwargs)

    block.forward = forward


class Loss(nn.Module):
    """A loss of a model as the forward pass of a module, which DDP can wrap."""

    def __init__(self, model: Model, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of the arguments."""
        return self.loss(*args, **kwargs)


def _plain(last: bool) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class Spread:
    """A model spread over the processes of a run.

    `loss` computes the loss of this process's rows. `passes(last)` is a context for the two passes
    of a micro-batch, the last of its step or not. `scale` is the number of processes, by which
    torch divides the sum of their gradients. `shards` are the weights of this process under FSDP.
    """

    loss: Callable[..., Tensor]
    passes: Callable[[bool], AbstractContextManager[Any]] = _plain
    scale: int = 1
    shards: "Shards | None" = None


def spread(
    model: Model, loss: Callable[..., Tensor], session: Session, *, compiled: bool = False
) -> Spread:
    """Spread `model` over the processes as `session.mode` says; `loss` is its loss function.

    `compiled` says whether that is a compiled one. Under FSDP every block is compiled by itself:
    what torch does around a block cannot be a part of a graph.
    """
    if session.mode == "none":
        return Spread(loss)
    if session.mode == "ddp":
        return _replicate(model, loss, session)
    return _shard(model, session, compiled=compiled)


def _replicate(model: Model, loss: Callable[..., Tensor], session: Session) -> Spread:
    """The whole model in every process; gradients are reduced in buckets during the backward."""
    gpus = [session.device.index] if session.device.type == "cuda" else None
    wrapped = DistributedDataParallel(
        Loss(model, loss), device_ids=gpus, gradient_as_bucket_view=True
    )
    # The buffers of a model are tables that no step changes. Not as an argument, whose name depends
    # on the version of torch.
    wrapped.broadcast_buffers = False

    def passes(last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else wrapped.no_sync()

    return Spread(wrapped, passes, session.world)


def _shard(model: Model, session: Session, *, compiled: bool) -> Spread:
    """Weights, gradients and optimizer state spread over the processes.

    A block is one unit, which is whole only while it computes. All other weights are one unit, the
    root: a tied embedding is read at both ends of the model, and torch refuses to shard it alone.
    """
    # Imported only here: they take half a second.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    from tinylm.train.shards import Shards

    for block in model.blocks if compiled else ():
        _compile(block)
    mesh = init_device_mesh(session.device.type, (session.world,))
    units: list[FSDPModule] = [fully_shard(block, mesh=mesh) for block in model.blocks]
    units.append(fully_shard(model, mesh=mesh))
    # The sampler and the evaluation begin at `embed`, not at `forward`.
    for name in ("loss", "embed"):
        register_fsdp_forward_method(model, name)
    for unit in units:
        # torch makes the whole weights at their first use. In an inference they would be
        # tensors that no later training could use.
        unit.unshard()
        unit.reshard()
    shards = Shards(model)

    @contextmanager
    def passes(last: bool) -> Iterator[None]:
        yield
        if last:
            shards.take_gradients()

    # Gradients are reduced after every micro-batch: kept whole until the last one, they would
    # need the memory that sharding saves.
    return Spread(model.loss, passes, session.world, shards)
