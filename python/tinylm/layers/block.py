"""One block: attention and a feedforward network, each on a norm and added to the stream."""

from torch import Tensor, nn

from tinylm.config import ModelConfig, choose
from tinylm.context import Context
from tinylm.layers.norms import add_and_norm
from tinylm.layers.registries import ATTENTIONS, FEEDFORWARDS, NORMS


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)); x [B, T, D]."""

    def __init__(self, config: ModelConfig, *, layer: int) -> None:
        super().__init__()
        chosen = config.components()
        bias = chosen["bias"]
        norm = choose(NORMS, "model.norm", chosen["norm"])
        attention = choose(ATTENTIONS, "model.attention", config.attention)
        feedforward = choose(FEEDFORWARDS, "model.feedforward", chosen["feedforward"])
        self.attention_norm = norm(config.d_model, eps=config.norm_eps, bias=bias)
        self.attention = attention(config, layer=layer, bias=bias)
        self.feedforward_norm = norm(config.d_model, eps=config.norm_eps, bias=bias)
        self.feedforward = feedforward(config, bias=bias)
        # One module for both branches: dropout has no state.
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] to the same shape."""
        branch = self.dropout(self.attention(self.attention_norm(x), context))
        x, normed = add_and_norm(self.feedforward_norm, x, branch)
        out: Tensor = x + self.dropout(self.feedforward(normed, context))
        return out
