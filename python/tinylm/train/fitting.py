"""Whether a run fits into the memory of its device, and the rows per forward pass that do.

`check` compares an estimate with what there is before the first step, which may be minutes away
from the moment that runs out of memory. `micro_batch_size` finds the most rows for
`train.micro_batch_size=auto`: on a GPU by trying, elsewhere by the estimate.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tinylm import device
from tinylm.checkpoint import Training
from tinylm.config import Run
from tinylm.model import Model
from tinylm.profiling import estimate
from tinylm.train import finetuning
from tinylm.train.distributed import First
from tinylm.train.session import Session

# Shares of the memory: what a micro-batch may fill that is found by itself, and what a rough
# estimate must stay below to save the exact one, which takes up to 0.2 s.
FILLED, ROUGH = 0.8, 0.25
# A run without a GPU that is refused must have been a hopeless one: the estimate may be off.
HOPELESS = 1.2
CGROUP = Path("/sys/fs/cgroup/memory.max")
MEMINFO = Path("/proc/meminfo")


def fit(run: Run, net: Model, session: Session, begun: Training | None, first: First) -> Run:
    """The run with a number for `train.micro_batch_size=auto`, checked against the memory.

    A run that goes on from `begun` keeps the number that it found, if it still divides every batch:
    with another one its weights would differ in the last digits.
    """
    train = run.train
    largest = max(1, max(train.batch_sizes.values) // session.world)
    if train.micro_batch_size == "auto":
        found = None if begun is None else begun.state.get("micro_batch")
        own = [max(1, rows // session.world) for rows in train.batch_sizes.values]
        # With other batches, or another number of processes, it may leave rows over.
        if found is None or any(rows % min(found, rows) for rows in own):
            find = partial(micro_batch_size, run, net, session)
            found = first("micro_batch_size", find, str, int)
        run = replace(run, train=replace(train, micro_batch_size=found))
    check(run, net, session, min(run.train.micro_rows or largest, largest))
    return run


def memory_of(place: torch.device) -> int | None:
    """Bytes that the device has; of a CPU what the machine or its container has. None: unknown."""
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[1])
    if place.type == "mps":
        return int(torch.mps.recommended_max_memory())
    found: list[int] = []
    # ValueError: a container without a limit says "max".
    with suppress(OSError, ValueError):
        found.append(int(CGROUP.read_text()))
    with suppress(OSError, ValueError, IndexError):
        found.append(1024 * int(MEMINFO.read_text().split("MemTotal:")[1].split()[0]))
    return min(found, default=None)


def memory_for(session: Session) -> int | None:
    """Bytes of `memory_of` that one process may fill: those of a machine share its memory."""
    there = memory_of(session.device)
    if there is None or session.device.type != "cpu":
        return there
    return there // session.beside


def bytes_needed(run: Run, net: Model, session: Session, rows: int) -> dict[str, int]:
    """Estimated bytes of a step over `rows` rows, by what they hold."""
    costs = estimate.memory(
        net.config,
        rows=rows,
        optimizer=run.optim.name,
        dtype=session.dtype,
        checkpointing=run.train.activation_checkpointing,
    )
    # The quantised weights are kept for the backward pass, where no other copy is.
    quantised = 0 if run.train.qat == "none" else 4 * estimate.roles(net).get("matrix", 0)
    moved = round(_trained_share(net) * (costs.gradients + costs.optimizer))
    held = costs.weights + moved
    if session.mode == "fsdp":
        held = held // session.world + _unsharded(net)
        if session.device.type == "cpu":
            # The whole model is there before it is sharded.
            held = max(held, costs.weights)
    return {
        "weights": held + (costs.casts or quantised),
        "activations": costs.activations,
        "logits": costs.logits,
    }


def check(run: Run, net: Model, session: Session, rows: int) -> None:
    """Warn if `rows` rows will hardly fit into the memory; `ValueError` if they cannot."""
    there = memory_for(session)
    if there is None or _rough(net, rows) < ROUGH * there:
        return
    parts = bytes_needed(run, net, session, rows)
    needed = sum(parts.values())
    if needed <= there:
        return
    largest = max(parts, key=lambda name: parts[name])
    fixes = {
        "weights": f"lower model.d_model={net.config.d_model} or model.n_layers",
        "activations": f"lower train.micro_batch_size={rows} (auto finds the largest that fits), "
        "or set train.activation_checkpointing=true",
        "logits": f"lower train.micro_batch_size={rows} (auto finds the largest that fits)",
    }
    shared = " for each process" if session.world > 1 else ""
    told = (
        f"a step over {rows} rows needs about {_gib(needed)} ({_gib(parts[largest])} of it for "
        f"{largest}), and {session.device} has {_gib(there)}{shared}: {fixes[largest]}"
    )
    if needed > HOPELESS * there:
        raise ValueError(told)
    session.say(f"warning: {told}")


def micro_batch_size(run: Run, net: Model, session: Session) -> int:
    """The most rows per forward pass that fit and that divide every batch of this process.

    Raises `ValueError` if not even one row fits.
    """
    common = math.gcd(*(max(1, rows // session.world) for rows in run.train.batch_sizes.values))
    sizes = [rows for rows in range(common, 0, -1) if common % rows == 0]
    # Under FSDP the model is not on the device yet.
    if session.device.type == "cuda" and session.mode != "fsdp":
        whole = estimate.memory(net.config, rows=1, optimizer=run.optim.name).optimizer
        spare = round(_trained_share(net) * whole)
        found = largest_that_fits(sizes, lambda rows: _tries(run, net, session, rows, spare))
    else:
        there = memory_for(session)
        if there is None:
            return sizes[0]
        limit = FILLED * there
        found = largest_that_fits(
            sizes, lambda rows: sum(bytes_needed(run, net, session, rows).values()) <= limit
        )
    if found is None:
        check(run, net, session, 1)
        raise ValueError(
            f"train.micro_batch_size=auto: not even one row of {net.config.context_length} tokens "
            f"fits into the memory of {session.device}: lower model.context_length or model.d_model"
        )
    session.say(f"train.micro_batch_size=auto: {found} rows per forward pass")
    return found


def largest_that_fits(sizes: Iterable[int], fits: Callable[[int], bool]) -> int | None:
    """The first of `sizes`, largest first, for which `fits` is true; None if it never is."""
    return next((size for size in sizes if fits(size)), None)


def _tries(run: Run, net: Model, session: Session, rows: int, spare: int) -> bool:
    """Whether a forward and a backward pass fit beside `spare` bytes, the optimizer's state."""
    place = session.device
    try:
        held = torch.empty(spare, dtype=torch.uint8, device=place)
        ids = torch.zeros((rows, net.config.context_length), dtype=torch.int64, device=place)
        with device.repeatable(place, run.train.deterministic, compiled=False):
            torch.autograd.backward(net.loss(ids, ids, dtype=session.dtype))
        del held
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        for parameter in net.parameters():
            parameter.grad = None
        torch.cuda.empty_cache()


def _rough(net: Model, rows: int) -> float:
    """An upper bound of the bytes of a step: 28 per weight, 34 D + 4 F numbers per token.

    A weight, its gradient and AdamW's moments take 16, parts that FSDP has unsharded 12.

    Source of the activations: Korthikanti et al. 2022, "Reducing Activation Recomputation".
    """
    config = net.config
    tokens = rows * config.context_length
    width = 34 * config.d_model + 4 * config.feedforward_width
    scores = 4 * config.n_heads * config.context_length
    return 28 * net.n_parameters() + tokens * (
        4 * config.n_layers * (width + scores) + 12 * net.embedding.num_embeddings
    )


def _unsharded(net: Model) -> int:
    """Bytes of what FSDP has whole at once: the root with its gradients, two blocks and one's.

    The second block is fetched while the first computes (`distributed.spread` makes the units).
    """
    blocks = [sum(p.numel() for p in block.parameters()) for block in net.blocks]
    root = net.n_parameters() - sum(blocks)
    return 8 * root + 12 * max(blocks, default=0)


def _trained_share(net: Model) -> float:
    """The share of the parameters that have gradients and a state of the optimizer."""
    return finetuning.trainable(net) / net.n_parameters()


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
