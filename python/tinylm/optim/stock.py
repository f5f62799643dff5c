"""torch's AdamW and SGD, in their fused form, with what a run needs besides."""

from inspect import unwrap
from typing import Any

import torch
from torch import Tensor

from tinylm.optim.keeping import LightOptimizer, decay, kept_if

Groups = list[dict[str, Any]]

# Without their wrappers, which import the compiler: a second and a half of every start.
_ADAMW: Any = unwrap(torch.optim.AdamW.step)
_SGD: Any = unwrap(torch.optim.SGD.step)


class AdamW(LightOptimizer, torch.optim.AdamW):
    """torch's fused AdamW; with `cautious`, its decay follows `keeping.decay`.

    If `found_inf` is set and not 0, a step changes nothing.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: Groups,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        cautious: bool = False,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=0.0, fused=True)
        self.cautious = cautious

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        if not self.cautious:
            _ADAMW(self)
            return
        amounts = [group["weight_decay"] for group in self.param_groups]
        moved = [p for g in self.param_groups if g["weight_decay"] for p in g["params"]]
        with kept_if(self.found_inf, moved):
            for group in self.param_groups:
                self._decay(group)
                # The fused kernel knows no caution: it must not decay a second time.
                group["weight_decay"] = 0.0
            _ADAMW(self)
        for group, amount in zip(self.param_groups, amounts, strict=True):
            group["weight_decay"] = amount

    def _decay(self, group: dict[str, Any]) -> None:
        """The cautious decay of one group, before its step."""
        for parameter in group["params"]:
            if parameter.grad is None or not group["weight_decay"]:
                continue
            # The update has the sign of the new first moment.
            first = self.state[parameter].get("exp_avg", torch.zeros_like(parameter))
            update = torch.lerp(first, parameter.grad, 1 - group["betas"][0])
            decay([parameter], [update], group["lr"] * group["weight_decay"], cautious=True)


class SGD(LightOptimizer, torch.optim.SGD):
    """torch's fused SGD. If `found_inf` is set and not 0, a step changes nothing."""

    found_inf: Tensor | None = None

    def __init__(self, groups: Groups, *, lr: float, momentum: float) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["momentum"] and parameter.grad is not None:
                    # torch leaves the buffers of a first step that `found_inf` stops unwritten.
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
        _SGD(self)
