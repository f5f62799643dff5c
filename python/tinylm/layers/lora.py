"""Low-rank adapters: a matrix W stays as it is, and B A of a small rank is learned beside it.

    y = x W^T + b + (alpha / rank) dropout(x) A^T B^T

B starts at zero, so the first step begins at the base, bit for bit. Source: Hu et al. 2021 (LoRA).
"""

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from tinylm import ops
from tinylm.layers.linear import Linear


class LowRank(Linear):
    """A `Linear` with the frozen weights of `base`, and an adapter: A [rank, in], B [out, rank]."""

    def __init__(self, base: Linear, *, rank: int, alpha: float, dropout: float) -> None:
        # On no device: the weights are those of `base`.
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.roles = {**base.roles, "lora_A": "adapter", "lora_B": "adapter"}
        self.rank, self.alpha, self.dropout = rank, alpha, nn.Dropout(dropout)
        self.lora_A = nn.Parameter(self.weight.new_zeros(rank, self.in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        self.train(base.training)

    @property
    def scale(self) -> float:
        """The factor of the adapter's output."""
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        small = ops.linear(ops.linear(self.dropout(x), self.lora_A), self.lora_B)
        return super().forward(x) + self.scale * small

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Draw A uniformly within 1 / sqrt(in), as PEFT does; B is zero and the base as it was."""
        bound = 1 / math.sqrt(self.in_features)
        drawn = torch.empty(self.lora_A.shape).uniform_(-bound, bound, generator=generator)
        self.lora_A.copy_(drawn)
        self.lora_B.zero_()

    def flops(self, context_length: int) -> int:
        """As `Linear`, with the two small products."""
        small = 6 * self.rank * (self.in_features + self.out_features)
        return super().flops(context_length) + small

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain `Linear` with W + scale B A, summed in float32, in the dtype of W."""
        with torch.device("meta"):
            plain = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        plain.roles = {name: role for name, role in self.roles.items() if role != "adapter"}
        product = self.lora_B.float() @ self.lora_A.float()
        whole = (self.weight.float() + self.scale * product).to(self.weight.dtype)
        plain.weight, plain.bias = nn.Parameter(whole), self.bias
        return plain.train(self.training)


def matrices(net: nn.Module) -> Iterator[tuple[str, Linear]]:
    """The products of a model's matrices by their full names."""
    for name, module in net.named_modules():
        if isinstance(module, Linear) and module.roles["weight"] == "matrix":
            yield name, module


def adapters(net: nn.Module) -> dict[str, LowRank]:
    """The adapters of a model by the full names of their products."""
    return {name: part for name, part in matrices(net) if isinstance(part, LowRank)}


def adapt(
    net: nn.Module, *, rank: int, alpha: float, dropout: float, targets: Collection[str] = ()
) -> None:
    """Give products an adapter, in place, and take all else out of training.

    `targets` are last parts of names, such as q, or whole names; all matrices without any. The
    new A and B are zero: `LowRank.start` draws A. `ValueError` for a target that names nothing.
    """
    known = dict(matrices(net))
    short = {name: name.rpartition(".")[2] for name in known}
    for target in targets:
        if target not in known and target not in short.values():
            there = ", ".join(dict.fromkeys(short.values()))
            raise ValueError(f"lora.targets={target}: names no matrix; there are {there}")
    for name, part in known.items():
        if not targets or name in targets or short[name] in targets:
            put(net, name, LowRank(part, rank=rank, alpha=alpha, dropout=dropout))
    freeze_base(net)


def freeze_base(net: nn.Module) -> None:
    """Train the adapters and nothing else."""
    kept = {id(p) for part in adapters(net).values() for p in (part.lora_A, part.lora_B)}
    for parameter in net.parameters():
        parameter.requires_grad_(id(parameter) in kept)


def merge(net: nn.Module) -> None:
    """Put every adapter into its matrix, in place; all parameters are trained again."""
    for name, part in adapters(net).items():
        put(net, name, part.merged())
    net.requires_grad_()


def put(net: nn.Module, name: str, part: nn.Module) -> None:
    """Put a part in place of the module of this full name."""
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, part)
