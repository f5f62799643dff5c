"""AWQ: columns with large inputs are enlarged before rounding, and what gives the inputs is not.

    y = W x = (W diag(f)) (x / f),    rounded: Q(W diag(f)) (x / f)

The division goes into the part before: the weight of a norm, or the rows of a matrix. So no number
is added to the model. Where the part before has no such weight, as before the second matrix of an
MLP, the factors are 1. Source: Lin et al. 2023 (arXiv 2306.00978), section 3.2. `factors` is
defined by `tinylm.reference.quant.awq_factors`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tinylm.layers import MLP, Attention, Block, LayerNorm, Linear, RMSNorm, SwiGLU, is_plain
from tinylm.ops.rounding import on_grid, searched

# Powers of the inputs' size that are tried: 0, 0.05 .. 0.95.
STEPS = 20


def folds(block: Block) -> dict[str, list[str]]:
    """Parts of a block that can be divided, each with the matrices that read its output alone."""
    attention, feedforward = block.attention, block.feedforward
    if not isinstance(attention, Attention) or not is_plain(feedforward, SwiGLU, MLP):
        return {}
    outer = [f"attention.{name}" for name in "qkv"]
    inner = [f"feedforward.{name}" for name in ("gate", "up") if hasattr(feedforward, name)]
    found = {"attention_norm": outer, "feedforward_norm": inner}
    if block.feedforward_norm is None:
        # Side by side, both branches read one norm.
        found = {"attention_norm": outer + inner}
    # A shift between norm and matrix is linear, channel by channel: it passes the division on.
    found = {n: r for n, r in found.items() if is_plain(getattr(block, n), RMSNorm, LayerNorm)}
    mixed = attention.value_residual, attention.value_embedding, attention.gives_values or None
    if attention.heads == attention.kv_heads and mixed == (None, None, None):
        found["attention.v"] = ["attention.o"]
    if is_plain(feedforward, SwiGLU):
        # silu(gate) * up is linear in up.
        found["feedforward.up"] = ["feedforward.down"]
    return found


@torch.no_grad()
def enlarge(block: Block, moments: Mapping[str, Tensor], group: int) -> dict[str, Tensor]:
    """Fold the best factors into a block, in place; the moments that its matrices get then.

    moments has X^T X [K, K] of the inputs of every matrix. What the block computes stays the same
    but for rounding.
    """
    found = dict(moments)
    for before, names in folds(block).items():
        weights = [block.get_parameter(f"{name}.weight") for name in names]
        own = factors(weights, moments[names[0]], group)
        for name, weight in zip(names, weights, strict=True):
            weight.mul_(own.to(weight))
            found[name] = moments[name] / own / own[:, None]
        _divide(block.get_submodule(before), own)
    return found


def factors(weights: Sequence[Tensor], moments: Tensor, group: int) -> Tensor:
    """Factors [K] float64 for the columns of matrices [N, K] that have one input, by search.

    They are (root of the input's mean square) ** alpha, over the geometric mean of the largest and
    the least of them, for the alpha that changes the outputs least.
    """
    whole = torch.cat([weight.double() for weight in weights])
    moments = moments.double()
    diagonal = moments.diagonal()
    size = diagonal.clamp_min(1e-12 * diagonal.max()).sqrt()
    best, least = torch.ones_like(size), torch.inf
    for step in range(STEPS if diagonal.any() else 0):
        tried = size ** (step / STEPS)
        tried = tried / (tried.max() * tried.min()).sqrt()
        enlarged = whole * tried
        change = on_grid(enlarged, searched(enlarged, group)) / tried - whole
        error = float(((change @ moments) * change).sum())
        if error < least:
            best, least = tried, error
    return best


def _divide(part: nn.Module, own: Tensor) -> None:
    """Divide the output channels of a norm or a matrix."""
    assert isinstance(part, RMSNorm | LayerNorm | Linear)
    weight, bias = part.weight, getattr(part, "bias", None)
    weight.div_(own.to(weight)[:, None] if weight.dim() == 2 else own.to(weight))
    if bias is not None:
        bias.div_(own.to(bias))
