"""The dtypes of statistics and of products."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """x in float32 or, where it is wider already, in its own dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that `F.linear` multiplies x in: x's own, or autocast's."""
    kind = x.device.type
    # Autocast leaves float64 as it is. Torch knows none of tensors without numbers, of which
    # `profiling.estimate` counts the bytes.
    if kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype
