"""Causal attention on a CPU, written out as products, a chunk of queries at a time.

       keys ->
    +----+----+----+----+
    | c0 |              |   A chunk of queries multiplies only the keys that one of its queries
    +----+----+         |   sees: for T = 256 and chunks of 128 three quarters of the square, and
    | chunk 1 |         |   with a window only a band.
    +---------+----+    |
    |   chunk 2    |    |
    +--------------+----+

torch's fused attention is written for long rows and float32. `benches/bench_attention.py` has both
beside each other; one thread of an AMD EPYC with AVX-512, forward and backward, milliseconds:

| B, H, T, head   | float32: torch | here | bfloat16: torch | here |
|-----------------|----------------|------|-----------------|------|
| 12, 4, 64, 32   | 1.9            | 2.2  | 7.4             | 1.4  |
| 8, 6, 256, 64   | 39.1           | 33.0 | 48.3            | 20.3 |
| 2, 4, 1024, 64  | 78.1           | 59.0 | 70.7            | 38.4 |
"""

# torch's functions around libraries, and a few others, have no types.
# mypy: disable-error-code="no-untyped-call"

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tinylm.mask import Mask
from tinylm.ops import choice

CHUNK = 128
# The weights of a chunk that are computed together in float32: 1 MiB.
TOGETHER = 2**18
# More weights than this are not kept for the backward pass but computed again: 64 MiB in float32.
KEPT = 2**24
# The least tokens of a row: below, torch's own attention is as fast.
LEAST_TOKENS = {torch.bfloat16: 32, torch.float32: 256}


def pays(q: Tensor, k: Tensor, mask: Mask, *, gradients: bool) -> bool:
    """Whether this form can compute the mask and is the faster one; q [B, H, T, head]."""
    if not q.is_cpu or not mask.causal or mask.prefix is not None or q.size(2) != k.size(2):
        return False
    # Without a gradient torch's form is as fast in float32.
    if q.dtype not in LEAST_TOKENS or not (gradients or q.dtype == torch.bfloat16):
        return False
    return q.size(2) >= LEAST_TOKENS[q.dtype] and q.size(0) > 0


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
    """softmax(scale q k^T) v; q [B, H, T, head], k and v [B, K, T, head], all of one dtype.

    `mask` is causal, with or without a window and documents. In bfloat16 the scores are rounded to
    it before the softmax, which computes in float32, as in `manual_attention`.
    """
    low = None if mask.documents is None else mask.bounds()[0]
    keep = q.size(0) * q.size(1) * q.size(2) ** 2 <= KEPT
    out: Tensor = torch.ops.tinylm.causal_attention(q, k, v, low, mask.window, scale, keep)[0]
    return out


def _chunks(tokens: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """First query, end of the queries, first key of each chunk; its last key is its last query."""
    for first in range(0, tokens, CHUNK):
        begin = 0 if window is None else max(0, first - window + 1)
        yield first, min(tokens, first + CHUNK), begin


def _hidden(
    q: Tensor, low: Tensor | None, window: int | None, chunk: tuple[int, int, int], group: int
) -> Tensor:
    """0 where a query sees a key, else -inf: [1 or B, group n, keys] in the dtype of q."""
    first, end, begin = chunk
    keys = torch.arange(begin, end)
    places = torch.arange(first, end)[:, None]
    unseen = keys > places
    if window is not None:
        unseen = unseen | (keys <= places - window)
    unseen = unseen[None]
    if low is not None:
        unseen = unseen | (keys < low[:, first:end, None])
    bias = torch.zeros(unseen.shape, dtype=q.dtype).masked_fill_(unseen, -math.inf)
    return bias if group == 1 else bias.repeat(1, group, 1)


def _groups(q: Tensor) -> list[slice]:
    """Rows of the batch that are computed together; q [B, H, T, head].

    In float32 the weights of a chunk should stay in the cache (T = 256: 31 ms in place of 36). In
    bfloat16 that costs more calls than it saves.
    """
    weights = q.size(1) * min(CHUNK, q.size(2)) * q.size(2)
    size = max(1, TOGETHER // weights) if q.dtype == torch.float32 else q.size(0)
    return [slice(first, first + size) for first in range(0, q.size(0), size)]


class _Biases:
    """`_hidden` of a chunk for some rows of the batch; made once if it is the same for all.

    Of very long rows it is made anew: kept, it would be as large as the weights of a head, which
    are not kept either.
    """

    def __init__(self, q: Tensor, low: Tensor | None, window: int | None, group: int) -> None:
        self.q, self.low, self.window, self.group = q, low, window, group
        self.keeps = len(_groups(q)) > 1 and group * q.size(2) ** 2 <= KEPT
        self.made: dict[int, Tensor] = {}

    def __call__(self, chunk: tuple[int, int, int], some: slice) -> Tensor:
        if self.low is not None:
            return _hidden(self.q, self.low[some], self.window, chunk, self.group)
        bias = self.made.get(chunk[0])
        if bias is None:
            bias = _hidden(self.q, None, self.window, chunk, self.group)
            if self.keeps:
                self.made[chunk[0]] = bias
        return bias


def _weights(q: Tensor, k: Tensor, bias: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """softmax(scale q k^T + bias); q [N, n, head], k [N, keys, head], bias [1 or B, n, keys]."""
    if bias.size(0) > 1:
        bias = bias.repeat_interleave(q.size(0) // bias.size(0), 0)
    return torch.softmax(torch.baddbmm(bias, q, k.mT, alpha=scale), -1, out=out)


class _Heads:
    """q, k and v with the heads of all rows in one axis, as batched products want them."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.shape, self.group = q.shape, q.size(1) // k.size(1)
        self.kv_shape = k.shape
        self.q = self.queries(q)
        self.k, self.v = (x.reshape(-1, *x.shape[2:]) for x in (k, v))

    def queries(self, q: Tensor) -> Tensor:
        """[B, H, T, head] to [B K, group, T, head], contiguous."""
        return q.reshape(-1, self.group, *q.shape[2:]).contiguous()

    def part(self, x: Tensor, first: int, end: int) -> Tensor:
        """Some tokens of `queries`: [B K, group n, head]."""
        return x[:, :, first:end].reshape(x.size(0), -1, x.size(-1))

    def put(self, x: Tensor, part: Tensor, first: int, end: int) -> None:
        """Write what `part` has read."""
        x[:, :, first:end] = part.view(x.size(0), self.group, end - first, -1)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    low: Tensor | None,
    window: int | None,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The result, and the weights of all chunks in one row of memory, or none."""
    chunks, group = list(_chunks(q.size(2), window)), q.size(1) // k.size(1)
    cells = q.size(0) * q.size(1) * sum((c[1] - c[0]) * (c[1] - c[2]) for c in chunks)
    kept, used = q.new_empty(cells if keep else 0), 0
    # Heads side by side in memory, as the product after attention reads them.
    out = q.new_empty(q.size(0), q.size(2), q.size(1), q.size(3)).transpose(1, 2)
    biases = _Biases(q, low, window, group)
    for some in _groups(q):
        heads = _Heads(q[some], k[some], v[some])
        target = out[some].unflatten(1, (-1, group))
        for chunk in chunks:
            first, end, begin = chunk
            own = heads.part(heads.q, first, end)
            into = None
            if keep:
                size = own.size(0) * own.size(1) * (end - begin)
                into = kept[used : used + size].view(len(own), -1, end - begin)
                used += size
            p = _weights(own, heads.k[:, begin:end], biases(chunk, some), scale, into)
            mixed = torch.bmm(p, heads.v[:, begin:end])
            target[:, :, :, first:end] = mixed.view(*target.shape[:3], end - first, -1)
    return out, kept


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    low: Tensor | None,
    kept: Tensor,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    biases, used = _Biases(q, low, window, q.size(1) // k.size(1)), 0
    for some in _groups(q):
        heads = _Heads(q[some], k[some], v[some])
        slope = heads.queries(dout[some])
        own_dq = dq[some].view(heads.q.shape)
        own_dk, own_dv = (x[some].view(heads.k.shape).zero_() for x in (dk, dv))
        for chunk in _chunks(q.size(2), window):
            first, end, begin = chunk
            own, d = heads.part(heads.q, first, end), heads.part(slope, first, end)
            keys, values = heads.k[:, begin:end], heads.v[:, begin:end]
            if kept.numel():
                size = own.size(0) * own.size(1) * (end - begin)
                p = kept[used : used + size].view(len(own), -1, end - begin)
                used += size
            else:
                p = _weights(own, keys, biases(chunk, some), scale)
            own_dv[:, begin:end].baddbmm_(p.mT, d)
            # dS = P (dP - sum of dP P over the keys); torch has it as one pass.
            ds = torch._softmax_backward_data(torch.bmm(d, values.mT), p, -1, p.dtype)
            heads.put(own_dq, torch.bmm(ds, keys).mul_(scale), first, end)
            own_dk[:, begin:end].baddbmm_(ds.mT, own, alpha=scale)
    return dq, dk, dv


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    low: Tensor | None,
    window: int | None,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    rows, cells = q.size(0) * q.size(1), 0
    for first, end, begin in _chunks(q.size(2), window):
        cells += (end - first) * (end - begin)
    out = q.new_empty(q.size(0), q.size(2), q.size(1), q.size(3)).transpose(1, 2)
    return out, q.new_empty(rows * cells if keep else 0)


def _fake_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    low: Tensor | None,
    kept: Tensor,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, low, ctx.window, ctx.scale, _ = inputs
    ctx.save_for_backward(q, k, v, low, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dout: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 7
    choice.refuse_second("attention", "take ops.manual_attention")
    q, k, v, low, kept = ctx.saved_tensors
    found = torch.ops.tinylm.causal_attention_backward(
        dout, q, k, v, low, kept, ctx.window, ctx.scale
    )
    return (*found, None, None, None, None)


# A part of the namespace that `tinylm.kernels` may define too, in either order: this operation
# needs no triton.
_LIBRARY = torch.library.Library("tinylm", "FRAGMENT")
_LIBRARY.define(
    "causal_attention(Tensor q, Tensor k, Tensor v, Tensor? low, int? window, float scale, "
    "bool keep) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "causal_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? low, "
    "Tensor kept, int? window, float scale) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("causal_attention", _forward, "CPU")
_LIBRARY.impl("causal_attention_backward", _backward, "CPU")
torch.library.register_fake("tinylm::causal_attention", _fake, lib=_LIBRARY)
torch.library.register_fake("tinylm::causal_attention_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd(
    "tinylm::causal_attention", _gradients, setup_context=_save, lib=_LIBRARY
)
