"""A case of the benchmark: a problem of one size, who solves it, and the gate before the clock.

    Case("rms_norm forward", {"rows": 32768, "width": 4096}, build)

`build` is called only when the case begins. It returns a `Contest`, whose contenders are functions
without arguments. Ours have names that begin with "tinylm", and come first.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from benches.gpu.job import LONG_PATIENCE, At

BF16 = torch.bfloat16


class Missing(str):
    """Stands for a contender that cannot run here, and says why."""


@dataclass
class Patient:
    """A contender whose first call compiles for so long that it is no hang."""

    run: Callable[[], Any]
    patience: float = LONG_PATIENCE

    def __call__(self) -> Any:
        return self.run()


class Backward:
    """Gradients of `function(*inputs)`, one or several; the forward pass runs in the first call."""

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Tensor],
        dy: Tensor | Sequence[Tensor],
    ) -> None:
        # A compiled backward pass may otherwise write over what the forward pass kept, and refuses
        # to run twice.
        torch._functorch.config.donated_buffer = False
        self.function, self.dy = function, dy
        self.inputs = [x.detach().requires_grad_() for x in inputs]
        self.y: Any = None

    def __call__(self) -> tuple[Tensor, ...]:
        if self.y is None:
            self.y = flat(self.function(*self.inputs))
        return torch.autograd.grad(self.y, self.inputs, flat(self.dy), retain_graph=True)


def _as_they_are(result: Any) -> Any:
    return result


@dataclass(frozen=True)
class Contest:
    """The contenders of a case and how they are compared.

    `want` gives the right results in float32 or float64; a contender's result, after `pick`, may
    differ from them by `tolerance` at most, relative, in the 2-norm. `bytes` and `flops` are what
    the problem needs at least, not what a contender does (METHOD.md). `graph` captures the calls
    in a CUDA graph, as decoding does. `memory` measures the extra memory of a call. `repeats` is
    the number of further calls whose results must be equal to the bit. With `tokens` a row has
    tokens per second.
    """

    contenders: dict[str, Callable[[], Any] | Missing]
    want: Callable[[], Any]
    tolerance: float
    pick: Callable[[Any], Any] = _as_they_are
    bytes: float = 0
    flops: float = 0
    graph: bool = False
    memory: bool = False
    repeats: int = 0
    tokens: int = 0
    # What else a row says of a contender, by its name.
    notes: Callable[[str], dict[str, Any]] = lambda name: {}


@dataclass(frozen=True)
class Case:
    """A family of cases ("rms_norm forward"), the sizes of this one, and how to make it."""

    family: str
    at: At
    build: Callable[[], Contest]


@dataclass(frozen=True)
class Place:
    """Where the cases run: on a GPU or, `dry`, on the CPU in Triton's interpreter."""

    dry: bool

    @property
    def device(self) -> torch.device:
        """The device of all inputs."""
        return torch.device("cpu" if self.dry else "cuda")

    def sized(self, real: Any, tiny: Any) -> Any:
        """The size of a case: `tiny` where a dry run only shows that everything runs."""
        return tiny if self.dry else real

    def randn(self, *shape: int, dtype: torch.dtype = BF16, scale: float = 1.0) -> Tensor:
        """Normal numbers, drawn on the device."""
        return (torch.randn(shape, device=self.device) * scale).to(dtype)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """torch.compile for these shapes; a dry run traces and compiles nothing."""
        backend = "eager" if self.dry else "inductor"
        return torch.compile(function, dynamic=False, backend=backend)

    @functools.cached_property
    def capability(self) -> tuple[int, int]:
        """Compute capability; that of no GPU in a dry run."""
        return (0, 0) if self.dry else torch.cuda.get_device_capability()


def flat(result: Any) -> tuple[Tensor, ...]:
    """The tensors of a result, which is one or a sequence of them."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def relative(got: Any, want: Any) -> float:
    """The largest relative error in the 2-norm of any tensor; infinite where one is not finite."""
    worst = 0.0
    for ours, exact in zip(flat(got), flat(want), strict=True):
        if ours.shape != exact.shape:
            raise ValueError(f"the result has shape {list(ours.shape)}, not {list(exact.shape)}")
        wide = exact.double()
        error = float((ours.double() - wide).norm() / wide.norm().clamp_min(1e-30))
        worst = max(worst, error if error == error else float("inf"))
    return worst
