"""The dtype of statistics: float32, or wider where the input is."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """x in float32 or, where it is wider already, in its own dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
