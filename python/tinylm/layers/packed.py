"""Matrices and tables whose weights are kept in 8 or 4 bits, for a model that is not trained.

    pack(net, "blocks.0.attention.q", *FORMATS["int8"].pack(weight))

Each has two buffers, `packed` and `scales`, of which `tinylm.reference.quant` says what they mean;
`weight` widens them. A format is a row of `FORMATS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tinylm import ops
from tinylm.config import Role
from tinylm.layers.linear import Embedding, Head, Linear, TiedHead, bent
from tinylm.layers.lora import LowRank, matrices, put
from tinylm.ops.dtypes import widened
from tinylm.ops.quant import GROUPS
from tinylm.ops.rounding import SCALES
from tinylm.ops.ternary import PER_BYTE


@dataclass(frozen=True)
class Format:
    """How a matrix [N, K] is kept."""

    # x [..., K], packed, scales and a bias to x W^T + b.
    product: Callable[..., Tensor]
    # packed and scales to the weight [N, K] in the dtype of scales.
    widen: Callable[[Tensor, Tensor], Tensor]
    # N, K and the group to an empty packed and scales.
    empty: Callable[[int, int, int | None], tuple[Tensor, Tensor]]


def _empty_int8(rows: int, width: int, group: int | None) -> tuple[Tensor, Tensor]:
    return torch.empty(rows, width, dtype=torch.int8), torch.empty(rows)


def _empty_int4(rows: int, width: int, group: int | None) -> tuple[Tensor, Tensor]:
    packed = torch.empty(rows, width // 2, dtype=torch.uint8)
    return packed, torch.empty(rows, width // (group or width), dtype=SCALES)


def _empty_ternary(rows: int, width: int, group: int | None) -> tuple[Tensor, Tensor]:
    return torch.empty(rows, width // PER_BYTE, dtype=torch.uint8), torch.empty(1)


FORMATS: dict[str, Format] = {
    "int8": Format(ops.linear_int8, ops.dequantise_int8, _empty_int8),
    "int4": Format(ops.linear_int4, ops.dequantise_int4, _empty_int4),
    "ternary": Format(ops.linear_ternary, ops.dequantise_ternary, _empty_ternary),
    # Inputs in int8 as well (`PackedStatic`).
    "static": Format(ops.linear_int8, ops.dequantise_int8, _empty_int8),
}


class PackedLinear(nn.Module):
    """x [..., in] to x W^T + b [..., out], where W is packed."""

    packed: Tensor
    scales: Tensor
    roles: ClassVar[dict[str, Role]] = {"bias": "gain"}

    def __init__(
        self, packed: Tensor, scales: Tensor, bias: Tensor | None, *, form: str, inputs: int
    ) -> None:
        super().__init__()
        self.form, self.in_features, self.out_features = form, inputs, len(packed)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weight [out, in] in float32, or in the wider dtype of its scales, made each time."""
        # In 16 bits, numbers times their scales would be rounded, which products do not do.
        return FORMATS[self.form].widen(self.packed, widened(self.scales))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        return FORMATS[self.form].product(x, self.packed, self.scales, self.bias)

    def flops(self, context_length: int) -> int:
        """Operations per weight and token, as of a frozen `Linear`."""
        return 4 * self.in_features * self.out_features


class PackedStatic(PackedLinear):
    """A `PackedLinear` in int8 whose inputs are rounded to 8 bits, by one scale for all of them."""

    input_scale: Tensor

    def __init__(
        self, packed: Tensor, scales: Tensor, bias: Tensor | None, *, form: str, inputs: int
    ) -> None:
        super().__init__(packed, scales, bias, form=form, inputs=inputs)
        # `tinylm.quant.activations` measures it.
        self.register_buffer("input_scale", torch.ones((), device=packed.device))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        return ops.linear_static(x, self.input_scale, self.packed, self.scales, self.bias)


class PackedHead(PackedLinear):
    """x [..., D] to logits [..., V] by a packed matrix of its own."""

    softcap: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to [..., V]."""
        return bent(super().forward(x), self.softcap)


class PackedEmbedding(nn.Module):
    """Ids [...] to rows [..., D] of a table in int8; a tied head multiplies by the same table."""

    packed: Tensor
    scales: Tensor

    def __init__(self, packed: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = packed.shape
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> Tensor:
        """The table [V, D], made each time."""
        return ops.dequantise_int8(self.packed, self.scales)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [...] to rows [..., D]."""
        return ops.dequantise_int8(self.packed[ids], self.scales[ids])

    def project(self, x: Tensor) -> Tensor:
        """x [..., D] to its products with all rows [..., V]."""
        return ops.linear_int8(x, self.packed, self.scales)


def pack(net: nn.Module, name: str, form: str, packed: Tensor, scales: Tensor) -> None:
    """Put a packed matrix, or the packed table or head of a model, in place of `name`."""
    part = net.get_submodule(name)
    new: nn.Module
    if isinstance(part, Embedding):
        new = PackedEmbedding(packed, scales)
    else:
        assert isinstance(part, Linear)
        kind = PackedHead if isinstance(part, Head) else PackedLinear
        kind = PackedStatic if form == "static" else kind
        new = kind(packed, scales, part.bias, form=form, inputs=part.in_features)
        if isinstance(new, PackedHead):
            new.softcap = part.softcap  # type: ignore[assignment]
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, new.train(part.training))
    if isinstance(new, PackedEmbedding) and isinstance(net.head, TiedHead):
        net.head = TiedHead(new, softcap=net.head.softcap)


def make_static(net: nn.Module, name: str, input_scale: float) -> None:
    """Let a packed int8 matrix round its inputs by a scale, in place."""
    part = net.get_submodule(name)
    assert isinstance(part, PackedLinear)
    new = PackedStatic(part.packed, part.scales, part.bias, form="static", inputs=part.in_features)
    new.input_scale.fill_(input_scale)
    put(net, name, new.train(part.training))


def check_group(net: nn.Module, group: int | None) -> None:
    """Raise `ValueError` naming the first matrix whose width the group does not divide."""
    for name, part in matrices(net):
        if group is not None and part.in_features % group:
            fits = [str(size) for size in GROUPS if part.in_features % size == 0]
            advice = f"group={' or '.join(fits)} does" if fits else "method=int8 takes any width"
            raise ValueError(
                f"group={group} does not divide the {part.in_features} inputs of {name}: {advice}"
            )


def tables(net: nn.Module) -> list[str]:
    """The names of the parts whose size is the vocabulary: the embedding, and an untied head."""
    return ["embedding", *(["head"] if isinstance(net.head, Head) else [])]


def hollow(net: nn.Module, settings: Mapping[str, Any]) -> None:
    """Make the matrices of a model packed ones, empty, as the settings of a folder say.

    `settings` has `matrices`, a name of `FORMATS`, `group`, the names `kept` in int8 in spite of
    it, and `embedding`, int8 or float.
    """
    group = settings["group"]
    check_group(net, group)
    for name, part in [*matrices(net)]:
        form = "int8" if name in settings["kept"] else settings["matrices"]
        empty = FORMATS[form].empty(part.out_features, part.in_features, group)
        pack(net, name, form, *empty)
    if settings["embedding"] == "int8":
        for name in tables(net):
            rows, width = net.get_parameter(f"{name}.weight").shape
            pack(net, name, "int8", *_empty_int8(rows, width, None))


def is_float(net: nn.Module) -> bool:
    """Whether a model has neither packed matrices nor adapters."""
    return not any(isinstance(p, PackedLinear | PackedEmbedding | LowRank) for p in net.modules())
