"""Products with a weight in a float dtype, or in 8 or 4 bits that are widened as they are read."""

# torch's functions around libraries, and a few others, have no types.
# mypy: disable-error-code="no-untyped-call"

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.ops import choice
from tinylm.ops.dtypes import product_dtype, widened
from tinylm.ops.quant import check_int4, check_int8, dequantise_int4, dequantise_int8

# The kernels are for decoding: with more rows a product in the dtype of x is bound by its FLOPs and
# not by the bytes of the weight. The tables of both kernels end here, so `kernel_for` is asked for
# this number: a compiled graph asks once, and serves any number of rows up to it.
MOST_ROWS = 64
# On the CPU a weight is widened this many elements at a time. They stay in the second-level cache:
# a 2048 x 2048 product in float32 takes a tenth of the time that widening the whole weight does.
BLOCK = 2**18
# `torch._weight_int8pack_mm` on the CPU beats widening up to this many rows of x in bfloat16; in
# float32 it is a scalar loop, slower than widening at any number of rows.
MOST_PACKED_ROWS = 16
# Fewer weights in float32 are no faster with oneDNN than with MKL, and neither are few products of
# numbers: a call takes 17 to 50 us longer, as much as a token that is decoded spends in a product.
LEAST_WEIGHTS, LEAST_PRODUCTS = 2**16, 2**24
ONEDNN: bool = torch.backends.mkldnn.is_available()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x [..., in], weight [out, in], bias [out] to [..., out], in the dtype of x.

    Every product with a weight goes through here, including that of the head. So the dtype of the
    stream is that of all products, and the weights of training stay float32. A model whose weights
    have fewer bits needs a branch only here, to `linear_int8` or `linear_int4`.
    """
    dtype = product_dtype(x)
    # Autocast would convert once per pass where this converts once per use: that is the same, for
    # a weight is used once.
    bias = bias if bias is None or bias.dtype == dtype else bias.to(dtype)
    weight = weight if weight.dtype == dtype else weight.to(dtype)
    if x.dtype == dtype and _by_onednn(x, weight):
        y: Tensor = torch.ops.tinylm.onednn_linear(x, weight, bias)
        return y
    return F.linear(x, weight, bias)


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes these and is faster."""
    if not (ONEDNN and x.is_cpu and weight.is_cpu) or x.dtype != torch.float32:
        return False
    if weight.numel() < LEAST_WEIGHTS or x.numel() * weight.size(0) < LEAST_PRODUCTS:
        return False
    # What is exported should need no operation of ours.
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiling or choice.eager_cpu(x, weight)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` in float32 on a CPU by oneDNN, where torch takes MKL, which is made for Intel's.

    2048 x 384 by 384 x 1536, forward and backward on one thread of an AMD EPYC: 72.3 ms against
    79.6.
    """
    # oneDNN reads a bias as if its numbers were side by side.
    bias = None if bias is None else bias.contiguous()
    # Private, but what torch's own compiler calls for a weight that never changes.
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.size(0)))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """dx [..., in], dweight [out, in] and dbias [out], as far as they are wanted."""
    x, weight = ctx.saved_tensors
    rows, (of_x, of_weight, of_bias) = dy.reshape(-1, dy.size(-1)), ctx.needs_input_grad
    return (
        torch.ops.tinylm.onednn_linear(dy, weight.mT, None) if of_x else None,
        # This one by MKL: oneDNN would transpose both factors first.
        rows.mT @ x.reshape(-1, x.size(-1)) if of_weight else None,
        rows.sum(0) if of_bias else None,
    )


# An operation of our own, for the compiler takes torch's only with a weight that never changes.
_LIBRARY = torch.library.Library("tinylm", "FRAGMENT")
_LIBRARY.define("onednn_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_LIBRARY.impl("onednn_linear", _onednn, "CPU")
torch.library.register_fake("tinylm::onednn_linear", _fake, lib=_LIBRARY)
torch.library.register_autograd(
    "tinylm::onednn_linear", _gradients, setup_context=_save, lib=_LIBRARY
)


def linear_int8(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b with W = q scale: x [..., K], q [N, K] int8, scale [N], bias [N] to [..., N].

    The result has the dtype of x, or under autocast that of `linear`. x and bias get gradients;
    q and scale are constants. Raises ValueError if the shapes or dtypes do not fit. Defined by
    `quantise_int8`.
    """
    x, scale = x.to(product_dtype(x)), scale.detach()
    rows = math.prod(x.shape[:-1])
    if rows <= MOST_ROWS:
        kernel = choice.kernel_for("linear_int8", MOST_ROWS, x, scale, compiled=True)
        if kernel is not None:
            return kernel(x, q, scale, bias)
    check_int8("linear_int8", q, scale)
    _check_x("linear_int8", x, q.dim(), q.size(-1))
    if rows <= MOST_PACKED_ROWS and _packs(x):
        flat = x.reshape(rows, x.size(-1)).contiguous()
        y = torch._weight_int8pack_mm(flat, q.contiguous(), scale.to(x.dtype).contiguous())
        y = y.view(*x.shape[:-1], q.size(0))
        return y if bias is None else y + bias.to(x.dtype)

    if x.is_cpu and x.dtype != torch.float16 and not torch.compiler.is_compiling():
        # Whole numbers are exact in x's dtype, so the scales can wait for the result: one pass over
        # the weight less. float16 would overflow.
        return _scaled(x, q, scale, bias)

    def widen(some: slice) -> Tensor:
        return dequantise_int8(q[some], widened(scale[some]))

    return _linear(x, q.size(0), widen, bias)


def _scaled(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b with the scales after the product, a block of W at a time."""
    step = max(1, BLOCK // x.size(-1))
    parts = [
        F.linear(x, q[first : first + step].to(x.dtype)) * scale[first : first + step].to(x.dtype)
        for first in range(0, max(1, q.size(0)), step)
    ]
    y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return y if bias is None else y + bias.to(x.dtype)


def linear_int4(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, W in 4 bits: x [..., K], packed [N, K / 2], scales [N, K / group], bias [N].

    The result, [..., N], has the dtype of x, or under autocast that of `linear`. x and bias get
    gradients; packed and scales are constants. Raises ValueError if the shapes or dtypes do not
    fit. Defined by `quantise_int4`.
    """
    x, scales = x.to(product_dtype(x)), scales.detach()
    rows = math.prod(x.shape[:-1])
    if rows <= MOST_ROWS:
        kernel = choice.kernel_for("linear_int4", MOST_ROWS, x, scales, compiled=True)
        if kernel is not None:
            return kernel(x, packed, scales, bias)
    group = check_int4("linear_int4", packed, scales)
    _check_x("linear_int4", x, packed.dim(), 2 * packed.size(-1))
    if x.is_cpu and not torch.compiler.is_compiling():
        # Moving the numbers of x costs less than putting the nibbles in order.
        moved = x.reshape(*x.shape[:-1], scales.size(-1), group)[..., _order(group)].flatten(-2)

        def halves(some: slice) -> Tensor:
            return _halves(packed[some], widened(scales[some]))

        return _linear(moved, packed.size(0), halves, bias)

    def widen(some: slice) -> Tensor:
        return dequantise_int4(packed[some], widened(scales[some]))

    return _linear(x, packed.size(0), widen, bias)


@functools.cache
def _order(group: int) -> Tensor:
    """The elements of a group as its nibbles have them: all low ones, then all high ones."""
    low = [8 * word + place for word in range(group // 8) for place in (0, 4, 1, 5)]
    # A tensor that is made in inference mode cannot take part in a gradient later.
    with torch.inference_mode(False):
        return torch.tensor([*low, *(place + 2 for place in low)])


def _halves(packed: Tensor, scales: Tensor) -> Tensor:
    """packed [N, K / 2] and scales [N, K / group] to W [N, K], each group in the `_order`."""
    bytes_of = packed.reshape(*scales.shape, -1)
    numbers = scales.new_empty(*scales.shape, 2, bytes_of.size(-1))
    numbers[..., 0, :] = bytes_of & 15
    numbers[..., 1, :] = bytes_of >> 4
    return numbers.sub_(8).mul_(scales[..., None, None]).flatten(1)


def _packs(x: Tensor) -> bool:
    """Whether torch's own product with int8 takes these: it has no gradient, and no tail of K."""
    frozen = not (torch.is_grad_enabled() and x.requires_grad)
    # With another K it reads past the end of the weight.
    aligned = x.size(-1) % 32 == 0
    return x.is_cpu and x.dtype == torch.bfloat16 and frozen and aligned


def _linear(
    x: Tensor, outputs: int, widen: Callable[[slice], Tensor], bias: Tensor | None
) -> Tensor:
    """x W^T + b, where `widen` gives rows of W in float32; on the CPU never the whole of W.

    A compiler gets the whole in one piece, instead of a graph with every block.
    """
    blocks = x.is_cpu and not torch.compiler.is_compiling()
    step = max(1, BLOCK // x.size(-1)) if blocks else max(1, outputs)
    parts = []
    for first in range(0, max(1, outputs), step):
        some = slice(first, first + step)
        own = None if bias is None else bias[some].to(x.dtype)
        parts.append(F.linear(x, widen(some).to(x.dtype), own))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _check_x(operation: str, x: Tensor, axes: int, width: int) -> None:
    """Raise ValueError unless x [..., K] can be multiplied by a weight [N, K]."""
    if axes != 2 or x.dim() == 0 or x.size(-1) != width:
        raise ValueError(
            f"{operation}: x {list(x.shape)} and a weight of {axes} axes and K={width} do not fit; "
            "they must be [..., K] and [N, K]"
        )
