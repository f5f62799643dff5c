"""One block: attention and a feedforward network, one after the other or side by side."""

from torch import Tensor, nn

from tinylm.config import ModelConfig, choose
from tinylm.context import Context
from tinylm.layers.mixing import Shortcut, TokenShift
from tinylm.layers.norms import NORMS, add_and_norm
from tinylm.layers.registries import ATTENTIONS, FEEDFORWARDS


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)); x [B, T, D].

    With `parallel`, x + attention(norm(x)) + feedforward(norm(x)), with one norm (Wang and
    Komatsuzaki 2021, GPT-J). A shortcut goes before the norm, a token shift after it.
    """

    def __init__(self, config: ModelConfig, *, layer: int) -> None:
        super().__init__()
        chosen = config.components()
        bias = chosen["bias"]
        norm = choose(NORMS, "model.norm", chosen["norm"])
        attention = choose(ATTENTIONS, "model.attention", config.attention)
        feedforward = choose(FEEDFORWARDS, "model.feedforward", chosen["feedforward"])
        self.attention_norm = norm(config.d_model, eps=config.norm_eps, bias=bias)
        self.attention = attention(config, layer=layer, bias=bias)
        self.shortcut = Shortcut() if chosen["shortcut"] else None
        self.shift = TokenShift(config.d_model) if chosen["token_shift"] else None
        if not chosen["parallel"]:
            self.feedforward_norm = norm(config.d_model, eps=config.norm_eps, bias=bias)
        else:
            self.feedforward_norm = None
        self.feedforward = feedforward(config, bias=bias)
        # One module for both branches: dropout has no state.
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape."""
        if self.shortcut is not None:
            x = self.shortcut(x, context)
        normed = self.attention_norm(x)
        if self.shift is not None:
            normed = self.shift(normed, context)
        branch = self.dropout(self.attention(normed, context))
        if self.feedforward_norm is None:
            side_by_side: Tensor = x + branch + self.dropout(self.feedforward(normed, context))
            return side_by_side
        x, normed = add_and_norm(self.feedforward_norm, x, branch)
        out: Tensor = x + self.dropout(self.feedforward(normed, context))
        return out
