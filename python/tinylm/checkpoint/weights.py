"""The tensors of a model's folder: model.safetensors or its shards, read and compared."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tinylm import convert

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
# What else weights are kept in, by the ends of names: pickles and other formats.
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PACKED = (torch.int8, torch.uint8)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Most tensors that an error names of those that do not fit.
NAMED = 3


def read_weights(folder: Path, *, packed: bool = False) -> dict[str, Tensor]:
    """The tensors of a folder by their names in the files; every number is finite.

    Without `packed`, all are of a float dtype.
    """
    if (folder / WEIGHTS).exists():
        tensors = read_tensors(folder / WEIGHTS)
    elif (folder / INDEX).exists():
        tensors = _read_shards(folder)
    else:
        pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise ValueError(
                f"{pickles[0]}: a pickle can run any code, so it is not read: "
                f"convert it with transformers' save_pretrained, which writes {WEIGHTS}"
            )
        raise FileNotFoundError(errno.ENOENT, "no weights", str(folder / WEIGHTS))
    for name, tensor in tensors.items():
        if name.endswith(convert.CONSTANTS):
            continue
        if tensor.dtype not in DTYPES and not (packed and tensor.dtype in PACKED):
            raise ValueError(
                f"{folder}: {name} has dtype {tensor.dtype}: expected floating point of 16, 32 "
                f"or 64 bits; TinyLM reads quantised weights of its own alone"
            )
        # Every number is read once: a nan in a weight would show only as bad text.
        finite = tensor.isfinite()
        if not finite.all():
            raise ValueError(
                f"{folder}: {name} has {int((~finite).sum())} of {tensor.numel()} numbers that "
                f"are not finite: take an earlier checkpoint"
            )
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file; `ValueError` if it is none."""
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `ValueError` if it holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def check_tensors(
    folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Raise `ValueError`, on one line, unless names and shapes are those of the model."""
    shapes = [
        f"{name} has shape {list(found[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    problems = [
        f"{kind} {', '.join(names[:NAMED])}"
        + (f" and {n} more" if (n := len(names) - NAMED) > 0 else "")
        for kind, names in (
            ("lacks", [name for name in expected if name not in found]),
            ("has an unexpected", [name for name in found if name not in expected]),
            ("tensor", shapes),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{folder}: the weights do not fit {CONFIG}: {'; '.join(problems)}")


def widest(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that holds the values of all tensors; float32 if there are none."""
    dtypes = iter({tensor.dtype for tensor in tensors.values()})
    found = next(dtypes, torch.float32)
    for dtype in dtypes:
        # float16 and bfloat16 give float32: neither holds the numbers of the other.
        found = torch.promote_types(found, dtype)
    return found


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """The tensors that the index lists, each from its shard."""
    index = folder / INDEX
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise ValueError(f"{index}: expected the key weight_map with a file for each tensor")
    names = sorted(set(shards.values()))
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{index}: a shard is a file of the same folder: {names}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        part = read_tensors(folder / name)
        for key in part:
            if key in tensors:
                raise ValueError(f"{folder / name}: {key} is in another shard as well")
            # A tensor that the index does not list may be a leftover of another model.
            if shards.get(key) != name:
                raise ValueError(f"{folder / name}: {index.name} lists no {key} in this shard")
        tensors |= part
    missing = [key for key in shards if key not in tensors]
    if missing:
        raise ValueError(f"{index}: lists {missing[0]}, which {shards[missing[0]]} lacks")
    return tensors
