"""Ranks of one run: processes for a function, or started by torchrun for the command."""

import io
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from tinylm.train.distributed import meeting
from tinylm.train.processes import Place
from tinylm.train.session import Session

SECONDS = 400


def session(place: Place) -> Session:
    """A silent session on the CPU in float32."""
    return Session(
        device=torch.device("cpu"),
        dtype=torch.float32,
        rank=place.rank,
        world=place.world,
        say=lambda text: None,
        mode=place.mode,
    )


def spawn(
    world: int,
    mode: str,
    function: Callable[..., Any],
    *arguments: Any,
    before: Callable[[], None] | None = None,
) -> list[Any]:
    """`function(session, *arguments)` in each of `world` new processes; their results by rank.

    Each calls `before` first. They are forks of a process that has imported torch and done nothing
    else: a fork of this one would have no autograd if a test before had started its threads.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(
            target=_run,
            args=(Place(rank, rank, world, mode), port, pipe[1], before, function, arguments),
        )
        for rank, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, inside in pipes:
        # So that a rank that died without an answer is an end of file here, and no hang.
        inside.close()
    try:
        results = []
        for ours, _ in pipes:
            assert ours.poll(SECONDS), "a rank gives no answer"
            results.append(torch.load(io.BytesIO(ours.recv_bytes())))
        return results
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()


def _run(
    place: Place,
    port: int,
    answer: Any,
    before: Callable[[], None] | None,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    if before is not None:
        before()
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    mine = session(place)
    with meeting(place, mine):
        # A tensor that is sent as it is would be memory of this process, which ends.
        torch.save(function(mine, *arguments), whole := io.BytesIO())
        answer.send_bytes(whole.getvalue())


def torchrun(world: int, *arguments: str) -> list[str]:
    """The command that starts a training in `world` processes of this machine."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*run, "--nproc-per-node", str(world), "-m", "tinylm.train", *arguments]


def finished(
    world: int, *arguments: str, within: float = SECONDS
) -> "subprocess.CompletedProcess[str]":
    """The training in `world` processes when it has ended."""
    command = torchrun(world, *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=within)
