"""Text in and out piece by piece: `Stream`, and the bytes of a text that may be broken."""

from collections.abc import Iterable, Iterator
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


def chunks(
    core: _rust.Tokenizer,
    texts: Iterable[str | bytes],
    special: str | Iterable[str],
    size: int,
) -> Iterator[bytes]:
    """The texts joined into one, in parts that are encoded by themselves as in the whole.

    See `Tokenizer.chunks`; ValueError for a `size` below 1.
    """
    if size < 1:
        raise ValueError(f"size {size} must be at least 1")
    return _chunks(core, texts, special, size)


def _chunks(
    core: _rust.Tokenizer, texts: Iterable[str | bytes], special: str | Iterable[str], size: int
) -> Iterator[bytes]:
    pending, parts, length, wanted = b"", list[bytes](), 0, size
    for text in texts:
        parts.append(text if isinstance(text, bytes) else utf8(text))
        length += len(parts[-1])
        if length < wanted:
            continue
        pending, parts = b"".join([pending, *parts]), []
        cut = core.cut(pending, special)
        if cut is not None:
            yield pending[:cut]
            pending = pending[cut:]
        length = len(pending)
        # Looking again at a stretch without an end pays only once it has doubled.
        wanted = max(size, 2 * length)
    yield b"".join([pending, *parts])


def utf8(text: str) -> bytes:
    """The UTF-8 of a text; ValueError where it holds half a character."""
    if not isinstance(text, str):
        raise TypeError(f"text must be str or bytes, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds a lone surrogate at character {error.start}; UTF-8 has none"
        ) from None
