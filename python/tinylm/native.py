"""Decoding on the CPU in one native call per step (`rust/inference`).

    held = native.step_for(model).cache(2, 256)
    logits = held.read([[1, 2, 3], [4, 5, 6]])  # [R, V] float32, after the last of each

The torch model is the definition. Dense models of the shape of Llama 3, Qwen 3 and GPT-2 fit, in
float32, bfloat16 or with int8 matrices. What a text gives is the same, bit for bit, whatever other
texts are read with it, in whatever pieces, and by however many threads.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinylm import _rust, cache, layers, ops
from tinylm.cache import PAGE, Base, Full, Paged, Pool
from tinylm.context import Context
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
    not have int8 weights already. `simd` is auto, or an
    instruction set of this machine: avx512, avx2, portable. `bytes` is what a step reads.
    """

    def __init__(self, model: Model, weights: str, *, simd: str = "auto") -> None:
        self.weights = weights
        self.vocab_size = model.embedding.num_embeddings
        self.context_length, self.layers = model.context_length, len(model.blocks)
        with torch.no_grad():
            shape = _shape(model)
            self.network = _rust.Network(shape, _parts(model), weights=weights, simd=simd)
        # Bytes of the key and value of a token: a value fills lines of 16 numbers.
        numbers = shape["head_size"] + -(-shape["head_size"] // 16) * 16
        self.place: int = 4 * numbers * shape["n_layers"] * shape["n_kv_heads"]

    @property
    def bytes(self) -> int:
        """Bytes of weights that a step reads."""
        return self.network.bytes

    def cache(self, batch_size: int, max_length: int, **paged: Any) -> "Native":
        """An empty cache for `batch_size` rows of at most `max_length` tokens."""
        limit = self.context_length
        if not 1 <= max_length <= limit:
            raise ValueError(f"max_length={max_length}: must be 1 to the context length, {limit}")
        return Native(self, batch_size, max_length, **paged)


class Pages(Pool):
    """A pool whose blocks are in Rust: they take memory when their first token comes."""

    def __init__(self, of: "Native", total: int, *, grows: bool) -> None:
        super().__init__(of, 0, PAGE, grows=grows)
        self.held = _rust.KeyValues(of.step.network, 0)
        self.place = of.step.place
        self.grow(total)

    def grow(self, more: int) -> None:
        """Add blocks."""
        self.held.grow(more)
        self.blocks.grow(more)

    def copy(self, source: int, target: int) -> None:
        """Copy what the tokens of one block left to another."""
        self.held.copy(source, target)

    def bytes_per_place(self) -> int:
        """Return the bytes that one token leaves."""
        return self.place


class Native(Paged):
    """Keys and values in the layout of the native step, which alone can read them.

    A pass is `read` or `draw`; no layer of the torch model attends here. Blocks of 16 tokens in
    float32, a panel of keys each, that rows share where they were forked or selected; with
    `shares` also where they begin alike, out of a budget of `tokens`, as in `Paged`. Without it
    each row has its places for itself. Rows of any lengths are read together.
    """

    kind = "native"
    pool: Pages

    def __init__(
        self,
        step: Step,
        batch_size: int,
        max_length: int,
        *,
        shares: bool = False,
        tokens: int | None = None,
    ) -> None:
        self.step, self.shares = step, shares
        home = {"dtype": torch.float32, "device": torch.device("cpu")}
        super().__init__([], batch_size, max_length, page=PAGE, tokens=tokens, **home)

    def _pool(self, blocks: int, *, grows: bool) -> Pages:
        return Pages(self, blocks, grows=grows)

    @property
    def lengths(self) -> Tensor:  # type: ignore[override]
        """The length of each row [B] int64; made when asked for, which no pass does."""
        return torch.tensor(self.ends, dtype=torch.int64)

    def _pick(self, places: list[int]) -> None:
        # There are no buffers in torch, and to index them takes time.
        self.index = places

    def _set(self, ends: list[int]) -> None:
        self.ends = ends
        self._settle()

    def _tell(self) -> None:
        if self.whole is not None:
            for row, end in zip(self._own, self.ends, strict=True):
                self.whole.ends[row] = end
            self.whole._settle()
            self.whole._tell()

    @property
    def total(self) -> int:
        """The number of blocks that the rows share; 0 if each row owns its places."""
        return super().total if self.shares else 0

    def needed(self, row: int, tokens: int) -> int:
        """Return how many of `free` are taken if `tokens` more come to `row`."""
        return super().needed(row, tokens) if self.shares else 0

    def match(self, row: int, ids: Sequence[int]) -> int:
        """Give the empty `row` the known blocks of a beginning of `ids`; the number of tokens."""
        return super().match(row, ids) if self.shares else Base.match(self, row, ids)

    def note(self, row: int, ids: Sequence[int]) -> None:
        """`row` begins with these ids, which `match` may then find."""
        if self.shares:
            super().note(row, ids)

    def wipe(self, rows: Sequence[int]) -> None:
        """Clear rows: nobody reads places behind the end of a text."""
        self.clear(rows)

    def read(
        self,
        tokens: Sequence[Sequence[int]],
        *,
        every: bool = False,
        vocab_size: int | None = None,
        layers: int | None = None,
    ) -> Tensor:
        """More tokens of each row to the logits [R, V] after its last one.

        The numbers of new tokens may differ. With `every`, the logits after every token, row by
        row [N, V]. V is `vocab_size` or the model's; with `layers` the head reads what so many
        blocks give. float32, finite or not. Raises `ValueError` for ids outside the vocabulary, and
        `Full` for rows that do not fit, before anything is read.
        """
        runs, flat, wanted = self._reading(tokens, every)
        logits = self.pool.held.read(
            self.host,
            runs,
            flat,
            wanted,
            vocab_size=vocab_size or self.step.vocab_size,
            layers=layers or self.step.layers,
            threads=torch.get_num_threads(),
        )
        self._count([start + count for _, start, count in runs])
        return torch.from_numpy(logits)

    def draw(
        self,
        tokens: Sequence[Sequence[int]],
        temperatures: Sequence[float],
        numbers: Sequence[float],
        *,
        every: bool = False,
        vocab_size: int | None = None,
        missing: Sequence[int] = (),
        layers: int | None = None,
    ) -> list[int | None]:
        """As `read`, then a token for each row of logits: `sample.logits.draw` of logits /
        temperature.

        Temperature 0 takes the likeliest id, the smallest of equal ones; `numbers` are in [0, 1).
        Computed in float32, summed in float64. Ids in `missing` are not drawn. None for a row
        whose logits are not finite.
        """
        runs, flat, wanted = self._reading(tokens, every)
        drawn = self.pool.held.draw(
            self.host,
            runs,
            flat,
            wanted,
            temperatures=[*temperatures],
            numbers=[*numbers],
            vocab_size=vocab_size or self.step.vocab_size,
            missing=[*missing],
            layers=layers or self.step.layers,
            threads=torch.get_num_threads(),
        )
        self._count([start + count for _, start, count in runs])
        return drawn

    def _reading(
        self, tokens: Sequence[Sequence[int]], every: bool
    ) -> tuple[list[tuple[int, int, int]], list[int], list[int]]:
        """The runs as Rust takes them, their tokens, and the places whose logits are wanted."""
        counts = [len(row) for row in tokens]
        if len(counts) != len(self.ends) or 0 in counts:
            raise ValueError(
                f"rows of {counts} tokens: must be {len(self.ends)} rows of one token or more"
            )
        for end, count in zip(self.ends, counts, strict=True):
            if end + count > self.max_length:
                raise Full(
                    f"{end} + {count} tokens do not fit a cache of {self.max_length}: build a "
                    f"longer one or clear it"
                )
        runs = [*zip(self.index, self.ends, counts, strict=True)]
        flat = [token for row in tokens for token in row]
        for id in (min(flat), max(flat)):
            if not 0 <= id < self.step.vocab_size:
                raise ValueError(f"id {id}: the vocabulary is 0 to {self.step.vocab_size - 1}")
        self._claim([*enumerate(counts)])
        if every or len(flat) == len(runs):
            return runs, flat, [*range(len(flat))]
        return runs, flat, [end - 1 for end in accumulate(counts)]

    def joined(self, views: Sequence[Any]) -> "Native":
        """A view of all rows of some views of one cache, in order."""
        assert self.whole is not None, "rows are joined again that were views of one cache"
        return self.whole.rows([row for view in views for row in view._own])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Raise `ValueError`: the keys of this cache are for the native step."""
        raise ValueError("cache=native is read by its step: give the model cache.build(...)")

    def before(self, slot: int, x: Tensor) -> Tensor:
        """Raise `ValueError`, as `attend`."""
        raise ValueError("cache=native is read by its step: give the model cache.build(...)")

    def tensors(self) -> dict[str, Tensor]:
        """Raise `ValueError`: a file of keys is for every machine, this layout for one."""
        raise ValueError("cache=native cannot be saved: use one of cache.build(...)")

    def restore(self, tensors: Mapping[str, Tensor], ends: Sequence[int]) -> None:
        """Raise `ValueError`, as `tensors`."""
        raise ValueError("cache=native cannot be loaded: use one of cache.build(...)")


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
    known = known and all(x.dtype in WEIGHTS or x.dtype == torch.int8 for x in tensors)
    if isinstance(module, layers.MLP) and module.activation is not ops.gelu:
        return False
    if getattr(module, "form", "int8") != "int8":
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
    return name, [_source(module) for module in modules], bias


def _source(module: nn.Module) -> Any:
    """The weight of a module; of packed ones the integers and the scales."""
    if isinstance(module, layers.PackedLinear | layers.PackedEmbedding):
        return module.packed.numpy(), _array(module.scales)
    return _array(module.weight)  # type: ignore[arg-type]


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().contiguous().numpy()
