"""The parts of a model's weights that one process holds under FSDP2, for its optimizer.

torch keeps each weight as a `DTensor`, whose rows are spread over the processes. The optimizer
gets plain tensors instead: parameters that share the memory of this process's rows. AdamW and SGD
then need to know nothing of processes, and no step pays for the dispatch of `DTensor`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tinylm.checkpoint import Training, sharded
from tinylm.checkpoint.parts import row_bounds
from tinylm.config import Role
from tinylm.model import Model
from tinylm.optim import Whole
from tinylm.tokenizer import Tokenizer


class Shards(Whole):
    """The rows of every weight of a sharded `model` that this process holds.

    It stands for the model when the optimizer is built, and is the optimizer's `Whole`.
    """

    def __init__(self, model: Model) -> None:
        self._roles: dict[str, Role] = {name: role for name, _, role in model.named_roles()}
        self.weights: dict[str, DTensor] = {}
        self.parts: dict[str, nn.Parameter] = {}
        self._shapes: dict[Tensor, torch.Size] = {}
        for name, weight in model.named_parameters():
            assert isinstance(weight, DTensor)
            # `to_local` outside of autograd returns the memory of the weight itself.
            with torch.no_grad():
                part = nn.Parameter(weight.to_local(), requires_grad=weight.requires_grad)
            self.weights[name], self.parts[name] = weight, part
            self._shapes[part] = weight.shape
        self.world, self.rank = dist.get_world_size(), dist.get_rank()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parts under the names of their weights."""
        yield from self.parts.items()

    def named_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """The parts with the names and roles of their weights."""
        for name, part in self.parts.items():
            yield name, part, self._roles[name]

    def take_gradients(self) -> None:
        """Move the gradients of a backward pass from the weights to their parts."""
        for name, weight in self.weights.items():
            gradient = weight.grad
            self.parts[name].grad = None
            if gradient is not None:
                assert isinstance(gradient, DTensor)
                self.parts[name].grad = gradient.to_local()
                weight.grad = None

    def save(
        self, folder: Path, model: Model, tokenizer: Tokenizer | None, training: Training
    ) -> None:
        """Write a checkpoint together with all other processes; see `checkpoint.sharded`."""
        shapes = {
            key: tuple(self.weights[key.rpartition(".")[0]].shape)
            for key, tensor in training.optimizer.items()
            if tensor.dim()
        }
        sharded.save(folder, model, tokenizer, training=training, shapes=shapes)

    def shape(self, parameter: Tensor) -> torch.Size:
        """The shape of the whole weight."""
        return self._shapes[parameter]

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """2-norm of the gradients over all processes."""
        square = nn.utils.get_total_norm(gradients).square()
        dist.all_reduce(square)
        return square.sqrt()

    def update(
        self, updates: Sequence[Tensor], shape: torch.Size, function: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """Each process applies `function` to its share of the whole updates.

        Update i is put together in process i % world; then everybody gets its rows of all results.
        """
        rows = [len(range(*bounds)) for bounds in row_bounds(shape[0], self.world)]
        mine = [*range(self.rank, len(updates), self.world)]
        owned = [len(range(rank, len(updates), self.world)) for rank in range(self.world)]
        width = shape[1:].numel()
        own_rows = rows[self.rank]
        # A process sends its rows of an update to the update's owner, sorted by owner.
        order = [i for rank in range(self.world) for i in range(rank, len(updates), self.world)]
        sent = torch.cat([updates[i].reshape(-1) for i in order])
        out = [count * own_rows * width for count in owned]
        back = [len(mine) * count * width for count in rows]
        got = sent.new_empty(sum(back))
        dist.all_to_all_single(got, sent, back, out)
        if mine:
            pieces = [
                piece.view(len(mine), count, *shape[1:])
                for piece, count in zip(torch.split(got, back), rows, strict=True)
            ]
            whole = torch.cat(pieces, 1)
            whole = function(whole.view(-1, *shape[-2:])).view_as(whole)
            got = torch.cat([piece.reshape(-1) for piece in torch.split(whole, rows, 1)])
        dist.all_to_all_single(sent, got, out, back)
        results = sent.view(len(updates), own_rows, *shape[1:]).unbind()
        found = dict(zip(order, results, strict=True))
        return [found[i] for i in range(len(updates))]
