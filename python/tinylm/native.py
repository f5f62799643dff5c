"""Decoding on the CPU in one native call per step (`rust/inference`).

    held = native.step_for(model).cache(2, 256)
    logits = held.read([[1, 2, 3], [4, 5, 6]])  # [R, V] float32, after the last of each

The torch model is the definition. Dense models of the shape of Llama 3, Qwen 3 and GPT-2 fit, in
float32, bfloat16 or with int8 matrices; int4 is widened to the dtype of the model, in bfloat16 with
one rounding more. What a text gives is the same, bit for bit, whatever other texts are read with
it, in whatever pieces, and by however many threads.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinylm import _rust, cache, layers, ops
from tinylm.cache import PAGE, Base, Native
from tinylm.layers import is_plain
from tinylm.model import Model

# How the matrices of a model are stored, by its dtype; those of int8 stay int8.
WEIGHTS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# The modules of a model that fits.
OURS = (
    *(Model, nn.ModuleList, nn.Dropout, layers.Block, layers.Attention),
    *(layers.Embedding, layers.Linear, layers.Head, layers.TiedHead),
    *(layers.PackedEmbedding, layers.PackedLinear, layers.PackedHead),
    *(layers.SwiGLU, layers.MLP, layers.RMSNorm, layers.LayerNorm),
    *(layers.Rope, layers.Learned),
)
# Arrays of a part, and its bias.
Part = tuple[str, list[Any], NDArray[np.float32] | None]

# A model's packed weights, and what they were packed from.
_packed: "weakref.WeakKeyDictionary[Model, tuple[object, Step]]" = weakref.WeakKeyDictionary()


class Step:
    """The packed weights of a model, for any number of caches.

    `weights` is float32, bfloat16 or int8 (one scale per output): how matrices are stored that do
    not have int8 weights already. `simd` is auto, or an instruction set of this machine: avx512,
    avx2, portable. `bytes` is what a step reads.

    A product with int8 weights rounds its inputs too, row by row: to integers of 15 bits and a
    sign, or of fewer where more than 516 inputs could pass the 32 bits of a sum (13 bits for
    2,048). On the default run's model, whose logits have a standard deviation of 3, that moves a
    logit by 1.8e-4 on average and 1.3e-3 at most, against the same weights in float64 over 512
    tokens; the rounding of the weights itself moves it by 0.045 and 0.45.
    """

    def __init__(self, model: Model, weights: str, *, simd: str = "auto") -> None:
        self.weights = weights
        self.context_length = model.context_length
        with torch.no_grad():
            self.shape = _shape(model)
            self.network = _rust.Network(self.shape, _parts(model), weights=weights, simd=simd)

    @property
    def bytes(self) -> int:
        """Bytes of weights that a step reads."""
        return self.network.bytes

    def cache(self, batch_size: int, max_length: int, **paged: Any) -> "Native":
        """An empty cache for `batch_size` rows of at most `max_length` tokens."""
        limit = self.context_length
        if not 1 <= max_length <= limit:
            raise ValueError(f"max_length={max_length}: must be 1 to the context length, {limit}")
        return Native(self.network, self.shape, batch_size, max_length, **paged)


def build(
    model: Model, batch_size: int, max_length: int, kind: str = "contiguous", **options: Any
) -> Base:
    """`tinylm.cache.build`, but a native cache where the model, the kind and its options fit."""
    tokens = {name: value for name, value in options.items() if (name, value) != ("page", PAGE)}
    fit = not options if kind == "contiguous" else kind == "paged" and not {*tokens} - {"tokens"}
    step = step_for(model) if fit else None
    if step is None:
        return cache.build(model, batch_size, max_length, kind, **options)
    return step.cache(batch_size, max_length, shares=kind == "paged", **tokens)


def step_for(model: nn.Module) -> Step | None:
    """The native step of a model, or None if it is not of a shape that has one.

    It needs a `Model` as built, on the CPU, in float32 or bfloat16, with `model.attention=auto`,
    outside of autocast. The weights are packed once, and again after they changed: each call hashes
    them all, because torch's fused optimizers change them without raising their version.
    """
    if not fits(model):
        return None
    assert isinstance(model, Model)
    mark = [(x.dtype, x.shape, _hash(x)) for x in (*model.parameters(), *model.buffers())]
    found = _packed.get(model)
    if found is None or found[0] != mark:
        found = mark, Step(model, WEIGHTS[model.norm.weight.dtype])
        _packed[model] = found
    return found[1]


def _hash(tensor: Tensor) -> int:
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return _rust.xxh3_64(content.numpy())


def fits(model: nn.Module) -> bool:
    """Whether the native step computes what the model does."""
    if type(model) is not Model or torch.is_autocast_enabled("cpu"):
        return False
    config, chosen = model.config, model.config.components()
    whole = config.attention == "auto" and config.logit_softcap is None
    extras = ("embedding_norm", "parallel", "token_shift", "key_mix", "shortcut", "value_residual")
    plain = not any(chosen[extra] for extra in extras)
    plain = plain and not (config.value_embeddings or config.bigrams or any(config.windows))
    known = (
        # Queries and keys are normed as the stream is, and the step does that without a mean.
        (chosen["norm"] == "rmsnorm" or (chosen["norm"] == "layernorm" and not chosen["qk_norm"]))
        and chosen["position"] in ("rope", "learned")
        and chosen["feedforward"] in ("swiglu", "mlp")
    )
    # A subclass, a hook or an adapter does something of its own.
    return whole and plain and known and all(_is_ours(module) for module in model.modules())


def _is_ours(module: nn.Module) -> bool:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    known = all(type(x) in (Tensor, nn.Parameter) and x.is_cpu for x in tensors)
    known = known and all(x.dtype in (*WEIGHTS, torch.int8, torch.uint8) for x in tensors)
    if isinstance(module, layers.MLP) and module.activation is not ops.gelu:
        return False
    if getattr(module, "form", "int8") not in ("int8", "int4"):
        return False
    return is_plain(module, *OURS) and known


def _shape(model: Model) -> dict[str, Any]:
    config, chosen = model.config, model.config.components()
    return {
        "vocab_size": model.embedding.num_embeddings,
        "d_model": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.kv_heads,
        "head_size": config.head_width,
        "d_ff": config.feedforward_width,
        "context_length": config.context_length,
        "norm_eps": config.norm_eps,
        "layer_norm": chosen["norm"] == "layernorm",
        "gated": chosen["feedforward"] == "swiglu",
        "qk_norm": chosen["qk_norm"],
        "rotary": chosen["position"] == "rope",
    }


def _parts(model: Model) -> Iterator[Part]:
    """The weights as the network takes them, one after the other."""
    yield "embedding", [_array(model.embedding.weight)], None
    position: Any = model.position
    if isinstance(position, layers.Rope):
        yield "cos", [_array(position.cos)], None
        yield "sin", [_array(position.sin)], None
    else:
        yield "positions", [_array(position.table.weight)], None
    for i, block in enumerate(model.blocks):
        attention, feedforward = block.attention, block.feedforward
        yield _part(f"{i}.attention_norm", block.attention_norm)
        yield _part(f"{i}.qkv", attention.q, attention.k, attention.v)
        if attention.q_norm is not None and attention.k_norm is not None:
            yield f"{i}.q_norm", [_array(attention.q_norm.weight)], None
            yield f"{i}.k_norm", [_array(attention.k_norm.weight)], None
        yield _part(f"{i}.o", attention.o)
        yield _part(f"{i}.feedforward_norm", block.feedforward_norm)
        gate = [feedforward.gate] if isinstance(feedforward, layers.SwiGLU) else []
        yield _part(f"{i}.up", *gate, feedforward.up)
        yield _part(f"{i}.down", feedforward.down)
    yield _part("norm", model.norm)
    tied = isinstance(model.head, layers.TiedHead)
    yield "head", [_source(model.embedding if tied else model.head)], None


def _part(name: str, *modules: Any) -> Part:
    biases = [module.bias for module in modules if getattr(module, "bias", None) is not None]
    bias = np.concatenate([_array(bias) for bias in biases]) if biases else None
    # Int4 has no product of its own here, and the matrices of one part are stored alike.
    if any(getattr(module, "form", "") == "int4" for module in modules):
        return name, [_array(module.weight) for module in modules], bias
    return name, [_source(module) for module in modules], bias


def _source(module: nn.Module) -> Any:
    """The weight of a module; of packed ones the integers and the scales."""
    if isinstance(module, layers.PackedLinear | layers.PackedEmbedding):
        return module.packed.numpy(), _array(module.scales)
    return _array(module.weight)  # type: ignore[arg-type]


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().contiguous().numpy()
