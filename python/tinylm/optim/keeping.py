"""Parts that the optimizers share: weight decay, and steps that can be taken back."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor


class LightOptimizer(torch.optim.Optimizer):
    """An optimizer of torch that is made without importing torch's compiler, which is slow."""

    add_param_group: Any = unwrap(torch.optim.Optimizer.add_param_group)


def decay(
    parameters: list[Tensor], updates: list[Tensor], amount: float, *, cautious: bool
) -> None:
    """Shrink the parameters by the share `amount`, in place.

    If `cautious`, only the weights that `updates`, which are subtracted from them, do not move
    away from zero: W <- (1 - amount) W where update W >= 0. Source: Chen et al. 2025, "Cautious
    Weight Decay".
    """
    if not amount:
        return
    if not cautious:
        torch._foreach_mul_(parameters, 1 - amount)
        return
    for parameter, update in zip(parameters, updates, strict=True):
        parameter.copy_(torch.where(parameter * update >= 0, parameter * (1 - amount), parameter))


@contextmanager
def kept_if(found_inf: Tensor | None, tensors: list[Tensor]) -> Iterator[None]:
    """Give the tensors back the values they had before, bit for bit, if `found_inf` is not 0.

    The host does not read `found_inf`, so a GPU does not wait. None changes nothing and costs
    nothing.
    """
    if found_inf is None:
        yield
        return
    before = [tensor.clone() for tensor in tensors]
    yield
    for tensor, old in zip(tensors, before, strict=True):
        torch.where(found_inf == 0, tensor, old, out=tensor)
