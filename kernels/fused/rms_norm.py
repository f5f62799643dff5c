"""RMSNorm, forward and backward, alone and of the sum of a residual stream and a branch.

    y  = s r weight                      r = 1 / sqrt(mean(s^2) + eps), n = s r
    ds = r (weight dy - n mean(n weight dy))
    dw = sum over rows of dy n

s is x, or x + branch: then the sum is an output too, and the gradient that reaches it is added to
ds, all in the same pass over memory. Source: Zhang and Sennrich 2019, equation 4. Kernels, tiles,
costs and tables are in `norm_rows` and `norms`. Defined by `tinylm.ops.rms_norm` and
`add_rms_norm`, held to them by the rungs of the same names.
"""

# torch's functions that register operations have no types.
# mypy: disable-error-code="no-untyped-call"

from typing import Any

import torch
from torch import Tensor

from tinylm.kernels import norms
from tinylm.kernels.library import register
from tinylm.kernels.norm_operations import (
    differentiable,
    fake_gradients,
    fake_pair,
    or_empty,
    passed_on,
)

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] and weight [D] to y [..., D], contiguous, in the dtype of x."""
    return norms.forward("rms_norm", x, None, weight, None, eps, centred=False)[1]


def backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> Pair:
    """dy and x [..., D] and weight [D] to dx, as x, and dw, as weight."""
    found = norms.backward("rms_norm", None, dy, x, weight, eps, centred=False, x=x.dtype)
    return found.dx, found.dweight


def add_forward(x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> Pair:
    """x and branch [..., D] and weight [D] to x + branch, in torch's common dtype, and its norm."""
    return norms.forward("add_rms_norm", x, branch, weight, None, eps, centred=False)


def add_backward(
    dtotal: Tensor | None,
    dy: Tensor,
    total: Tensor,
    weight: Tensor,
    eps: float,
    x: torch.dtype,
    branch: torch.dtype,
) -> Triple:
    """Gradients of the sum (None: it had no other use) and its norm to those of the inputs.

    Returns dx in the dtype `x`, dbranch in the dtype `branch`, and dw. If both dtypes are one,
    then dx is both gradients, and dbranch is empty.
    """
    found = norms.backward(
        "add_rms_norm", dtotal, dy, total, weight, eps, centred=False, x=x, branch=branch
    )
    return found.dx, or_empty(found.dbranch, total), found.dweight


def _forward_fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    norms.check("rms_norm", x, weight)
    return x.new_empty(x.shape)


def _backward_fake(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> Pair:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _add_forward_fake(x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> Pair:
    norms.check("add_rms_norm", x, weight, branch=branch)
    return fake_pair(x, branch)


def _add_backward_fake(
    dtotal: Tensor | None,
    dy: Tensor,
    total: Tensor,
    weight: Tensor,
    eps: float,
    x: torch.dtype,
    branch: torch.dtype,
) -> Triple:
    return *fake_gradients(total, x, branch), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    dx, dw = torch.ops.tinylm.rms_norm_backward(dy, *ctx.saved_tensors, ctx.eps)
    return dx, dw, None


def _add_save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Pair) -> None:
    x, branch, weight, ctx.eps = inputs
    ctx.dtypes = x.dtype, branch.dtype
    # One of the two outputs may have no use: then its gradient is None and not zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], weight)


def _add_gradients(ctx: Any, dtotal: Tensor | None, dy: Tensor | None) -> Any:
    if dy is None:
        return *passed_on(dtotal, ctx.dtypes), None, None
    dx, dbranch, dw = torch.ops.tinylm.add_rms_norm_backward(
        dtotal, dy, *ctx.saved_tensors, ctx.eps, *ctx.dtypes
    )
    return dx, dx if ctx.dtypes[0] == ctx.dtypes[1] else dbranch, dw, None


register("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", forward, _forward_fake)
register(
    "rms_norm_backward(Tensor dy, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    backward,
    _backward_fake,
)
register(
    "add_rms_norm(Tensor x, Tensor branch, Tensor weight, float eps) -> (Tensor, Tensor)",
    add_forward,
    _add_forward_fake,
)
register(
    "add_rms_norm_backward(Tensor? dtotal, Tensor dy, Tensor total, Tensor weight, float eps, "
    "ScalarType x, ScalarType branch) -> (Tensor, Tensor, Tensor)",
    add_backward,
    _add_backward_fake,
)
differentiable("rms_norm", _gradients, _save)
differentiable("add_rms_norm", _add_gradients, _add_save)
