"""The settings of the model, and the values derived from them: widths, heads, components."""

from dataclasses import dataclass
from typing import Any, Literal

from tinylm.config.architectures import ARCHITECTURES, choose
from tinylm.config.checks import check
from tinylm.config.fields import Architecture, Attention, FeedForward, Norm, Position, setting
from tinylm.config.limits import COUNT, COUNT_OR_ZERO, POSITIVE, require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The transformer. If a component is null, the architecture decides it."""

    architecture: str = setting(
        "llama3",
        "Preset that decides the parts below that are null, and biases.",
        choices=Architecture,
    )
    context_length: int = setting(256, "Number of tokens that the model sees at once (T).", COUNT)
    vocab_size: int | None = setting(
        None, "Number of rows of the embedding (V); by default the tokenizer's.", COUNT
    )
    d_model: int = setting(192, "Width of the residual stream (D).", COUNT)
    n_layers: int = setting(3, "Number of transformer blocks.", COUNT)
    n_heads: int = setting(3, "Number of query heads (H).", COUNT)
    n_kv_heads: int | None = setting(
        None,
        "Number of key and value heads (K). n_heads (the default) gives MHA, 1 gives MQA, a number "
        "between them gives GQA.",
        COUNT,
    )
    head_size: int | None = setting(None, "Width of one head; default d_model / n_heads.", COUNT)
    d_ff: int | None = setting(
        None,
        "Width of the feedforward network (F). The default is 4 D; for swiglu it is 8/3 D, rounded "
        "up to a multiple of 16.",
        COUNT,
    )
    tied: bool = setting(True, "Share one matrix between embedding and output head.")
    dropout: float = setting(
        0.0,
        "Dropout on embeddings, attention weights and residual branches.",
        {"ge": 0, "lt": 1},
        off=0.0,
    )
    norm: str | None = setting(
        None, "Normalisation before attention and feedforward.", choices=Norm
    )
    position: str | None = setting(None, "How positions are encoded.", choices=Position)
    feedforward: str | None = setting(
        None, "The feedforward network of a block.", choices=FeedForward
    )
    qk_norm: bool | None = setting(
        None, "Normalise queries and keys, each head by itself, before their rotation."
    )
    embedding_norm: bool | None = setting(None, "Normalise the embeddings before the first block.")
    parallel: bool | None = setting(
        None, "Compute attention and feedforward side by side, from one normalised input."
    )
    token_shift: bool | None = setting(
        None,
        "Add to the input of attention (and of a parallel feedforward) a learned share, per "
        "channel, of that of the token before.",
    )
    key_mix: bool | None = setting(
        None, "Mix each key with that of the token before, by a learned share per channel."
    )
    shortcut: bool | None = setting(
        None, "Add a learned share of the embeddings to the input of each block."
    )
    value_residual: bool | None = setting(
        None, "Mix the values of each block with those of the first, by a learned share."
    )
    value_embeddings: int = setting(
        0,
        "Number of blocks, counted from the last, whose values get a learned row per token.",
        COUNT_OR_ZERO,
        off=0,
    )
    bigrams: int = setting(
        0,
        "Number of learned rows that pairs of neighbouring tokens share by a hash; their sum with "
        "the embeddings goes into the first block.",
        COUNT_OR_ZERO,
        off=0,
    )
    windows: tuple[int, ...] = setting(
        (),
        "Number of newest tokens that each block attends to, in turn: [64,0] alternates between 64 "
        "and all of them (0). Default: all.",
        COUNT_OR_ZERO,
    )
    logit_softcap: float | None = setting(
        None, "Bend each logit z to c tanh(z / c), where c is this number.", POSITIVE
    )
    attention: str = setting(
        "auto",
        "How attention is computed. On CUDA, auto uses PyTorch for plain causal attention and "
        "Triton kernels for other masks and for decoding; triton uses the Triton kernels for every "
        "mask; hopper also uses a kernel for H100 and H200. sdpa always uses PyTorch, which also "
        "computes whatever has no kernel. manual is slower; it forms the matrix of weights.",
        choices=Attention,
    )
    exits: bool = setting(
        False,
        "Train the first blocks, too, to predict the next token by the model's own head, so that "
        "they can draft for the rest (sample.draft=skip:N). Each token trains one of them.",
    )
    start: Literal["plain", "copying", "bigram"] = setting(
        "plain",
        "Starting weights. copying gives two heads in each of the first two blocks weights with "
        "which they copy from the context, for short runs; it needs rope and qk_norm. bigram also "
        "begins as a bigram model of the training text.",
    )
    rope_theta: float = setting(10000.0, "Base of the rotary angles.", POSITIVE)
    # 1e-7 gave the same bits per byte within 0.01 (docs/log.md, 2026-11-21).
    norm_eps: float = setting(
        1e-5, "Number added to the variance before the root is taken.", POSITIVE
    )

    def __post_init__(self) -> None:
        # First: the divisions below need numbers of at least 1.
        check("model", self)
        heads = self.n_heads
        fits = self.head_size is not None or self.d_model % heads == 0
        limit = f"must be a multiple of n_heads={heads}, or set head_size"
        require(fits, "model.d_model", self.d_model, limit)
        fits = heads % self.kv_heads == 0
        require(fits, "model.n_kv_heads", self.n_kv_heads, f"must divide n_heads={heads}")
        # An unknown architecture passes here: `choose` refuses it, with the names of the registry.
        preset = ARCHITECTURES.get(self.architecture, {})
        rope = (self.position or preset.get("position")) == "rope"
        even = not rope or self.head_width % 2 == 0
        if self.head_size is not None:
            limit = "must be even, because rope rotates pairs"
            require(even, "model.head_size", self.head_size, limit)
        limit = f"divided by n_heads={heads} it must be even, because rope rotates pairs"
        require(even, "model.d_model", self.d_model, limit)
        fits = self.n_layers > 1 or not self.exits
        require(fits, "model.exits", "true", "needs n_layers of at least 2: the last is no exit")
        fits = self.value_embeddings <= self.n_layers
        limit = f"must be at most n_layers={self.n_layers}"
        require(fits, "model.value_embeddings", self.value_embeddings, limit)

    @property
    def head_width(self) -> int:
        """Width of one head: head_size, or d_model / n_heads if it is null."""
        return self.d_model // self.n_heads if self.head_size is None else self.head_size

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads: n_kv_heads, or n_heads if it is null."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def feedforward_width(self) -> int:
        """Width of the feedforward network (F): d_ff, or its default if it is null."""
        if self.d_ff is not None:
            return self.d_ff
        # SwiGLU has three matrices instead of two. 8/3 D keeps the number of parameters equal.
        if self.components()["feedforward"] == "swiglu":
            return -(-8 * self.d_model // 3 // 16) * 16
        return 4 * self.d_model

    def components(self) -> dict[str, Any]:
        """Return each part by name, and bias; the architecture decides null settings."""
        chosen = dict(choose(ARCHITECTURES, "model.architecture", self.architecture))
        for name in chosen.keys() - {"bias"}:
            given = getattr(self, name)
            chosen[name] = chosen[name] if given is None else given
        return chosen
