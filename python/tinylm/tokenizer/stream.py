"""Text in and out piece by piece: `Stream`, and the bytes of a text that may be broken."""

from typing import Protocol

from tinylm import _rust


class HasCore(Protocol):
    """A tokenizer, which knows this module and is not known to it."""

    @property
    def _core(self) -> _rust.Tokenizer: ...


class Stream:
    """Ids to text, one at a time: a character comes out when all its bytes have come in."""

    __slots__ = ("_core",)

    def __init__(self, tokenizer: HasCore) -> None:
        self._core = _rust.DecodeStream(tokenizer._core)

    def push(self, id: int) -> str:
        """The text that is certain once the token `id` follows; often a word, maybe nothing."""
        return self._core.push(id)

    def finish(self) -> str:
        """What is left at the end: nothing, or U+FFFD for a character cut short."""
        return self._core.finish()


def utf8(text: str) -> bytes:
    """The UTF-8 of a text; ValueError where it holds half a character."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds a lone surrogate at character {error.start}; UTF-8 has none"
        ) from None
