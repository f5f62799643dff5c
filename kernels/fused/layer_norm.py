"""LayerNorm, forward and backward, alone and of the sum of a residual stream and a branch.

    y  = n weight + bias     n = (s - m) r, m = mean(s), r = 1 / sqrt(mean((s - m)^2) + eps)
    ds = r (g - mean(g) - n mean(n g))       g = weight dy
    dw = sum over rows of dy n               db = sum over rows of dy

s is x, or x + branch: then the sum is an output too, and the gradient that reaches it is added to
ds, all in the same pass over memory. Source: Ba et al. 2016, equation 4. The variance is the mean
of squared distances from the mean, never mean(s^2) - mean(s)^2, which cancels. Kernels, tiles,
costs and tables are in `norm_rows` and `norms`. Defined by `tinylm.ops.layer_norm` and
`add_layer_norm`, held to them by the rungs of the same names.
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
    fake_vectors,
    or_empty,
    passed_on,
)

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]
Quadruple = tuple[Tensor, Tensor, Tensor, Tensor]


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """x [..., D], weight and bias [D] to y [..., D], contiguous, in the dtype of x."""
    return norms.forward("layer_norm", x, None, weight, bias, eps, centred=True)[1]


def backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float, bias: torch.dtype | None) -> Triple:
    """dy and x [..., D] and weight [D] to dx, as x, dw, as weight, and db of the dtype `bias`.

    Without a bias (None) db is empty.
    """
    found = norms.backward(
        "layer_norm", None, dy, x, weight, eps, centred=True, x=x.dtype, bias=bias
    )
    return found.dx, found.dweight, or_empty(found.dbias, x)


def add_forward(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Pair:
    """x and branch [..., D] to x + branch, in torch's common dtype, and its norm."""
    return norms.forward("add_layer_norm", x, branch, weight, bias, eps, centred=True)


def add_backward(
    dtotal: Tensor | None,
    dy: Tensor,
    total: Tensor,
    weight: Tensor,
    eps: float,
    x: torch.dtype,
    branch: torch.dtype,
    bias: torch.dtype | None,
) -> Quadruple:
    """Gradients of the sum (None: it had no other use) and its norm to those of the inputs.

    Returns dx in the dtype `x`, dbranch in the dtype `branch`, dw, and db in the dtype `bias`. If
    the first two dtypes are one, then dx is both gradients, and dbranch is empty. Without a bias
    (None) db is empty.
    """
    found = norms.backward(
        "add_layer_norm",
        dtotal,
        dy,
        total,
        weight,
        eps,
        centred=True,
        x=x,
        branch=branch,
        bias=bias,
    )
    dbranch, dbias = (or_empty(each, total) for each in (found.dbranch, found.dbias))
    return found.dx, dbranch, found.dweight, dbias


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    norms.check("layer_norm", x, weight, bias=bias)
    return x.new_empty(x.shape)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, bias: torch.dtype | None
) -> Triple:
    dw, db = fake_vectors(weight, bias)
    return x.new_empty(x.shape), dw, db


def _add_forward_fake(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> Pair:
    norms.check("add_layer_norm", x, weight, branch=branch, bias=bias)
    return fake_pair(x, branch)


def _add_backward_fake(
    dtotal: Tensor | None,
    dy: Tensor,
    total: Tensor,
    weight: Tensor,
    eps: float,
    x: torch.dtype,
    branch: torch.dtype,
    bias: torch.dtype | None,
) -> Quadruple:
    return *fake_gradients(total, x, branch), *fake_vectors(weight, bias)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, float], output: Tensor) -> None:
    x, weight, bias, ctx.eps = inputs
    ctx.bias = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
    dx, dw, db = torch.ops.tinylm.layer_norm_backward(dy, *ctx.saved_tensors, ctx.eps, ctx.bias)
    return dx, dw, None if ctx.bias is None else db, None


def _add_save(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, float], output: Pair
) -> None:
    x, branch, weight, bias, ctx.eps = inputs
    ctx.dtypes = x.dtype, branch.dtype
    ctx.bias = None if bias is None else bias.dtype
    # One of the two outputs may have no use: then its gradient is None and not zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], weight)


def _add_gradients(ctx: Any, dtotal: Tensor | None, dy: Tensor | None) -> Any:
    if dy is None:
        return *passed_on(dtotal, ctx.dtypes), None, None, None
    dx, dbranch, dw, db = torch.ops.tinylm.add_layer_norm_backward(
        dtotal, dy, *ctx.saved_tensors, ctx.eps, *ctx.dtypes, ctx.bias
    )
    dbranch = dx if ctx.dtypes[0] == ctx.dtypes[1] else dbranch
    return dx, dbranch, dw, None if ctx.bias is None else db, None


register(
    "layer_norm(Tensor x, Tensor weight, Tensor? bias, float eps) -> Tensor",
    forward,
    _forward_fake,
)
register(
    "layer_norm_backward(Tensor dy, Tensor x, Tensor weight, float eps, ScalarType? bias) "
    "-> (Tensor, Tensor, Tensor)",
    backward,
    _backward_fake,
)
register(
    "add_layer_norm(Tensor x, Tensor branch, Tensor weight, Tensor? bias, float eps) "
    "-> (Tensor, Tensor)",
    add_forward,
    _add_forward_fake,
)
register(
    "add_layer_norm_backward(Tensor? dtotal, Tensor dy, Tensor total, Tensor weight, float eps, "
    "ScalarType x, ScalarType branch, ScalarType? bias) -> (Tensor, Tensor, Tensor, Tensor)",
    add_backward,
    _add_backward_fake,
)
differentiable("layer_norm", _gradients, _save)
differentiable("add_layer_norm", _add_gradients, _add_save)
