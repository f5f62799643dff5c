"""Checkpoints that a thread writes while training goes on.

    with Writer(background=True) as writer:
        writer.write(path, content(model, None), then=lambda: purge(run, 2))

The tensors are copied first, so that the steps that follow cannot tear them: on the host, or from
CUDA into pinned memory, which no step waits for. The bytes on the disk are those that `write` would
have written at that moment. At most one checkpoint is being written.
"""

import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from tinylm.checkpoint.folder import Content, write


class Copies:
    """Copies of tensors on the host, in buffers that the next checkpoint uses again."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
        """Copy `tensors`; copies from CUDA are complete once the device has done its work."""
        taken = {}
        for name, tensor in tensors.items():
            key, cuda = f"{kind}/{name}", tensor.device.type == "cuda"
            old = self.buffers.get(key)
            if old is None or old.shape != tensor.shape or old.dtype != tensor.dtype:
                old = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=cuda)
                self.buffers[key] = old
            # Only of copies from CUDA the writer learns when they have arrived (`_arrival`).
            taken[name] = old.copy_(tensor.detach(), non_blocking=cuda)
        return taken

    def of(self, taken: Content) -> Content:
        """Return the content with copies in place of its tensors."""
        training = taken.training
        if training is not None:
            moments = self.take(training.optimizer, "optimizer")
            training = replace(training, optimizer=moments)
        return replace(taken, weights=self.take(taken.weights, "weights"), training=training)


class Writer(AbstractContextManager["Writer"]):
    """Writes one checkpoint after another, in a thread if `background`, or at once.

    An error of the thread, an `OSError` with the file's name as a rule, is raised by the next call
    of `write`, `check` or `wait`. Leaving the block waits; if an exception is on its way, an error
    of the thread is printed on standard error.
    """

    def __init__(self, *, background: bool) -> None:
        self.background = background
        self.copies = Copies()
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def write(self, folder: Path, taken: Content, *, then: Callable[[], object]) -> None:
        """Write a checkpoint, then call `then`; waits for the one before.

        In the background the tensors are copied before this returns.
        """
        self.wait()
        if not self.background:
            write(folder, taken)
            then()
            return
        arrived = _arrival(taken)
        copied = self.copies.of(taken)
        if arrived is not None:
            arrived.record()
        work = (folder.absolute(), copied, arrived, then)
        # A daemon: a process that is told to end at once leaves a draft, and no torn checkpoint.
        self.thread = threading.Thread(target=self._work, args=work, name="checkpoint", daemon=True)
        self.thread.start()

    def check(self) -> None:
        """Raise the error of a thread that has ended; waits for nothing."""
        if self.thread is not None and not self.thread.is_alive():
            self.wait()

    def settle(self) -> None:
        """Wait until no checkpoint is being written; its error is raised by the next call."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is on the disk; raise its error."""
        self.settle()
        error, self.error = self.error, None
        if error is not None:
            raise error

    def _work(
        self,
        folder: Path,
        taken: Content,
        arrived: "torch.cuda.Event | None",
        then: Callable[[], object],
    ) -> None:
        try:
            if arrived is not None:
                arrived.synchronize()
            write(folder, taken)
            then()
        except BaseException as error:
            self.error = error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except Exception as own:
            if error is None:
                raise
            # The exception that ends the block matters more, but this one must not be lost.
            print(f"the last checkpoint was not saved: {own}", file=sys.stderr)


def _arrival(taken: Content) -> "torch.cuda.Event | None":
    """An event for the arrival of copies, on the stream that the steps run on."""
    on_cuda = any(tensor.device.type == "cuda" for tensor in taken.weights.values())
    return torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]
