"""A checkpoint that several processes write together.

The weights are gathered in process 0, one after another, and become the model.safetensors that
every program opens. The optimizer's state stays where it is: each process writes its rows of every
tensor into a file of its own, in the folder that process 0 is making (`parts` has the format). The
folder is there whole or not at all, as one process writes it: the manifest, which process 0 writes
last, has the sizes and hashes of all files. All processes must see one file system.
"""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from tinylm.checkpoint.files import Draft
from tinylm.checkpoint.folder import Training, content, write
from tinylm.checkpoint.parts import INDEX, index_of, part_name
from tinylm.checkpoint.tensors import pieces
from tinylm.model import Model

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer


def save(
    folder: Path,
    model: Model,
    tokenizer: "Tokenizer | None",
    *,
    training: Training,
    shapes: Mapping[str, tuple[int, ...]],
) -> Path:
    """`checkpoint.save` of a model that is spread over processes, all of which call it.

    `training.optimizer` holds this process's rows, `shapes` the shapes of the whole tensors that
    have rows. If one process fails, all raise an error and the folder is as it was.
    """
    weights = gather(model)
    if dist.get_rank() == 0:
        _lead(folder, model, tokenizer, training, weights, shapes)
    else:
        _follow(training)
    return folder


def gather(model: Model) -> dict[str, Tensor]:
    """The whole weights on the host in process 0, nothing in the others; all must call it.

    One weight at a time: no device holds more than the largest.
    """
    kept = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if dist.get_rank() == 0:
            # A copy: a tensor that is whole on the CPU is the model's own.
            kept[name] = whole.detach().to("cpu", copy=True)
    return kept


def _lead(
    folder: Path,
    model: Model,
    tokenizer: "Tokenizer | None",
    training: Training,
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Process 0's part of `save`."""

    def others(draft: Draft) -> None:
        exchange(json.dumps({"draft": str(draft.folder)}))
        for rank, text in enumerate(exchange("{}")):
            found = json.loads(text)
            if "error" in found:
                raise OSError(errno.EIO, f"process {rank}: {found['error']}", str(folder))
            draft.files |= found
        index = index_of(dist.get_world_size(), shapes)
        draft.add(INDEX, [json.dumps(index, indent=1).encode() + b"\n"])

    try:
        taken = content(model, tokenizer, training=training, weights=weights)
        write(folder, taken, others=others)
    except Exception as error:
        # The others wait for one of the two.
        exchange(json.dumps({"error": str(error)}))
        raise
    exchange("{}")


def _follow(training: Training) -> None:
    """The part of `save` of every other process."""
    began = json.loads(exchange("{}")[0])
    if "draft" in began:
        rank = dist.get_rank()
        # What has no rows is the same everywhere, and process 0 writes it.
        rows = {name: tensor for name, tensor in training.optimizer.items() if tensor.dim()}
        draft = Draft(Path(began["draft"]))
        problem: Exception | None = None
        try:
            draft.add(part_name(rank), pieces(rows))
        except Exception as error:
            problem = error
        exchange(json.dumps(draft.files if problem is None else {"error": str(problem)}))
        if problem is not None:
            exchange("{}")
            raise problem
        began = json.loads(exchange("{}")[0])
    if "error" in began:
        raise OSError(errno.EIO, f"process 0 could not save: {began['error']}")


def exchange(text: str) -> list[str]:
    """The texts of all processes, by rank; every process gives one. Over the CPU."""
    own = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([own.numel()]))
    longest = int(max(sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: own.numel()] = own
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(texts, padded)
    return [
        bytes(part[: int(size)].tolist()).decode() for part, size in zip(texts, sizes, strict=True)
    ]
