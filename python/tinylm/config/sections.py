"""Every setting of a run: one frozen dataclass per section, composed by `Run`.

Each field carries its help text, which `--help` prints. A value that follows from other fields is
a property with its formula, never a setting. If users may extend the values of a field through a
registry, the field is a `str` with `choices`; otherwise it is a `Literal` of the implemented names.
"""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from tinylm.config.checks import check
from tinylm.config.courses import Course
from tinylm.config.distributed import DistributedConfig
from tinylm.config.fields import Kind, Order, Tracker, expand_home, setting
from tinylm.config.limits import COUNT, COUNT_OR_ZERO, SEED, THREADS, require
from tinylm.config.lora import LoraConfig
from tinylm.config.model import ModelConfig
from tinylm.config.optim import OptimConfig
from tinylm.config.profile import ProfileConfig
from tinylm.config.sample import SampleConfig
from tinylm.config.sources import checked_sources, parts
from tinylm.config.train import TrainConfig


def is_folder_name(name: str) -> bool:
    """Return whether `name` is a valid name of one folder on any file system."""
    return name.strip(". ") != "" and not set(name) & set("/\\:\0")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer. If `path` is null, one is trained on the training text."""

    kind: Kind = setting(
        "bpe", "Unit of a token; bpe learns merges of bytes, unigram the most probable pieces."
    )
    vocab_size: int = setting(
        2048, "Number of tokens of a bpe or unigram, with the special tokens.", COUNT
    )
    pattern: str = setting(
        "gpt4",
        "Pattern that splits the text into pieces: gpt2, gpt4, o200k, llama3, qwen2 or a "
        "regular expression.",
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
        "answers, to learn to chat), a text file, a .jsonl or .parquet file of texts or "
        "conversations, a folder of them, hf://OWNER/NAME@REVISION/PATH of the Hugging Face hub, "
        "a named dataset (tinyshakespeare, tinystories, openwebtext-sample, fineweb-edu-sample, "
        "swallow-code), or a folder of token shards.",
    )
    sources: tuple[str, ...] = setting(
        (),
        "Several texts in place of data.source, each with its weight in the training tokens: "
        "[novel.txt:0.7,poems.txt:0.3]. Shares are exact to a row after every 32 rows. A weight "
        "may be a course over the run: [novel.txt:0.7@0 0.2@0.5,poems.txt:0.3].",
    )
    folder: str | None = setting(
        None, "Folder of the token shards; default data/processed/<source>-<hash of the content>."
    )
    separator: str = setting(
        "auto",
        "Mark that ends a document in a text file, or off. auto recognises <|endoftext|> where it "
        "begins or ends a line.",
    )
    text_field: str = setting(
        "text",
        "Field of a row of .jsonl or column of .parquet with the text; a.b is field b of object a.",
    )
    filters: tuple[str, ...] = setting(
        (),
        "Which documents stay, in this order: rules with their limits (min_chars:200), bundles "
        "(gopher_quality, gopher_repetition, fineweb), exact_duplicates, near_duplicates. "
        "python -m tinylm.data filters lists them.",
    )
    shuffle_documents: int | None = setting(
        None,
        "Seed of another order of the documents before they are cut into rows; default the order "
        "of the files. data.order says how rows are drawn.",
        SEED,
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
    pack: bool = setting(
        False,
        "Fill the training rows with whole documents, which attend only to themselves, instead of "
        "cutting rows anywhere. A document is cut only if it is longer than a row.",
    )
    mask_eos: bool = setting(False, "Compute no loss on the ends of documents.")
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
        object.__setattr__(self, "sources", checked_sources(self.sources))
        require(self.folder != "", "data.folder", "''", "name a folder or leave it out")
        # YAML reads a bare `off` as false.
        if self.separator == "False":
            object.__setattr__(self, "separator", "off")
        require(self.separator != "", "data.separator", "''", "auto, off or a text")
        require(self.text_field != "", "data.text_field", "''", "name a field of the rows")
        require(
            not (self.pack and self.order == "random"),
            "data.order",
            self.order,
            "draws windows of tokens, and data.pack=true fills rows with whole documents: use "
            "shuffle or sequential",
        )
        require(
            not (self.mask_eos and self.mask_after_eos),
            "data.mask_eos",
            self.mask_eos,
            "leaves out the ends of documents, data.mask_after_eos what is behind the first: "
            "choose one",
        )
        fits = self.stride is None or self.order != "random"
        require(
            fits, "data.stride", self.stride, "has no effect with data.order=random; leave it out"
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """The sources of the run: data.source, or those of data.sources."""
        return tuple(text for text, _ in parts(self.sources)) or (self.source,)

    @property
    def weights(self) -> tuple[Course, ...] | None:
        """The weight of each of several sources over the run; None with data.source."""
        return tuple(weight for _, weight in parts(self.sources)) or None


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
        limit = (
            "trains adapters beside weights that stay: leave lora.rank out, or set train.qat=none"
        )
        require(
            self.lora.rank is None or self.train.qat == "none", "train.qat", self.train.qat, limit
        )
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
