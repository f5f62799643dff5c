"""Marks between the documents of one text, such as the `<|endoftext|>` of TinyStories.

    Once upon a time ... ever after.
    <|endoftext|>
    There was a girl ...

A mark ends a document, and the line breaks that touch it (one before, one after) belong to it.
Documents of blanks alone are left out. All of this reads blocks: memory is one document, not one
file.
"""

from collections.abc import Iterable, Iterator

# The mark that is recognised without being named.
USUAL = "<|endoftext|>"


class Marks:
    """Counts a mark in a text that comes in blocks.

    `count` is how often it stands there, `blank` how many documents between two marks are blank.
    `at_a_border` says whether it begins or ends a line anywhere: a text that only mentions the
    mark, such as a program that handles it, has it in the middle of its lines.
    """

    def __init__(self, mark: bytes) -> None:
        self.count = self.blank = 0
        self.at_a_border = False
        self._mark = mark
        # The file begins as if after a line break.
        self._window = b"\n"
        self._rest = b""
        self._is_blank = True

    def add(self, block: bytes) -> None:
        """Count on in the next block."""
        mark, window = self._mark, self._window + block
        if not self.at_a_border:
            borders = (b"\n" + mark, mark + b"\n", mark + b"\r\n")
            self.at_a_border = any(border in window for border in borders)
        # One byte less than the longest border that is looked for, so that none is missed.
        self._window = window[-len(mark) - 1 :]
        *ended, last = (self._rest + block).split(mark)
        for part in ended:
            # What stands before the first mark is no document between two.
            self.blank += self.count > 0 and self._is_blank and _is_blank(part)
            self._is_blank = True
            self.count += 1
        # The rest may begin a mark that ends in the next block, so it is not yet blank or text.
        done, self._rest = _cut(last, mark)
        self._is_blank = self._is_blank and _is_blank(done)

    def end(self) -> None:
        """Take the end of the text for the end of a line."""
        self.at_a_border = self.at_a_border or self._window.endswith(self._mark)


def separated(blocks: Iterable[bytes], mark: bytes) -> Iterator[bytes]:
    """The documents between the marks, without blank ones."""
    parts: list[bytes] = []
    rest = b""
    is_first = True
    for block in blocks:
        # `rest` is shorter than a mark, so each byte is searched twice at the most.
        *ended, last = (rest + block).split(mark)
        for part in ended:
            yield from _document(b"".join([*parts, part]), after=not is_first, before=True)
            parts, is_first = [], False
        done, rest = _cut(last, mark)
        parts.append(done)
    yield from _document(b"".join([*parts, rest]), after=not is_first, before=False)


def _cut(data: bytes, mark: bytes) -> tuple[bytes, bytes]:
    """What cannot be part of a mark any more, and the last bytes, in which one may have begun."""
    at = max(0, len(data) - len(mark) + 1)
    return data[:at], data[at:]


def _document(data: bytes, *, after: bool, before: bool) -> Iterator[bytes]:
    """The document between two marks, without the line breaks that belong to them."""
    if after:
        data = data.removeprefix(b"\r\n" if data.startswith(b"\r\n") else b"\n")
    if before:
        data = data.removesuffix(b"\r\n" if data.endswith(b"\r\n") else b"\n")
    if not _is_blank(data):
        yield data


def _is_blank(data: bytes) -> bool:
    return not data or data.isspace()
