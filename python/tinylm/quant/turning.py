"""Values turned inside each head, so that no number of their matrices stands out.

    o (a v) = (o R^T) (a (R v))        for any mixing a of tokens, and R orthogonal [head, head]

A head that copies has one large weight per row. In a group with it, all others round to few
steps. After the turn each row has many weights of one size. What the block computes stays the
same, and no number is added. Source: Liu et al. 2024 (SpinQuant), section 3.1, rotation R2;
R is Hadamard's matrix where the head is a power of two, else a random one.
"""

import torch
from torch import Tensor

from tinylm.layers import Attention, Block


@torch.no_grad()
def turn_values(block: Block) -> None:
    """Turn the values of a block, in place; nothing where something is added to them."""
    attention = block.attention
    if not isinstance(attention, Attention):
        return
    if attention.value_residual or attention.value_embedding or attention.gives_values:
        return
    size = attention.head_size
    turn = orthogonal(size)
    v, o = attention.v, attention.o
    for part in (v.weight, v.bias):
        if part is not None:
            heads = part.double().reshape(attention.kv_heads, size, -1)
            part.copy_((turn.to(heads) @ heads).reshape(part.shape))
    heads = o.weight.double().reshape(-1, size)
    o.weight.copy_((heads @ turn.to(heads).T).reshape(o.weight.shape))


def orthogonal(size: int) -> Tensor:
    """An orthogonal matrix [size, size] in float64 whose numbers are of one size."""
    if size & (size - 1) == 0:
        turn = torch.ones(1, 1, dtype=torch.float64)
        while len(turn) < size:
            turn = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), turn)
        scaled: Tensor = turn / size**0.5
        return scaled
    drawn = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis: Tensor = torch.linalg.qr(drawn)[0]
    return basis
