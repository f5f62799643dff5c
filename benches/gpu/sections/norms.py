"""RMSNorm and LayerNorm, forward and backward, alone and of a sum.

A tensor that is read or written counts once: forward x and y, backward x, dy and dx. The sum of
the residual stream and a branch is kept, and its gradient comes in: four tensors each way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benches.gpu.case import Backward, Case, Contest, Patient, Place, flat
from benches.gpu.peers import liger

EPS = 1e-5
# Rows of the outputs and their gradients that the gate looks at. The gradients of weight and bias
# are sums over all rows.
SEEN = 2048
# torch.compile takes seconds for each width: it is measured at this one.
COMPILED_AT = 4096


@dataclass(frozen=True)
class Norm:
    """A norm: our operation, torch's form, the formula, Liger's module and function.

    All take x, for the add forms a branch, a weight and, for LayerNorm, a bias.
    """

    name: str
    ours: str
    by_torch: Callable[..., Any]
    exact: Callable[..., Any]
    module: str
    function: str
    options: tuple[Any, ...] = ()
    matrices: int = 1
    vectors: int = 1


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """torch's own."""
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def exact_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """The formula."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """torch's own, which is the formula in float64 too."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def summed(norm: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The add form of a norm: the sum, and its norm."""

    def form(x: Tensor, branch: Tensor, *vectors: Tensor) -> tuple[Tensor, Tensor]:
        total = x + branch
        return total, norm(total, *vectors)

    return form


NORMS = (
    Norm(
        "rms_norm",
        "rms_norm",
        rms_norm,
        exact_rms_norm,
        "rms_norm",
        "LigerRMSNormFunction",
        (0.0, "llama", False),
    ),
    Norm(
        "add_rms_norm",
        "add_rms_norm",
        summed(rms_norm),
        summed(exact_rms_norm),
        "fused_add_rms_norm",
        "LigerFusedAddRMSNormFunction",
        (0.0, "llama", False),
        matrices=2,
    ),
    Norm(
        "layer_norm",
        "layer_norm",
        layer_norm,
        layer_norm,
        "layer_norm",
        "LigerLayerNormFunction",
        vectors=2,
    ),
)


def cases(place: Place) -> Iterator[Case]:
    """32,768 rows of four widths."""
    rows = place.sized(32768, 6)
    for norm in NORMS:
        for backward in (False, True):
            family = f"{norm.name} {'backward' if backward else 'forward'}"
            for width in place.sized((1024, 2048, 4096, 8192), (48,)):
                at = {"rows": rows, "width": width}
                yield Case(
                    family,
                    at,
                    lambda norm=norm, b=backward, width=width: contest(place, norm, rows, width, b),
                )


def seen(results: Any) -> tuple[Tensor, ...]:
    """The first rows of matrices, and vectors whole."""
    return tuple(x[:SEEN] if x.dim() > 1 else x for x in flat(results))


def contest(place: Place, norm: Norm, rows: int, width: int, backward: bool) -> Contest:
    """One norm at one width, forward or backward."""
    matrices = [place.randn(rows, width) for _ in range(norm.matrices)]
    inputs = (*matrices, *(place.randn(width) for _ in range(norm.vectors)))
    slopes = [place.randn(rows, width) for _ in range(norm.matrices)]

    def bound(f: Callable[..., Any]) -> Callable[[], Any]:
        return Backward(f, inputs, slopes) if backward else lambda: f(*inputs)

    def ours(*inputs: Tensor) -> Any:
        return getattr(torch.ops.tinylm, norm.ours)(*inputs, EPS)

    def by_liger(module: Any) -> Callable[[], Any]:
        function = getattr(module, norm.function)

        def apply(*inputs: Tensor) -> Any:
            found = function.apply(*inputs, EPS, *norm.options)
            # Liger's add form has the norm first and the sum second.
            return found[::-1] if norm.matrices > 1 else found

        return bound(apply)

    def want() -> Sequence[Tensor]:
        if not backward:
            return flat(norm.exact(*(x.double() for x in seen(inputs))))
        wide = Backward(norm.exact, [x.double() for x in inputs], [x.double() for x in slopes])
        return seen(wide())

    contenders = {"tinylm": bound(ours), "torch": bound(norm.by_torch)}
    if place.dry or width == COMPILED_AT:
        contenders["torch compiled"] = Patient(bound(place.compiled(norm.by_torch)))
    contenders["Liger"] = liger(place, norm.module, by_liger)
    return Contest(
        contenders,
        want,
        2e-2 if backward else 1e-2,
        pick=seen,
        bytes=2 * rows * width * (2 * norm.matrices + (backward and norm.matrices == 1)),
    )
