"""The tokens of a text, for people to look at: cut out of the text, in colour or with bars between.

What a terminal would act on, and bytes that are no characters, are written as Python escapes them.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from tinylm.tokenizer.segmentations import Special
from tinylm.tokenizer.tokenizer import Tokenizer

Colour = Literal["auto", "always", "never"]
# Light backgrounds of the 256 colours that every terminal has, and black letters on them: legible
# whatever the terminal's own colours are. Three, so that neighbours in two lines differ too.
BACKGROUNDS = (153, 223, 157)


class Piece(NamedTuple):
    """A stretch of a text, and the token that it became; without an id it became none."""

    data: bytes
    id: int | None


def pieces(tokenizer: Tokenizer, data: bytes, special: Special = "text") -> list[Piece]:
    """All of `data`, cut at its tokens. Of tokens that share a stretch the first one has it."""
    ids, offsets = tokenizer.encode_offsets(data, special=special)
    found, end = [], 0
    for id, (start, stop) in zip(ids.tolist(), offsets.tolist(), strict=True):
        if start > end:
            found.append(Piece(data[end:start], None))
        start = max(start, end)
        found.append(Piece(data[start:stop], id))
        end = max(end, stop)
    if end < len(data):
        found.append(Piece(data[end:], None))
    return found


def ends(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places at which tokens end, each once, in order."""
    return np.unique(offsets[:, 1])


def escaped(data: bytes) -> str:
    """Bytes as text in which nothing moves a cursor; a line break stays and is named."""
    chars = data.decode(errors="surrogateescape")
    return "".join("\\n\n" if char == "\n" else visible(char) for char in chars)


def visible(char: str) -> str:
    """A character, or its escape; one of "surrogateescape" is a byte."""
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    # Of two bytes and more as \u, so that no character looks like a byte.
    if code < 0x80:
        return repr(char)[1:-1]
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def coloured(wanted: Colour, stream: TextIO) -> bool:
    """Whether to colour what goes to `stream`; https://no-color.org is respected."""
    if wanted == "auto":
        return stream.isatty() and not os.environ.get("NO_COLOR")
    return wanted == "always"


def lines(found: Iterable[Piece], *, colour: bool) -> Iterator[str]:
    """The pieces as parts of a text, which end in a line break."""
    number, last = 0, "\n"
    for piece in found:
        text = escaped(piece.data)
        if not text:
            # A mark that a normaliser put in, or the rest of a character that is shown before.
            continue
        if not colour:
            text = text if last == "\n" else f"|{text}"
        elif piece.id is not None:
            on = f"\x1b[30;48;5;{BACKGROUNDS[number % len(BACKGROUNDS)]}m"
            # Off at the end of a line: some terminals colour the rest of it.
            text = "\n".join(f"{on}{part}\x1b[0m" if part else "" for part in text.split("\n"))
            number += 1
        last = text[-1]
        yield text
    if last != "\n":
        yield "\n"
