"""Several torch optimizers that move one model together."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tinylm.config import OptimConfig
from tinylm.optim.muon import Muon
from tinylm.optim.whole import Whole


class Optimizer:
    """One or more torch optimizers that move a model together, their state under clear names.

    A group's "peak" is its rate when the schedule is 1; a group with "decays" has the weight
    decay of the settings. `config.clip` bounds the norm of the gradients that AdamW and SGD see;
    Muon's step does not depend on its gradient's size.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: list[torch.optim.Optimizer],
        config: OptimConfig,
        whole: Whole | None = None,
    ) -> None:
        self.parts, self.clip = parts, config.clip
        self.whole = Whole() if whole is None else whole
        self.momentum, self.weight_decay = config.momenta, config.decays
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        for part in parts:
            if isinstance(part, Muon):
                part.whole = self.whole
            for group in part.param_groups:
                # `step` overwrites "lr" with the scheduled rate, so the peak needs a key of its
                # own.
                group["peak"] = group["lr"]

    def step(
        self,
        rate: float,
        *,
        progress: float = 0.0,
        ok: Tensor | None = None,
        norms: Tensor | None = None,
    ) -> None:
        """Move every weight; gradients are then gone.

        `rate` scales the peak learning rates; momentum and weight decay are those of their courses
        at `progress` (0 to 1). If `ok`, a bool scalar, is false, weights and moments keep their
        bits, whatever the gradients are. On a CUDA device the host does not read `ok`. `norms` are
        the `gradient_norms`, if the caller knows them already.
        """
        if ok is not None and ok.device.type != "cuda":
            if not ok:
                self.zero_grad()
                return
            ok = None
        if norms is None and self.clip:
            norms = self.gradient_norms()
        for place, part in enumerate(self.parts):
            # torch's own name for a number that is not 0 if the step must change nothing.
            part.found_inf = None if ok is None else (~ok).float()  # type: ignore[attr-defined]
            for group in part.param_groups:
                group["lr"] = rate * group["peak"]
                if group.get("decays"):
                    group["weight_decay"] = self.weight_decay.at(progress)
                if isinstance(part, Muon):
                    group["momentum"] = self.momentum.at(progress)
            # Norms are taken per optimizer: matrices that Muon moves must not shrink what AdamW
            # gets.
            if self.clip and norms is not None and not isinstance(part, Muon):
                self._clip(part, norms[place], may_read=ok is None)
            part.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        # Not by torch's `zero_grad`, which imports its compiler.
        for _, parameter in self._parameters():
            parameter.grad = None

    def gradient_norms(self) -> Tensor:
        """2-norms [parts] of the gradients that each part moves, before clipping."""
        # A part may have none, as Muon's where all matrices are frozen: torch's norm of nothing is
        # on the CPU, whatever the device of the others.
        none = next(iter(self.names)).new_zeros(())
        found = [_gradients(part) for part in self.parts]
        return torch.stack([self.whole.norm(own) if own else none for own in found])

    def gradient_norm(self) -> Tensor:
        """2-norm of all gradients together, before clipping (scalar)."""
        norm: Tensor = torch.linalg.vector_norm(self.gradient_norms())
        return norm

    def _clip(self, part: torch.optim.Optimizer, norm: Tensor, *, may_read: bool) -> None:
        """Scale the gradients of a part, whose 2-norm is `norm`, to `config.clip` at most."""
        # A CPU has no delay to hide, and saves the pass that would multiply by 1.
        if may_read and norm.is_cpu and norm + 1e-6 <= self.clip:
            return
        parameters = [p for group in part.param_groups for p in group["params"]]
        nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)

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
                # Scalars, such as a step count, have no shape to compare.
                if value.dim() and value.shape != parameter.shape:
                    raise ValueError(
                        f"optimizer state {key} has shape {list(value.shape)}, the parameter "
                        f"{list(parameter.shape)}: the checkpoint is of another model"
                    )
                # A fused optimizer counts its steps on the device of the parameter.
                part.state[parameter][quantity] = value.to(parameter.device)
        if rest:
            raise ValueError(f"optimizer state for unknown parameters: {', '.join(sorted(rest))}")

    def _parameters(self) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter]]:
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    yield part, parameter


def _gradients(part: torch.optim.Optimizer) -> list[Tensor]:
    parameters = [p for group in part.param_groups for p in group["params"]]
    return [p.grad for p in parameters if p.grad is not None]
