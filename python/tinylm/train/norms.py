"""The gradient's norm by the role of the parameters (`track.norms=true`)."""

import torch
from torch import Tensor

from tinylm import optim
from tinylm.model import Model


class RoleNorms:
    """The 2-norm of the gradients of each trained role (`tinylm.layers` lists the roles)."""

    def __init__(self, model: Model, optimizer: optim.Optimizer) -> None:
        roles = {name: role for name, _, role in model.named_roles()}
        self._whole = optimizer.whole
        self._parameters: dict[str, list[Tensor]] = {}
        for parameter, name in optimizer.names.items():
            if not parameter.requires_grad:
                continue
            self._parameters.setdefault(roles[name], []).append(parameter)

    @property
    def names(self) -> list[str]:
        """The keys of the record."""
        return [f"grad_norm/{role}" for role in self._parameters]

    def __call__(self) -> Tensor:
        """Return the norms [roles] of the present gradients, before clipping."""
        found = []
        for parameters in self._parameters.values():
            gradients = [p.grad for p in parameters if isinstance(p.grad, Tensor)]
            none = parameters[0].new_zeros(())
            found.append(self._whole.norm(gradients) if gradients else none)
        return torch.stack(found)
