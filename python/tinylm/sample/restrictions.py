"""Tokens that settings forbid or favour by their ids or texts, whatever the model says."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tinylm.config import ConfigError, SampleConfig

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

Sequences = Sequence[Sequence[int]]


class Rules:
    """The restrictions of one config in a vocabulary; texts with the same config share them.

    `bias` [V] float32, or None, is added to the logits of every step: the numbers of logit_bias,
    and -inf for ids that are forbidden at every step. `forbidden` returns the ids that are
    forbidden after a certain text. Raises `ConfigError` for an id outside the vocabulary, for a
    text without a tokenizer and where no id is left.
    """

    def __init__(
        self,
        config: SampleConfig,
        vocab_size: int,
        tokenizer: "Tokenizer | None",
        device: torch.device,
    ) -> None:
        biases, allowed = config.logit_bias or {}, config.allowed_token_ids
        sequences = [id for sequence in config.bad_words_ids for id in sequence]
        for name, ids in (
            ("logit_bias", [*biases]),
            ("allowed_token_ids", allowed),
            ("bad_words_ids", sequences),
        ):
            wrong = next((id for id in ids if not 0 <= id < vocab_size), None)
            if wrong is not None:
                problem = f"the vocabulary is 0 to {vocab_size - 1}"
                raise ConfigError(f"sample.{name}={wrong}: {problem}")
        if config.bad_words and tokenizer is None:
            raise ConfigError(
                f"sample.bad_words={config.bad_words[0]!r} is a text and no tokenizer is given: "
                "pass one, or give ids as sample.bad_words_ids"
            )
        self.words = Words(config.bad_words, tokenizer, vocab_size) if tokenizer else None
        self.sequences = [s for s in config.bad_words_ids if len(s) > 1]
        never = {s[0] for s in config.bad_words_ids if len(s) == 1}
        never |= self.words.never if self.words else set()
        self.bias: Tensor | None = None
        if biases or allowed or never:
            bias = logit_bias(torch.zeros(vocab_size), biases)
            bias = allowed_token_ids(bias, allowed) if allowed else bias
            bias[[*never]] = -math.inf
            if not bias.isfinite().any():
                given = [
                    f"sample.{name}"
                    for name in ("allowed_token_ids", "bad_words", "bad_words_ids")
                    if getattr(config, name)
                ]
                raise ConfigError(f"{' and '.join(given)} leave no token: allow another one")
            self.bias = bias.to(device)

    def forbidden(self, text: Sequence[int]) -> set[int]:
        """The ids that may not follow `text`, which has the prompt too."""
        found = bad_words_ids(text, self.sequences)
        return found | self.words.after(text) if self.words else found


def logit_bias(logits: Tensor, bias: dict[int, float]) -> Tensor:
    """logits [..., V] + the bias of each token. Source: OpenAI's API."""
    ids = torch.tensor([*bias], dtype=torch.int64, device=logits.device)
    numbers = torch.tensor([*bias.values()], dtype=logits.dtype, device=logits.device)
    return logits.index_add(-1, ids, numbers.expand(*logits.shape[:-1], -1))


def allowed_token_ids(logits: Tensor, allowed: Iterable[int]) -> Tensor:
    """The logits [..., V] of the allowed ids, all others -inf. Source: vLLM's SamplingParams."""
    others = torch.ones(logits.size(-1), dtype=torch.bool, device=logits.device)
    others[[*allowed]] = False
    return logits.masked_fill(others, -math.inf)


def bad_words_ids(text: Sequence[int], sequences: Sequences) -> set[int]:
    """The ids with which `text` would end in one of `sequences`. Source: transformers."""
    found = set()
    for sequence in sequences:
        before = len(sequence) - 1
        if before <= len(text) and [*text[len(text) - before :]] == [*sequence[:-1]]:
            found.add(sequence[-1])
    return found


class Words:
    """Texts that must not come to be, whatever tokens spell them.

    vLLM and transformers forbid the tokens that their tokenizer gives for a word; the same word
    may be spelled by others. Here bytes are compared. A word ends inside the new token, so it
    stands in the token as a whole (`never`), or the text ends in a beginning of it and the token
    begins with the rest.
    """

    def __init__(self, words: Iterable[str], tokenizer: "Tokenizer", vocab_size: int) -> None:
        self.bytes = {id: token for id, token in tokenizer.vocab.items() if id < vocab_size}
        self.words = [word.encode() for word in words]
        known = sorted((token, id) for id, token in self.bytes.items())
        longest = max(map(len, self.bytes.values()), default=0)
        self.never = {id for token, id in known if any(word in token for word in self.words)}
        # Of each word the ids that begin with what is left of it after its first n bytes.
        self.rests = {
            (word, n): beginning_with(known, word[n:], longest)
            for word in self.words
            for n in range(1, len(word))
        }
        self.longest = max(map(len, self.words), default=0)

    def after(self, text: Sequence[int]) -> set[int]:
        """The ids that would complete a word after `text`, beside those that hold one."""
        tail = b""
        for id in reversed(text):
            if len(tail) >= self.longest - 1:
                break
            tail = self.bytes.get(id, b"") + tail
        found: set[int] = set()
        for (word, n), ids in self.rests.items():
            if tail.endswith(word[:n]):
                found |= ids
        return found


def beginning_with(known: Sequence[tuple[bytes, int]], start: bytes, longest: int) -> set[int]:
    """The ids of a sorted list of (bytes, id) whose bytes begin with `start`.

    No bytes of the list are longer than `longest`.
    """
    first = bisect_left(known, (start, -1))
    # Nothing that begins with `start` is greater than `start` and only bytes of 255 after it.
    last = bisect_right(known, (start + b"\xff" * longest, math.inf))
    return {id for _, id in known[first:last]}
