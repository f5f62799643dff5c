"""The loss of language models, from logits or from the vectors before the head.

`linear_cross_entropy` holds few logits at a time. The gradient of the loss by a logit needs only
the other logits of its row, so a chunk of rows goes all the way before the next one begins:

      x [N, D]                 one buffer [rows, V]                   sums
    +---------+  x W^T      +------------------------+  dz^T x   +------------+
    | chunk 0 | ----------> | logits, then in place  | --------> | dW  [V, D] |
    +---------+  <--------- | their gradient dz      |           +------------+
    | chunk 1 |    dz W     +------------------------+
    |   ...   |                                      losses [N] -> their mean

The three products are those of the head's forward and backward passes, no more. Memory: N V / 8
logits in place of about 4 N V. Each chunk reads and writes dW once, which is why there are 8 chunks
and not 64: torch's issue 124480 has 4, 8, 16, 32 and 64 chunks at 38.5, 40.4, 43.7, 48.7 and 56.7
ms. On the CPU, with V = 50257, 1024 tokens and D = 192, 1, 4, 8, 16 and 32 chunks took 955, 907,
954, 1049 and 1141 ms of a processor, all logits at once 1165 (bfloat16: 543, 597, 710, 915, 1378
and 905). The chunks wait for nothing on the host: the number of targets stays on the device and
divides at the end.
"""

# torch's functions around libraries, and a few others, have no types.
# mypy: disable-error-code="no-untyped-call"

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.ops import choice
from tinylm.ops.dtypes import product_dtype, widened
from tinylm.ops.norms import rms_norm
from tinylm.ops.products import linear

# torch's own default for a target that does not count; the loader pads with the same number.
IGNORED = -100
# The most logits that are made at once by `linear`, for a compiler or a GPU: 64 MiB in float32.
# Without a compiler a CPU is faster in parts that stay in its cache, however few they are: a step
# of the recipe speedrun, whose head has a cap, took 228 ms in place of 240.
WHOLE, WHOLE_CPU = 2**24, 0
CHUNKS = 8
# A product of fewer rows is slow: it reads all of W, and adds to all of dW, for little work.
LEAST_ROWS, LEAST_ROWS_GPU = 64, 1024
# A chunk on a CPU has at least this many logits, half of those of the default run.
LEAST_LOGITS = 2**21
# On the CPU the loss of a chunk is taken over this many logits at a time, which stay in the cache.
CACHED = 2**18


def cross_entropy(
    logits: Tensor, targets: Tensor, *, z_loss: float = 0.0, softcap: float | None = None
) -> Tensor:
    """Mean of -log softmax(logits)[target] in nats over the targets that are not -100.

    logits [..., V] of any float dtype, targets [...] int64; a scalar, float32 at least, nan if no
    target counts. With `softcap` c each logit z is c tanh(z / c) first (Gemma 2, 2024, section 2).
    `z_loss` times the mean of log(sum of e^z)^2 is added (PaLM, 2022, section 5).
    """
    _check_softcap(softcap)
    # bfloat16 keeps 8 significant bits, too few for a sum over a vocabulary.
    flat, ids = widened(logits.reshape(-1, logits.size(-1))), targets.reshape(-1)
    if softcap is not None:
        flat = softcap * torch.tanh(flat / softcap)
    loss = F.cross_entropy(flat, ids, ignore_index=IGNORED)
    if z_loss:
        counted = ids != IGNORED
        squares = flat.logsumexp(-1).square().where(counted, 0.0)
        loss = loss + z_loss * squares.sum() / counted.sum()
    return loss


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """`cross_entropy` of the logits x W^T, which never all exist at once if they are many.

    x [..., D], weight [V, D], targets [...] int64; a scalar, float32 at least. With `norm_weight`
    [D] the logits are those of `rms_norm(x, norm_weight, eps)`. As in `linear`, the products have
    the dtype of x, or that of autocast. The gradient of the weight is summed in float32. Raises
    `NotImplementedError` for a second derivative of many logits, or on a CPU.
    """
    _check_softcap(softcap)
    whole = WHOLE_CPU if choice.eager_cpu(x) else WHOLE
    if choice.forward_mode() or weight.size(0) * targets.numel() <= whole:
        y = x if norm_weight is None else rms_norm(x, norm_weight, eps)
        return cross_entropy(linear(y, weight), targets, z_loss=z_loss, softcap=softcap)
    dtype = product_dtype(x)
    recorded = torch.is_grad_enabled()
    wanted = [
        recorded and tensor is not None and tensor.requires_grad
        for tensor in (x, weight, norm_weight)
    ]
    loss: Tensor = torch.ops.tinylm.linear_cross_entropy(
        *(x, weight, targets, norm_weight, eps, z_loss, softcap, dtype, wanted)
    )[0]
    return loss


def _check_softcap(softcap: float | None) -> None:
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap}: must be above 0, or None for logits as they are")


def _check(x: Tensor, weight: Tensor, targets: Tensor, norm_weight: Tensor | None) -> None:
    """Refuse shapes that do not fit."""
    width = x.shape[-1:]
    if targets.dtype != torch.int64:
        raise ValueError(f"linear_cross_entropy: targets are {targets.dtype}; they must be int64")
    if x.dim() == 0 or x.shape[:-1] != targets.shape or (*weight.shape[1:],) != width:
        raise ValueError(
            f"linear_cross_entropy: x {list(x.shape)}, weight {list(weight.shape)} and targets "
            f"{list(targets.shape)} must be [..., D], [V, D] and [...]"
        )
    if norm_weight is not None and norm_weight.shape != width:
        raise ValueError(
            f"linear_cross_entropy: norm_weight {list(norm_weight.shape)} does not match the last "
            f"axis of x {list(x.shape)}"
        )


class Gradients(NamedTuple):
    """The loss, and what its gradients are after a division by the number of targets.

    They are not divided yet because a share of many targets is too small for float16. What nobody
    asked for is an empty tensor. A backward pass that frees the graph overwrites the sums.
    """

    loss: Tensor
    # Targets that count, 1 at least: 0 times infinity would be nan where torch has 0.
    counted: Tensor
    # As x; as weight and as the norm's weight, but float32 at least.
    dx: Tensor
    dweight: Tensor
    dnorm: Tensor


def _chunked(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    wanted: list[bool],
) -> Gradients:
    """`linear_cross_entropy` with products in `dtype`; `wanted` says which gradients to take."""
    _check(x, weight, targets, norm_weight)
    flat, ids = x.reshape(-1, x.size(-1)), targets.reshape(-1)
    rows = _rows_per_chunk(len(flat), len(weight), x.is_cuda)
    wide = torch.promote_types(dtype, torch.float32)
    # Under autocast too, no product in here may choose its dtype by itself.
    with torch.autocast(x.device.type, enabled=False):
        matrix = weight.to(dtype)
        # A GPU loads 16 bytes at once if every row begins at a multiple of them.
        width = -(-len(weight) // 64) * 64 if x.is_cuda else len(weight)
        buffer = torch.empty((rows, width), dtype=dtype, device=x.device)[:, : len(weight)]
        losses = torch.empty((len(flat),), dtype=wide, device=x.device)
        dx = torch.empty(x.shape if wanted[0] else (0,), dtype=x.dtype, device=x.device)
        dweight = _zeros(weight, wanted[1])
        dnorm = _zeros(x if norm_weight is None else norm_weight, wanted[2])
        for first in range(0, len(flat), rows):
            part = slice(first, first + rows)
            normed = None if norm_weight is None else _Normed(flat[part], norm_weight, eps)
            h = (flat[part] if normed is None else normed.y).to(dtype)
            logits = torch.mm(h, matrix.T, out=buffer[: len(h)])
            losses[part] = _to_slopes(logits, ids[part], z_loss, softcap, any(wanted))
            if wanted[1]:
                _add_product(dweight, logits.T, h)
            if wanted[0] or wanted[2]:
                slope = logits @ matrix
                if normed is not None:
                    slope, own = normed.gradients(slope)
                    if wanted[2]:
                        dnorm += own
                if wanted[0]:
                    dx.view(-1, dx.size(-1))[part] = slope
        counted = (ids != IGNORED).sum()
        return Gradients(losses.sum() / counted, counted.clamp(min=1), dx, dweight, dnorm)


def _zeros(like: Tensor, wanted: bool) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.zeros(like.shape if wanted else (0,), dtype=dtype, device=like.device)


def _rows_per_chunk(rows: int, vocabulary: int, gpu: bool) -> int:
    """How many of `rows` go through the head at once."""
    least = LEAST_ROWS_GPU if gpu else max(LEAST_ROWS, LEAST_LOGITS // vocabulary)
    # Full tiles of a product, 128 rows, as long as that leaves 8 chunks.
    share = -(-rows // CHUNKS)
    return max(1, min(rows, max(least, -(-share // 128) * 128 if share > 128 else share)))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, summed in the dtype of `total`, which is a's and b's or float32."""
    into_wide = getattr(torch.ops.aten.addmm, "dtype_out", None)
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda and into_wide is not None:
        into_wide(total, a, b, total.dtype, out=total)
    else:
        # The CPU has no narrow product with a wide result: one chunk's is rounded, the sum is not.
        total.add_(a @ b)


class _Normed:
    """RMSNorm of a chunk of rows, with what its gradients need."""

    def __init__(self, x: Tensor, weight: Tensor, eps: float) -> None:
        wide = widened(x)
        self.r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        self.n = wide * self.r
        self.weight = weight.to(x.dtype)
        self.y = self.n.to(x.dtype) * self.weight

    def gradients(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        """dx of the rows and dweight [D], both float32 at least; the formulas of `rms_norm`."""
        dy = dy.to(self.n.dtype)
        scaled = dy * self.weight
        dx = self.r * (scaled - self.n * (scaled * self.n).mean(-1, keepdim=True))
        return dx, (dy * self.n).sum(0)


def _to_slopes(
    logits: Tensor, targets: Tensor, z_loss: float, softcap: float | None, gradient: bool
) -> Tensor:
    """The loss [rows] of each row of logits [rows, V], which become its gradient by them.

    An ignored row has a loss of 0 and a gradient of 0. Without `gradient` the logits are left as
    anything.
    """
    kernel = choice.kernel_for("cross_entropy_", logits.size(-1), logits, compiled=True)
    if kernel is not None:
        return kernel(logits, targets, z_loss, softcap, gradient)
    at_once = len(logits) if logits.is_cuda else max(1, CACHED // logits.size(-1))
    parts = zip(logits.split(at_once), targets.split(at_once), strict=True)
    return torch.cat([_to_slopes_by_torch(*part, z_loss, softcap, gradient) for part in parts])


def _to_slopes_by_torch(
    logits: Tensor, targets: Tensor, z_loss: float, softcap: float | None, gradient: bool
) -> Tensor:
    """`_to_slopes` in a few passes of torch."""
    counted = targets != IGNORED
    place = targets.where(counted, 0)[:, None]
    z, bent, shift, steep = logits, None, 0.0, 1
    slope = torch.ops.aten.tanh_backward
    if softcap is not None and logits.dtype in (torch.bfloat16, torch.float16):
        # c tanh(z / c) = 2 c sigmoid(2 z / c) - c, and torch's sigmoid takes half the time of its
        # tanh. The softmax is the same without the - c; but small logits lose their last digits,
        # which those of half precision have lost already.
        bent = widened(logits).mul(2 / softcap).sigmoid_()
        z, shift, steep = bent * (2 * softcap), softcap, 4
        slope = torch.ops.aten.sigmoid_backward
    elif softcap is not None:
        bent = torch.tanh(logits / softcap)
        z = bent * softcap
    p = torch.softmax(z, -1, dtype=torch.promote_types(z.dtype, torch.float32))
    # Through the largest of a row: the target's own share may be too small for a float.
    lse = z.amax(-1) - p.amax(-1).log()
    loss = lse - z.gather(1, place)[:, 0]
    if z_loss:
        lse = lse - shift
        loss = loss + z_loss * lse.square()
    if gradient:
        # The slope of the cap is 4 s (1 - s) of the sigmoid s, 1 - t^2 of the tanh t.
        factor = counted.to(p.dtype)[:, None] * steep
        p.mul_(factor * (1 + 2 * z_loss * lse)[:, None] if z_loss else factor)
        p.scatter_add_(1, place, -factor)
        logits.copy_(p if bent is None else slope(p, bent))
    return loss.where(counted, 0.0)


def _fake(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    wanted: list[bool],
) -> Gradients:
    _check(x, weight, targets, norm_weight)
    loss = x.new_empty((), dtype=torch.promote_types(dtype, torch.float32))
    counted = targets.new_empty(())
    dx = x.new_empty(x.shape if wanted[0] else (0,))
    norm = x if norm_weight is None else norm_weight
    return Gradients(loss, counted, dx, _zeros(weight, wanted[1]), _zeros(norm, wanted[2]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
    ctx.dtypes = inputs[1].dtype, None if inputs[3] is None else inputs[3].dtype
    ctx.wanted = inputs[8]
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    # autograd would make zeros for them, as large as they are.
    ctx.set_materialize_grads(False)


def _walked_once() -> bool:
    """Whether autograd frees the graph as it walks: then what was saved may be overwritten."""
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is not None and not keeps()


def _gradients(ctx: Any, dloss: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
    if dloss is None:
        return (None,) * 9
    choice.refuse_second("linear_cross_entropy", "take cross_entropy(linear(x, weight), targets)")
    counted, dx, dweight, dnorm = ctx.saved_tensors
    factor = dloss / counted

    once = _walked_once()

    def scaled(total: Tensor, dtype: torch.dtype, wanted: bool) -> Tensor | None:
        if not wanted:
            return None
        # In float32 although dx may be narrower: a GPU would round the factor first.
        wide = widened(total)
        # A second [V, D] in float32 may be more than all logits of a chunk.
        return (wide.mul_(factor) if once else wide * factor).to(dtype)

    weight_dtype, norm_dtype = ctx.dtypes
    return (
        scaled(dx, dx.dtype, ctx.wanted[0]),
        scaled(dweight, weight_dtype, ctx.wanted[1]),
        None,
        scaled(dnorm, norm_dtype, ctx.wanted[2]),
        *(None,) * 5,
    )


# A part of the namespace that `tinylm.kernels` may define too, in either order: this operation
# needs no triton.
_LIBRARY = torch.library.Library("tinylm", "FRAGMENT")
_LIBRARY.define(
    "linear_cross_entropy(Tensor x, Tensor weight, Tensor targets, Tensor? norm_weight, float eps, "
    "float z_loss, float? softcap, ScalarType dtype, bool[3] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("linear_cross_entropy", _chunked, "CompositeExplicitAutograd")
torch.library.register_fake("tinylm::linear_cross_entropy", _fake, lib=_LIBRARY)
torch.library.register_autograd(
    "tinylm::linear_cross_entropy", _gradients, setup_context=_save, lib=_LIBRARY
)
