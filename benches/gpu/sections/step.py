"""A training step of GPT-2's smallest shape, with our kernels and without.

Both steps are compiled, under autocast to bfloat16, with the same fused AdamW. The one without has
torch's attention and all logits at once; everything else is the same model.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benches.gpu.case import Case, Contest, Missing, Patient, Place, flat
from benches.gpu.job import LONG_PATIENCE
from tinylm.config import ModelConfig
from tinylm.model import Model, build

ROWS, LENGTH = 32, 1024
# The vocabulary is GPT-2's, rounded up to a multiple of 128.
SHAPE = {"vocab_size": 50304, "d_model": 768, "n_layers": 12, "n_heads": 12}
TINY = {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 2}


def cases(place: Place) -> Iterator[Case]:
    """32 rows of 1,024 tokens."""
    rows, length = place.sized((ROWS, LENGTH), (2, 16))
    yield Case("step", {"rows": rows, "tokens": length}, lambda: step(place, rows, length))


def config_of(place: Place, attention: str, length: int) -> ModelConfig:
    """GPT-2's settings."""
    shape: dict[str, Any] = place.sized(SHAPE, TINY)
    return ModelConfig(architecture="gpt2", context_length=length, attention=attention, **shape)


def model_of(place: Place, attention: str, length: int) -> Model:
    """The model, with weights that all matter: it would begin with branches of zero."""
    model = build(config_of(place, attention, length), device=place.device)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(place.device)
            parameter.add_(0.02 * noise)
    return model


class Step:
    """A training step; the model is made and the step compiled at the first call.

    Returns the loss and one matrix's gradient. `peak_mib` is the most memory that a step had
    allocated, without what belongs to other contenders.
    """

    def __init__(self, place: Place, attention: str, fused: bool, batch: tuple[Tensor, Tensor]):
        self.place, self.attention, self.fused, self.batch = place, attention, fused, batch
        self.run: Any = None

    def _make(self) -> None:
        tokens, _ = self.batch
        self.model = model_of(self.place, self.attention, tokens.size(1))
        on_gpu = not self.place.dry
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=on_gpu)
        self.run = self.place.compiled(self._loss)

    def _loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        if self.fused:
            return self.model.loss(tokens, targets)
        logits = self.model(tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def __call__(self) -> tuple[Tensor, Tensor]:
        if self.run is None:
            self._make()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.place.device.type, torch.bfloat16):
            loss = self.run(*self.batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), matrix(self.model).grad

    def peak_mib(self) -> float:
        """Peak memory of a step: weights, gradients, the optimizer's state, activations."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        own = list(self.model.parameters())
        own += [p.grad for p in own if p.grad is not None]
        for state in self.optimizer.state.values():
            own += [x for x in state.values() if isinstance(x, Tensor) and x.is_cuda]
        held = sum(x.untyped_storage().nbytes() for x in own)
        self()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before + held) / 2**20


def matrix(model: Model) -> torch.nn.Parameter:
    """The largest matrix of the first block: its gradient passes through every layer."""
    return max(model.blocks[0].parameters(), key=lambda p: p.numel())


def exact(place: Place, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float32, without kernels, a row at a time."""
    model = model_of(place, "sdpa", batch[0].size(1))
    total = torch.zeros((), dtype=torch.float64, device=place.device)
    for tokens, targets in zip(*batch, strict=True):
        loss = F.cross_entropy(model(tokens[None])[0], targets) / len(batch[0])
        loss.backward()
        total += loss.detach()
    return total, matrix(model).grad


def step(place: Place, rows: int, length: int) -> Contest:
    """Random tokens: the time does not depend on them.

    `tinylm` is the default, `model.attention=auto`; the others have one kernel for attention.
    """
    words = place.sized(SHAPE, TINY)["vocab_size"]
    tokens, targets = (
        torch.randint(0, words, (rows, length), device=place.device) for _ in range(2)
    )
    batch = (tokens, targets)
    steps = {
        "tinylm triton": Step(place, "triton", True, batch),
        "SDPA, F.cross_entropy": Step(place, "sdpa", False, batch),
        "tinylm": Step(place, "auto", True, batch),
        "tinylm hopper": Step(place, "hopper", True, batch),
    }
    with torch.device("meta"):
        shape = Model(config_of(place, "sdpa", length))

    def notes(name: str) -> dict[str, Any]:
        if place.dry:
            return {}
        return {"peak_mib": round(steps[name].peak_mib())}

    contenders: dict[str, Patient | Missing] = {
        name: Patient(run, 2 * LONG_PATIENCE) for name, run in steps.items()
    }
    if place.capability != (9, 0):
        contenders["tinylm hopper"] = Missing("needs a Hopper GPU")
    return Contest(
        contenders,
        lambda: exact(place, batch),
        5e-2,
        pick=flat,
        flops=shape.flops_per_token(length) * rows * length,
        notes=notes,
        tokens=rows * length,
    )
