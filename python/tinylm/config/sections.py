"""Every setting of a run: one frozen dataclass per section, composed by `Run`.

Each field carries its help text, which `--help` prints. A value that follows from other fields is
a property with its formula, never a setting. If users may extend the values of a field through a
registry, the field is a `str` with `choices`; otherwise it is a `Literal` of the implemented names.
"""

import re
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from tinylm.config.checks import check
from tinylm.config.courses import Stairs, stairs
from tinylm.config.distributed import DistributedConfig
from tinylm.config.fields import (
    Dtype,
    Kind,
    NonFinite,
    Order,
    Tracker,
    expand_home,
    setting,
)
from tinylm.config.limits import (
    COUNT,
    COUNT_OR_ZERO,
    SEED,
    THREADS,
    in_words,
    require,
)
from tinylm.config.lora import LoraConfig
from tinylm.config.model import ModelConfig
from tinylm.config.optim import OptimConfig
from tinylm.config.profile import ProfileConfig
from tinylm.config.sample import SampleConfig

DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


def is_folder_name(name: str) -> bool:
    """Return whether `name` is a valid name of one folder on any file system."""
    return name.strip(". ") != "" and not set(name) & set("/\\:\0")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer. If `path` is null, one is trained on the training text."""

    kind: Kind = setting("bpe", "Unit of a token; bpe learns merges of bytes.")
    vocab_size: int = setting(2048, "Number of tokens of a bpe, with the special tokens.", COUNT)
    pattern: str = setting(
        "gpt4",
        "Pattern that splits the text before merging: gpt2, gpt4, o200k, llama3 or a regular "
        "expression.",
    )
    special_tokens: tuple[str, ...] = setting(
        ("<|endoftext|>",),
        "Tokens that are not part of the text. If <|endoftext|>, </s> or [EOS] is among them, it "
        "marks the end of each document.",
    )
    eos: str | None = setting(
        None,
        "Token that marks the end of each document. Default: the eos_token of the tokenizer's "
        "files, or else a special token with a usual name such as <|endoftext|>.",
    )
    path: str | None = setting(
        None,
        "Tokenizer to use instead of training one: a tokenizer.json, a GPT-2 folder, or the "
        ".tiktoken ranks of cl100k_base or o200k_base. For other ranks, first run python -m "
        "tinylm.tokenizer import.",
    )

    def __post_init__(self) -> None:
        check("tokenizer", self)
        expand_home(self, "path")
        none_empty = all(self.special_tokens)
        require(none_empty, "tokenizer.special_tokens", "['']", "a special token must not be empty")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, and the order in which the model reads it."""

    source: str = setting(
        "stdlib",
        "The text: stdlib (the Python standard library of this machine), tasks (small tasks with "
        "answers, to learn to chat), a text file, a folder, a .jsonl file of texts or "
        "conversations, or a named dataset (tinyshakespeare).",
    )
    folder: str | None = setting(
        None, "Folder of the token shards; default data/processed/<source>-<hash of the content>."
    )
    separator: str = setting(
        "auto",
        "Mark that ends a document in a text file, or off. auto recognises <|endoftext|> where it "
        "begins or ends a line.",
    )
    val_fraction: float = setting(
        0.05, "Share of the text held out for validation.", {"gt": 0, "lt": 1}
    )
    order: Order = setting(
        "shuffle", "Order of the training rows. random draws windows with replacement."
    )
    stride: int | None = setting(
        None,
        "Number of tokens between the starts of two rows; default model.context_length.",
        COUNT,
    )
    document_mask: bool = setting(
        False,
        "In training, let a token attend only to its own document, and count positions from its "
        "beginning.",
    )
    mask_after_eos: bool = setting(
        False, "Compute no loss on the targets after the first end of a document in a row."
    )
    loss: Literal["auto", "all", "assistant"] = setting(
        "auto",
        "Targets that count: all, or the words of the assistant's turns. auto is assistant for "
        "conversations.",
    )
    threads: int = setting(1, "Number of threads that read batches in advance.", THREADS)

    def __post_init__(self) -> None:
        check("data", self)
        expand_home(self, "source", "folder")
        # As a path, "" would mean the current folder.
        require(self.source != "", "data.source", "''", "name a text, a folder or a dataset")
        require(self.folder != "", "data.folder", "''", "name a folder or leave it out")
        # YAML reads a bare `off` as false.
        if self.separator == "False":
            object.__setattr__(self, "separator", "off")
        require(self.separator != "", "data.separator", "''", "auto, off or a text")
        fits = self.stride is None or self.order != "random"
        require(
            fits, "data.stride", self.stride, "has no effect with data.order=random; leave it out"
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop: its length, batch size, device, starting point and failures."""

    # About three minutes on two cores with AMX and five on two without (docs/log.md, 2026-11-21 and
    # 2026-11-27).
    steps: int = setting(1600, "Number of optimizer steps.", COUNT)
    # 4 rows with more steps, or with twice the context, gave more bits per byte (docs/log.md,
    # 2026-11-21).
    batch_size: int | str = setting(
        8,
        "Rows of context_length tokens per step (B). A course counts steps: '4@0 8@0.25' takes 8 "
        "rows from a quarter of the steps on.",
        COUNT,
        course=int,
    )
    micro_batch_size: int | str | None = setting(
        None,
        "Rows per forward pass; gradients are accumulated up to batch_size. auto takes the most "
        "that fit into memory. Default batch_size.",
        COUNT,
    )
    tf32: bool = setting(
        True,
        "On CUDA, multiply float32 matrices with 10 bits after the point (TF32), several times "
        "faster; sums stay float32.",
    )
    activation_checkpointing: bool = setting(
        False,
        "Keep only the input of each block for the backward pass and compute the rest again: less "
        "memory, a third more time, the same gradients.",
    )
    sequence_length: int | str | None = setting(
        None,
        "Cut each row into shorter ones of this many tokens, for training alone. It must divide "
        "context_length. Default context_length.",
        COUNT,
        course=int,
    )
    window: int | str | None = setting(
        None,
        "Let a token see at most this many tokens, itself included, in training alone. By default "
        "it sees all tokens before it.",
        COUNT,
        course=int,
    )
    device: str = setting(
        "auto",
        "Device: cpu, cuda, mps, or cuda:1 for the second GPU. auto takes the first of cuda, mps "
        "and cpu that is available.",
    )
    dtype: Dtype = setting(
        "auto",
        "Type of the matrix products. auto is bfloat16 if the hardware supports it; float16, for "
        "older GPUs, scales the loss and is slow on a CPU.",
    )
    compile: Literal["auto", True, False] = setting(
        "auto",
        "Use torch.compile. auto uses it if it pays back within the run by this machine's own "
        "measurements, which it keeps in the user's cache folder; a resumed run keeps its choice.",
    )
    seed: int = setting(
        0, "Seed of the initial weights, the order of the rows and the dropout.", SEED
    )
    init: str | None = setting(
        None, "Run or transformers folder whose weights the training starts from."
    )
    freeze: tuple[str, ...] = setting(
        (),
        "Parameters that are not trained: a role (embedding, head, matrix, gain, scalar), blocks "
        "by number (blocks.0, blocks.0-3), or a pattern of names (*.norm*).",
    )
    resume: str = setting(
        "never",
        "auto resumes from the newest valid checkpoint of this run; a path resumes from that "
        "checkpoint; never starts a new run.",
    )
    nonfinite: NonFinite = setting(
        "stop", "What to do if a loss or gradient is not finite: stop the run, or skip the step."
    )
    deterministic: bool | None = setting(
        None,
        "Give the same bits at every run and after every resume. Default: on a CPU yes; on a GPU "
        "it makes some operations slower.",
    )

    def __post_init__(self) -> None:
        check("train", self)
        expand_home(self, "init", "resume")
        limit = "expected auto or cpu or cuda or mps, or a GPU by its number such as cuda:1"
        require(DEVICES.fullmatch(self.device) is not None, "train.device", self.device, limit)
        given = self.micro_batch_size
        if isinstance(given, str) and given != "auto":
            number = given.isascii() and given.isdecimal() and 0 < int(given) < 2**31
            limit = f"must be auto or a number of rows, {in_words(COUNT)}"
            require(number, "train.micro_batch_size", given, limit)
            object.__setattr__(self, "micro_batch_size", int(given))
        micro = self.micro_rows
        for rows in self.batch_sizes.values:
            divides = rows % (micro or rows) == 0
            require(divides, "train.micro_batch_size", micro, f"must divide batch_size={rows}")

    @property
    def micro_rows(self) -> int | None:
        """micro_batch_size if it is a number; None for all rows of a batch, or not found yet."""
        return self.micro_batch_size if isinstance(self.micro_batch_size, int) else None

    @property
    def batch_sizes(self) -> Stairs:
        """The rows per step over the run: the course of batch_size."""
        return stairs(self.batch_size)

    @property
    def sequence_lengths(self) -> Stairs | None:
        """The tokens per row over the run; None if rows are never cut."""
        return None if self.sequence_length is None else stairs(self.sequence_length)

    @property
    def windows(self) -> Stairs | None:
        """The window of attention over the run; None if there is none."""
        return None if self.window is None else stairs(self.window)

    def rows(self, steps: int) -> int:
        """Return how many rows the first `steps` steps read together."""
        sizes = self.batch_sizes
        if len(sizes.points) == 1:
            return steps * sizes.values[0]
        return sum(sizes.at(step / self.steps) for step in range(steps))


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, and how many are kept."""

    every: int = setting(
        500, "Steps between checkpoints; 0 saves only at the end.", COUNT_OR_ZERO, off=0
    )
    keep: int = setting(2, "Number of newest checkpoints to keep. The best one is kept too.", COUNT)
    background: bool = setting(
        True,
        "Write checkpoints in a thread while training goes on, from a copy of weights and moments; "
        "false saves that memory. With fsdp they are written at once.",
    )

    def __post_init__(self) -> None:
        check("checkpoint", self)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """When the loss on the validation text is computed."""

    every: int = setting(
        400, "Steps between evaluations; 0 evaluates only at the end.", COUNT_OR_ZERO, off=0
    )
    patience: int | None = setting(
        None, "Stop the run after this many evaluations without a lower validation loss.", COUNT
    )
    max_tokens: int | None = setting(
        None,
        "Tokens of the validation text that are scored, its first; default all at the end, and at "
        "most a million before.",
        COUNT,
    )

    def __post_init__(self) -> None:
        check("evaluate", self)


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """How the progress of a run is reported."""

    names: tuple[str, ...] = setting(
        ("console", "jsonl", "plot"),
        "Reports: console prints a live line, jsonl writes metrics.jsonl, plot draws loss.png. "
        "tensorboard, trackio and wandb (offline unless WANDB_MODE=online) are extras.",
        choices=Tracker,
    )
    every: int = setting(10, "Steps between two lines of metrics.jsonl.", COUNT)
    norms: bool = setting(False, "Also record the norm of the gradients of each role.")

    def __post_init__(self) -> None:
        check("track", self)
        fits = "plot" not in self.names or "jsonl" in self.names
        names = f"[{','.join(self.names)}]"
        require(fits, "track.names", names, "plot draws the metrics of jsonl: name both")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole run, from text to checkpoint."""

    name: str | None = setting(
        None, "Name of the run; default the name of the recipe or the source."
    )
    out: str | None = setting(
        None, "Folder of the run; default runs/<name>, with a number if it exists."
    )
    imports: tuple[str, ...] = setting(
        (), "Modules to import first; they may extend the registries."
    )
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    # This section must stay last: `loading.CLOSING` takes a file that has it for a whole one.
    track: TrackConfig = field(default_factory=TrackConfig)

    def __post_init__(self) -> None:
        check("", self)
        expand_home(self, "out")
        fits = self.name is None or is_folder_name(self.name)
        require(fits, "name", self.name, "must be the name of a folder in runs, without a slash")
        fits = self.lora.rank is None or self.train.init is not None
        require(fits, "lora.rank", self.lora.rank, "adapts a model: name it with train.init=RUN")
        # Weights to start from may have an untied head, whatever the settings say.
        fits = self.optim.head_lr is None or not self.model.tied or self.train.init is not None
        limit = "has no effect with model.tied=true: set optim.embedding_lr, or model.tied=false"
        require(fits, "optim.head_lr", self.optim.head_lr, limit)
        ends = self.profile.steps and self.profile.start + self.profile.steps
        limit = f"profile.start={self.profile.start} and these pass train.steps={self.train.steps}"
        require(ends <= self.train.steps, "profile.steps", self.profile.steps, limit)
        stride, length = self.data.stride, self.model.context_length
        # A larger stride would leave tokens between two rows that are never read.
        fits = stride is None or stride <= length
        require(fits, "data.stride", stride, f"must be at most model.context_length={length}")
        # Weights to start from bring their own context length.
        cuts = self.train.sequence_lengths if self.train.init is None else None
        for cut in cuts.values if cuts else ():
            limit = f"must divide model.context_length={length}"
            require(length % cut == 0, "train.sequence_length", cut, limit)


SECTIONS: dict[str, Any] = {
    f.name: f.default_factory for f in fields(Run) if f.default_factory is not MISSING
}
