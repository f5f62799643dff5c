"""RMSNorm and LayerNorm, over the last axis."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.ops import choice
from tinylm.ops.dtypes import widened


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; x [..., D], weight [D].

    Source: Zhang and Sennrich 2019, equation 4.
    """
    kernel = choice.kernel_for("rms_norm", weight.size(-1), x, weight)
    if kernel is not None:
        return kernel(x, weight, eps)
    wide = widened(x)
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    # Rounded before the product with the weight, as transformers' Llama does. A float32 weight must
    # not widen the result, which is bfloat16 under autocast.
    return scaled.to(x.dtype) * weight.to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; x [..., D].

    Source: Ba et al. 2016, equation 4.
    """
    bias = None if bias is None else bias.to(x.dtype)
    return F.layer_norm(x, (x.size(-1),), weight.to(x.dtype), bias, eps)
