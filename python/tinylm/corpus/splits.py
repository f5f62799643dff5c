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

    def every() -> Iterator[bytes]:
        for text in texts:
            yield from (b"".join(parts) for _, parts in text.streams(lambda _: True))

    n = total = 0
    for document in every():
        n, total = n + 1, total + len(document)
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
        for document in every():
            # Clamped to the document, so that of one that lies on one side all is taken.
            at = min(max(cut - begin, 0), len(document))
            begin += len(document)
            # The border is the start of a character, so each part is UTF-8.
            for validation, part in ((False, document[:at]), (True, document[at:])):
                if part:
                    yield validation, [part]

    number = "the only document falls" if n == 1 else f"all {n} documents fall"
    note = (
        f"data.source={source}: {number} to one split by hash; "
        f"the last {total - cut:,} of {total:,} bytes are held out"
    )
    # One section: whether a document is held out depends on those before it.
    return (Section(sum(text.size for text in texts), by_place),), note


def _border(documents: Iterator[bytes], at: int, total: int) -> int:
    """The last beginning of a line or document up to byte `at`.

    In the first line that is no cut: then the end of that line or document, and in a text of one
    line the character that holds the byte.
    """
    begin = 0
    at = min(max(at, 1), total - 1)
    first_end = total
    for document in documents:
        end = begin + len(document)
        if begin == 0:
            first_end = (document.find(b"\n") + 1) or end
        if at < end:
            line = begin + document.rfind(b"\n", 0, at - begin) + 1
            if line > 0:
                return line
            if first_end < total:
                return first_end
            while at > 0 and document[at] & 0xC0 == 0x80:
                at -= 1
            return at
        begin = end
    return begin
