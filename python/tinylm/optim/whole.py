"""What an optimizer asks about weights of which its process may hold only some rows.

Most of an optimizer is elementwise and works on some rows as on all. Two things do not: the norm of
the gradients, and Muon's update, which needs a whole matrix. Both go through a `Whole`. The class
here serves one process; `train.shards` has the one for weights spread over several.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Whole:
    """For a run in one process, where every tensor is a whole weight."""

    def shape(self, parameter: Tensor) -> torch.Size:
        """The shape of the whole weight that `parameter` is a part of."""
        return parameter.shape

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """2-norm of these gradients together (scalar)."""
        return nn.utils.get_total_norm(gradients)

    def update(
        self, updates: Sequence[Tensor], shape: torch.Size, function: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """Apply `function` ([N, rows, columns] to the same) to each of the whole updates.

        `updates` belong to weights of one whole `shape` [..., rows, columns]. They and the results
        are the rows that this process holds.
        """
        stacked = torch.stack([*updates])
        return list(function(stacked.view(-1, *shape[-2:])).view_as(stacked).unbind())
