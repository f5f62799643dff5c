"""Matrices and tables: products with a weight, and rows of an embedding."""

import math
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from tinylm import ops
from tinylm.config import Role


def bent(logits: Tensor, softcap: float | None) -> Tensor:
    """c tanh(z / c) of each logit z, where c is `softcap`; as they are without one.

    Source: Gemma Team 2024 (Gemma 2), section 2.
    """
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class Linear(nn.Linear):
    """x [..., in] to x W^T + b [..., out]; `branch` marks the last product of a residual branch."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, role: Role = "matrix", branch: bool = False
    ) -> None:
        # torch calls `reset_parameters` in here. Its own version would draw from the global
        # generator and so move the caller's random numbers.
        super().__init__(inputs, outputs, bias=bias)
        self.roles: dict[str, Role] = {"weight": role, "bias": "gain"}
        # Zero for the last product of a branch: every block begins as the identity. Zero for an
        # untied head: the first loss is log(vocab_size), whatever the seed. Both can leave zero,
        # because the gradient of a matrix depends on its input and not on its value.
        self.deviation = 0.0 if branch or role == "head" else 0.6 / math.sqrt(inputs)

    def reset_parameters(self) -> None:
        """Leave the new weights as they are: `start` draws them, from a generator of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        return ops.linear(x, self.weight, self.bias)

    def start(self, generator: torch.Generator) -> None:
        """Draw the starting weights, in place."""
        self.weight.normal_(0.0, self.deviation, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    def flops(self, context_length: int) -> int:
        """Forward 2, backward 4 operations per weight and token, 2 of them for its own gradient."""
        each = 6 if self.weight.requires_grad else 4
        return each * self.in_features * self.out_features


class Head(Linear):
    """x [..., D] to logits [..., V] by a matrix of its own."""

    def __init__(self, width: int, vocab_size: int, *, softcap: float | None = None) -> None:
        super().__init__(width, vocab_size, bias=False, role="head")
        self.softcap = softcap

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to [..., V]."""
        return bent(super().forward(x), self.softcap)


# Declares no `flops`: looking up a row multiplies nothing.
class Embedding(nn.Embedding):
    """Ids [...] to rows [..., D]."""

    roles: ClassVar[dict[str, Role]] = {"weight": "embedding"}

    def __init__(self, rows: int, width: int, *, deviation: float = 0.02) -> None:
        super().__init__(rows, width)
        self.deviation = deviation

    def reset_parameters(self) -> None:
        """Leave the new weights as they are: `start` draws them, from a generator of its own."""

    def start(self, generator: torch.Generator) -> None:
        """Draw the starting weights, in place."""
        self.weight.normal_(0.0, self.deviation, generator=generator)

    def project(self, x: Tensor) -> Tensor:
        """x [..., D] to its products with all rows [..., V]."""
        return ops.linear(x, self.weight)


class Table(Protocol):
    """An embedding as a tied head sees it."""

    @property
    def weight(self) -> Tensor:
        """The table [V, D]."""

    def project(self, x: Tensor) -> Tensor:
        """x [..., D] to its products with all rows [..., V]."""


class TiedHead(nn.Module):
    """x [..., D] to logits [..., V] by the rows of an embedding, which stays the embedding's."""

    def __init__(self, embedding: Table, *, softcap: float | None = None) -> None:
        super().__init__()
        self.softcap = softcap
        # In a tuple: a module that is an attribute would be saved and counted a second time.
        self._embedding = (embedding,)

    @property
    def weight(self) -> Tensor:
        """The embedding's weight [V, D]."""
        # Read through the module each time: a move to another device may replace the parameter.
        return self._embedding[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to [..., V]."""
        return bent(self._embedding[0].project(x), self.softcap)

    def flops(self, context_length: int) -> int:
        """Operations of the product, as of a `Linear`; looking up rows costs none."""
        return (6 if self.weight.requires_grad else 4) * self.weight.numel()
