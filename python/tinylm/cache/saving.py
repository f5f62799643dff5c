"""A cache to a file and back, for the same model and tokenizer alone."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from tinylm import disk

FORMAT = "tinylm cache 1"


class Named(Protocol):
    """A tokenizer, as far as it is asked here."""

    @property
    def sha256(self) -> str:
        """The hash of all that decides its ids."""


def hash_of(model: Any) -> str:
    """The hash of a model's settings and weights: keys of another one mean something else."""
    found = hashlib.sha256(repr(model.config).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        # As bytes before NumPy, which has no bfloat16.
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def save(
    path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], model: Any
) -> None:
    """Write the tensors of a cache with its `header` to a safetensors file, whole or not at all."""
    metadata = {name: json.dumps(value) for name, value in header.items()}
    metadata |= {"format": FORMAT, "model": hash_of(model)}
    stored = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    disk.replace(path, to_bytes(stored, metadata))


def read(
    path: str | Path, model: Any, tokenizer: Named | None, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file; `ValueError` for another model, tokenizer or dtype."""
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            if found.get("format") != FORMAT:
                raise ValueError(f"{path}: not a cache that TinyLM saved")
            header = {n: json.loads(x) for n, x in found.items() if n not in ("format", "model")}
            _compare(path, "model", found["model"], hash_of(model))
            own = None if tokenizer is None else tokenizer.sha256
            _compare(path, "tokenizer", header["tokenizer"], own)
            if header["dtype"] != str(dtype):
                raise ValueError(
                    f"{path}: the cache was computed in {header['dtype']} and the model computes "
                    f"in {dtype}: load the model in that dtype"
                )
            names = file.keys()
            return header, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a cache that TinyLM saved: {error}") from None


def _compare(path: str | Path, what: str, saved: str | None, own: str | None) -> None:
    if saved != own:
        one, other = ("none" if x is None else x[:12] for x in (saved, own))
        raise ValueError(
            f"{path}: the cache is of another {what} (hash {one}, not {other}): read the text anew"
        )
