"""The settings of the sampler: what of the model's logits may be drawn, and what ends a text.

Names are those of vLLM and OpenAI's API, and for beams and typical_p those of transformers.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from tinylm.config.checks import check
from tinylm.config.fields import CacheKind, expand_home, setting
from tinylm.config.limits import (
    COUNT,
    COUNT_OR_ZERO,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    require,
    show,
)

# The settings that describe a whole continuation; one of them at most can be given.
STRUCTURES = ("json_schema", "regex", "choice", "grammar")
# The settings that forbid or favour tokens by their ids or texts.
RESTRICTIONS = ("logit_bias", "allowed_token_ids", "bad_words", "bad_words_ids", *STRUCTURES)
SHARE = {"gt": 0, "le": 1}
# The largest number of float32, in which biases are added.
LARGEST = (2 - 2**-23) * 2.0**127

# The kinds of caches that keep `cache_tokens` tokens.
BOUNDED = ("window", "random", "h2o", "snapkv")
# Tokens that a window can take back.
WINDOW_SLACK = 32


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How tokens are drawn from the model's logits."""

    samples: int = setting(1, "Number of continuations per prompt.", COUNT)
    max_tokens: int = setting(256, "Largest number of tokens per continuation.", COUNT)
    min_tokens: int = setting(
        0,
        "Number of tokens before which nothing ends a continuation: no end-of-text token, and no "
        "stop.",
        COUNT_OR_ZERO,
    )
    temperature: float = setting(
        0.8, "Divisor of the logits; 0 always takes the likeliest token.", NOT_NEGATIVE
    )
    top_k: int | None = setting(None, "Keep only the k likeliest tokens.", COUNT)
    top_p: float | None = setting(
        None,
        "Keep the fewest likeliest tokens whose probabilities add up to this.",
        SHARE,
    )
    min_p: float | None = setting(
        None,
        "Drop tokens whose probability is below this fraction of the largest one.",
        SHARE,
    )
    typical_p: float | None = setting(
        None,
        "Keep the fewest tokens whose probabilities add up to this, those first whose information "
        "is closest to the entropy of the distribution.",
        SHARE,
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
    logit_bias: dict[int, float] | None = setting(
        None,
        "Number added to the logit of a token, by its id: -100 all but forbids it, 100 all but "
        "forces it.",
        FINITE,
    )
    allowed_token_ids: tuple[int, ...] = setting(
        (),
        "Ids of the only tokens that may be drawn; the end of the text must be among them for a "
        "continuation to end before max_tokens. Empty allows all.",
        COUNT_OR_ZERO,
    )
    bad_words: tuple[str, ...] = setting(
        (), "Texts that a continuation must not contain, however tokens spell them."
    )
    bad_words_ids: tuple[tuple[int, ...], ...] = setting(
        (),
        "Sequences of token ids that a continuation must not contain, such as [[5],[6,7]].",
        COUNT_OR_ZERO,
    )
    stop: tuple[int | str, ...] = setting((), "Token ids or texts that end a continuation.")
    json_schema: str | None = setting(
        None,
        "JSON schema that a continuation must meet: the schema itself or the path of a file. "
        "Needs the extra grammar.",
    )
    regex: str | None = setting(
        None,
        "Regular expression that a continuation must match as a whole. Needs the extra grammar.",
    )
    choice: tuple[str, ...] = setting(
        (), "Texts one of which a continuation must be. Needs the extra grammar."
    )
    grammar: str | None = setting(
        None,
        "Grammar in the syntax of Lark that a continuation must follow: the grammar itself or the "
        "path of a file. Needs the extra grammar.",
    )
    num_beams: int = setting(
        1,
        "Number of beams of a beam search for the likeliest continuations; 1 draws instead. The "
        "best `samples` of them are returned.",
        COUNT,
    )
    length_penalty: float = setting(
        1.0,
        "Power of its length that a beam's log-probability is divided by: above 0, longer "
        "continuations score higher.",
        FINITE,
    )
    logprobs: int | None = setting(
        None,
        "Report the log-probability of each token, and this many of the likeliest ones beside it. "
        "They are the model's own, before any of these settings. A text prompt is not healed then, "
        "and stops are ids alone.",
        COUNT_OR_ZERO,
    )
    prompt_logprobs: int | None = setting(
        None, "Report the same of the tokens of the prompt.", COUNT_OR_ZERO
    )
    heal: bool = setting(
        True,
        "Allow a longer token to replace the last tokens of a text prompt, in case the prompt "
        "ends in the middle of a word. Not done where tokens are restricted (logit_bias, "
        "allowed_token_ids, bad_words, json_schema and their like).",
    )
    bos: Literal["auto", True, False] = setting(
        "auto",
        "Begin a text prompt with the end-of-text token, as each document begins in training. auto "
        "does so, unless a tokenizer.json of another program names the tokens to add.",
    )
    cache: CacheKind = setting(
        "contiguous",
        "How keys and values are kept: in one buffer; in blocks that texts share where they begin "
        "alike (paged); in 8 or 4 bits; or those of cache_tokens tokens per text alone: the first "
        "4 and the newest (window), or what random, h2o or snapkv choose.",
    )
    cache_tokens: int | None = setting(
        None, "Number of tokens per text that window, random, h2o and snapkv keep.", COUNT
    )
    draft: str | None = setting(
        None,
        "Source of guesses that the model checks several at a time, which is faster and keeps the "
        "distribution: the folder of a small model with the same tokenizer; lookup, which copies "
        "from the text; or skip:N, the model's first N blocks (model.exits=true).",
    )
    draft_tokens: int | None = setting(
        None,
        "Number of tokens to guess at once; default 3, and for lookup up to 15 while it is right.",
        COUNT,
    )
    exit_confidence: float | None = setting(
        None,
        "Take a token from the model's first exit_layer blocks if they give their likeliest one at "
        "least this probability (model.exits=true). Approximate: the text may be another; faster "
        "if few of the blocks are asked.",
        SHARE,
    )
    exit_layer: int | None = setting(
        None,
        "Number of blocks before that exit; default a quarter of them, but 2 at least.",
        COUNT,
    )
    seed: int = setting(
        0, "Seed of the draws. The same seed, prompt and settings give the same text.", SEED
    )

    def __post_init__(self) -> None:
        check("sample", self)
        if self.cache in BOUNDED:
            words = "keeps a number of tokens: set sample.cache_tokens"
            require(self.cache_tokens is not None, "sample.cache", self.cache, words)
        if self.cache == "window":
            words = "must be above 4 with sample.cache=window, which keeps the first 4"
            require((self.cache_tokens or 0) > 4, "sample.cache_tokens", self.cache_tokens, words)
        if self.draft is not None:
            self._check_draft_cache()
        expand_home(self, "draft")
        kind, colon, layers = (self.draft or "").partition(":")
        if kind == "skip":
            count = colon and layers.isdecimal() and int(layers) > 0
            require(bool(count), "sample.draft", self.draft, "expected skip:N, N at least 1")
        one = self.draft is None or self.num_beams == 1
        require(one, "sample.draft", self.draft, f"has no use for num_beams={self.num_beams}")
        if self.exit_confidence is not None:
            self._check_exit(self.exit_confidence)
        for bias in (self.logit_bias or {}).values():
            single = abs(bias) <= LARGEST
            require(single, "sample.logit_bias", bias, "must be finite in float32, below 3.4e+38")
        require(
            self.min_tokens <= self.max_tokens,
            "sample.min_tokens",
            self.min_tokens,
            f"must be at most sample.max_tokens={self.max_tokens}",
        )
        given = [name for name in STRUCTURES if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            value = show(getattr(self, given[1]))
            raise ValueError(
                f"sample.{given[1]}={value}: sample.{given[0]} is given too; a continuation has "
                "one structure: leave one of them out"
            )
        for name in ("bad_words", "choice"):
            require(all(getattr(self, name)), f"sample.{name}", "''", "a text must not be empty")
        require(all(self.bad_words_ids), "sample.bad_words_ids", "[]", "needs an id at least")
        require(
            self.num_beams == 1 or self.samples <= self.num_beams,
            "sample.samples",
            self.samples,
            f"must be at most sample.num_beams={self.num_beams}",
        )

    def _check_draft_cache(self) -> None:
        """Raise `ValueError` for a cache that cannot take drafts back."""
        words = f"takes tokens back, and sample.cache={self.cache} cannot: take another cache"
        require(self.cache not in BOUNDED[1:], "sample.draft", self.draft, words)
        count = self.draft_tokens or 0
        words = (
            f"must be at most {WINDOW_SLACK} with sample.cache=window, which cannot go back more"
        )
        require(
            self.cache != "window" or count <= WINDOW_SLACK, "sample.draft_tokens", count, words
        )

    def _check_exit(self, value: float) -> None:
        """Raise `ValueError` for what an early exit does not go with."""
        name = "sample.exit_confidence"
        words = f"has no use for sample.draft={show(self.draft)}: leave one of them out"
        require(self.draft is None, name, value, words)
        words = f"has no use for num_beams={self.num_beams}"
        require(self.num_beams == 1, name, value, words)
        words = f"takes tokens back, and sample.cache={self.cache} cannot: take another cache"
        require(self.cache not in BOUNDED, name, value, words)
        words = f"sample.logprobs={self.logprobs} are the whole model's: leave one of them out"
        require(self.logprobs is None, name, value, words)

    @property
    def draft_layers(self) -> int | None:
        """The N of draft=skip:N; None for any other draft."""
        kind, _, layers = (self.draft or "").partition(":")
        return int(layers) if kind == "skip" else None

    @property
    def cache_options(self) -> dict[str, Any]:
        """The options of the kind of cache."""
        return {} if self.cache_tokens is None else {"budget": self.cache_tokens}

    def as_trained(self) -> "SampleConfig":
        """Return these settings for a model that TinyLM trained, with bos=auto made true.

        In training, only the end-of-text token separates documents, whatever the tokenizer's file
        adds.
        """
        return replace(self, bos=True) if self.bos == "auto" else self

    @property
    def restricted(self) -> bool:
        """Whether some tokens are forbidden or favoured by their ids or texts."""
        return bool(self.restrictions)

    @property
    def restrictions(self) -> list[str]:
        """The names of the settings that are given to forbid or favour tokens."""
        return [name for name in RESTRICTIONS if getattr(self, name)]

    @property
    def structure(self) -> str | None:
        """The name of the setting that describes the structure of a continuation, if one does."""
        return next((name for name in STRUCTURES if getattr(self, name)), None)
