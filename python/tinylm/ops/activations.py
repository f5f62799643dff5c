"""The nonlinear functions of the feedforward layers, elementwise."""

import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) with the tanh approximation, as GPT-2 computes it; any shape."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2, elementwise. Source: So et al. 2021, section 3.2."""
    return F.relu(x).square()


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise. Source: Shazeer 2020, equation 6."""
    return F.silu(gate) * up
