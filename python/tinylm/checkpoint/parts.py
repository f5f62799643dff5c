"""The state of an optimizer that several processes wrote, each its rows: read by any number.

    optimizer.safetensors                  the rows of process 0, and what has no rows
    optimizer-00001.safetensors ...        the rows of the others, in order
    optimizer.safetensors.index.json       {"files": [...], "shapes": {name: whole shape}}

The rows of a tensor are those of the files, one after another. A state that one process wrote has
no index: its only file holds all rows.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinylm.checkpoint.weights import read_json

OPTIMIZER = "optimizer.safetensors"
INDEX = f"{OPTIMIZER}.index.json"


def row_bounds(rows: int, world: int) -> list[tuple[int, int]]:
    """The first row of each process and the one after its last, as FSDP2 splits `rows`.

    All get `rows / world` rounded up, until there are none left.
    """
    each = -(-rows // world)
    return [(min(rank * each, rows), min((rank + 1) * each, rows)) for rank in range(world)]


def part_name(rank: int) -> str:
    """The file of the rows of process `rank`."""
    return f"optimizer-{rank:05d}.safetensors" if rank else OPTIMIZER


def index_of(world: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The content of the index of `world` files that hold tensors of these whole shapes."""
    names = [part_name(rank) for rank in range(world)]
    return {"files": names, "shapes": {name: list(shape) for name, shape in shapes.items()}}


def read_state(folder: Path, share: tuple[int, int] = (0, 1)) -> dict[str, Tensor]:
    """The optimizer's tensors in `folder`, in memory of their own: the rows of `share`.

    That is (rank, world); a tensor without rows, such as a count of steps, is whole for all.
    `ValueError` names the file that is none, or that lacks rows which the index promises.
    """
    names, shapes = [OPTIMIZER], None
    if (folder / INDEX).exists():
        names, shapes = _read_index(folder / INDEX)
    try:
        with ExitStack() as stack:
            parts = [stack.enter_context(safe_open(folder / name, "pt")) for name in names]
            return _read(folder, parts, shapes, share)
    except SafetensorError as error:
        raise ValueError(f"{folder / OPTIMIZER}: not a safetensors file: {error}") from None


def _read_index(path: Path) -> tuple[list[str], dict[str, list[int]]]:
    content = read_json(path)
    names, shapes = content.get("files"), content.get("shapes")
    whole = isinstance(names, list) and all(
        isinstance(name, str) and Path(name).name == name for name in names
    )
    if not whole or not isinstance(shapes, dict):
        raise ValueError(f"{path}: expected the keys files, names in this folder, and shapes")
    return [str(name) for name in names or ()], shapes


def _read(
    folder: Path, parts: list[Any], shapes: dict[str, list[int]] | None, share: tuple[int, int]
) -> dict[str, Tensor]:
    """The rows of `share` of every tensor in these open files."""
    state: dict[str, Tensor] = {}
    rank, world = share
    held = [set(part.keys()) for part in parts]
    for name in sorted(set().union(*held)):
        found = [
            part.get_slice(name) for part, keys in zip(parts, held, strict=True) if name in keys
        ]
        sizes = [part.get_shape() for part in found]
        if not sizes[0]:
            # A scalar cannot be sliced, and `get_tensor` may return the pages of the file.
            first = next(part for part, keys in zip(parts, held, strict=True) if name in keys)
            state[name] = first.get_tensor(name).clone()
            continue
        rows = sum(size[0] for size in sizes)
        wanted = [rows, *sizes[0][1:]] if shapes is None else shapes.get(name)
        if wanted != [rows, *sizes[0][1:]]:
            raise ValueError(
                f"{folder / INDEX}: {name} has shape {wanted}, and the files hold "
                f"{[rows, *sizes[0][1:]]}: a file is of another checkpoint"
            )
        begin, end = row_bounds(rows, world)[rank]
        taken, at = [], 0
        for part, size in zip(found, sizes, strict=True):
            low, high = max(begin - at, 0), min(end - at, size[0])
            if low < high:
                taken.append(part[low:high])
            at += size[0]
        if taken:
            state[name] = torch.cat(taken)
        else:
            # A process may hold no row of a small tensor; the dtype is kept all the same.
            state[name] = found[0][0:0].clone()
    return state
