"""The feedforward networks of a block."""

from collections.abc import Callable

from torch import Tensor, nn

from tinylm import ops
from tinylm.config import ModelConfig
from tinylm.context import Context
from tinylm.layers.linear import Linear


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); x [B, T, D], inner width F."""

    def __init__(self, config: ModelConfig, *, bias: bool) -> None:
        super().__init__()
        width = config.feedforward_width
        self.gate = Linear(config.d_model, width, bias=bias)
        self.up = Linear(config.d_model, width, bias=bias)
        self.down = Linear(width, config.d_model, bias=bias, branch=True)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape."""
        out: Tensor = self.down(ops.swiglu(self.gate(x), self.up(x)))
        return out


class MLP(nn.Module):
    """down(activation(up(x))); x [B, T, D], inner width F."""

    def __init__(
        self, config: ModelConfig, *, bias: bool, activation: Callable[[Tensor], Tensor] = ops.gelu
    ) -> None:
        super().__init__()
        self.activation = activation
        self.up = Linear(config.d_model, config.feedforward_width, bias=bias)
        self.down = Linear(config.feedforward_width, config.d_model, bias=bias, branch=True)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape."""
        out: Tensor = self.down(self.activation(self.up(x)))
        return out
