"""Quantisation-aware training: matrices that compute with the numbers that fewer bits would leave.

    net's matrices become `FakeQuantised`          quantise(net, Grid("int4", 32))
    share 0: as they were; 1: as they will be      set_share(net, 0.5)

The weights stay float32 and are what the optimizer moves (the masters); each product is computed
with them mixed with their quantised form, whose share rises from 0 to 1 during the run. At 1 the
model computes what the packed one will compute (`tinylm.ops.fake`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from tinylm import ops
from tinylm.layers.freezing import matches
from tinylm.layers.linear import Linear
from tinylm.layers.lora import matrices, put
from tinylm.ops.fake import Bits, refusal


@dataclass(frozen=True)
class Grid:
    """The numbers that a matrix may have: its bits, and for int4 the weights that share a scale."""

    bits: Bits
    group: int = 32
    # The share of the quantised weights in what is computed.
    share: float = 1.0
    # Full names of matrices that have int8 instead.
    kept: tuple[str, ...] = ()

    def describe(self) -> str:
        """Such as "int4 in groups of 32, but 4 matrices int8"."""
        words = f"{self.bits} in groups of {self.group}" if self.bits == "int4" else self.bits
        return f"{words}, but {len(self.kept)} matrices int8" if self.kept else words

    def bits_of(self, name: str) -> Bits:
        """The bits of the matrix with this full name."""
        return "int8" if name in self.kept else self.bits


class FakeQuantised(Linear):
    """A `Linear` with the weights of `base` that computes with those of a `Grid`, or of `bits`."""

    share: Tensor

    def __init__(self, base: Linear, grid: Grid, bits: Bits | None = None) -> None:
        # On no device: the weights are those of `base`.
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.roles, self.deviation = base.roles, base.deviation
        self.grid, self.bits = grid, grid.bits if bits is None else bits
        # A tensor, so that a compiled step serves every share. It follows from the step of a run
        # and is no part of the state.
        self.register_buffer("share", self.weight.new_tensor(grid.share), persistent=False)
        # Where it is 0 the product is that of `Linear`, and costs no more.
        self.active = grid.share > 0
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        if not self.active:
            return super().forward(x)
        weight = ops.fake_weight(self.weight, self.share, self.bits, self.grid.group)
        x = ops.fake_rows(x, self.share) if self.bits == "ternary" else x
        return ops.linear(x, weight, self.bias)

    @torch.no_grad()
    def set_share(self, share: float) -> None:
        """Compute with this share (0 to 1) of the quantised weights from now on."""
        if share != self.grid.share:
            self.grid = replace(self.grid, share=share)
            self.share.fill_(share)
            self.active = share > 0


def fakes(net: nn.Module) -> Iterator[FakeQuantised]:
    """The matrices of a model that compute with fewer bits."""
    return (part for _, part in matrices(net) if isinstance(part, FakeQuantised))


def grid_of(net: nn.Module) -> Grid | None:
    """The grid of a model's matrices; None for a plain model."""
    found = next(fakes(net), None)
    return None if found is None else found.grid


def quantise(net: nn.Module, grid: Grid) -> None:
    """Let every matrix of a model compute on `grid`, in place; weights and names stay.

    `ValueError` names the first matrix whose width does not fit.
    """
    plain(net)
    known = dict(matrices(net))
    for name, part in known.items():
        if problem := refusal(part.in_features, grid.bits_of(name), grid.group):
            raise ValueError(f"{grid.bits}: {name}: {problem}")
    for name, part in known.items():
        put(net, name, FakeQuantised(part, grid, grid.bits_of(name)))


def named(net: nn.Module, entries: Sequence[str]) -> tuple[str, ...]:
    """The matrices that entries name, as `train.freeze` names parts; `ValueError` for none."""
    found: dict[str, None] = {}
    known = [name for name, _ in matrices(net)]
    for entry in entries:
        mine = [name for name in known if matches(name, entry)]
        if not mine:
            raise ValueError(f"{entry}: names no matrix; there are {', '.join(known[:7])}, ...")
        found |= dict.fromkeys(mine)
    return tuple(found)


def plain(net: nn.Module) -> None:
    """Give a model its plain matrices back, in place, with their weights of training."""
    for name, part in dict(matrices(net)).items():
        if isinstance(part, FakeQuantised):
            with torch.device("meta"):
                made = Linear(part.in_features, part.out_features, bias=part.bias is not None)
            made.weight, made.bias = part.weight, part.bias
            made.roles, made.deviation = part.roles, part.deviation
            put(net, name, made.train(part.training))


def set_share(net: nn.Module, share: float) -> None:
    """Set the share (0 to 1) of the quantised weights; a plain model has none."""
    for part in fakes(net):
        part.set_share(share)


def described(net: nn.Module) -> dict[str, Any] | None:
    """What a config.json says of a model that computes on a grid; None where it does not."""
    grid = grid_of(net)
    return None if grid is None or not grid.share else {**asdict(grid), "kept": [*grid.kept]}


def read(content: Any) -> Grid:
    """The grid that `described` wrote; `ValueError` names what is wrong."""
    rules: dict[str, Callable[[Any], bool]] = {
        "bits": lambda value: value in get_args(Bits),
        "group": lambda value: value in ops.GROUPS,
        "share": lambda value: type(value) in (int, float) and 0 < value <= 1,
        "kept": lambda value: isinstance(value, list) and all(type(name) is str for name in value),
    }
    if not isinstance(content, Mapping) or content.keys() != rules.keys():
        raise ValueError(f"qat={content!r}: expected the keys {', '.join(rules)}")
    for key, fits in rules.items():
        if not fits(content[key]):
            raise ValueError(
                f"qat.{key}={content[key]!r}: expected bits of {', '.join(get_args(Bits))}, a "
                "group of 32, 64 or 128, a share above 0 and at most 1, and names that are kept"
            )
    return Grid(**{**content, "kept": tuple(content["kept"])})
