"""Every setting of a run: one frozen dataclass per section, composed by `Run`.

A field carries its own documentation, which `--help` prints. What follows from other fields
is a property with its formula, never a setting. A field that a user may extend by assigning
to a registry is a `str` with `choices`; the others are `Literal`s of what is built.
"""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from tinylm.config.fields import (
    Device,
    Dtype,
    Kind,
    NonFinite,
    Optimizer,
    Order,
    Schedule,
    Tracker,
    setting,
)
from tinylm.config.limits import (
    COUNT,
    COUNT_OR_ZERO,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    THREADS,
    require,
    require_limits,
)
from tinylm.config.model import ModelConfig


def is_folder_name(name: str) -> bool:
    """Whether `name` can be a folder of its own, on any file system."""
    return name.strip(". ") != "" and not set(name) & set("/\\:\0")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Text to token ids. Without `path` a tokenizer is trained on the training text."""

    kind: Kind = setting("bpe", "What a token is; bpe learns merges of bytes.")
    vocab_size: int = setting(2048, "Number of tokens, special tokens included (bpe).", COUNT)
    pattern: str = setting(
        "gpt4", "How text is split before merging: gpt2, gpt4, o200k, llama3 or a regex."
    )
    special_tokens: tuple[str, ...] = setting(
        ("<|endoftext|>",),
        "Tokens outside the text; <|endoftext|>, </s> or [EOS] among them ends a document.",
    )
    path: str | None = setting(
        None,
        "Use this tokenizer and train none: a tokenizer.json, a GPT-2 folder, or the .tiktoken "
        "ranks of cl100k_base or o200k_base (others: python -m tinylm.tokenizer import).",
    )

    def __post_init__(self) -> None:
        require_limits("tokenizer", self)
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
    val_fraction: float = setting(
        0.05, "Share of the text held out for validation.", {"gt": 0, "lt": 1}
    )
    order: Order = setting(
        "shuffle", "Order of the training rows; random draws windows with replacement."
    )
    stride: int | None = setting(
        None, "Tokens from one row's start to the next; default model.context_length.", COUNT
    )
    mask_after_eos: bool = setting(
        False, "Score no target after the first end of a document in a row."
    )
    threads: int = setting(1, "Threads that read batches ahead.", THREADS)

    def __post_init__(self) -> None:
        require_limits("data", self)
        # As a path it would be the current folder.
        require(self.source != "", "data.source", "''", "name a text, a folder or a dataset")
        fits = self.stride is None or self.order != "random"
        require(fits, "data.stride", self.stride, "has no meaning with data.order=random")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights move."""

    name: str = setting(
        "muon", "muon moves the matrices by Muon, all else by AdamW.", choices=Optimizer
    )
    lr: float = setting(5e-3, "Peak learning rate (for muon: of what is not a matrix).", POSITIVE)
    matrix_lr: float = setting(0.02, "Muon's peak learning rate, for the matrices.", POSITIVE)
    betas: tuple[float, float] = setting(
        (0.9, 0.95),
        "Decay of AdamW's two moments; sgd's momentum is the first.",
        {"ge": 0, "lt": 1},
    )
    eps: float = setting(1e-8, "Added to the root of AdamW's second moment.", POSITIVE)
    weight_decay: float = setting(
        0.1, "Weight decay of the matrices, decoupled (sgd: added to the gradient).", NOT_NEGATIVE
    )
    clip: float = setting(
        1.0, "Largest gradient norm of what AdamW or SGD moves; 0 clips nothing.", NOT_NEGATIVE
    )
    schedule: str = setting("wsd", "Course of the rate after the warm-up.", choices=Schedule)
    warmup: float = setting(0.03, "Share of the run in which the rate rises from zero.", SHARE)
    decay: float = setting(0.6, "Share of the run in which wsd falls, linearly, at its end.", SHARE)
    min_lr: float = setting(0.02, "Where the rate ends, as a share of its peak.", SHARE)

    def __post_init__(self) -> None:
        require_limits("optim", self)
        fits = self.schedule != "wsd" or self.warmup + self.decay <= 1
        limit = f"with warmup={self.warmup} it passes the whole run"
        require(fits, "optim.decay", self.decay, limit)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: how long, how wide, on what, and what happens when it stops."""

    steps: int = setting(1600, "Number of optimizer steps.", COUNT)
    batch_size: int = setting(8, "Rows of context_length tokens that one step averages (B).", COUNT)
    micro_batch_size: int | None = setting(
        None,
        "Rows on the device at once; gradients add up to batch_size. Default batch_size.",
        COUNT,
    )
    device: Device = setting("auto", "auto takes cuda, then mps, then cpu.")
    dtype: Dtype = setting(
        "auto", "Arithmetic of the matrix products; auto is bfloat16 where the hardware has it."
    )
    compile: Literal["auto", True, False] = setting(
        "auto", "torch.compile: auto from 500 steps on, where a C++ compiler is found."
    )
    seed: int = setting(0, "Of the weights, the order and the dropout.", SEED)
    init: str | None = setting(None, "Start from the weights of a run or a transformers folder.")
    resume: str = setting(
        "never",
        "auto goes on from the newest valid checkpoint of this run; a path goes on from that one.",
    )
    nonfinite: NonFinite = setting("stop", "What to do on a loss or gradient that is not finite.")

    def __post_init__(self) -> None:
        require_limits("train", self)
        rows, micro = self.batch_size, self.micro_batch_size
        divides = rows % (micro or rows) == 0
        require(divides, "train.micro_batch_size", micro, f"must divide batch_size={rows}")

    @property
    def micro_batch(self) -> int:
        """Rows on the device at once: micro_batch_size, or batch_size where it is left out."""
        return self.batch_size if self.micro_batch_size is None else self.micro_batch_size


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run."""

    every: int = setting(500, "Steps between checkpoints; 0 saves only at the end.", COUNT_OR_ZERO)
    keep: int = setting(2, "Newest checkpoints kept (the best one stays as well).", COUNT)

    def __post_init__(self) -> None:
        require_limits("checkpoint", self)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """When the validation text is scored."""

    every: int = setting(
        400, "Steps between evaluations; 0 evaluates only at the end.", COUNT_OR_ZERO
    )
    patience: int | None = setting(
        None, "Stop after this many evaluations without a better validation loss.", COUNT
    )

    def __post_init__(self) -> None:
        require_limits("evaluate", self)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How tokens are drawn from the model's logits."""

    samples: int = setting(1, "Continuations of each prompt.", COUNT)
    max_tokens: int = setting(256, "Most tokens of one continuation.", COUNT)
    temperature: float = setting(
        0.8, "Divides the logits; 0 takes the likeliest token.", NOT_NEGATIVE
    )
    top_k: int | None = setting(None, "Keep only the k likeliest tokens.", COUNT)
    top_p: float | None = setting(
        None, "Keep the likeliest tokens that reach this probability.", {"gt": 0, "le": 1}
    )
    min_p: float | None = setting(
        None, "Drop tokens below this share of the likeliest one's.", {"gt": 0, "le": 1}
    )
    repetition_penalty: float = setting(1.0, "Weakens every token seen before; 1 is off.", POSITIVE)
    frequency_penalty: float = setting(
        0.0, "Subtracted from a logit for each time it was drawn.", FINITE
    )
    presence_penalty: float = setting(
        0.0, "Subtracted once from the logit of a token drawn.", FINITE
    )
    stop: tuple[int | str, ...] = setting((), "Token ids or texts that end a continuation.")
    seed: int = setting(0, "The same seed, prompt and settings give the same text.", SEED)

    def __post_init__(self) -> None:
        require_limits("sample", self)


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Who is told how the run goes."""

    names: tuple[str, ...] = setting(
        ("console", "jsonl", "plot"),
        "console is the live line, jsonl metrics.jsonl, plot loss.png.",
        choices=Tracker,
    )
    every: int = setting(10, "Steps between two lines of metrics.jsonl.", COUNT)

    def __post_init__(self) -> None:
        require_limits("track", self)
        fits = "plot" not in self.names or "jsonl" in self.names
        names = f"[{','.join(self.names)}]"
        require(fits, "track.names", names, "plot draws what jsonl writes: name both")


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
    # Stays last: `loading.CLOSING` tells by it that a saved file is whole, old files too.
    track: TrackConfig = field(default_factory=TrackConfig)

    def __post_init__(self) -> None:
        fits = self.name is None or is_folder_name(self.name)
        require(fits, "name", self.name, "must be the name of a folder in runs, without a slash")
        stride, length = self.data.stride, self.model.context_length
        fits = stride is None or stride <= length
        require(fits, "data.stride", stride, f"must be at most model.context_length={length}")


SECTIONS: dict[str, Any] = {
    f.name: f.default_factory for f in fields(Run) if f.default_factory is not MISSING
}
