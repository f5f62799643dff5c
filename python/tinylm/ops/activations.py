"""The nonlinear functions of the feedforward layers, elementwise."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.ops import choice
from tinylm.ops.dtypes import widened

# The size that `kernel_for` is asked about: an elementwise kernel has none.
ANY = 1


# GELU's tanh approximation is x sigmoid(A x + B x^3), for (1 + tanh u) / 2 = sigmoid(2 u).
A = 2 * math.sqrt(2 / math.pi)
B = 0.044715 * A
# Elements that are computed together on a CPU, so that what lies between stays in the cache.
TOGETHER = 2**18


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) with the tanh approximation, as GPT-2 computes it; any shape.

    On a CPU its gradient is computed with it, and has no derivative of its own
    (`NotImplementedError`): `F.gelu` has one.
    """
    fast = x.is_cpu and x.dtype == torch.float32 and x.numel() > 0 and not choice.forward_mode()
    # A compiler fuses the formula with what stands before and after it.
    if fast and torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        y: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
        return y
    if x.is_cpu and torch.compiler.is_compiling():
        # The compiler's tanh is slow: with this form 9.3 ms of a compiled step of nanoGPT's CPU
        # command are 6.3.
        wide = widened(x)
        return (wide * torch.sigmoid(wide * (A + B * wide * wide))).to(x.dtype)
    return F.gelu(x, approximate="tanh")


class _Gelu(torch.autograd.Function):
    """GELU and its slope in one pass, with one sigmoid: on a CPU torch takes two slow tanh.

    768 x 512 in float32, forward and backward on one thread of an AMD EPYC: 0.6 ms against 1.4.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """y [...]; what is kept is dy/dx instead of x."""
        x = x.contiguous()
        y, slope = torch.empty_like(x), torch.empty_like(x)
        parts = (torch.split(part.view(-1), TOGETHER) for part in (x, y, slope))
        for a, into, slopes in zip(*parts, strict=True):
            square = a * a
            gate = (square * B).add_(A).mul_(a).sigmoid_()
            torch.mul(a, gate, out=into)
            # dy/dx = gate + y (1 - gate) (A + 3 B x^2)
            inner = square.mul_(3 * B).add_(A).mul_(into)
            torch.addcmul(inner, inner, gate, value=-1, out=slopes).add_(gate)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        """dx [...]."""
        choice.refuse_second("gelu", 'take F.gelu(x, approximate="tanh")')
        slope: Tensor = ctx.saved_tensors[0]
        return dy * slope


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2, elementwise. Source: So et al. 2021, section 3.2."""
    kernel = choice.kernel_for("relu2", ANY, x)
    if kernel is not None:
        return kernel(x)
    return F.relu(x).square()


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise. Source: Shazeer 2020, equation 6.

    The halves of one packed projection [..., 2 F], as `chunk(2, -1)` gives them, are read in place:
    the kernel takes rows of any distance, and torch any strides.
    """
    # Tensors that differ are broadcast or promoted by torch, which the kernel refuses to do.
    if (gate.shape, gate.dtype) == (up.shape, up.dtype):
        kernel = choice.kernel_for("swiglu", ANY, gate, up)
        if kernel is not None:
            return kernel(gate, up)
    return F.silu(gate) * up
