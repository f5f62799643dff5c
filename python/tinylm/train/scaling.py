"""The scale of a float16 loss: small gradients would round to 0 below 6e-8."""

from typing import Any

import torch
from torch import Tensor

# Those of torch.amp.GradScaler. Powers of two: scaling and its undoing lose no bit.
FIRST, GROWTH, SHRINK, PATIENCE = 2.0**16, 2.0, 0.5, 2000
# Without scaling an infinite gradient is a failure like any other.
FLOOR = 1.0


class LossScale:
    """A factor of the loss that is halved at infinite gradients and doubled when all goes well.

    It lives on the device, so that no step waits for it. It is doubled after 2,000 steps in a row
    with finite gradients. Source: Micikevicius et al. 2018, "Mixed Precision Training".
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), FIRST, device=device)
        self.good = torch.zeros((), dtype=torch.int64, device=device)

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide the gradients by the scale, in place."""
        torch._foreach_mul_(gradients, self.value.reciprocal())

    def update(self, finite: Tensor) -> None:
        """Choose the scale of the next step; `finite` says whether this one's gradients were."""
        good = self.good + 1
        grown = torch.where(good >= PATIENCE, self.value * GROWTH, self.value)
        shrunk = (self.value * SHRINK).clamp(min=FLOOR)
        self.value = torch.where(finite, grown, shrunk)
        self.good = torch.where(finite & (good < PATIENCE), good, torch.zeros_like(good))

    @property
    def can_shrink(self) -> Tensor:
        """Whether it is above its floor (scalar bool)."""
        return self.value > FLOOR

    def state(self) -> dict[str, Any]:
        """Return the scale and its count for JSON; waits for the device."""
        return {"value": self.value.item(), "good": int(self.good)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.value.fill_(state["value"])
        self.good.fill_(state["good"])
