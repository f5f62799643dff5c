"""The memory of decoding: the keys and values of the tokens so far, in every layer.

    held = build(model, batch_size=2, max_length=256)
    logits = model(prompts, cache=held)     # [B, T, V]; the next tokens follow these
    held.truncate(torch.tensor([5, 9]))     # rows may end at different places

A cache attends: the model hands it new keys, values and queries, and gets back what attention
makes of them and of all that the cache holds (`tinylm.context.Cache`).
"""

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from tinylm.cache import saving
from tinylm.cache.base import Base, Full
from tinylm.cache.contiguous import Contiguous
from tinylm.cache.evicting import HeavyHitters, Random, SnapKV
from tinylm.cache.native import Native
from tinylm.cache.paged import PAGE, Paged
from tinylm.cache.quantised import Grouped, Int8
from tinylm.cache.window import Window
from tinylm.context import Decodes

__all__ = ["KINDS", "PAGE", "Base", "Full", "Native", "build", "load"]

# Each makes a cache of (states, batch_size, max_length) with the keywords `earlier`, `dtype` and
# `device`, and with options of its own.
KINDS: dict[str, Callable[..., Base]] = {
    kind.kind: kind
    for kind in (Contiguous, Paged, Window, Int8, Grouped, Random, HeavyHitters, SnapKV)
}


def build(
    model: Decodes, batch_size: int, max_length: int, kind: str = "contiguous", **options: Any
) -> Base:
    """An empty cache for `batch_size` sequences of at most `max_length` tokens.

    `max_length` is at most the model's context length; the buffers take the dtype that the
    model computes in. The class of each kind says what its `options` are. Raises `ValueError` for
    a kind or an option that there is not, and for an option that is missing.
    """
    limit = model.context_length
    if not 1 <= max_length <= limit:
        raise ValueError(f"max_length={max_length}: must be 1 to the context length, {limit}")
    if kind not in KINDS:
        raise ValueError(f"kind={kind}: must be {' or '.join(KINDS)}")
    known = {
        name: parameter
        for name, parameter in signature(KINDS[kind]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for option in options:
        if option not in known:
            raise ValueError(f"{option}={options[option]}: cache={kind} takes {', '.join(known)}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options:
            raise ValueError(f"cache={kind} needs {name}=: give it as an option")
    held = KINDS[kind](
        model.decode_states(),
        batch_size,
        max_length,
        earlier=model.earlier_states(),
        dtype=_dtype(model),
        device=model.weight.device,
        **options,
    )
    held.model = model
    return held


def load(path: str | Path, model: Decodes, tokenizer: saving.Named | None = None) -> Base:
    """The cache in a file that `Base.save` wrote, of the same kind and options, on `model`.

    Raises `ValueError`, and makes nothing, if the file is of another model, another tokenizer or
    another dtype, or is no saved cache. The text itself is not in the file.
    """
    header, tensors = saving.read(path, model, tokenizer, _dtype(model))
    ends = header["positions"]
    held = build(model, len(ends), header["max_length"], header["kind"], **header["options"])
    held.restore(tensors, ends)
    return held


def _dtype(model: Decodes) -> torch.dtype:
    """The dtype of keys and values."""
    weight = model.weight
    if torch.is_autocast_enabled(weight.device.type):
        # Under autocast they come in its dtype, not in that of the weights.
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype
