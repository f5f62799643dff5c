"""Which matrices lose most by 4 bits, to be kept in 8."""

import torch
from torch import Tensor

from tinylm.layers.lora import matrices
from tinylm.model import Model
from tinylm.ops.rounding import on_grid, searched

# Rows whose gradient is taken, one at a time.
ROWS = 16


def kept(model: Model, calibration: Tensor, group: int, share: float) -> list[str]:
    """The names of the most sensitive matrices, with at most `share` of the numbers of all.

    The order is that of sensitivity per number.
    """
    sizes = {name: part.weight.numel() for name, part in matrices(model)}
    found = sensitivities(model, calibration, group)
    left, chosen = share * sum(sizes.values()), []
    for name in sorted(found, key=lambda name: found[name] / sizes[name], reverse=True):
        if sizes[name] <= left:
            left -= sizes[name]
            chosen.append(name)
    return chosen


def sensitivities(model: Model, calibration: Tensor, group: int) -> dict[str, float]:
    """How much rounding each matrix to int4 changes the model: the mean of (gradient . change)^2.

    The mean is over the first rows of `calibration` [rows, T]. It is the second derivative of the
    loss in the direction of the change, with Fisher's information in place of the Hessian.
    """
    weights = {name: part.weight for name, part in matrices(model)}
    changes = {}
    for name, weight in weights.items():
        weight.requires_grad_()
        plain = weight.detach().float()
        changes[name] = on_grid(plain, searched(plain, group)) - plain
    found = dict.fromkeys(weights, 0.0)
    for row in calibration[:ROWS].to(model.weight.device):
        loss = model.loss(row[None, :-1], row[None, 1:])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            found[name] += float((gradient * changes[name]).sum()) ** 2
    return {name: total / min(ROWS, len(calibration)) for name, total in found.items()}
