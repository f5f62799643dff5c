"""The parts of a transformer block, and the registries that name them.

A part declares the role of each of its own parameters (`roles`), from which the optimizer's
groups follow, the floating-point operations of its products (`flops`), from which the model's
utilisation follows, and how its weights start (`start`). To add one, assign it:
`NORMS["mine"] = Mine`, in a module that the run names in `imports`.

| role      | parameters                       | moved by (optim.name=muon) | decayed |
|-----------|----------------------------------|----------------------------|---------|
| embedding | token and position tables        | AdamW                      | no      |
| head      | an untied output matrix          | AdamW                      | no      |
| matrix    | every matrix between those two   | Muon                       | yes     |
| gain      | norm weights and all biases      | AdamW                      | no      |
| adapter   | the two factors of an adapter    | AdamW                      | no      |
| scalar    | single learned numbers           | AdamW                      | no      |
"""

from tinylm.layers.attention import Attention
from tinylm.layers.block import Block
from tinylm.layers.copying import start_copying
from tinylm.layers.exits import EXITS, Exits
from tinylm.layers.feedforward import MLP, SwiGLU
from tinylm.layers.linear import Embedding, Head, Linear, TiedHead
from tinylm.layers.mixing import Before, Bigrams, KeyMix, Shortcut, TokenShift, ValueResidual
from tinylm.layers.norms import (
    NORMS,
    LayerNorm,
    PlainLayerNorm,
    PlainRMSNorm,
    RMSNorm,
    add_and_norm,
    is_plain,
)
from tinylm.layers.packed import PackedEmbedding, PackedHead, PackedLinear
from tinylm.layers.positions import Learned, NoPosition, Rope, Rotation, identity
from tinylm.layers.registries import ATTENTIONS, FEEDFORWARDS, POSITIONS

__all__ = [
    "ATTENTIONS",
    "EXITS",
    "FEEDFORWARDS",
    "MLP",
    "NORMS",
    "POSITIONS",
    "Attention",
    "Before",
    "Bigrams",
    "Block",
    "Embedding",
    "Exits",
    "Head",
    "KeyMix",
    "LayerNorm",
    "Learned",
    "Linear",
    "NoPosition",
    "PackedEmbedding",
    "PackedHead",
    "PackedLinear",
    "PlainLayerNorm",
    "PlainRMSNorm",
    "RMSNorm",
    "Rope",
    "Rotation",
    "Shortcut",
    "SwiGLU",
    "TiedHead",
    "TokenShift",
    "ValueResidual",
    "add_and_norm",
    "identity",
    "is_plain",
    "start_copying",
]
