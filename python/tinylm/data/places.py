"""Where each token of a row stands in its document: what a model needs to keep documents apart."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def places(tokens: "torch.Tensor", eos_id: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """tokens [B, T] to the position of each token in its document, and the document's number.

    Both are [B, T] int64. A document begins with the end-of-text token of the one before it, as a
    prompt of the sampler does; what a row begins with is the rest of a document, numbered 0.
    """
    import torch

    begins = tokens == eos_id
    index = torch.arange(tokens.size(-1), device=tokens.device).expand_as(tokens)
    since = torch.where(begins, index, 0).cummax(-1).values
    return index - since, begins.cumsum(-1)
