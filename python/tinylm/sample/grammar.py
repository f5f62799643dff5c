"""Continuations with a structure: a JSON schema, an expression, choices or a grammar.

llguidance (the extra `grammar`) says which tokens may come next. A text that is complete may end,
and must where nothing can follow, so the tokenizer needs an end-of-text token.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tinylm.config import ConfigError, SampleConfig
from tinylm.config.limits import show

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer


# Compiled structures that are kept.
KNOWN = 64


class Matcher:
    """The state of one text in its structure."""

    def __init__(self, state: Any, vocab_size: int, eos: int) -> None:
        self.state, self.vocab_size, self.eos = state, vocab_size, eos
        # How many tokens came after the text had ended: a draft may guess on.
        self.after = 0

    def allowed(self) -> Tensor:
        """Which tokens may come next: [V] bool. Raises `ValueError` where the limits of
        llguidance are passed."""
        if self.state.is_stopped():
            self._check()
            mask = torch.zeros(self.vocab_size, dtype=torch.bool)
            mask[self.eos] = True
            return mask
        bits = np.frombuffer(self.state.compute_bitmask(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(
            np.unpackbits(bits, count=self.vocab_size, bitorder="little").view(np.bool_)
        )

    def push(self, token: int) -> None:
        """Go on by one token, which must be allowed."""
        if self.state.is_stopped():
            self.after += 1
        elif not self.state.consume_token(token):
            self._check()

    def take_back(self, count: int) -> None:
        """Go back by a number of tokens."""
        late = min(count, self.after)
        self.after -= late
        if count > late:
            self.state.rollback(count - late)

    def copy(self) -> "Matcher":
        """The same state, which goes on by itself."""
        found = Matcher(self.state.deep_copy(), self.vocab_size, self.eos)
        found.after = self.after
        return found

    def _check(self) -> None:
        if self.state.is_error():
            raise ValueError(f"the structure of the text: {_one_line(self.state.get_error())}")


class Structures:
    """Makes a matcher of each config's structure, for one tokenizer; each is compiled once."""

    def __init__(self, tokenizer: "Tokenizer | None", vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self._tokens: Any = None
        self._starts: dict[SampleConfig, Matcher] = {}

    def matcher(self, config: SampleConfig) -> Matcher:
        """The beginning of a text with the structure of `config`.

        Raises `ConfigError` for a structure that is wrong or that no text meets, without a
        tokenizer that can end a text, and without llguidance.
        """
        if config not in self._starts:
            if len(self._starts) >= KNOWN:
                self._starts.clear()
            self._starts[config] = self._start(config)
        return self._starts[config].copy()

    def _start(self, config: SampleConfig) -> Matcher:
        name = config.structure or ""
        value = getattr(config, name)
        tokenizer = self.tokenizer
        if tokenizer is None or tokenizer.eos_id is None or tokenizer.eos_id >= self.vocab_size:
            raise ConfigError(
                f"sample.{name}={show(value)}: needs a tokenizer with an end-of-text token, which "
                "ends a text that is complete"
            )
        library = _library(f"sample.{name}={show(value)}")
        if self._tokens is None:
            self._tokens = library.LLTokenizer(
                library.TokenizerWrapper(_Tokens(tokenizer, self.vocab_size))
            )
        try:
            grammar = _grammar(library, name, value)
            problem = library.LLMatcher.validate_grammar(grammar, self._tokens)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise ConfigError(f"sample.{name}={show(value)}: {_one_line(problem)}")
        state = library.LLMatcher(self._tokens, grammar, log_level=0)
        start = Matcher(state, self.vocab_size, tokenizer.eos_id)
        try:
            empty = not start.allowed().any()
        except ValueError as error:
            raise ConfigError(f"sample.{name}={show(value)}: {error}") from None
        if empty:
            raise ConfigError(f"sample.{name}={show(value)}: no text of these tokens meets it")
        return start


class _Tokens:
    """A tokenizer as llguidance asks for one: the bytes of each id, and text to ids."""

    def __init__(self, tokenizer: "Tokenizer", vocab_size: int) -> None:
        vocab = tokenizer.vocab
        self.tokens = [vocab.get(id, b"") for id in range(vocab_size)]
        self.special_token_ids = [id for id in tokenizer.special_tokens.values() if id < vocab_size]
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, None
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text, special="text")


def _library(setting: str) -> Any:
    try:
        import llguidance
    except ImportError:
        missing = "needs llguidance, which is not installed: pip install 'tinylm[grammar]'"
        raise ConfigError(f"{setting}: {missing}") from None
    return llguidance


def _grammar(library: Any, name: str, value: Any) -> str:
    """A structure in the form that llguidance reads."""
    kind = {"json_schema": "json_schema", "regex": "regex", "choice": "choice", "grammar": "lark"}
    text = json.dumps(value) if name == "choice" else value
    if name in ("json_schema", "grammar") and _is_path(value):
        text = Path(value).read_text(encoding="utf-8")
    found: str = library.grammar_from(kind[name], text)
    return found


def _is_path(value: str) -> bool:
    """Whether a value is meant as the path of a file, not as its contents."""
    return not any(mark in value for mark in "\n{:") and value.strip() not in ("true", "false")


def _one_line(problem: str) -> str:
    text = " ".join(problem.split())
    return text if len(text) <= 160 else f"{text[:157]}..."
