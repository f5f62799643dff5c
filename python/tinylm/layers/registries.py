"""The tables that name the parts.

A module named in `imports` may add to them, so they are read when a model is built and never
copied.
"""

from functools import partial
from typing import Any

from tinylm import ops
from tinylm.layers.attention import Attention
from tinylm.layers.feedforward import MLP, SwiGLU
from tinylm.layers.positions import Learned, NoPosition, Rope

POSITIONS: dict[str, Any] = {"rope": Rope, "learned": Learned, "none": NoPosition}
FEEDFORWARDS: dict[str, Any] = {
    "swiglu": SwiGLU,
    "mlp": MLP,
    "relu2": partial(MLP, activation=ops.relu2),
}
ATTENTIONS: dict[str, Any] = {
    "auto": Attention,
    "triton": partial(Attention, attend=partial(ops.attention, backend="triton")),
    "hopper": partial(Attention, attend=partial(ops.attention, backend="hopper")),
    "sdpa": partial(Attention, attend=partial(ops.attention, backend="sdpa")),
    "manual": partial(Attention, attend=ops.manual_attention),
}
