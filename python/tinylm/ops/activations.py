"""The nonlinear functions of the feedforward layers, elementwise."""

import torch.nn.functional as F
from torch import Tensor

from tinylm.ops import choice

# The size that `kernel_for` is asked about: an elementwise kernel has none.
ANY = 1


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) with the tanh approximation, as GPT-2 computes it; any shape."""
    return F.gelu(x, approximate="tanh")


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
