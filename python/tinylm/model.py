"""Token ids to logits: embedding, blocks, norm, head.

    model = build(ModelConfig(vocab_size=2048, d_model=192, n_layers=3, n_heads=3))
    loss = model.loss(tokens, targets)

Weights start as follows:

| parameter                    | start                                        |
|------------------------------|----------------------------------------------|
| embeddings                   | normal, deviation 0.02; 0.3 if they are      |
|                              | normed and the head is untied                |
| value embeddings, bigrams    | zero                                         |
| untied head, branch outputs  | zero: every block begins as the identity     |
| other matrices               | normal, deviation 0.6 / sqrt(inputs)         |
| norm weights, biases         | one, zero                                    |
| shares of `layers.mixing`    | the part changes nothing; 1/2 for `key_mix`  |

`model.start` sets some of them to weights that copy, and that predict as a bigram model of the
text does (`tinylm.layers.copying`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tinylm import ops
from tinylm.config import ModelConfig, Role, choose
from tinylm.context import Cache, Context, DecodeState, EarlierState, Left
from tinylm.layers import (
    EXITS,
    NORMS,
    POSITIONS,
    Before,
    Bigrams,
    Block,
    Embedding,
    Exits,
    Head,
    Linear,
    PackedEmbedding,
    RMSNorm,
    TiedHead,
    is_plain,
    start_copying,
)
from tinylm.mask import CAUSAL, Mask


@dataclass(frozen=True)
class Origin:
    """The parts of a loaded folder that no weight holds; `checkpoint.save` writes them back.

    `config` has the keys of config.json that the model does not decide, `files` other files by
    name, `eos_ids` the ids that end a text. `tokenizer` is the hash of the folder's tokenizer, or
    None: ids and names of tokens are written back only with the same one.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    eos_ids: tuple[int, ...] = ()
    tokenizer: str | None = None


class Model(nn.Module):
    """A decoder-only transformer, GPT-2 or Llama or any mix of the registered parts.

    `embed`, `hidden` and `head` are its three stages, and `forward` is all of them. A caller
    with inputs other than tokens begins at `hidden`. A caller that needs the logits of a few
    tokens calls `head` on those alone.
    """

    # Set for a loaded model; empty for one that was built.
    origin: Origin = Origin()
    # The settings of its packed weights, as its folder keeps them (`tinylm.layers.packed`).
    quantisation: Mapping[str, Any] | None = None
    # Whether the backward pass computes each block again instead of keeping what it needs.
    activation_checkpointing = False

    def __init__(self, config: ModelConfig) -> None:
        """Allocate the weights, which hold anything until `initialise` or a copy fills them."""
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size=null: give the size of the tokenizer's vocabulary")
        chosen = config.components()
        norm = choose(NORMS, "model.norm", chosen["norm"])
        position = choose(POSITIONS, "model.position", chosen["position"])
        self.config = config
        # A norm takes the size of an embedding away, and with it the reason to start small.
        deviation = 0.3 if chosen["embedding_norm"] and not config.tied else 0.02
        self.embedding = Embedding(config.vocab_size, config.d_model, deviation=deviation)
        sized = partial(norm, config.d_model, eps=config.norm_eps, bias=chosen["bias"])
        self.bigrams = Bigrams(config.bigrams, config.d_model) if config.bigrams else None
        self.embedding_norm = sized() if chosen["embedding_norm"] else None
        self.position = position(config)
        self.dropout = nn.Dropout(config.dropout)
        # Typed as a sequence of blocks, because nn.ModuleList forgets the type of its members.
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(config, layer=i) for i in range(config.n_layers)
        )
        self.norm = sized()
        # x [..., D] to logits [..., V].
        self.head = (
            TiedHead(self.embedding, softcap=config.logit_softcap)
            if config.tied
            else Head(config.d_model, config.vocab_size, softcap=config.logit_softcap)
        )
        for slot, part in enumerate(self._befores()):
            part.slot = slot

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text by the folder that the model was loaded from; else none."""
        return self.origin.eos_ids

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        documents: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """tokens [B, T] int to logits [B, T, V], computed in `dtype` (default the weights').

        With a `cache` the tokens follow those in it, which they may look at. `documents`
        [B, T] numbers the document of each token: a token looks only inside its own, a run of
        equal numbers. Raises `ValueError` where the tokens pass the context length or the cache.
        """
        context = self.context(tokens.size(1), cache=cache, documents=documents, tokens=tokens)
        x = self.hidden(self.embed(tokens, dtype), context)
        if cache is not None:
            # After the last layer: every layer of a pass must see the same lengths.
            cache.advance(tokens.size(1))
        logits: Tensor = self.head(x)
        return logits

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        window: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Mean cross-entropy in nats (float32 scalar) over the targets [B, T] that are not -100.

        With `config.exits`, in training mode, a share of it is that of the exits (`layers.Exits`).
        Losses that layers append to the context are added. `positions`, `documents` and `window`
        are as in `context`. The stream and its products have `dtype` (default the weights'): with
        float32 weights and bfloat16 here, gradients and the weights that they move stay float32.
        """
        context = self.context(
            tokens.size(1), positions=positions, documents=documents, window=window, tokens=tokens
        )
        x = self.embed(tokens, dtype)
        if type(self).hidden is Model.hidden:
            loss = self._cross_entropy(self._blocks(x, context), targets)
        else:
            loss = self._cross_entropy(self.hidden(x, context), targets, normed=True)
        early = context.shared.get("exits")
        if early is not None:
            loss = (1 - EXITS) * loss + EXITS * self._cross_entropy(early, targets)
        for own in context.losses:
            loss = loss + own
        return loss

    def _cross_entropy(self, x: Tensor, targets: Tensor, *, normed: bool = False) -> Tensor:
        """The loss of x [B, T, D] through norm and head, or the head alone."""
        norm, head = self.norm, self.head
        if not is_plain(head, Linear, Head, TiedHead) or getattr(head, "bias", None) is not None:
            return ops.cross_entropy(head(x if normed else norm(x)), targets)
        # Pass the weights of the norm and the head, not their outputs, so that neither the logits
        # nor the normed vectors of all tokens exist at once.
        softcap = getattr(head, "softcap", None)
        if not normed and is_plain(norm, RMSNorm):
            return ops.linear_cross_entropy(
                x, head.weight, targets, softcap=softcap, norm_weight=norm.weight, eps=norm.eps
            )
        x = x if normed else norm(x)
        return ops.linear_cross_entropy(x, head.weight, targets, softcap=softcap)

    def context(
        self,
        length: int,
        *,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        window: int | None = None,
        tokens: Tensor | None = None,
        layers: int | None = None,
    ) -> Context:
        """The context of a forward pass over `length` tokens per row.

        `positions` [T] or [B, T] int count from 0 and stay below the context length; without them
        they go on from the cache, or start at 0. `documents` [B, T] int number the document of
        each token. With a `window` a token sees no further back than that many tokens, itself
        included. Blocks with value embeddings need the `tokens` [B, T]. `layers` ends the pass
        after so many blocks. Raises `ValueError` for what does not fit.
        """
        limit, device = self.config.context_length, self.weight.device
        for name, given in (("positions", positions), ("documents", documents)):
            if given is not None and given.size(-1) != length:
                raise ValueError(f"{name} has shape {list(given.shape)}: must end in T={length}")
        if documents is not None and cache is not None:
            raise ValueError(
                "documents= and cache= exclude each other: decode one document at a time"
            )
        if cache is not None:
            # Before any layer stores a key: a refusal must leave the cache as it was.
            cache.reserve(length)
        # The host's number: the maximum of `cache.lengths` would wait for the device.
        start = 0 if cache is None else cache.longest
        if start + length > limit:
            raise ValueError(f"{start + length} tokens pass the context length, {limit}")
        if positions is None:
            positions = torch.arange(length, device=device)
            if cache is not None:
                positions = cache.lengths[:, None] + positions
        elif length and not torch.compiler.is_compiling() and device.type == "cpu":
            # A GPU would have to be waited for; there an index past the table is its own error.
            first, last = (int(end) for end in positions.aminmax())
            if first < 0 or last >= limit:
                wrong = first if first < 0 else last
                raise ValueError(f"position {wrong}: must be 0 to {limit - 1}, for T is {limit}")
        mask = CAUSAL
        if documents is not None or window is not None:
            mask = Mask(window=window, documents=documents).with_spans()
        rotate = self.position.rotation(positions)
        return Context(positions, rotate, mask, cache, tokens, layers=layers, left=Left())

    def embed(self, tokens: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """tokens [B, T] int to their vectors [B, T, D] in `dtype`, without positions.

        Every layer computes in the dtype of the vectors that it gets; None is that of the weights.
        """
        x: Tensor = self.embedding(tokens)
        return x if dtype is None else x.to(dtype)

    def hidden(self, x: Tensor, context: Context) -> Tensor:
        """Vectors [B, T, D] through all blocks to what the head reads [B, T, D].

        A cache in `context` is filled but not advanced: the caller advances it, once per pass.
        Nothing here depends on numbers of the host, so a compiled pass stays one graph.
        """
        y: Tensor = self.norm(self._blocks(x, context))
        return y

    def _blocks(self, x: Tensor, context: Context) -> Tensor:
        """`hidden` before its norm."""
        x = self.enter(x, context)
        if self.activation_checkpointing and torch.is_grad_enabled():
            context = replace(context, again=True)
        exits = Exits(x, len(self.blocks) - 1) if self.config.exits and self.training else None
        for layer, block in enumerate(self.blocks):
            if layer == context.layers:
                break
            x = block(x, context)
            if exits is not None:
                exits.add(layer, x)
        if exits is not None:
            context.shared["exits"] = exits.x
        return x

    def enter(self, x: Tensor, context: Context) -> Tensor:
        """Vectors [B, T, D] as `embed` gives them to what the first block reads."""
        x = self.position.embed(x, context.positions)
        if self.bigrams is not None:
            x = self.bigrams(x, context)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        context.shared["embeddings"] = x = self.dropout(x)
        return x

    @property
    def context_length(self) -> int:
        """The most tokens of a row (T)."""
        return self.config.context_length

    @property
    def weight(self) -> Tensor:
        """A tensor whose dtype and device are the model's: the embedding, or its packed scales."""
        part: nn.Module = self.embedding
        return part.scales if isinstance(part, PackedEmbedding) else self.embedding.weight

    @property
    def moved_back(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """See `Decodes`."""
        return getattr(self.position, "moved_back", None)

    def _befores(self) -> list[Before]:
        return [part for part in self.modules() if isinstance(part, Before)]

    def earlier_states(self) -> list[EarlierState]:
        """Return the decode state of each part that looks one token back, in order."""
        return [part.state for part in self._befores()]

    def decode_states(self) -> list[DecodeState]:
        """Return the decode state of each attention layer, in order."""
        return [block.attention.decode_state() for block in self.blocks]

    def named_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """Every parameter once, with its full name and the role its part declares."""
        for prefix, module in self.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                roles: dict[str, Role] = getattr(module, "roles", {})
                if name not in roles:
                    raise ValueError(f"{type(module).__name__} declares no role for {full}")
                yield full, parameter, roles[name]

    def flops_per_token(self, context_length: int) -> int:
        """Operations of one training step per token: 6 per weight, 12 D T per attention layer.

        A frozen weight takes 4, and the head twice its own with exits. Lookups and elementwise work
        are not counted. Source: Chowdhery et al. 2022, appendix B.
        """
        modules = [*self.modules(), *([self.head] if self.config.exits else [])]
        parts = (getattr(module, "flops", None) for module in modules)
        return int(sum(part(context_length) for part in parts if part is not None))

    def describe(self) -> dict[str, int]:
        """Counts for the record of a run: parameters, without tables, operations per token."""
        return {
            "parameters": self.n_parameters(),
            "parameters_without_embedding": self.n_parameters(embedding=False),
            "flops_per_token": self.flops_per_token(self.config.context_length),
        }

    def n_parameters(self, embedding: bool = True) -> int:
        """Number of weights; `embedding=False` leaves out the token and position tables."""
        return sum(
            parameter.numel()
            for _, parameter, role in self.named_roles()
            if embedding or role != "embedding"
        )


def build(
    config: ModelConfig,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    text: Tensor | None = None,
) -> Model:
    """A model with its starting weights, the same for the same seed on every device.

    With `start=bigram` they depend on a `text`, given as its ids [N] int64; other models ignore it.
    """
    # A registered part may draw its weights when it is made, from torch's own generator: then by
    # this seed, and the caller's next number is what it would have been.
    # On the CPU whatever the device: other devices draw other numbers from the same seed.
    with torch.device("cpu"), torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        model = Model(config)
    initialise(model, seed, text)
    return model.to(device=device, dtype=dtype)


@torch.no_grad()
def initialise(model: Model, seed: int, text: Tensor | None = None) -> None:
    """Give every parameter its starting value (see the table above), in place."""
    config = model.config
    if config.start == "bigram" and text is None:
        raise ValueError("model.start=bigram needs a text: give its ids as text=")
    generator = torch.Generator().manual_seed(seed)
    # One generator for all parts, in order: a part that draws more moves the weights of all parts
    # after it.
    for module in model.modules():
        start = getattr(module, "start", None)
        if start is not None:
            start(generator)
    if config.start != "plain":
        parts = (model.embedding, model.blocks, model.norm, model.head, generator)
        start_copying(config, *parts, text if config.start == "bigram" else None)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Inside, no dropout and no gradients; afterwards each module is in its former mode."""
    # Not `eval()` and `train()`: the latter would also wake modules that the caller keeps in eval
    # mode.
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
