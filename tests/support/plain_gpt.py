"""The mathematics of nanoGPT without biases, in plain torch, and its weights as our gpt2 preset's.

    x = token + position          then per block    x = x + attention(norm(x))
    logits = E norm(x)                              x = x + W2 gelu(W1 norm(x))

GELU is the exact one, a norm has a gain alone, and head and token table are one matrix. Source: the
README and the settings of github.com/karpathy/nanoGPT.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class PlainBlock(nn.Module):
    """Attention and feedforward of one block, each on the normed stream [B, T, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] to the same shape."""
        length, width = x.shape[-2:]
        size = width // self.heads
        q, k, v = (
            part.unflatten(-1, (self.heads, size)).transpose(1, 2)
            for part in self.qkv(self.first(x)).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(size)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        seen = scores.masked_fill(later, -math.inf).softmax(-1) @ v
        x = x + self.out(seen.transpose(1, 2).flatten(-2))
        inner = self.up(self.second(x))
        gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        return x + self.down(gelu)


class PlainGPT(nn.Module):
    """Token ids [B, T] to logits [B, T, V]; every weight is random, so that each one matters."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(PlainBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.1 * noise if parameter.dim() > 1 else 1 + 0.1 * noise)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T] to logits [B, T, V]."""
        x = self.tokens(ids) + self.places(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood (nats) of targets [B, T]."""
        chosen = self(ids).log_softmax(-1).gather(-1, targets[..., None])
        return -chosen.mean()

    def matrices(self) -> list[nn.Parameter]:
        """The weights that decay: those of the blocks that have two axes."""
        return [p for p in self.blocks.parameters() if p.dim() == 2]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under the name that it has in our model."""
        yield "embedding.weight", self.tokens.weight
        yield "position.table.weight", self.places.weight
        for i, block in enumerate(self.blocks):
            for name, part in zip("qkv", block.qkv.weight.chunk(3), strict=True):
                yield f"blocks.{i}.attention.{name}.weight", part
            yield f"blocks.{i}.attention.o.weight", block.out.weight
            yield f"blocks.{i}.attention_norm.weight", block.first.weight
            yield f"blocks.{i}.feedforward_norm.weight", block.second.weight
            yield f"blocks.{i}.feedforward.up.weight", block.up.weight
            yield f"blocks.{i}.feedforward.down.weight", block.down.weight
        yield "norm.weight", self.norm.weight
