"""Text for the methods that look at it, and the second moments of what the matrices get."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from tinylm.context import Context
from tinylm.data import Dataset
from tinylm.layers import Block
from tinylm.layers.lora import matrices
from tinylm.model import Model, inference

# Tokens that go through a block at once, and the most of a row: attention over longer ones takes
# most of the time, and the moments of the inputs need many tokens rather than long rows.
TOKENS, LENGTH = 2**13, 512


def rows(dataset: Dataset, count: int, length: int, seed: int) -> Tensor:
    """`count` rows [count, length] int64 of a split, drawn by `seed` without repetition.

    Raises `ValueError` if the split has fewer.
    """
    there = dataset.n_tokens // length
    if count > there:
        raise ValueError(
            f"rows={count}: {dataset.folder} has {there} rows of {length} tokens to calibrate on: "
            "ask for fewer, or name larger shards by shards="
        )
    drawn = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:count]
    # In order, so that the disk is read forward.
    read = [dataset.read(at * length, length).astype("int64") for at in sorted(drawn.tolist())]
    return torch.stack([torch.from_numpy(row) for row in read])


def rows_of(datasets: Sequence[Dataset], count: int, length: int, seed: int) -> Tensor:
    """As `rows`, of several splits in equal numbers, as far as `count` divides."""
    n = len(datasets)
    return torch.cat(
        [
            rows(dataset, len(range(number, count, n)), length, seed)
            for number, dataset in enumerate(datasets)
            if number < count
        ]
    )


def check_enough(model: Model, calibration: Tensor) -> None:
    """Raise `ValueError` for fewer tokens than the widest matrix has inputs.

    The second moments of K inputs are singular with fewer than K tokens: some change of the weights
    would cost nothing on them, whatever it costs on other text.
    """
    width, name = max((part.in_features, name) for name, part in matrices(model))
    if calibration.numel() < width:
        least = -(-width // calibration.size(1))
        raise ValueError(
            f"rows={len(calibration)}: too little calibration: {calibration.numel()} tokens, and "
            f"{name} has {width} inputs: give at least {least}, better 10 times as many"
        )


class Walk:
    """Calibration rows on their way through the blocks of a model, one block at a time.

        for name, block, moments in Walk(model, rows):
            ...    # change the block, in place

    A block is given with the moments [K, K] float64 of its matrices' inputs, by their names in it.
    The next one gets the outputs of the block as it was left.
    """

    def __init__(self, model: Model, calibration: Tensor) -> None:
        self.model = model
        device = model.weight.device
        self.parts = []
        with inference(model):
            for part in torch.split(calibration, max(1, TOKENS // calibration.size(1))):
                tokens = part.to(device)
                context = model.context(tokens.size(1), tokens=tokens)
                x = model.enter(model.embed(tokens, torch.float32), context)
                self.parts.append((x, context))

    def __iter__(self) -> Iterator[tuple[str, Block, dict[str, Tensor]]]:
        for number, block in enumerate(self.model.blocks):
            with inference(self.model):
                found = moments(block, self.parts)
            yield f"blocks.{number}", block, found
            with inference(self.model):
                self.parts = [(block(x, context), context) for x, context in self.parts]


def moments(block: nn.Module, parts: list[tuple[Tensor, Context]]) -> dict[str, Tensor]:
    """The sums X^T X [K, K] in float64 of the inputs of each matrix of a block, by its name."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> "torch.utils.hooks.RemovableHandle":
        def add(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2).float()
            # The product in float32 and the sum over parts in float64.
            own = (x.T @ x).double()
            found[name] = found[name] + own if name in found else own

        return part_of[name].register_forward_pre_hook(add)

    part_of = dict(matrices(block))
    handles = [watch(name) for name in part_of]
    try:
        for x, context in parts:
            block(x, context)
    finally:
        for handle in handles:
            handle.remove()
    # Outside of inference mode a tensor of it cannot be changed.
    return {name: total.clone() for name, total in found.items()}
