"""The documents of files, split into training and validation."""

from collections.abc import Iterator, Sequence
from functools import partial

from tinylm.corpus.documents import Parts, Section, in_validation
from tinylm.corpus.texts import Text


def split(
    texts: Sequence[Text], val_fraction: float, source: str
) -> tuple[tuple[Section, ...], str]:
    """The documents by split, and a word to the user if the hash could not choose.

    A hash of its label chooses the split of each document: of its content in rows and between
    marks, of its name where a file is one document. If that leaves a split without a document, as
    it may with a few, the last `val_fraction` of the text is held out.
    """

    # Which documents fall into a split is never stored.
    def held_out(label: bytes) -> bool:
        return in_validation(label, val_fraction)

    sections = tuple(Section(text.size, partial(text.streams, held_out)) for text in texts)
    wanted = {bool(val_fraction)} if val_fraction in (0, 1) else {False, True}
    for section in sections:
        for validation, _ in section.documents():
            wanted.discard(validation)
            # As a rule after a few dozen documents.
            if not wanted:
                return sections, ""
    return _by_place(texts, val_fraction, source)


def _by_place(
    texts: Sequence[Text], val_fraction: float, source: str
) -> tuple[tuple[Section, ...], str]:
    """The last `val_fraction` of the bytes of all documents in their order is validation."""

    def every() -> Iterator[Parts]:
        for text in texts:
            yield from (parts for _, parts in text.streams(lambda _: True))

    # A document may be larger than memory; their sizes are not.
    sizes = [sum(map(len, document)) for document in every()]
    n, total = len(sizes), sum(sizes)
    if n == 0:
        raise ValueError(f"data.source={source} holds no document: add text")
    if n == 1 and any(text.has_chats for text in texts):
        raise ValueError(
            f"data.source={source} holds one conversation, and one is not cut in two: add another"
        )
    # Of conversations, whose lines are one, this is the border between two of them.
    cut = _border(every(), int((1 - val_fraction) * total), total)
    if not 0 < cut < total:
        raise ValueError(
            f"data.source={source} of {total} bytes is too small for "
            f"data.val_fraction={val_fraction}"
        )

    def by_place() -> Iterator[tuple[bool, Parts]]:
        begin = 0
        for number, document in enumerate(every()):
            # Of a file that has changed there may be more, which is an error when it ends.
            end = begin + (sizes[number] if number < n else 0)
            if begin < cut < end:
                yield from _halves(document, cut - begin)
            elif begin < end:
                yield begin >= cut, document
            begin = end

    number = "the only document falls" if n == 1 else f"all {n} documents fall"
    note = (
        f"data.source={source}: {number} to one split by hash; "
        f"the last {total - cut:,} of {total:,} bytes are held out"
    )
    # One section: whether a document is held out depends on those before it.
    return (Section(sum(text.size for text in texts), by_place),), note


def _halves(document: Parts, at: int) -> Iterator[tuple[bool, Parts]]:
    """A document in two, in one reading: up to byte `at`, and from there on.

    The border is the start of a character. The second may be read without the first.
    """
    parts, place, held = iter(document), 0, b""

    def first() -> Iterator[bytes]:
        nonlocal place, held
        while place < at and (part := next(parts, None)) is not None:
            taken, held = part[: at - place], part[at - place :]
            place += len(taken)
            yield taken

    def second() -> Iterator[bytes]:
        # What nobody has asked for of the first.
        for _ in first():
            pass
        yield held
        yield from parts

    yield False, first()
    yield True, second()
    # To its end, where a file that has changed is found out.
    for _ in parts:
        pass


def _border(documents: Iterator[Parts], at: int, total: int) -> int:
    """The last beginning of a line or document up to byte `at`.

    In the first line that is no cut: then the end of that line or document, and in a text of one
    line the character that holds the byte.
    """
    at = min(max(at, 1), total - 1)
    begin = line = first_end = 0
    before = around = b""
    for document in documents:
        line = begin if begin <= at else line
        is_first = begin == 0
        for part in document:
            if is_first and not first_end:
                first_end = begin + part.find(b"\n") + 1 if b"\n" in part else 0
            if begin <= at:
                last = part.rfind(b"\n", 0, at - begin)
                line = begin + last + 1 if last >= 0 else line
                # A character has at most four bytes.
                around = before + part[: at - begin + 1]
                before = around[-3:]
            begin += len(part)
        first_end = first_end or begin
        if at < begin:
            break
    if line > 0:
        return line
    if first_end < total:
        return first_end
    while around and around[-1] & 0xC0 == 0x80:
        at, around = at - 1, around[:-1]
    return at
