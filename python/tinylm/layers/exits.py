"""Exits: the first blocks learn to predict the next token too, through the model's norm and head.

Each token trains one exit besides the last block, so all exits together cost one more pass of the
head, however many blocks there are. Deeper exits get more of the tokens, so their weight rises with
depth. Source: Elhoushi et al. 2024 (LayerSkip), section 4.1, whose curriculum turns through the
exits step by step, where this one does so token by token.
"""

import torch
from torch import Tensor

# The share of the exits in the loss; the last block has the rest.
EXITS = 0.3
# 2^32 over the golden ratio, odd: its multiples cover a circle of 2^32 places evenly.
GOLDEN, TURN = 2654435769, 2**32


class Exits:
    """The vectors of `exits` exits, which a pass adds block by block: each token's own is kept.

    Token n of a batch, row by row, trains exit e where (n GOLDEN mod TURN) / TURN is in
    [e^2, (e + 1)^2) / exits^2: a share of (2 e + 1) / exits^2 of all tokens.
    """

    def __init__(self, x: Tensor, exits: int) -> None:
        """Begin with the x [B, T, D] before the first block, which no token keeps."""
        self.x, self.exits = x, exits
        place = torch.arange(x.size(0) * x.size(1), device=x.device)
        self._turned = ((place * GOLDEN) % TURN * exits**2).view(*x.shape[:2], 1)

    def add(self, layer: int, x: Tensor) -> None:
        """Take x [B, T, D] after block `layer` for its tokens and those of deeper exits."""
        # The mask alone is kept for the gradient, not the vectors of every block.
        if layer < self.exits:
            self.x = torch.where(self._turned >= layer**2 * TURN, x, self.x)
