"""What the Rust threads make, as batches on a device.

A batch is one block of memory with its arrays one after the other. On the CPU its tensors are
views of that block, and the block is filled again once the last tensor of it is gone. For CUDA the
blocks are pinned, and a block goes over in one copy beside the model's work: the device waits for
it, the training thread does not.
"""

from collections import deque
from typing import TYPE_CHECKING, Any

from tinylm.data.batch import Batch

if TYPE_CHECKING:
    import torch

    from tinylm import _rust

# 65,436 is -100 in 16 bits, the target that does not count, and so no id.
_MAX_UINT16 = 2**16 - 100


def check_uint16(vocab_size: int, **wide: bool) -> None:
    """Raise ValueError for what batches of uint16 cannot hold: `wide` are settings that need more.

    A vocabulary fits if 65,436 is no id of it.
    """
    if vocab_size > _MAX_UINT16:
        raise ValueError(
            f"dtype=uint16 holds vocabularies of up to {_MAX_UINT16:,} ids, and this one has "
            f"{vocab_size:,}: use int32, or name the vocab_size of an array that has fewer"
        )
    for name, given in wide.items():
        if given:
            raise ValueError(f"dtype=uint16 has no room for what {name} needs: use int32")


class Stream:
    """The batches of `rows` from row `first_row` to before `end_row`, on `device`.

    `settings` are those of `_rust.Rows.stream`: the batch size, the rank, threads and so on.
    """

    def __init__(
        self,
        rows: "_rust.Rows",
        device: "torch.device",
        settings: dict[str, Any],
        first_row: int,
        end_row: int | None,
    ) -> None:
        import torch

        # Kept, so that the hot path imports nothing.
        self._torch, self._from_numpy = torch, torch.from_numpy
        self._device = device
        # Of copies that may not be finished: the event at the end, and the memory they read.
        self._copied: deque[tuple[Any, torch.Tensor]] = deque()
        memory = []
        if device.type == "cuda":
            self._beside: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # A stream without rows starts no thread and tells how large a batch is.
            shape = rows.stream(first_row=first_row, end_row=first_row, **settings).shape
            memory = pinned(_size(shape), settings["dtype"], settings["prefetch"] + 3)
        self._rust = rows.stream(first_row=first_row, end_row=end_row, memory=memory, **settings)
        self._shape = self._rust.shape
        # Of tokens and targets, if there is no more and they stay where they are.
        plain = device.type == "cpu" and not self._shape[2]
        self._plain = (2, *self._shape[:2]) if plain else None

    def next(self) -> Any:
        """The memory of the next batch, an array for `batch`, or None at the end."""
        return self._rust.next()

    def batch(self, array: Any) -> Batch:
        """The batch whose memory `next` gave."""
        if self._plain is not None:
            # Cut by NumPy, as two operations of torch less are 3 us less.
            tokens, targets = array.reshape(self._plain)
            return Batch(self._from_numpy(tokens), self._from_numpy(targets))
        block = self._from_numpy(array)
        if self._device.type == "cuda":
            block = self._over(block)
        elif self._device.type != "cpu":
            block = block.to(self._device)
        return Batch.of_block(block, *self._shape)

    def _over(self, block: "torch.Tensor") -> "torch.Tensor":
        """The block on the device; what is queued there later waits for the copy."""
        cuda = self._torch.cuda
        # Memory whose copy is done may be filled again, and no other.
        while self._copied and self._copied[0][0].query():
            self._copied.popleft()
        now = cuda.current_stream(self._device)
        with cuda.stream(self._beside):
            there = block.to(self._device, non_blocking=True)
            done = self._beside.record_event()
        self._copied.append((done, block))
        now.wait_event(done)
        # It was set aside by the other stream, which must not give it to another while it is used.
        there.record_stream(now)
        return there

    def close(self) -> None:
        """End the threads; batches that were given stay as they are."""
        self._rust.close()


def pinned(size: int, dtype: str, n: int) -> list[Any]:
    """`n` arrays of `size` elements in memory that a GPU can read by itself."""
    import torch

    kind = getattr(torch, dtype)
    return [torch.empty(size, dtype=kind, pin_memory=True).numpy() for _ in range(n)]


def _size(shape: tuple[int, int, int]) -> int:
    """Elements of a batch of this shape (rows, row length, ends)."""
    rows, length, ends = shape
    return rows * ((4 if ends else 2) * length + ends)
