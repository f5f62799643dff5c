"""How positions enter: by rotation, by a learned vector, or not at all."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from tinylm import ops
from tinylm.config import ModelConfig
from tinylm.layers.linear import Embedding


@dataclass(frozen=True, eq=False)
class Rotation:
    """The rotation of one pass: angles [T, head / 2] or [B, 1, T, head / 2]."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, H, T, head], rotated."""
        return ops.rope(x, self.cos, self.sin)

    def normed(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """`ops.rms_norm` of x [B, H, T, head] over each head, rotated: one pass over memory."""
        return ops.norm_rope(x, weight, self.cos, self.sin, eps)


class Rope(nn.Module):
    """Position as a rotation of queries and keys; adds nothing to the stream."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.head_width % 2:
            raise ValueError(
                f"model.position=rope needs an even head size, d_model / n_heads is "
                f"{config.head_width}: change one of them"
            )
        angles = ops.rotary_angles(config.context_length, config.head_width, config.rope_theta)
        for name, tensor in zip(("cos", "sin"), angles, strict=True):
            # They follow from the settings, so no checkpoint holds them. As buffers they still move
            # with the model.
            self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rope":
        # A model in bfloat16 keeps its angles in float32: at position 300 they would be off by one.
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.cos.dtype.itemsize < cos.dtype.itemsize:
            self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)
        return self

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, T, D], as it is: this part adds nothing."""
        return x

    def rotation(self, positions: Tensor) -> Callable[[Tensor], Tensor]:
        """The function that turns x [B, H, T, head] at `positions` [T] or [B, T]."""
        # Looked up once for all layers, queries and keys.
        cos, sin = self.cos[positions], self.sin[positions]
        # Positions per row need an axis that all heads share.
        if positions.dim() > 1:
            cos, sin = cos[:, None], sin[:, None]
        return Rotation(cos, sin)

    def moved_back(self, k: Tensor, by: Tensor) -> Tensor:
        """Keys k [B, K, S, head] rotated back by by[b] places, below the context length."""
        # The rotation by a negative angle.
        cos, sin = (
            x[by][:, None, None].expand(-1, -1, k.size(2), -1) for x in (self.cos, self.sin)
        )
        return ops.rope(k, cos, -sin)


class Learned(nn.Module):
    """Position as a learned vector added to the stream, as in GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = Embedding(config.context_length, config.d_model)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, T, D] plus the table's rows at `positions` [T] or [B, T]."""
        rows: Tensor = self.table(positions)
        # Vectors of a caller that begins at `hidden` may have another dtype; the sum must keep it.
        return x + rows.to(x.dtype)

    def rotation(self, positions: Tensor) -> Callable[[Tensor], Tensor]:
        """The function that leaves queries and keys as they are."""
        return identity


class NoPosition(nn.Module):
    """No positions: only the causal mask tells tokens apart (Kazemnejad et al. 2023)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, T, D], as it is: this part adds nothing."""
        return x

    def rotation(self, positions: Tensor) -> Callable[[Tensor], Tensor]:
        """The function that leaves queries and keys as they are."""
        return identity

    def moved_back(self, k: Tensor, by: Tensor) -> Tensor:
        """Keys k [B, K, S, head], which do not know where they stand."""
        return k


def identity(x: Tensor) -> Tensor:
    """x: the rotation by no angle."""
    return x
