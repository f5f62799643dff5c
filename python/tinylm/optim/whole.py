"""What an optimizer must know of weights that are only parts: their whole shapes and norms.

Most of an optimizer is elementwise, and works on a part of a weight as on the whole. The two
things that are not go through a `Whole`: the norm of the gradients, and Muon's update, which takes
a whole matrix. Where the weights of a run are spread over processes, a `Whole` of theirs is given.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Whole:
    """Of one process, where every tensor is whole."""

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

        `updates` belong to weights of one whole `shape` [..., rows, columns]; they and the results
        are the parts of this process.
        """
        stacked = torch.stack([*updates])
        return list(function(stacked.view(-1, *shape[-2:])).view_as(stacked).unbind())
