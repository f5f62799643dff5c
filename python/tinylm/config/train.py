"""The settings of the training loop."""

import re
from dataclasses import dataclass
from typing import Literal

from tinylm.config.checks import check
from tinylm.config.courses import Stairs, stairs
from tinylm.config.fields import Dtype, NonFinite, Qat, expand_home, setting
from tinylm.config.limits import COUNT, SEED, SHARE, in_words, require

DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


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
    qat: Qat = setting(
        "none",
        "Quantisation-aware training: from qat_start on the matrices compute with the numbers that "
        "int8, int4 or ternary weights will have. ternary computes with activations of 8 bits too.",
    )
    qat_start: float = setting(
        0.9,
        "Share of the steps after which qat begins; 0 for all of training, as ternary needs it.",
        {"ge": 0, "lt": 1},
    )
    qat_ramp: float = setting(
        0.02,
        "Share of the steps, after qat_start, in which the share of the quantised weights rises "
        "from 0 to 1.",
        SHARE,
    )
    qat_group: int = setting(
        32, "Neighbouring weights of a row that share a scale of int4: 32, 64 or 128."
    )
    qat_keep: tuple[str, ...] = setting(
        (),
        "Matrices that qat gives int8 instead, named as in freeze: blocks.1.attention.v, "
        "blocks.0-1 or a pattern.",
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
        known = self.qat_group in (32, 64, 128)
        require(known, "train.qat_group", self.qat_group, "must be 32, 64 or 128")
        limit = f"with qat_start={self.qat_start} it passes the end of the run; at most 1 together"
        require(self.qat_start + self.qat_ramp <= 1, "train.qat_ramp", self.qat_ramp, limit)
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

    def qat_share(self, progress: float) -> float:
        """Return the share of the quantised weights at `progress` (0 to 1): 0 to 1."""
        if self.qat == "none" or progress < self.qat_start:
            return 0.0
        # Compared as the settings are checked: at the end of a run the share is 1, and not nearly.
        if progress >= self.qat_start + self.qat_ramp:
            return 1.0
        return (progress - self.qat_start) / self.qat_ramp

    def rows(self, steps: int) -> int:
        """Return how many rows the first `steps` steps read together."""
        sizes = self.batch_sizes
        if len(sizes.points) == 1:
            return steps * sizes.values[0]
        return sum(sizes.at(step / self.steps) for step in range(steps))
