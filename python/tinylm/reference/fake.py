"""Training with fewer bits: the numbers of a packed model, and what passes for gradients.

    int8      w' = s round(w / s)             s = max |w| / 127 of the row
    int4      w' = s clip(round(w / s))       s of each group by search, clip to -8 .. 7
    ternary   w' = s clip(round(w / s))       s = mean |w| of the matrix, clip to -1 .. 1

The first two are the formats of `tinylm.reference.quant`, whose `search_scale` finds the scale with
the least squared error. Ternary weights multiply activations of
8 bits, x' = s round(x / s) with s = max |x| / 127 of each token. Source: Ma et al. 2024 (BitNet
b1.58, arXiv 2402.17764), section 2.

While the share a of the quantised weight rises from 0 to 1, a product is

    y = x'' W''^T + b        w'' = (1 - a) w + a w'        x'' = x, or of ternary (1 - a) x + a x'

The derivative of round is 0 almost everywhere, so nothing would be learned. The straight-through
estimator takes it for 1 (Bengio et al. 2013, section 4): dw' / dw = 1 and dx' / dx = 1, so that
dw'' / dw = (1 - a) + a = 1 for every a, and with dy the gradient of the result

    dx = dy W''        dW = dy^T x''        db = the sum of dy over the rows

The gradients are those of the product with W'' and x'', handed to W and x as they are. Nothing is
cut off where ternary clips: such a weight may come back.
"""

from typing import Any

import numpy as np
import torch

from tinylm.reference.quant import search_scale

Array = np.ndarray[Any, Any]


def grid(x: Array) -> Array:
    """x [..., K] float32 rounded to whole multiples of a scale, max |x| / 127 of its row."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    return np.asarray(np.round(x / scale) * scale)


def grid_int4(x: Array) -> Array:
    """x [group] float32 rounded to whole multiples, -8 .. 7, of the scale that search finds."""
    scale = np.float32(search_scale(torch.from_numpy(x).double()))
    return np.asarray(np.clip(np.round(x / scale), -8, 7) * scale)


def ternary(weight: Array) -> tuple[Array, Array]:
    """A matrix to -1, 0 and 1 of the same shape, as floats, and its scale."""
    scale = np.maximum(np.abs(weight).mean(dtype=weight.dtype), np.finfo(weight.dtype).tiny)
    return np.clip(np.round(weight / scale), -1, 1), scale


def fake_weight(weight: Array, bits: str, group: int, share: float) -> Array:
    """W'' of a weight [N, K] float32; `group` divides K and counts for int4 alone."""
    if bits == "int8":
        whole = grid(weight)
    elif bits == "int4":
        whole = np.stack([grid_int4(part) for part in weight.reshape(-1, group)])
        whole = whole.reshape(weight.shape)
    else:
        numbers, scale = ternary(weight)
        whole = numbers * scale
    return mixed(weight, whole, share)


def fake_rows(x: Array, share: float) -> Array:
    """x'' of activations [..., K] before a ternary weight."""
    return mixed(x, grid(x), share)


def mixed(x: Array, whole: Array, share: float) -> Array:
    """(1 - share) x + share whole, exactly `whole` where share is 1."""
    share = x.dtype.type(share)
    return x + share * (whole - x) if share < 0.5 else whole - (whole - x) * (1 - share)


def fake_linear(x: Array, weight: Array, bias: Array, bits: str, group: int, share: float) -> Array:
    """y [B, N] of x [B, K], W [N, K] and b [N]."""
    x = fake_rows(x, share) if bits == "ternary" else x
    return np.asarray(x @ fake_weight(weight, bits, group, share).T + bias)


def fake_linear_backward(
    dy: Array, x: Array, weight: Array, bits: str, group: int, share: float
) -> tuple[Array, Array, Array]:
    """dx, dW and db by the straight-through estimator."""
    read = fake_rows(x, share) if bits == "ternary" else x
    return dy @ fake_weight(weight, bits, group, share), dy.T @ read, dy.sum(0)


def linear_static(x: Array, input_scale: float, q: Array, scale: Array, bias: Array) -> Array:
    """y [B, N] of x [B, K] rounded to input_scale, and a weight of q [N, K] int8 and scale [N]."""
    whole = np.clip(np.round(x / np.float32(input_scale)), -127, 127).astype(np.int64)
    return np.asarray((whole @ q.T.astype(np.int64)) * (scale * np.float32(input_scale)) + bias)


def pack_ternary(numbers: Array) -> Array:
    """-1, 0 and 1 [N, K], K a multiple of 4, to bytes [N, K / 4].

    Element 4 i + j of a row is in the bits 2 j and 2 j + 1 of byte i, as 0, 1 or 2.
    """
    codes = (numbers + 1).astype(np.uint8).reshape(len(numbers), -1, 4)
    return np.asarray(codes[..., 0] + 4 * codes[..., 1] + 16 * codes[..., 2] + 64 * codes[..., 3])


def unpack_ternary(packed: Array) -> Array:
    """Bytes [N, K / 4] to -1, 0 and 1 [N, K] int8."""
    codes = [packed // 4**j % 4 for j in range(4)]
    return np.stack(codes, -1).reshape(len(packed), -1).astype(np.int8) - 1
