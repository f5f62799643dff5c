"""What decoding keeps of the tokens it has seen: the keys and values of every layer."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tinylm.model import Model


class LayerKV:
    """Keys and values of one layer in one buffer [B, K, max_length, head] each."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [B, K, T, head] to all keys and values so far [B, K, S, head]."""
        end = self.length + k.size(2)
        self.k[:, :, self.length : end] = k
        self.v[:, :, self.length : end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]

    def select(self, rows: Tensor) -> "LayerKV":
        """The sequences `rows` [N] in buffers of their own; only what is filled is copied."""
        taken = LayerKV(*(x.new_empty(rows.numel(), *x.shape[1:]) for x in (self.k, self.v)))
        taken.append(self.k[rows, :, : self.length], self.v[rows, :, : self.length])
        return taken


class Contiguous:
    """One buffer a layer, filled from the left; `length` tokens are in it.

    Memory: 2 L B K head max_length numbers. Appending past `max_length` raises `ValueError`.
    """

    def __init__(self, layers: list[LayerKV], max_length: int) -> None:
        self.layers, self.max_length = layers, max_length

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""
        return self.layers[0].length

    def reserve(self, tokens: int) -> None:
        """Raise `ValueError` unless `tokens` more fit."""
        if self.length + tokens > self.max_length:
            raise ValueError(
                f"{self.length} + {tokens} tokens do not fit a cache of {self.max_length}: "
                f"build a longer one or clear it"
            )

    def clear(self) -> None:
        """Forget every token; the buffers stay."""
        for layer in self.layers:
            layer.length = 0

    def select(self, rows: Tensor) -> "Contiguous":
        """A cache of the sequences `rows` [N] int64 of this one, in that order; a row may repeat.

        Repeating gives one prompt to several continuations, leaving out drops the finished.
        """
        return Contiguous([layer.select(rows) for layer in self.layers], self.max_length)


def build(
    model: "Model",
    batch_size: int,
    max_length: int,
    kind: Literal["contiguous"] = "contiguous",
) -> Contiguous:
    """An empty cache for `batch_size` sequences of at most `max_length` tokens.

    `max_length` is at most the model's context length; the buffers take the dtype that the
    model computes in.
    """
    limit = model.config.context_length
    if not 1 <= max_length <= limit:
        raise ValueError(f"max_length={max_length}: must be 1 to the context length, {limit}")
    if kind != "contiguous":
        raise ValueError(f"kind={kind}: the cache is contiguous")
    weight = model.embedding.weight
    dtype = weight.dtype
    if torch.is_autocast_enabled(weight.device.type):
        dtype = torch.get_autocast_dtype(weight.device.type)
    layers = []
    for block in model.blocks:
        heads, size = block.attention.state_shape()
        shape = (batch_size, heads, max_length, size)
        empty = [torch.empty(shape, dtype=dtype, device=weight.device) for _ in "kv"]
        layers.append(LayerKV(*empty))
    return Contiguous(layers, max_length)
