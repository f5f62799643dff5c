"""Every setting of a run: one frozen dataclass a section, composed by `Run`.

A field carries its own documentation, which `--help` prints. What follows from other fields
is a property with its formula, never a setting. A field that a user may extend by assigning
to a registry is a `str` with `choices`; the others are `Literal`s of what is built.
"""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args

Kind = Literal["bpe", "byte", "char", "whitespace"]
Order = Literal["shuffle", "sequential", "random"]
Architecture = Literal["llama3", "gpt2"]
Norm = Literal["rmsnorm", "layernorm"]
Position = Literal["rope", "learned", "none"]
FeedForward = Literal["swiglu", "mlp", "relu2"]
Attention = Literal["sdpa", "manual"]
Optimizer = Literal["muon", "adamw", "sgd"]
Schedule = Literal["wsd", "cosine", "linear", "constant"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16"]
NonFinite = Literal["stop", "skip"]
Tracker = Literal["console", "jsonl", "plot"]


def setting(default: Any, text: str, choices: Any = None) -> Any:
    """A dataclass field with its help text; `choices` is the Literal of a field users may extend."""
    metadata = {"help": text, "choices": get_args(choices) if choices else ()}
    return field(default=default, metadata=metadata)


def require(condition: bool, key: str, value: object, limit: str) -> None:
    """Raise `ValueError` naming the key, its value and the limit unless `condition` holds."""
    if not condition:
        raise ValueError(f"{key}={value}: {limit}")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Text to token ids. Without `path` a tokenizer is trained on the training text."""

    kind: Kind = setting("bpe", "What a token is; bpe learns merges of bytes.")
    vocab_size: int = setting(2048, "Number of tokens, special tokens included (bpe).")
    pattern: str = setting(
        "gpt4", "How text is split before merging: gpt2, gpt4, o200k, llama3 or a regex."
    )
    special_tokens: tuple[str, ...] = setting(
        ("<|endoftext|>",), "Tokens outside the text; the first one ends a document."
    )
    path: str | None = setting(
        None, "Use this tokenizer (tokenizer.json, .tiktoken, a GPT-2 folder) and train none."
    )

    def __post_init__(self) -> None:
        require(self.vocab_size >= 1, "tokenizer.vocab_size", self.vocab_size, "must be at least 1")
        none_empty = all(self.special_tokens)
        require(none_empty, "tokenizer.special_tokens", "['']", "a special token is not empty")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from and in which order the model reads it."""

    source: str = setting(
        "stdlib",
        "stdlib (the Python standard library of this machine), a text file, a folder, "
        "a .jsonl file, or a named dataset (tinyshakespeare).",
    )
    folder: str | None = setting(
        None, "Where the token shards live; default data/processed/<source>-<tokenizer hash>."
    )
    val_fraction: float = setting(0.05, "Share of the text held out for validation.")
    order: Order = setting(
        "shuffle", "Order of the training rows; random draws windows with replacement."
    )
    stride: int | None = setting(
        None, "Tokens from one row's start to the next; default model.context_length."
    )
    mask_after_eos: bool = setting(
        False, "Score no target after the first end of a document in a row."
    )
    threads: int = setting(1, "Threads that read batches ahead.")

    def __post_init__(self) -> None:
        inside = 0 < self.val_fraction < 1
        require(inside, "data.val_fraction", self.val_fraction, "must lie between 0 and 1")
        positive = self.stride is None or self.stride >= 1
        require(positive, "data.stride", self.stride, "must be at least 1")
        require(1 <= self.threads <= 256, "data.threads", self.threads, "must be 1 to 256")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The transformer. A component left null is what the architecture says."""

    architecture: str = setting(
        "llama3", "Preset of norm, position, feedforward and biases.", Architecture
    )
    context_length: int = setting(256, "Tokens that the model sees at once (T).")
    vocab_size: int | None = setting(None, "Rows of the embedding (V); default the tokenizer's.")
    d_model: int = setting(192, "Width of the residual stream (D).")
    n_layers: int = setting(3, "Number of transformer blocks.")
    n_heads: int = setting(3, "Number of query heads (H).")
    n_kv_heads: int | None = setting(
        None, "Number of key and value heads (K): n_heads is MHA (default), 1 is MQA, between GQA."
    )
    d_ff: int | None = setting(
        None, "Width of the feedforward (F); default 4 D, for swiglu 8/3 D rounded up to 16."
    )
    tied: bool = setting(True, "Embedding and output head share one matrix.")
    dropout: float = setting(0.0, "Dropout on embeddings, attention weights and residual branches.")
    norm: str | None = setting(None, "Normalisation before each branch.", Norm)
    position: str | None = setting(None, "How a token knows its position.", Position)
    feedforward: str | None = setting(None, "The feedforward network of a block.", FeedForward)
    attention: str = setting(
        "sdpa", "How attention is computed; manual spells it out, slower.", Attention
    )
    rope_theta: float = setting(10000.0, "Base of the rotary angles.")
    norm_eps: float = setting(1e-5, "Added to the variance before its root.")

    def __post_init__(self) -> None:
        for key in ("context_length", "d_model", "n_layers", "n_heads"):
            value = getattr(self, key)
            require(value >= 1, f"model.{key}", value, "must be at least 1")
        for key in ("vocab_size", "n_kv_heads", "d_ff"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"model.{key}", value, "must be at least 1")
        fits = self.d_model % self.n_heads == 0
        require(
            fits, "model.d_model", self.d_model, f"must be a multiple of n_heads={self.n_heads}"
        )
        fits = self.n_heads % self.kv_heads == 0
        require(fits, "model.n_kv_heads", self.n_kv_heads, f"must divide n_heads={self.n_heads}")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must lie in [0, 1)")
        require(self.rope_theta > 0, "model.rope_theta", self.rope_theta, "must be positive")
        require(self.norm_eps > 0, "model.norm_eps", self.norm_eps, "must be positive")

    @property
    def head_size(self) -> int:
        """Width of one head: d_model / n_heads."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads: n_kv_heads, or n_heads where it is left out."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights move."""

    name: str = setting("muon", "muon moves the matrices by Muon, all else by AdamW.", Optimizer)
    lr: float = setting(5e-3, "Peak learning rate (for muon: of what is not a matrix).")
    matrix_lr: float = setting(0.02, "Muon's peak learning rate, for the matrices.")
    betas: tuple[float, float] = setting(
        (0.9, 0.95), "Decay of AdamW's two moments; sgd's momentum is the first."
    )
    eps: float = setting(1e-8, "Added to the root of AdamW's second moment.")
    weight_decay: float = setting(0.1, "Decoupled weight decay of the matrices.")
    clip: float = setting(1.0, "Largest gradient norm of what AdamW or SGD moves; 0 clips nothing.")
    schedule: str = setting("wsd", "Course of the rate after the warm-up.", Schedule)
    warmup: float = setting(0.03, "Share of the run in which the rate rises from zero.")
    decay: float = setting(0.6, "Share of the run in which wsd falls, linearly, at its end.")
    min_lr: float = setting(0.02, "Where the rate ends, as a share of its peak.")

    def __post_init__(self) -> None:
        for key in ("lr", "matrix_lr", "eps"):
            value = getattr(self, key)
            require(value > 0, f"optim.{key}", value, "must be positive")
        for key in ("weight_decay", "clip"):
            value = getattr(self, key)
            require(value >= 0, f"optim.{key}", value, "must not be negative")
        for key in ("warmup", "decay", "min_lr"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"optim.{key}", value, "must lie between 0 and 1")
        inside = all(0 <= beta < 1 for beta in self.betas)
        require(inside, "optim.betas", list(self.betas), "each must lie in [0, 1)")
        fits = self.schedule != "wsd" or self.warmup + self.decay <= 1
        require(
            fits, "optim.decay", self.decay, f"with warmup={self.warmup} it passes the whole run"
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: how long, how wide, on what, and what happens when it stops."""

    steps: int = setting(1400, "Number of optimizer steps.")
    batch_size: int = setting(8, "Rows of context_length tokens that one step averages (B).")
    micro_batch_size: int | None = setting(
        None, "Rows on the device at once; gradients add up to batch_size. Default batch_size."
    )
    device: Device = setting("auto", "auto takes cuda, then mps, then cpu.")
    dtype: Dtype = setting(
        "auto", "Arithmetic of the matrix products; auto is bfloat16 where the hardware has it."
    )
    compile: Literal["auto", True, False] = setting(
        "auto", "torch.compile: auto from 500 steps on, where a C++ compiler is found."
    )
    seed: int = setting(0, "Of the weights, the order and the dropout.")
    init: str | None = setting(None, "Start from the weights of a run or a transformers folder.")
    resume: str = setting(
        "never",
        "auto goes on from the newest valid checkpoint of this run; a path goes on from that one.",
    )
    nonfinite: NonFinite = setting("stop", "What to do on a loss or gradient that is not finite.")

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size"):
            value = getattr(self, key)
            require(value >= 1, f"train.{key}", value, "must be at least 1")
        micro = self.micro_batch_size
        divides = micro is None or (micro >= 1 and self.batch_size % micro == 0)
        limit = f"must divide batch_size={self.batch_size}"
        require(divides, "train.micro_batch_size", micro, limit)
        require(0 <= self.seed < 2**63, "train.seed", self.seed, "must lie in [0, 2**63)")

    @property
    def micro_batch(self) -> int:
        """Rows on the device at once: micro_batch_size, or batch_size where it is left out."""
        return self.batch_size if self.micro_batch_size is None else self.micro_batch_size


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run."""

    every: int = setting(500, "Steps between checkpoints; 0 saves only at the end.")
    keep: int = setting(2, "Newest checkpoints kept (the best one stays as well).")

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, "must not be negative")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """When the validation text is scored."""

    every: int = setting(350, "Steps between evaluations; 0 evaluates only at the end.")
    patience: int | None = setting(
        None, "Stop after this many evaluations without a better validation loss."
    )

    def __post_init__(self) -> None:
        require(self.every >= 0, "evaluate.every", self.every, "must not be negative")
        positive = self.patience is None or self.patience >= 1
        require(positive, "evaluate.patience", self.patience, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How tokens are drawn from the model's logits."""

    samples: int = setting(1, "Continuations of each prompt.")
    max_tokens: int = setting(256, "Most tokens of one continuation.")
    temperature: float = setting(0.8, "Divides the logits; 0 takes the likeliest token.")
    top_k: int | None = setting(None, "Keep only the k likeliest tokens.")
    top_p: float | None = setting(None, "Keep the likeliest tokens that reach this probability.")
    min_p: float | None = setting(None, "Drop tokens below this share of the likeliest one's.")
    repetition_penalty: float = setting(1.0, "Weakens every token seen before; 1 is off.")
    frequency_penalty: float = setting(0.0, "Subtracted from a logit for each time it was drawn.")
    presence_penalty: float = setting(0.0, "Subtracted once from the logit of a token drawn.")
    stop: tuple[int | str, ...] = setting((), "Token ids or texts that end a continuation.")
    seed: int = setting(0, "The same seed, prompt and settings give the same text.")

    def __post_init__(self) -> None:
        for key in ("samples", "max_tokens"):
            value = getattr(self, key)
            require(value >= 1, f"sample.{key}", value, "must be at least 1")
        require(self.temperature >= 0, "sample.temperature", self.temperature, "must be 0 or more")
        require(
            self.top_k is None or self.top_k >= 1, "sample.top_k", self.top_k, "must be 1 or more"
        )
        for key in ("top_p", "min_p"):
            value = getattr(self, key)
            require(value is None or 0 < value <= 1, f"sample.{key}", value, "must lie in (0, 1]")
        penalty = self.repetition_penalty
        require(penalty > 0, "sample.repetition_penalty", penalty, "must be positive")
        require(0 <= self.seed < 2**63, "sample.seed", self.seed, "must lie in [0, 2**63)")


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Who is told how the run goes."""

    names: tuple[str, ...] = setting(
        ("console", "jsonl", "plot"),
        "console is the live line, jsonl metrics.jsonl, plot loss.png.",
        Tracker,
    )
    every: int = setting(10, "Steps between two lines of metrics.jsonl.")

    def __post_init__(self) -> None:
        require(self.every >= 1, "track.every", self.every, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole run, from text to checkpoint."""

    name: str | None = setting(None, "Name of the run; default the recipe's or the source's.")
    out: str | None = setting(None, "Folder of the run; default runs/<name>, numbered.")
    imports: tuple[str, ...] = setting((), "Modules imported first, to extend the registries.")
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


SECTIONS: dict[str, Any] = {
    f.name: f.default_factory for f in fields(Run) if f.default_factory is not MISSING
}
