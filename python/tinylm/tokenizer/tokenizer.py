"""`Tokenizer` and its `Stream`, the Python side of the compiled tokenizer."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from tinylm.tokenizer import beside, files, huggingface, model_json
from tinylm.tokenizer import contents as parts
from tinylm.tokenizer.alphabets import Blocked, Characters
from tinylm.tokenizer.contents import Contents
from tinylm.tokenizer.core import core_of
from tinylm.tokenizer.counting import counted
from tinylm.tokenizer.models import Bpe
from tinylm.tokenizer.segmentations import Segmentations, Special
from tinylm.tokenizer.stream import Stream, chunks
from tinylm.tokenizer.training import Progress, Ties, Training
from tinylm.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    from tinylm.config import Kind

    Ids = Iterable[int] | NDArray[np.integer[Any]]
    # Of uint32 or uint16, as asked for.
    Array = NDArray[Any]


class Tokenizer(Vocabulary, Segmentations):
    """Text to token ids and back; immutable, comparable, hashable, picklable.

    Ids 0..255 of a trained tokenizer are the bytes, so every text and every bytes object can be
    encoded, and decodes to itself. What was learned follows, special tokens come last. Special
    tokens in a text raise ValueError unless `special=` allows them; `special="text"` takes them
    for ordinary text, a set of names allows just those. Special tokens are added to a text only
    with `template=True`.

    ```python
    >>> tokenizer = Tokenizer.train(["low lower lowest"], vocab_size=260)
    >>> tokenizer.decode(tokenizer.encode("lowest"))
    'lowest'
    ```
    """

    __slots__ = ()

    def __init__(self, contents: Contents) -> None:
        """From the contents of a file; use `train`, `load` or the `from_` methods instead."""
        if not isinstance(contents, Contents):
            raise TypeError("make a Tokenizer by Tokenizer.load(path), train or a from_ method")
        self._contents = contents
        self._core = core_of(contents)
        # A published expression has become the name of its scanner.
        if self._core.pattern != contents.pattern:
            self._contents = replace(contents, pattern=self._core.pattern)
        self._sha256 = self._missing_ids = None

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes],
        *,
        vocab_size: int,
        kind: "Kind" = "bpe",
        pattern: str = "gpt4",
        special_tokens: Iterable[str] = ("<|endoftext|>",),
        min_frequency: int = 1,
        max_token_length: int | None = None,
        blocked: Blocked = (),
        alphabet: Characters | None = None,
        ties: Ties = "ids",
        threads: int = 0,
        progress: Progress = None,
    ) -> Self:
        """A tokenizer of `vocab_size` tokens, special ones included, learned from `texts`.

        `kind`: "bpe" learns merges inside the pieces of `pattern` ("gpt2", "gpt4", "o200k",
        "llama3", "qwen2" or a regular expression); "unigram" learns there the tokens that make
        the texts most probable, each with its own probability. "char" takes the most frequent
        characters, "whitespace" the most frequent words, each with the space before it; what they
        do not know is encoded as bytes. "byte" has the bytes alone and learns nothing.

        Pairs below `min_frequency` stay apart, and no token gets longer than `max_token_length`
        bytes. `blocked` lists tokens that are never made and pairs (left, right) that never merge.
        With `alphabet=Characters(...)` "bpe" and "unigram" begin with characters and not with
        bytes, and the tokenizer is that of a `.model` of SentencePiece: `<unk>`, the special
        tokens, the bytes, then what was learned; a blank is U+2581, and no token crosses one.

        Of equally frequent pairs, `ties` prefers with "ids" the smaller (left id, right id),
        with "bytes" the greater (left bytes, right bytes), and with "huggingface" the one that the
        trainer of Hugging Face's tokenizers takes. `threads=0` takes all cores; the result does not
        depend on it. `progress(tokens, target)` is called ten times per second, True draws a line
        on standard error. Special tokens divide texts and are not counted. Each text is a document
        of its own.

        Warns if the texts give fewer tokens. ValueError for no text, or too small a `vocab_size`.
        """
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be an iterable of texts; for one text pass [text]")
        training = Training(
            *(kind, pattern, special_tokens, min_frequency, max_token_length, threads),
            *(blocked, alphabet),
        )
        training.add_texts(texts)
        return cls(training.learn(vocab_size, ties, progress))

    @classmethod
    def train_files(
        cls,
        paths: Iterable[str | PathLike[str]],
        *,
        vocab_size: int,
        kind: "Kind" = "bpe",
        pattern: str = "gpt4",
        special_tokens: Iterable[str] = ("<|endoftext|>",),
        min_frequency: int = 1,
        max_token_length: int | None = None,
        blocked: Blocked = (),
        alphabet: Characters | None = None,
        ties: Ties = "ids",
        threads: int = 0,
        progress: Progress = None,
    ) -> Self:
        """As `train`; each file is one text, read in blocks, and a `.jsonl` one text per row."""
        if isinstance(paths, str | bytes | PathLike):
            raise TypeError("paths must be an iterable of paths; for one file pass [path]")
        training = Training(
            *(kind, pattern, special_tokens, min_frequency, max_token_length, threads),
            *(blocked, alphabet),
        )
        for path in paths:
            training.add_file(path)
        return cls(training.learn(vocab_size, ties, progress))

    @classmethod
    def train_counts(
        cls,
        paths: Iterable[str | PathLike[str]],
        *,
        vocab_size: int,
        kind: Literal["bpe", "unigram"] = "bpe",
        min_frequency: int = 1,
        max_token_length: int | None = None,
        blocked: Blocked = (),
        alphabet: Characters | None = None,
        ties: Ties = "ids",
        progress: Progress = None,
    ) -> Self:
        """As `train`, from files that `counting.count_files` wrote: the tokenizer of their texts.

        Pattern and special tokens are those that the files were counted with. ValueError if they
        were counted in different ways, or with an alphabet where none is given and the other way
        round.
        """
        training = counted(
            *([Path(path) for path in paths], kind, min_frequency, max_token_length),
            *(blocked, alphabet),
        )
        return cls(training.learn(vocab_size, ties, progress))

    @classmethod
    def from_ranks(
        cls, ranks: dict[bytes, int], *, pattern: str, special_tokens: dict[str, int]
    ) -> Self:
        """From tiktoken's ranks: any two neighbours whose bytes are a token merge, lowest first."""
        model = Bpe(merges=None, whole_pieces=True)
        return cls(Contents(dict(ranks), model, pattern, parts.special(special_tokens)))

    @classmethod
    def from_merges(
        cls,
        vocab: dict[int, bytes],
        merges: list[tuple[bytes, bytes]],
        *,
        pattern: str,
        special_tokens: dict[str, int],
    ) -> Self:
        """From the bytes of each id and the merges in order; `vocab` may hold special tokens."""
        special = {token.encode(): id for token, id in special_tokens.items()}
        tokens: dict[bytes, int] = {}
        for id, token in vocab.items():
            if special.get(token) != id and tokens.setdefault(token, id) != id:
                raise ValueError(f"ids {tokens[token]} and {id} have the same bytes {token!r}")
        model = Bpe(parts.pairs_of(merges, tokens), whole_pieces=False)
        return cls(Contents(tokens, model, pattern, parts.special(special_tokens)))

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        format: files.Format | None = None,
        *,
        pattern: str | None = None,
        special_tokens: dict[str, int] | None = None,
    ) -> Self:
        """The tokenizer in a file: a `tokenizer.json`, Mistral's tekken.json, tiktoken ranks (also
        .gz), or the folder with GPT-2's vocab.json and merges.txt (or with a tokenizer.json).

        If `format` is None, the name decides. Rank files say neither their pattern nor their
        special tokens: those of cl100k_base and o200k_base are known by their content, for
        others pass both. ValueError names the part of a file that TinyLM does not support.

        Truncation and padding of a `tokenizer.json` are kept, and `save` writes them back. Its
        post-processor, such as the template that puts Llama 3's `<|begin_of_text|>` before a text,
        is applied by `encode(..., template=True)`. Added tokens that are not special always match
        in a text. With a normalizer, decoding gives the normalised text.
        """
        contents = files.load(path, format, pattern, special_tokens)
        try:
            return cls(contents)
        except ValueError as error:
            # The core knows no files.
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> Self:
        """The tokenizer in a folder as transformers saves it; see `load`. Nothing is downloaded."""
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"no folder at {folder}; for a single file use load")
        return cls.load(folder)

    def save(self, path: str | PathLike[str], format: files.Format | None = None) -> None:
        """Writes the tokenizer as `tokenizer.json`, as tiktoken ranks or as GPT-2's two files.

        A `tokenizer.json` keeps everything and opens in Hugging Face's tokenizers with equal
        ids. A folder as `path` gets `tokenizer.json`, the `tokenizer_config.json` with which
        transformers' AutoTokenizer opens it, and what else `load` has found beside it. If the
        end-of-text token has none of the usual names, a file named `tokenizer.json` gets them too,
        and a file of another name is refused. The two other formats lose what `load` has kept, and
        ranks the pattern and the special tokens; by tiktoken's rule a trained tokenizer may in
        rare cases merge what its own rule keeps apart. A `.model` is written as it was read; as a
        tokenizer.json it gives equal ids but for the rare cases that `model_json` lists.
        ValueError if a format cannot say the ids.
        """
        says_eos = self.eos_id != self._by_name("eos_token")
        files.save(self._contents, path, format, self.beside(), says_eos=says_eos)

    def beside(self, **changes: object) -> dict[str, bytes]:
        """The files that belong beside a tokenizer.json in a folder, by name: those that `load`
        has found, and a tokenizer_config.json with `changes` of its keys."""
        return beside.written(self._contents, self.roles, **changes)

    def converted(self) -> Self:
        """This tokenizer as its `tokenizer.json` says it: itself unless it comes from a `.model`.

        ValueError for a `.model` that a tokenizer.json cannot say; see `save`.
        """
        contents = self._contents
        if contents.proto is None:
            return self
        made = huggingface.contents_of(model_json.document(contents, Path(huggingface.NAME)))
        return type(self)(replace(made, roles=contents.roles))

    def with_eos(self, token: str) -> Self:
        """This tokenizer with `token`, a token of its vocabulary, as its end-of-text token."""
        contents = self._contents
        if contents.id_of(token) is None:
            known = ", ".join(map(repr, self.special_tokens)) or "none"
            raise ValueError(
                f"end-of-text token {token!r} is not in the vocabulary; its special tokens: {known}"
            )
        return type(self)(replace(contents, roles={**contents.roles, "eos_token": token}))

    def encode(
        self,
        text: str | bytes,
        *,
        special: Special = "raise",
        template: bool = False,
        pair: str | bytes | None = None,
    ) -> list[int]:
        """The ids of `text`. Bytes need not be UTF-8: those that are not count as symbols.

        With `template` come the ids that the post_processor of its tokenizer.json puts around a
        text, such as BOS and EOS, or around `text` and a second one, its `pair`.
        """
        parts.check_pair(pair, template=template)
        ids = self._core.encode(text, special)
        if not template:
            return ids
        second = None if pair is None else self._core.encode(pair, special)
        return parts.template(self._contents).join(ids, second)

    def encode_array(
        self,
        text: str | bytes,
        *,
        special: Special = "raise",
        template: bool = False,
        pair: str | bytes | None = None,
        dtype: "DTypeLike" = "uint32",
    ) -> "Array":
        """The ids of `encode` as an array (n,), several times faster than a list.

        `dtype` is "uint32" or "uint16" (or NumPy's type of that name), which takes half the memory.
        ValueError if the largest id of the vocabulary does not fit, whatever the text.
        """
        if template or pair is not None:
            pairs = None if pair is None else [pair]
            return self.encode_batch(
                [text], special=special, template=template, pairs=pairs, dtype=dtype
            )[0]
        return self._core.encode_array(text, special, dtype)

    def encode_offsets(
        self, text: str | bytes, *, special: Special = "raise"
    ) -> "tuple[NDArray[np.uint32], NDArray[np.int64]]":
        """The ids of `text`, uint32 (n,), and the stretch that each comes of, int64 (n, 2).

        Offsets count what the text is made of: `text[a:b]` are the characters of a str, or the
        bytes of bytes. A token that cuts a character has all of it in a str, as in Hugging Face's
        tokenizers (its start is that of tiktoken), and its own bytes in bytes. An added token has
        the white space that it takes. Where the file normalises, offsets are still those of the
        text as given; a mark that it puts in front comes of nothing, and its a and b are equal.
        """
        return self._core.encode_offsets(text, special)

    def encode_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        special: Special = "raise",
        template: bool = False,
        pairs: Iterable[str | bytes] | None = None,
        dtype: "DTypeLike" = "uint32",
    ) -> "tuple[Array, NDArray[np.int64]]":
        """The ids of all `texts` in a row, (n,), and offsets, int64 (texts + 1,), over all cores:
        those of text i are `ids[offsets[i]:offsets[i + 1]]`.

        `template` is that of `encode`, `dtype` that of `encode_array`; `pairs` are the second
        texts, one for each.
        """
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be an iterable of texts; for one text use encode_array")
        texts, pairs = list(texts), None if pairs is None else list(pairs)
        parts.check_pair(pairs, template=template, texts=len(texts))
        first = self._core.encode_batch(texts, special, dtype)
        if not template:
            return first
        second = None if pairs is None else self._core.encode_batch(pairs, special, dtype)
        return parts.template(self._contents).join_batch(first, second)

    def encode_iterable(self, texts: Iterable[str], *, special: Special = "raise") -> Iterator[int]:
        """The ids of the texts joined into one, handed out as they become certain.

        Memory is bounded by the longest stretch without a word's end, except for patterns that
        are regular expressions of your own: those see the whole text.
        """
        for chunk in self.chunks(texts, special=special):
            yield from self._core.encode(chunk, special)

    def chunks(
        self, texts: Iterable[str | bytes], *, special: Special = "raise", size: int = 1 << 16
    ) -> Iterator[bytes]:
        """The texts joined into one, in parts of about `size` bytes that are encoded by themselves
        as in the whole; memory as for `encode_iterable`.

        One part with the whole text for a tokenizer that normalises texts, or cuts them by several
        steps or by a regular expression of your own.
        """
        return chunks(self._core, texts, special, size)

    def count(self, text: str | bytes, *, special: Special = "raise") -> int:
        """The number of ids of `text`, in memory that does not grow with it.

        Except for a tokenizer that normalises texts or cuts them by several steps: there the ids
        between two added tokens are in memory together, as in `encode`.
        """
        return self._core.count(text, special)

    def decode(self, ids: "Ids", *, errors: Literal["replace", "strict"] = "replace") -> str:
        """The text of `ids`, a list, an array or a tensor; KeyError for an id without a token.

        Bytes that are not UTF-8 become U+FFFD, or with "strict" raise ValueError.
        """
        return self._core.decode(ids, errors)

    def decode_batch(
        self, rows: "Iterable[Ids]", *, errors: Literal["replace", "strict"] = "replace"
    ) -> list[str]:
        """The text of each of `rows`: lists, arrays, or the rows of an array [B, T]."""
        return self._core.decode_batch(rows, errors)

    def decode_bytes(self, ids: "Ids") -> bytes:
        """The bytes of `ids`; `decode_bytes(encode(data)) == data` for all bytes."""
        return self._core.decode_bytes(ids)

    def stream(self) -> "Stream":
        """A decoder that takes ids one at a time and never hands out half a character."""
        return Stream(self)

    def __reduce__(self) -> tuple[type[Self], tuple[Contents]]:
        return type(self), (self._contents,)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, pattern={self.pattern!r})"
