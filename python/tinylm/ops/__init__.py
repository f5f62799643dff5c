"""The tensor operations of the model, in torch or as a fused kernel.

`tinylm.ops.choice` is the only place where a kernel is chosen. Shapes use B = batch,
T = time (queries), S = keys seen, H = heads, K = key and value heads, D = d_model,
V = vocabulary. Statistics are taken in float32 whatever the dtype of the input.
"""

from tinylm.ops.activations import gelu, relu2, swiglu
from tinylm.ops.attentions import attention, manual_attention
from tinylm.ops.decoding import decode_attention, kernel_for_blocks
from tinylm.ops.fake import fake_rows, fake_weight
from tinylm.ops.losses import IGNORED, cross_entropy, linear_cross_entropy
from tinylm.ops.norms import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from tinylm.ops.positions import norm_rope, rope, rotary_angles
from tinylm.ops.products import linear, linear_int4, linear_int8
from tinylm.ops.quant import (
    GROUPS,
    dequantise_int4,
    dequantise_int8,
    quantise_int4,
    quantise_int8,
)
from tinylm.ops.static import linear_static
from tinylm.ops.ternary import (
    dequantise_ternary,
    linear_ternary,
    quantise_ternary,
    unpack_ternary,
)

__all__ = [
    "GROUPS",
    "IGNORED",
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "cross_entropy",
    "decode_attention",
    "dequantise_int4",
    "dequantise_int8",
    "dequantise_ternary",
    "fake_rows",
    "fake_weight",
    "gelu",
    "kernel_for_blocks",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "linear_int4",
    "linear_int8",
    "linear_static",
    "linear_ternary",
    "manual_attention",
    "norm_rope",
    "quantise_int4",
    "quantise_int8",
    "quantise_ternary",
    "relu2",
    "rms_norm",
    "rope",
    "rotary_angles",
    "swiglu",
    "unpack_ternary",
]
