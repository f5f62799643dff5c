"""The kinds of models that make tokens of a piece, as data: each makes its twin in Rust.

They are part of `contents.Contents`, which has the tokens. Ids are those of the tokens.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from tinylm import _rust


@dataclass(frozen=True)
class Bpe:
    """The byte-level BPE of a vocabulary in which bytes are tokens.

    `merges` are pairs of ids in their order; None means tiktoken's rule (`Tokenizer.from_ranks`).
    With `whole_pieces` a piece that is a token stays whole even if no merges lead there.
    """

    merges: list[tuple[int, int]] | None
    whole_pieces: bool

    def core(self) -> _rust.Model:
        """The model in Rust."""
        return _rust.Model.bpe(self.merges, whole_pieces=self.whole_pieces)


@dataclass(frozen=True)
class CharBpe:
    """BPE over characters, as in Llama 2, Gemma and CLIP.

    Without `merges` any two neighbours merge whose text is a token, the one with the highest of
    `scores` first, which are in the order of the tokens. Without `unknown` a character that no
    token has is dropped, unless `byte_fallback` gives the tokens of its bytes.
    """

    merges: list[tuple[int, int]] | None
    whole_pieces: bool = False
    unknown: int | None = None
    fuse_unknown: bool = False
    byte_fallback: bool = False
    prefix: str = ""
    suffix: str = ""
    scores: tuple[float, ...] = ()
    frozen: tuple[int, ...] = ()

    def core(self) -> _rust.Model:
        """The model in Rust."""
        return _rust.Model.char_bpe(
            self.merges,
            scores=list(self.scores),
            unknown=self.unknown,
            fuse_unknown=self.fuse_unknown,
            byte_fallback=self.byte_fallback,
            whole_pieces=self.whole_pieces,
            prefix=self.prefix,
            suffix=self.suffix,
            frozen=list(self.frozen),
        )


@dataclass(frozen=True)
class Unigram:
    """The tokens with the highest sum of `scores`, which are in the order of the tokens.

    With `float32` sums are those of SentencePiece: over the whole text and rounded, which decides
    between equal ones.
    """

    scores: tuple[float, ...]
    unknown: int | None = None
    byte_fallback: bool = False
    # A .model has it and a tokenizer.json never, so hashes of tokenizers need it not.
    float32: bool = field(default=False, repr=False)

    def core(self) -> _rust.Model:
        """The model in Rust."""
        return _rust.Model.unigram(
            list(self.scores),
            unknown=self.unknown,
            byte_fallback=self.byte_fallback,
            float32=self.float32,
        )


@dataclass(frozen=True)
class WordPiece:
    """The longest tokens from the left, those inside a word with `prefix`, as in BERT.

    A word of more than `longest` characters, or one that the tokens cannot say, is `unknown`.
    """

    unknown: int
    prefix: str
    longest: int

    def core(self) -> _rust.Model:
        """The model in Rust."""
        return _rust.Model.wordpiece(unknown=self.unknown, prefix=self.prefix, longest=self.longest)


# A prefix that no token of a WordLevel has, so that no token stands inside a word.
NO_PREFIX = "\U0010ffff\U0010fffe"


@dataclass(frozen=True)
class WordLevel:
    """Each piece is a token, or else `unknown`: a `WordPiece` without tokens inside words."""

    unknown: int

    def core(self) -> _rust.Model:
        """The model in Rust."""
        return _rust.Model.wordpiece(unknown=self.unknown, prefix=NO_PREFIX, longest=2**62)


Model: TypeAlias = Bpe | CharBpe | Unigram | WordPiece | WordLevel
