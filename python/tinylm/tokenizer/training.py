"""Texts and files to what a tokenizer holds: counting and learning, both done in Rust."""

import warnings
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from tinylm import _rust, terminal
from tinylm.corpus.archives import opened
from tinylm.corpus.kinds import HEAD, has_rows, refuse_foreign
from tinylm.corpus.rows import rows
from tinylm.corpus.texts import refuse_rows
from tinylm.tokenizer import huggingface, new_model, pre_tokenizer
from tinylm.tokenizer.alphabets import COUNTED, MARK, Blocked, Characters, blocked_of, marked
from tinylm.tokenizer.contents import (
    AddedToken,
    Contents,
    refuse_special,
    refuse_written_alike,
)
from tinylm.tokenizer.models import Bpe, Model, Unigram

# At run time the settings bring OmegaConf, which a tokenizer needs not.
if TYPE_CHECKING:
    from tinylm.config import Kind

Ties = Literal["ids", "bytes", "huggingface"]
Progress = Callable[[int, int], object] | Literal[True] | None

# Tokenizers that are no BPE are BPE without merges whose pieces may be whole tokens.
PATTERN_OF_KIND = {"char": "character", "byte": "whole", "whitespace": "word"}
# These learn tokens inside the pieces of a pattern.
LEARNED = ("bpe", "unigram")
# Texts are handed to Rust in batches of about this many characters, files in such blocks: eight
# portions for the threads, and little memory beside the counts.
BATCH = 1 << 22


class Training:
    """Counts the pieces of texts as they are added; `learn` makes the vocabulary of them."""

    def __init__(
        self,
        kind: "Kind",
        pattern: str,
        special_tokens: Iterable[str],
        min_frequency: int,
        max_token_length: int | None,
        threads: int,
        blocked: Blocked = (),
        alphabet: Characters | None = None,
    ) -> None:
        if isinstance(special_tokens, str):
            raise TypeError("special_tokens must be an iterable of strings; for one pass (token,)")
        self.special = list(special_tokens)
        if len(set(self.special)) < len(self.special):
            raise ValueError(f"a special token is listed twice in {self.special}")
        for token in self.special:
            refuse_special(token)
        if min_frequency < 1:
            raise ValueError(f"min_frequency {min_frequency} must be at least 1")
        if max_token_length is not None and max_token_length < 1:
            raise ValueError(f"max_token_length {max_token_length} must be at least 1, or None")
        if not 0 <= threads <= 1024:
            raise ValueError(f"threads {threads} must be 0, for all cores, or up to 1024")
        if kind not in LEARNED:
            if kind not in PATTERN_OF_KIND:
                raise ValueError(
                    f"kind {kind!r}: expected 'bpe', 'unigram', 'char', 'byte' or 'whitespace'"
                )
            if pattern != "gpt4":
                raise ValueError(
                    f"pattern {pattern!r} is for bpe and unigram; {kind!r} has its own"
                )
            if alphabet is not None:
                raise ValueError(f"alphabet is for bpe and unigram; {kind!r} has its own")
            pattern = PATTERN_OF_KIND[kind]
        if alphabet is None:
            self._refuse_unwritable(pattern)
        elif pattern != "gpt4":
            raise ValueError(f"pattern {pattern!r} is for bytes; an alphabet has its own")
        self.kind, self.pattern, self.alphabet = kind, pattern, alphabet
        self.min_frequency, self.max_token_length = min_frequency, max_token_length
        self.blocked = blocked_of(blocked, over_characters=alphabet is not None)
        if kind == "unigram" and self.blocked[1]:
            raise ValueError(f"blocked pair {self.blocked[1][0]}: a Unigram has no merges")
        # The byte tokenizer learns nothing: it only has to see that there is any text.
        counted = "character" if kind == "byte" else pattern
        special = self.special
        if alphabet is not None:
            # Whoever reads the text has replaced its blanks, those of special tokens too.
            counted, special = COUNTED, [str(marked(token, first=False)) for token in special]
        # What decides how a text is counted: files of counts say it.
        self.note = {"pattern": counted, "special_tokens": special}
        self.counts = _rust.WordCounts(counted, special, threads)
        # Called after each batch with its number of bytes or characters.
        self.counted: Callable[[int], None] = lambda size: None

    def _refuse_unwritable(self, pattern: str) -> None:
        """ValueError for a pattern that no `tokenizer.json` can say, before hours of training."""
        every_byte = {bytes([byte]): byte for byte in range(256)}
        # The core knows published expressions by their names.
        model = _rust.Model.bpe(None, whole_pieces=True)
        pre_tokenizer.written(_rust.Tokenizer(every_byte, model, pattern, []).pattern)

    def add_texts(self, texts: Iterable[str | bytes]) -> None:
        """Counts each of `texts` as a document of its own."""
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be an iterable of texts; for one text pass [text]")
        batch: list[str | bytes] = []
        size = 0
        for text in texts:
            if not isinstance(text, str | bytes):
                raise TypeError(f"a text must be str or bytes, not {type(text).__name__}")
            batch.append(text if self.alphabet is None else marked(text, first=True))
            size += len(text)
            if size >= BATCH:
                self._add(batch, size)
                batch, size = [], 0
        self._add(batch, size)

    def _add(self, batch: list[str | bytes], size: int) -> None:
        self.counts.add(batch)
        self.counted(size)

    def add_file(self, path: str | PathLike[str]) -> None:
        """Counts a file as one document, and a file of rows as its texts.

        An archive (.gz, .bz2, .xz, .zst) is unpacked on the way. ValueError for a row that has no
        text, for rows in a file that is not named so, and for a file of another format.
        """
        if has_rows(Path(path)):
            self.add_texts(rows(Path(path)))
            return
        for block in self._blocks(path):
            self._add([block], len(block))

    def _blocks(self, path: str | PathLike[str]) -> Iterator[bytes]:
        """The bytes of a file in blocks, cut where no piece crosses."""
        pending, is_first = b"", True
        with opened(Path(path)) as file:
            # Looking again at a stretch without a place to cut pays only once it has doubled.
            while block := file.read(max(BATCH, len(pending))):
                if is_first:
                    # What a corpus removes or refuses must not be learned.
                    refuse_foreign(Path(path), block[:HEAD])
                    block = block.removeprefix(BOM_UTF8)
                    refuse_rows(Path(path), block)
                if self.alphabet is not None:
                    block = bytes(marked(block, first=is_first))  # type: ignore[arg-type]
                is_first = False
                pending += block
                if (cut := self.counts.cut(pending)) is not None:
                    yield pending[:cut]
                    pending = pending[cut:]
        yield pending

    def learn(self, vocab_size: int, ties: Ties, progress: Progress) -> Contents:
        """The vocabulary of `vocab_size` tokens, or of fewer with a warning."""
        if not isinstance(vocab_size, SupportsIndex):
            raise TypeError(f"vocab_size must be an integer, not {vocab_size!r}")
        if self.alphabet is not None:
            return self._learn_characters(self.alphabet, vocab_size, ties, progress)
        how, size = ("bpe", vocab_size) if self.kind == "bpe" else ("whole", vocab_size)
        if self.kind == "byte":
            size = min(vocab_size, 256 + len(self.special))
        call = draw if progress is True else progress
        model: Model
        kept: dict[str, Any] = {}
        if self.kind == "unigram":
            self._refuse_merging(ties)
            tokens, scores = _rust.train_unigram(
                self.counts, size, self.min_frequency, None, False, call, {*self.blocked[0]}
            )
            model = Unigram(tuple(scores))
            kept = huggingface.unigram(self.pattern)
        else:
            tokens, merges = self.counts.train(
                how, size, self.min_frequency, ties, call, self.max_token_length, self.blocked
            )
            model = Bpe(merges, whole_pieces=self.kind in ("char", "whitespace"))
        reached = len(tokens) + len(self.special)
        # To the other kinds the size is a limit, not a wish.
        if self.kind in LEARNED and reached < vocab_size:
            # The caller of Tokenizer.train or train_files.
            warnings.warn(_fewer(reached, vocab_size), stacklevel=3)
        ids = {token: i for i, token in enumerate(tokens)}
        for special_token in self.special:
            refuse_written_alike(special_token, ids)
        return Contents(
            tokens=ids,
            model=model,
            pattern=self.pattern,
            # The list of a Unigram has a score for each token, so these stand beside it.
            added_tokens=tuple(
                AddedToken(token, len(tokens) + i, listed=self.kind != "unigram")
                for i, token in enumerate(self.special)
            ),
            kept=kept,
        )

    def _learn_characters(
        self, alphabet: Characters, vocab_size: int, ties: Ties, progress: Progress
    ) -> Contents:
        """The vocabulary of a `.model`: BPE or Unigram over characters."""
        limit = 2**32 if alphabet.limit is None else alphabet.limit
        initial = [*alphabet.initial, MARK]
        counted = self.counts.alphabet(initial, alphabet.coverage, limit)
        # SentencePiece's dictionary ends a piece there.
        counted = [(char, count) for char, count in counted if char != "\0"]
        head = 1 + len(self.special) + 256 * alphabet.byte_fallback
        room = vocab_size - head - len(counted)
        if room < 0:
            raise ValueError(
                f"vocab_size {vocab_size} is too small: {head} special and byte tokens and "
                f"{len(counted)} characters need {head + len(counted)}; lower coverage or limit"
            )
        characters = sorted(char.encode() for char, _ in counted)
        call = draw if progress is True else progress
        # A control token of a .model is found by its name, which no other may have.
        blocked = [*self.blocked[0], *(token.encode() for token in self.special)], self.blocked[1]
        if self.kind == "unigram":
            self._refuse_merging(ties)
            size = len(counted) + room
            learned, scores = _rust.train_unigram(
                self.counts, size, self.min_frequency, characters, False, call, {*blocked[0]}
            )
            pieces = sorted(zip(learned, scores, strict=True), key=lambda pair: -pair[1])
        else:
            first = 256 + sum(len(char) > 1 for char in characters)
            tokens, _ = self.counts.train(
                *("bpe", first + room, self.min_frequency, ties, call, self.max_token_length),
                *(blocked, characters),
            )
            # The order of the merges, then characters by their counts, as SentencePiece has it.
            learned = tokens[first:] + [char.encode() for char, _ in counted]
            pieces = [(token, -float(place)) for place, token in enumerate(learned)]
        reached = head + len(pieces)
        if reached < vocab_size:
            warnings.warn(_fewer(reached, vocab_size), stacklevel=4)
        named = [(token.decode(), score) for token, score in pieces]
        unigram, fallback = self.kind == "unigram", alphabet.byte_fallback
        return new_model.made(named, self.special, unigram=unigram, byte_fallback=fallback)

    def _refuse_merging(self, ties: Ties) -> None:
        """ValueError for options that only merges have."""
        if ties != "ids":
            raise ValueError(f"ties={ties!r} is for merges; kind='unigram' learns none")
        if self.max_token_length is not None:
            raise ValueError("max_token_length is for the other kinds than 'unigram'")


def _fewer(reached: int, wanted: int) -> str:
    return f"the corpus gives a vocabulary of {reached}, not the {wanted} asked for"


def draw(done: int, target: int) -> None:
    """One line on standard error, drawn over itself."""
    width = 30
    filled = width * done // max(1, target)
    bar = "#" * filled + "." * (width - filled)
    end = "\n" if done == target else ""
    terminal.draw(f"\rtraining [{bar}] {done}/{target} tokens{end}")
