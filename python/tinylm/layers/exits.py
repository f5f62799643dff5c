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

    Token n of a row has the place u = n GOLDEN / TURN, without whole turns. It trains the last exit
    e with e (exits + e) / (2 exits^2) <= u: the share of an exit rises from half of the mean to one
    and a half of it. The row does not count, so the loss of a batch is that of its parts.
    """

    def __init__(self, x: Tensor, exits: int) -> None:
        """Begin with the x [B, T, D] before the first block, which no token keeps."""
        self.x, self.exits = x, exits
        number = torch.arange(x.size(1), device=x.device)[:, None]
        self._place = number * GOLDEN % TURN * 2 * exits**2

    def add(self, layer: int, x: Tensor) -> None:
        """Take x [B, T, D] after block `layer` for its tokens and those of deeper exits."""
        if layer < self.exits:
            # The gradient needs the mask alone, so no vectors of a block are kept for it.
            begin = layer * (self.exits + layer) * TURN
            self.x = torch.where(self._place >= begin, x, self.x)
