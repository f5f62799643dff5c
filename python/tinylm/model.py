"""Token ids to logits: embedding, blocks, norm, head.

    model = build(ModelConfig(vocab_size=2048, d_model=192, n_layers=3, n_heads=3))
    loss = model.loss(tokens, targets)

Weights start as follows (the default run's probe: 1.35 bits per byte against 1.61 with
everything at 0.02; see docs/log.md):

| parameter                    | start                                        |
|------------------------------|----------------------------------------------|
| embeddings                   | normal, deviation 0.02                       |
| untied head, branch outputs  | zero: every block begins as the identity     |
| other matrices               | normal, deviation 0.6 / sqrt(inputs)         |
| norm weights, biases         | one, zero                                    |
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from tinylm import ops
from tinylm.cache import Contiguous
from tinylm.config import ModelConfig, Role, choose
from tinylm.layers import NORMS, POSITIONS, Block, Embedding, Linear


class Model(nn.Module):
    """A decoder-only transformer, GPT-2 or Llama or any mix of the registered parts."""

    def __init__(self, config: ModelConfig) -> None:
        """Allocate the weights; `build` also gives them their starting values."""
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size=null: give the size of the tokenizer's vocabulary")
        chosen = config.components()
        norm = choose(NORMS, "model.norm", chosen["norm"])
        position = choose(POSITIONS, "model.position", chosen["position"])
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.position = position(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(config) for _ in range(config.n_layers)
        )
        self.norm = norm(config.d_model, eps=config.norm_eps, bias=chosen["bias"])
        self.head = (
            None
            if config.tied
            else Linear(config.d_model, config.vocab_size, bias=False, role="head")
        )

    def forward(
        self, tokens: Tensor, *, cache: Contiguous | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """tokens [B, T] int to logits [B, T, V].

        With a `cache` the tokens follow those in it, which they may look at. `documents`
        [B, T] numbers the document of each token: a token looks only inside its own.
        Raises `ValueError` where the tokens pass the context length or the cache.
        """
        start = 0
        if cache is not None:
            cache.reserve(tokens.size(1))
            start = cache.length
        end = start + tokens.size(1)
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens pass the context length, {self.config.context_length}")
        if documents is not None and cache is not None:
            raise ValueError(
                "documents= and cache= exclude each other: decode one document at a time"
            )
        positions = slice(start, end)
        rotate = partial(self.position.rotate, positions=positions)
        mask = None if documents is None else _document_mask(documents)
        x = self.dropout(self.position.embed(self.embedding(tokens), positions))
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[i]
            x = block(x, rotate, mask=mask, cache=layer)
        x = self.norm(x)
        logits: Tensor = x @ self.embedding.weight.T if self.head is None else self.head(x)
        return logits

    def loss(self, tokens: Tensor, targets: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats (float32 scalar) over the targets [B, T] that are not -100."""
        return ops.cross_entropy(self(tokens, documents=documents), targets)

    def named_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """Every parameter once, with its full name and the role its part declares."""
        for prefix, module in self.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                roles: dict[str, Role] = getattr(module, "roles", {})
                if name not in roles:
                    raise ValueError(f"{type(module).__name__} declares no role for {full}")
                yield full, parameter, roles[name]

    def flops_per_token(self, context_length: int) -> int:
        """Operations of one training step a token: 6 a weight, 12 D T a layer of attention.

        Lookups and elementwise work are not counted. Source: Chowdhery et al. 2022, appendix B.
        """
        parts = (getattr(module, "flops", None) for module in self.modules())
        total = sum(part(context_length) for part in parts if part is not None)
        tied = 0 if self.head is not None else 6 * self.embedding.weight.numel()
        return int(total) + tied

    def describe(self) -> dict[str, int]:
        """Counts for the record of a run: parameters, without tables, operations per token."""
        return {
            "parameters": self.n_parameters(),
            "parameters_without_embedding": self.n_parameters(embedding=False),
            "flops_per_token": self.flops_per_token(self.config.context_length),
        }

    def n_parameters(self, embedding: bool = True) -> int:
        """Number of weights; without `embedding`, those of the token and position tables not."""
        return sum(
            parameter.numel()
            for _, parameter, role in self.named_roles()
            if embedding or role != "embedding"
        )


def build(
    config: ModelConfig,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Model:
    """A model with its starting weights, the same for the same seed on every device."""
    with torch.device("cpu"):
        model = Model(config)
    initialise(model, seed)
    return model.to(device=device, dtype=dtype)


@torch.no_grad()
def initialise(model: Model, seed: int) -> None:
    """Give every parameter its starting value (see the table above), in place."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        start = getattr(module, "start", None)
        if start is not None:
            start(generator)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Inside, no dropout and no gradients; afterwards each module trains again if it did."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _document_mask(documents: Tensor) -> Tensor:
    """Boolean [B, 1, T, T]: causal, and inside one document."""
    same = documents[:, None, :, None] == documents[:, None, None, :]
    length = documents.size(1)
    return same & ops.causal_mask(length, length, documents.device)
