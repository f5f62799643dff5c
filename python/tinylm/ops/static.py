"""Products of 8 bits with 8 bits: the scale of the inputs is known beforehand."""

import math

import torch
from torch import Tensor

from tinylm.ops.products import linear_int8


def linear_static(
    x: Tensor, input_scale: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """x' W^T + b with x' = x rounded to whole multiples of `input_scale`, -127 to 127 of them.

    x [..., K], input_scale [], q [N, K] int8, scale [N], bias [N] to [..., N] in the dtype of x.
    For inference: x gets no gradient. On a CPU the sums are of whole numbers, and exact. Defined
    by `tinylm.reference.fake.linear_static`.
    """
    with torch.no_grad():
        whole = (x / input_scale.to(x.dtype)).round_().clamp_(-127, 127)
        # With one input torch 2.13 reads a transposed weight in the wrong order.
        if not x.is_cpu or torch.compiler.is_compiling() or x.size(-1) == 1:
            return linear_int8(whole * input_scale.to(x.dtype), q, scale, bias)
        # Private, but what torch's own quantisation calls.
        flat = whole.to(torch.int8).reshape(math.prod(x.shape[:-1]), x.size(-1))
        sums = torch._int_mm(flat, q.t())
        y = (sums * (scale * input_scale)).to(x.dtype).view(*x.shape[:-1], len(q))
        return y if bias is None else y + bias.to(x.dtype)
