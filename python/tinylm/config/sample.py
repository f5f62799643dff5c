"""The settings of the sampler: what of the model's logits may be drawn, and what ends a text."""

from dataclasses import dataclass, replace
from typing import Literal

from tinylm.config.checks import check
from tinylm.config.fields import expand_home, setting
from tinylm.config.limits import COUNT, FINITE, NOT_NEGATIVE, POSITIVE, SEED, require


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How tokens are drawn from the model's logits."""

    samples: int = setting(1, "Number of continuations per prompt.", COUNT)
    max_tokens: int = setting(256, "Largest number of tokens per continuation.", COUNT)
    temperature: float = setting(
        0.8, "Divisor of the logits; 0 always takes the likeliest token.", NOT_NEGATIVE
    )
    top_k: int | None = setting(None, "Keep only the k likeliest tokens.", COUNT)
    top_p: float | None = setting(
        None,
        "Keep the fewest likeliest tokens whose probabilities add up to this.",
        {"gt": 0, "le": 1},
    )
    min_p: float | None = setting(
        None,
        "Drop tokens whose probability is below this fraction of the largest one.",
        {"gt": 0, "le": 1},
    )
    repetition_penalty: float = setting(
        1.0,
        "Makes tokens of the prompt and the continuation less likely if above 1; 1 is off.",
        POSITIVE,
        off=1.0,
    )
    frequency_penalty: float = setting(
        0.0,
        "Number subtracted from a token's logit each time the token is drawn.",
        FINITE,
        off=0.0,
    )
    presence_penalty: float = setting(
        0.0, "Number subtracted once from the logit of each token that was drawn.", FINITE, off=0.0
    )
    stop: tuple[int | str, ...] = setting((), "Token ids or texts that end a continuation.")
    heal: bool = setting(
        True,
        "Allow a longer token to replace the last tokens of a text prompt, in case the prompt "
        "ends in the middle of a word.",
    )
    bos: Literal["auto", True, False] = setting(
        "auto",
        "Begin a text prompt with the end-of-text token, as each document begins in training. auto "
        "does so, unless a tokenizer.json of another program names the tokens to add.",
    )
    draft: str | None = setting(
        None,
        "Source of guesses that the model checks several at a time, which is faster and keeps the "
        "distribution: the folder of a small model with the same tokenizer; lookup, which copies "
        "from the text; or skip:N, the model's first N blocks (model.exits=true).",
    )
    draft_tokens: int | None = setting(
        None, "Number of tokens to guess at once; default 10 for lookup, else 4.", COUNT
    )
    seed: int = setting(
        0, "Seed of the draws. The same seed, prompt and settings give the same text.", SEED
    )

    def __post_init__(self) -> None:
        check("sample", self)
        expand_home(self, "draft")
        kind, colon, layers = (self.draft or "").partition(":")
        if kind == "skip":
            count = colon and layers.isdecimal() and int(layers) > 0
            require(bool(count), "sample.draft", self.draft, "expected skip:N, N at least 1")

    @property
    def draft_layers(self) -> int | None:
        """The N of draft=skip:N; None for any other draft."""
        kind, _, layers = (self.draft or "").partition(":")
        return int(layers) if kind == "skip" else None

    def as_trained(self) -> "SampleConfig":
        """Return these settings for a model that TinyLM trained, with bos=auto made true.

        In training, only the end-of-text token separates documents, whatever the tokenizer's file
        adds.
        """
        return replace(self, bos=True) if self.bos == "auto" else self
