"""One block: attention and a feedforward network, one after the other or side by side."""

from dataclasses import replace

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinylm.config import ModelConfig, choose
from tinylm.context import Context, Left
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
        if not context.again:
            return self._computed(x, context)

        def pure(x: Tensor, shared: dict[str, Tensor]) -> tuple[Tensor, Left]:
            # What a block leaves for others is a result here: the compiler would end its graph at a
            # change of the context.
            left = Left(shared)
            return self._computed(x, replace(context, left=left)), left

        # Inside of this module, so that what FSDP does around it is not done again.
        y: Tensor
        y, left = checkpoint(pure, x, context.shared, use_reentrant=False)
        context.shared.update(left.shared)
        context.losses.extend(left.losses)
        return y

    def _computed(self, x: Tensor, context: Context) -> Tensor:
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
