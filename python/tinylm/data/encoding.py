"""Documents to the shards of both splits: read, encoded and written at once.

    a thread reads and cuts the text  ->  a thread encodes, with all cores  ->  this one writes

Each stage has at most two items of a few MiB waiting before it, so memory does not grow with the
text. Items stay in their order, and the ids of a text do not depend on how it is batched: the
shards are the same however many threads there are.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinylm import terminal
from tinylm.corpus.documents import Kind, Section
from tinylm.data.manifest import Manifest, Split
from tinylm.data.prefetch import prefetch
from tinylm.data.shards import SplitWriter
from tinylm.tokenizer import chat

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Text handed to the tokenizer at once: enough for all its threads, little beside the shards.
BATCH_BYTES = 4 << 20
BATCH_DOCUMENTS = 4096
# By whether a document is validation.
SPLITS = {False: "train", True: "val"}


class Texts(NamedTuple):
    """Whole documents of one split or, where `part` is set, a part of one or its end."""

    validation: bool
    texts: list[bytes]
    part: bool = False


class Tokens(NamedTuple):
    """`Texts` as ids; `offsets` divide them into documents, None for a part of one."""

    validation: bool
    ids: NDArray[np.uint32] | None
    offsets: NDArray[np.int64] | None
    bytes: int


def write(
    sections: Iterable[Section],
    kind: Kind,
    tokenizer: "Tokenizer",
    folder: Path,
    manifest: Manifest,
    progress: "Progress",
) -> dict[str, Split]:
    """The documents of some sections to shards in `folder`, each ended by eos."""
    writers = {held_out: SplitWriter(folder, manifest, name) for held_out, name in SPLITS.items()}
    sizes = dict.fromkeys(SPLITS, 0)
    batches = prefetch(_batches(sections, tokenizer))
    try:
        with closing(prefetch(_encoded(batches, kind, tokenizer))) as encoded:
            for tokens in encoded:
                _append(writers[tokens.validation], tokens)
                sizes[tokens.validation] += tokens.bytes
                progress.add(tokens.bytes, 0 if tokens.ids is None else len(tokens.ids))
        return {name: writers[key].finish(sizes[key]) for key, name in SPLITS.items()}
    finally:
        # Now, and not when the error is forgotten that holds this frame: they hold open files.
        writers.clear()


def _append(writer: SplitWriter, tokens: Tokens) -> None:
    if tokens.ids is None:
        writer.end_document()
    elif tokens.offsets is None:
        writer.add_part(tokens.ids)
    else:
        writer.add(tokens.ids, tokens.offsets)


def _encoded(
    batches: Generator[Texts, None, None], kind: Kind, tokenizer: "Tokenizer"
) -> Iterator[Tokens]:
    # Closed by the thread that reads from it: a generator is not to be closed while it runs.
    with closing(batches):
        for validation, texts, part in batches:
            if part and not texts:
                yield Tokens(validation, None, None, 0)
            elif kind == "chat" and not part:
                # The marks are no text, and neither is the JSON around a turn's words.
                documents = (text.decode() for text in texts)
                yield Tokens(validation, *chat.encode_documents(tokenizer, documents))
            else:
                ids, offsets = tokenizer.encode_batch(texts, special="text")
                size = sum(map(len, texts))
                yield Tokens(validation, ids, None if part else offsets, size)


def _batches(sections: Iterable[Section], tokenizer: "Tokenizer") -> Iterator[Texts]:
    """Some texts of a few MiB together, or the parts of one that is longer."""
    waiting: dict[bool, list[bytes]] = {held_out: [] for held_out in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for section in sections:
        for held_out, document in section.documents():
            parts = iter(document)
            first, length = [], 0
            for part in parts:
                first.append(part)
                length += len(part)
                if length >= BATCH_BYTES:
                    break
            rest = next(parts, None)
            texts = waiting[held_out]
            if rest is None:
                texts.append(b"".join(first))
                sizes[held_out] += length
                if sizes[held_out] < BATCH_BYTES and len(texts) < BATCH_DOCUMENTS:
                    continue
            if texts:
                yield Texts(held_out, texts)
                waiting[held_out], sizes[held_out] = [], 0
            if rest is not None:
                whole = chain(first, [rest], parts)
                for chunk in tokenizer.chunks(whole, special="text", size=BATCH_BYTES):
                    # A batch of one text, because a batch is encoded by all cores.
                    yield Texts(held_out, [chunk], part=True)
                yield Texts(held_out, [], part=True)
    for held_out, texts in waiting.items():
        if texts:
            yield Texts(held_out, texts)


class Progress:
    """One live line on standard error, when that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._begin = time.perf_counter()
        self._live = terminal.watched()
        self.bytes = self.tokens = 0

    def add(self, n_bytes: int, n_tokens: int) -> None:
        """Count on, and replace the line; `total` is what there is to do."""
        self.bytes += n_bytes
        self.tokens += n_tokens
        if self._live:
            rate = self.bytes / max(time.perf_counter() - self._begin, 1e-9)
            line = (
                f"prepare: {self.bytes / 1e6:.1f} of {self._total / 1e6:.1f} MB, "
                f"{self.tokens:,} tokens, {rate / 1e6:.1f} MB/s"
            )
            terminal.draw(f"\r\x1b[K{line}")

    def end(self) -> None:
        """Leave the last line as it is."""
        if self._live and self.bytes:
            terminal.draw("\n")
