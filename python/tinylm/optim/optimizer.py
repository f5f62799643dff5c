"""Several torch optimizers that move one model together."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tinylm.optim.muon import Muon
from tinylm.optim.whole import Whole


class Optimizer:
    """One or more torch optimizers that move a model together, their state under clear names.

    A group's "peak" is its rate when the schedule is 1. `clip` bounds the norm of the
    gradients that AdamW and SGD see; Muon's step does not depend on its gradient's size.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: list[torch.optim.Optimizer],
        clip: float,
        whole: Whole | None = None,
    ) -> None:
        self.parts, self.clip = parts, clip
        self.whole = Whole() if whole is None else whole
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        for part in parts:
            if isinstance(part, Muon):
                part.whole = self.whole
            for group in part.param_groups:
                # `step` overwrites "lr" with the scheduled rate, so the peak needs a key of its
                # own.
                group["peak"] = group["lr"]

    def step(self, rate: float, ok: Tensor | None = None) -> None:
        """Move every weight; `rate` scales the peak learning rates. Gradients are then gone.

        If `ok` is False (scalar), weights and state stay as they are.
        """
        if ok is not None and not ok:
            self.zero_grad()
            return
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate * group["peak"]
            # Norms are taken per optimizer: matrices that Muon moves must not shrink what AdamW
            # gets.
            if self.clip and not isinstance(part, Muon):
                parameters = [p for group in part.param_groups for p in group["params"]]
                gradients = [p.grad for p in parameters if p.grad is not None]
                norm = self.whole.norm(gradients)
                nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
            part.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def gradient_norm(self) -> Tensor:
        """2-norm of all gradients together, before clipping (scalar)."""
        gradients = [p.grad for p in self.names if p.grad is not None]
        return self.whole.norm(gradients)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the state as `<parameter>.<quantity>`; not copies."""
        return {
            f"{self.names[parameter]}.{key}": value
            for part in self.parts
            for parameter, values in part.state.items()
            for key, value in values.items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned; `ValueError` names what does not fit."""
        rest = dict(state)
        for part, parameter in self._parameters():
            prefix = f"{self.names[parameter]}."
            # Quantities have no dot in their names, so a longer parameter name cannot match.
            mine = [key for key in rest if key.rpartition(".")[0] + "." == prefix]
            for key in mine:
                value = rest.pop(key)
                quantity = key.rpartition(".")[2]
                if value.dim() and value.shape != parameter.shape:
                    raise ValueError(
                        f"optimizer state {key} has shape {list(value.shape)}, the parameter "
                        f"{list(parameter.shape)}: the checkpoint is of another model"
                    )
                # torch keeps the step count of a fused optimizer where it made it.
                # Scalars, such as a step count, have no shape to compare.
                part.state[parameter][quantity] = value.to(parameter.device)
        if rest:
            raise ValueError(f"optimizer state for unknown parameters: {', '.join(sorted(rest))}")

    def _parameters(self) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter]]:
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    yield part, parameter
