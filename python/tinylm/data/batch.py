"""What a loader gives: the tokens of some rows, and what belongs to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """`tokens[B, T]` and `targets[B, T]`, the token after each; -100 where it does not count.

    Where a row holds pieces of several documents, `positions[B, T]` counts from 0 in each piece
    and `documents[B, T]` numbers the documents. Both are None if every row is one
    piece: then the positions of every row are 0 to T - 1, and every row is one document.

    Packed rows also have `ends[B, P]`: where each piece ends in its row, and T for the padding and
    for pieces that a row does not have. P is the same for all batches of a dataset.
    """

    tokens: "torch.Tensor"
    targets: "torch.Tensor"
    positions: "torch.Tensor | None" = None
    documents: "torch.Tensor | None" = None
    ends: "torch.Tensor | None" = None

    @classmethod
    def of_block(cls, block: "torch.Tensor", rows: int, length: int, ends: int) -> "Batch":
        """The arrays that lie one after the other in `block` [n], as views.

        They are tokens, targets and, if there are `ends` per row, positions, documents and ends.
        """
        if not ends:
            tokens, targets = block.view(2, rows, length)
            return cls(tokens, targets)
        size = 4 * rows * length
        tokens, targets, positions, documents = block[:size].view(4, rows, length)
        return cls(tokens, targets, positions, documents, block[size:].view(rows, ends))

    def pin_memory(self) -> "Batch":
        """The same in memory that a GPU reads by itself, as torch's DataLoader asks for it."""
        parts = (self.tokens, self.targets, self.positions, self.documents, self.ends)
        return Batch(*(None if part is None else part.pin_memory() for part in parts))  # type: ignore[arg-type]

    def long(self) -> "Batch":
        """Tokens and targets as int64 with -100 where a target does not count.

        For batches of uint16, in which 65,436 stands for it: the same 16 bits.
        """
        import torch

        targets = self.targets.long()
        if self.targets.dtype == torch.uint16:
            targets = torch.where(targets == 2**16 - 100, -100, targets)
        return Batch(self.tokens.long(), targets, self.positions, self.documents, self.ends)

    @property
    def cu_seqlens(self) -> "torch.Tensor":
        """The ends of all pieces in the flattened tokens -> int32 [B P + 1], ascending from 0.

        What kernels for sequences of several lengths take, as flash-attn's `varlen` functions do.
        Its size never changes, so a compiled step is not compiled again: pieces that a row does
        not have are of length 0. Raises ValueError if the rows are not packed.
        """
        if self.ends is None:
            raise ValueError("cu_seqlens: these rows are not packed: use Loader(pack=True)")
        import torch

        rows, length = self.tokens.shape
        begins = torch.arange(0, rows * length, length, device=self.ends.device)[:, None]
        ends = (self.ends + begins).flatten().to(torch.int32)
        return torch.nn.functional.pad(ends, (1, 0))

    @property
    def max_seqlen(self) -> int:
        """The longest that a piece can be: T."""
        return self.tokens.size(1)

    @classmethod
    def joined(cls, batches: Sequence["Batch"]) -> "Batch":
        """The rows of several batches of one length, in order."""
        if len(batches) == 1:
            return batches[0]
        import torch

        def all_of(name: str) -> Any:
            parts = [getattr(batch, name) for batch in batches]
            return None if parts[0] is None else torch.cat(parts)

        return cls(*map(all_of, ("tokens", "targets", "positions", "documents", "ends")))

    def cut(self, length: int, batches: int, order: "torch.Tensor") -> "Batch":
        """The rows of several joined batches as pieces [., length], in a new order.

        Piece number n of a row is counted through all batches: those of the row at this place in
        the first batch, then in the second, and so on. `order` [batches T / length] int64 names
        the numbers in their new order, the same for all places of a batch. Without `positions`
        each piece begins at 0.
        """

        def arranged(x: "torch.Tensor") -> "torch.Tensor":
            # [batches, rows, pieces, n] to [batches pieces, rows, n].
            apart = x.view(batches, -1, *x.shape[1:]).transpose(1, 2)
            return apart.flatten(0, 1)[order.to(x.device)].flatten(0, 1)

        def pieces(x: "torch.Tensor | None") -> Any:
            return None if x is None else arranged(x.view(x.size(0), -1, length))

        ends = self.ends
        if ends is not None:
            import torch

            # As each piece of a row sees them.
            begins = torch.arange(0, self.max_seqlen, length, device=ends.device)[:, None]
            ends = arranged((ends[:, None] - begins).clamp(0, length))
        tokens, targets = pieces(self.tokens), pieces(self.targets)
        return Batch(tokens, targets, pieces(self.positions), pieces(self.documents), ends)

    def rows(self, which: slice) -> "Batch":
        """The rows `which` of every tensor, without a copy: a micro-batch."""
        return Batch(
            self.tokens[which],
            self.targets[which],
            None if self.positions is None else self.positions[which],
            None if self.documents is None else self.documents[which],
            None if self.ends is None else self.ends[which],
        )
