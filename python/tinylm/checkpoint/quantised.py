"""Folders of models with packed weights (`tinylm.layers.packed`).

model.safetensors has `packed` and `scales` in place of each matrix's `weight`, under our own names.
config.json has the model_type `tinylm` whatever the parts, and the key `quantization_config`, which
names no quant_method: transformers refuses both, where it would skip a method that it does not
know and draw the weights that it misses.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinylm.layers import packed
from tinylm.model import Model
from tinylm.ops.quant import GROUPS

KEY = "quantization_config"
VERSION = 1
LEAVES = ("packed", "scales", "input_scale")


def described(
    *, matrices: str, group: int | None, kept: list[str], embedding: str, **about: Any
) -> dict[str, Any]:
    """The value of the key: what decides the tensors, and `about`, how the weights were made."""
    decides = {"matrices": matrices, "group": group, "kept": kept, "embedding": embedding}
    return {"format": "tinylm", "version": VERSION, **decides, **about}


def settings(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The value of the key in a config.json; None if there is none, or one of another program.

    Raises `ValueError` for a value that this TinyLM does not know.
    """
    found = content.get(KEY)
    if not isinstance(found, dict) or found.get("format") != "tinylm":
        return None
    allowed: dict[str, tuple[Any, ...]] = {
        "version": (VERSION,),
        "matrices": tuple(packed.FORMATS),
        "group": (None, *GROUPS),
        "embedding": ("int8", "float"),
    }
    for key, values in allowed.items():
        if found.get(key) not in values:
            known = ", ".join("null" if value is None else str(value) for value in values)
            raise ValueError(f"{KEY}.{key}={found.get(key)!r}: this TinyLM knows {known}")
    if not isinstance(found.get("kept"), list):
        raise ValueError(f"{KEY}.kept={found.get('kept')!r}: expected a list of names")
    if found["matrices"] == "int4" and found["group"] is None:
        raise ValueError(f"{KEY}.group=null: int4 has groups of 32, 64 or 128")
    return found


def is_packed(name: str, settings: Mapping[str, Any] | None) -> bool:
    """Whether a tensor of a folder belongs to packed weights."""
    return settings is not None and name.rpartition(".")[2] in LEAVES


def hollow(folder: Path, net: Model, settings: Mapping[str, Any] | None) -> None:
    """Make the matrices of a model packed ones, empty, as the settings say; none for None."""
    if settings is None:
        return
    net.quantisation = settings
    try:
        packed.hollow(net, settings)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def fill(
    folder: Path, net: Model, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]
) -> None:
    """Give a model of float weights the packed tensors of a folder, whose shapes fit it.

    They are taken as they are: a scale of 16 bits stays one whatever the model's other weights.
    Raises `ValueError` for whole numbers of another dtype than the format has.
    """
    if settings is None:
        return
    with torch.device("meta"):
        packed.hollow(net, settings)
    net.quantisation = settings
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf not in LEAVES:
            continue
        part = net.get_submodule(module)
        wanted = getattr(part, leaf).dtype
        if tensor.dtype != wanted and not (wanted.is_floating_point and tensor.is_floating_point()):
            raise ValueError(f"{folder}: {name} has dtype {tensor.dtype}, expected {wanted}")
        setattr(part, leaf, tensor)
    # Whole numbers have no gradient, and what is left is not worth training.
    net.requires_grad_(False)
