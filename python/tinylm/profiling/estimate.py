"""What a model costs: parameters, operations and memory, counted without weights or a device.

    costs = estimate.memory(config, rows=8, optimizer="muon", dtype=torch.bfloat16)
    print(costs.total / 2**30)

Parameters and operations are counted from the model's own parts, so a part that a user registers
is counted too. Activations are counted by a forward pass on torch's meta device, which has shapes
and no numbers: what autograd would keep for the backward pass is added up.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tinylm.config import LoraConfig, ModelConfig
from tinylm.layers import lora
from tinylm.layers.freezing import freeze
from tinylm.model import Model
from tinylm.ops.losses import CHUNKS, LEAST_ROWS_GPU, WHOLE

# Numbers of the parameter's size that an optimizer keeps, by role; "" for the other roles.
STATES: dict[str, dict[str, int]] = {
    "adamw": {"": 2},
    "muon": {"matrix": 1, "": 2},
    "sgd": {"": 1},
}
# The share of the peak that a well fed GPU reaches in training.
GOOD_MFU = 0.4


@dataclass(frozen=True)
class Memory:
    """Bytes of training by what they hold, at the end of a forward pass, where the sum is largest.

    `casts` are copies of the weights in the dtype of the products. `kv_per_token` is what decoding
    keeps per token of one sequence; training does not, so `total` leaves it out.
    """

    weights: int
    gradients: int
    optimizer: int
    casts: int
    activations: int
    logits: int
    kv_per_token: int

    @property
    def total(self) -> int:
        """Bytes of a training step.

        What the allocator loses between blocks, the libraries' own work space and the process
        itself come on top.
        """
        held: dict[str, int] = asdict(self)
        return sum(held.values()) - self.kv_per_token


@dataclass(frozen=True)
class Operations:
    """Floating-point operations per token of one training step."""

    forward: int
    backward: int
    # The share of both that grows with the context length.
    attention: int

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def outline(
    config: ModelConfig, adapters: LoraConfig | None = None, frozen: Sequence[str] = ()
) -> Model:
    """The model of a config on the meta device: parts and shapes, no numbers, no memory.

    It has `adapters`, and the parameters that `frozen` names (`train.freeze`) do not train.
    """
    with torch.device("meta"):
        net = Model(config)
    if adapters is not None and adapters.rank is not None:
        lora.adapt(
            net,
            rank=adapters.rank,
            alpha=adapters.alpha,
            dropout=adapters.dropout,
            targets=adapters.targets,
        )
    freeze(net, frozen)
    return net


def operations(net: Model, context_length: int | None = None) -> Operations:
    """The operations of a model per token, at its own context length if none is given."""
    length = context_length or net.config.context_length
    total = net.flops_per_token(length)
    # Where nothing is frozen, the backward pass does twice the work of the forward pass.
    forward = deepcopy(net).requires_grad_().flops_per_token(length) // 3
    # The operations that grow with the length are those that a context of 0 saves.
    return Operations(forward, total - forward, total - net.flops_per_token(0))


def components(net: Model) -> dict[str, int]:
    """Parameters by the part that owns them, such as "attention", over all blocks."""
    return _summed(net, lambda name, role: _component(name))


def roles(net: Model) -> dict[str, int]:
    """Parameters by their role for the optimizer."""
    return _summed(net, lambda name, role: role)


def _summed(net: Model, key: Callable[[str, str], str], *, trained: bool = False) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, parameter, role in net.named_roles():
        if parameter.requires_grad or not trained:
            found[key(name, role)] = found.get(key(name, role), 0) + parameter.numel()
    return found


def _component(name: str) -> str:
    """blocks.3.attention.q.weight is of "attention", embedding.weight of "embedding"."""
    parts = name.split(".")
    return parts[2] if parts[0] == "blocks" else parts[0]


def memory(
    shape: ModelConfig | Model,
    *,
    rows: int,
    optimizer: str,
    dtype: torch.dtype = torch.float32,
    length: int | None = None,
    checkpointing: bool = False,
) -> Memory:
    """Estimate the bytes of one training step over a micro-batch of `rows` rows.

    With `checkpointing` a block keeps only its input (`train.activation_checkpointing`).
    `dtype` is that of the products; weights, gradients and the optimizer's state are float32. An
    optimizer that is not in `STATES` is taken for AdamW. With a compiler the activations are an
    upper bound: it recomputes some. `shape` is a config with a `vocab_size`, or an `outline` whose
    frozen parts have neither gradients nor state.
    """
    net = deepcopy(shape) if isinstance(shape, Model) else outline(shape)
    config = net.config
    length = length or config.context_length
    kept = STATES.get(optimizer, STATES["adamw"])
    counts = roles(net)
    n_parameters = sum(counts.values())
    mixed = dtype != torch.float32
    moved = _summed(net, lambda name, role: role, trained=True)
    state = sum(number * kept.get(role, kept[""]) for role, number in moved.items())
    size = dtype.itemsize
    activations = _activations(net, rows, length, dtype)
    if checkpointing:
        # The input of every block, and all of the one that is computed again.
        inputs = config.n_layers * rows * length * config.d_model * size
        activations = activations // config.n_layers + inputs
    return Memory(
        weights=4 * n_parameters,
        gradients=4 * sum(moved.values()),
        optimizer=4 * state,
        casts=size * (counts.get("matrix", 0) + counts.get("adapter", 0)) if mixed else 0,
        activations=activations,
        logits=_logits(rows * length, net.embedding.num_embeddings, size),
        kv_per_token=sum(2 * state.heads * state.size * size for state in net.decode_states()),
    )


def _logits(tokens: int, vocab_size: int, size: int) -> int:
    """Bytes of the logits and of what their loss keeps, for all rows or for a chunk of them.

    See `ops.linear_cross_entropy`: a chunk becomes its own gradient in place.
    """
    if tokens * vocab_size <= WHOLE:
        return tokens * vocab_size * (4 + size)
    return min(tokens, max(LEAST_ROWS_GPU, -(-tokens // CHUNKS))) * vocab_size * size


def _activations(net: Model, rows: int, length: int, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of a forward pass through all blocks, each storage once."""
    net = net.to(dtype).train()
    if net.config.attention != "manual":
        for module in net.modules():
            if hasattr(module, "attend"):
                # On the meta device torch would take its slowest form, which keeps all weights.
                module.attend = _attend  # type: ignore[assignment]
    # The storages are held, so that no two get one identity.
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    tokens = torch.zeros(rows, length, dtype=torch.int64, device="meta")
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        net.hidden(net.embed(tokens), net.context(length, tokens=tokens))
    weights = {p.untyped_storage()._cdata for p in net.parameters()}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


class _Flash(torch.autograd.Function):
    """Keeps what a fused attention keeps: queries, keys, values, result, a number per row.

    It has no backward pass: only what is kept for one is counted.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, T, head] to the same shape."""
        out = q.new_empty(*q.shape[:-1], v.size(-1))
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    out: Tensor = _Flash.apply(q, k, v)  # type: ignore[no-untyped-call]
    return out


def seconds_per_step(flops: float, peak: float, mfu: float = GOOD_MFU) -> float:
    """Seconds of a step of `flops` operations at `mfu` of the peak; infinite if that is unknown."""
    return flops / (peak * mfu) if peak else math.inf
