"""Products with a weight, which go through here one and all."""

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x [..., in], weight [out, in], bias [out] to [..., out].

    Every product with a weight goes through here, including that of the head. A format of
    weights with fewer bits needs a branch only here.
    """
    return F.linear(x, weight, bias)
