"""The contents of a tokenizer in any file format, and the alphabet in which files write bytes.

The formats (`huggingface`, `tiktoken`, `gpt2`) read and write `Contents`. A `Tokenizer` is made
from them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from tinylm.tokenizer.checks import refuse_halves
from tinylm.tokenizer.decoders import Surfaces
from tinylm.tokenizer.models import Bpe, CharBpe, Model
from tinylm.tokenizer.steps import Step
from tinylm.tokenizer.template import Template, template_of


class AddedToken(NamedTuple):
    """A string that becomes one id before the text is split, with its flags in a tokenizer.json.

    A `special` one is guarded by `special=` of `Tokenizer.encode`, another always matches. What is
    `normalized` is looked for after what is not. `listed`: the file's vocabulary has it too.
    """

    content: str
    id: int
    special: bool = True
    normalized: bool = False
    listed: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False

    @property
    def edges(self) -> tuple[bool, bool, bool]:
        """Whether it stands only between words, and takes white space before and after it."""
        return self.single_word, self.lstrip, self.rstrip


@dataclass(frozen=True)
class Stages:
    """What a `tokenizer.json` asks for between the text and the model, beside the pattern.

    The steps are those of `tinylm.tokenizer.steps`. With `chars` the model takes characters, those
    of GPT-2's alphabet after ByteLevel, else bytes. Bytes that are `missing` have no token: they
    split a text like the others and are dropped then.
    """

    normalizers: tuple[Step, ...] = ()
    pre_tokenizers: tuple[Step, ...] = ()
    chars: bool = False
    missing: bytes = b""


@dataclass(frozen=True)
class Contents:
    """Everything that a tokenizer is made from.

    `model` says how the bytes of a piece become ordinary tokens. A second kind of model would make
    its type a union; only code that reads merges would have to tell the kinds apart. `surfaces` say
    how tokens look in a text, None as they are written. `inert` are tokens that no text gives, as
    the file writes them. `kept` is a tokenizer.json without its
    tokens and merges, which is written back as it stood. `beside` holds the files beside it, by
    name. `roles` are the tokens that those files name as eos_token, bos_token and pad_token.
    `proto` is the `.model` that it was read from.
    """

    tokens: Mapping[bytes, int]
    model: Model
    pattern: str
    added_tokens: tuple[AddedToken, ...]
    stages: Stages = Stages()
    surfaces: Surfaces | None = None
    inert: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    proto: bytes | None = None

    def id_of(self, content: str) -> int | None:
        """The id of the token with this text, added or ordinary; None if there is none."""
        added = (token.id for token in self.added_tokens if token.content == content)
        try:
            found = self.tokens.get(content.encode(), self.inert.get(content))
            return next(added, found)
        except UnicodeEncodeError:
            # A lone surrogate is no text, so no token has it.
            return None

    @property
    def special_tokens(self) -> dict[str, int]:
        """The added tokens that are special, and their ids."""
        return {token.content: token.id for token in self.added_tokens if token.special}

    @property
    def plain_tokens(self) -> dict[str, int]:
        """The added tokens that always match, and their ids."""
        return {token.content: token.id for token in self.added_tokens if not token.special}


def prefix_ids(contents: Contents) -> tuple[int, ...] | None:
    """The ids that the post-processor of a tokenizer.json puts before a text; None without one."""
    part = contents.kept.get("post_processor")
    if part is None:
        return None
    before = takewhile(lambda part: part != "A", template_of(part).single)
    return tuple(id for id in before if isinstance(id, int))


def template(contents: Contents) -> Template:
    """What the post-processor of a tokenizer.json puts around a text, or around two."""
    return template_of(contents.kept.get("post_processor"))


def check_pair(pair: object, *, template: bool, texts: int | None = None) -> None:
    """ValueError for a second text that nothing joins to the first, or not one for each."""
    if pair is not None and not template:
        name = "pair" if texts is None else "pairs"
        raise ValueError(f"{name}= needs template=True, which says how two texts are joined")
    if isinstance(pair, list) and len(pair) != texts:
        raise ValueError(f"pairs= has {len(pair)} texts for {texts}; each text needs one")


def special(tokens: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """Special tokens and their ids as added tokens."""
    if not isinstance(tokens, Mapping):
        raise TypeError("special_tokens must be a dict of tokens and their ids")
    return tuple(AddedToken(content, id) for content, id in tokens.items())


def refuse_plain(contents: Contents, where: str) -> None:
    """ValueError if there are added tokens that always match, which `where` cannot say."""
    if plain := contents.plain_tokens:
        raise ValueError(
            f"{where} cannot say that the added token {next(iter(plain))!r} always matches; "
            "save as tokenizer.json"
        )


def refuse_stages(contents: Contents, where: str) -> None:
    """ValueError if the tokenizer has stages or tokens' edges, which `where` cannot say."""
    edges = any(True in token.edges for token in contents.added_tokens)
    if edges or contents.stages != Stages():
        raise ValueError(
            f"{where} cannot say what this tokenizer's normalizer, pre_tokenizer and added tokens "
            "ask for; save as tokenizer.json"
        )


def refuse_special(token: str) -> None:
    """Raise ValueError for a string that cannot be a special token in a file."""
    if not token:
        raise ValueError("a special token is the empty string")
    try:
        token.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"special token {token!r} holds a lone surrogate, which no file can say"
        ) from None
    if token in CHAR_TO_BYTE:
        raise ValueError(
            f"special token {token!r} is how tokenizer.json and vocab.json write the byte "
            f"0x{CHAR_TO_BYTE[token]:02x}: name it otherwise, such as '<|{token}|>'"
        )


def refuse_written_alike(token: str, tokens: Mapping[bytes, int], id: int | None = None) -> None:
    """ValueError if an added token is written like one of the ordinary `tokens`, unless its `id` is
    that one's.

    A vocabulary of strings has one id for both.
    """
    if not all(char in CHAR_TO_BYTE for char in token):
        return
    if (other := to_bytes(token)) in tokens and tokens[other] != id:
        raise ValueError(
            f"special token {token!r} is how tokenizer.json and vocab.json write the token "
            f"{other!r} (id {tokens[other]}): name it otherwise, such as '<|{token}|>'"
        )


def late_tokens(added: Iterable[AddedToken]) -> frozenset[str]:
    """The tokens that have to be looked for after the others: the normalized ones, or none.

    None if one pass for all, from the left and the longest first, must find the same. It finds
    another token only where a normalized one begins before the end of one that is not and either
    holds it or ends inside it.
    """
    added = tuple(added)
    if any(True in token.edges for token in added):
        # What a token takes with it is gone for the others.
        return frozenset(token.content for token in added if token.normalized)
    early = [token.content for token in added if not token.normalized]
    late = frozenset(token.content for token in added if token.normalized)
    whole = frozenset(early)
    begun = {content[:end] for content in early for end in range(1, len(content))}
    for content in late:
        for start in range(len(content)):
            if start and content[start:] in begun:
                return late
            if any(content[start:end] in whole for end in range(start + 1, len(content) + 1)):
                return late
    return frozenset()


def _byte_to_char() -> list[str]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the others follow U+0100 in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


BYTE_TO_CHAR = _byte_to_char()
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}
CHARS = frozenset(CHAR_TO_BYTE)
# str.translate and Latin-1 do the work of a loop over bytes.
_TO_CHARS = dict(enumerate(BYTE_TO_CHAR))
_TO_BYTES = {ord(char): byte for char, byte in CHAR_TO_BYTE.items()}


def to_chars(token: bytes) -> str:
    """A token as `tokenizer.json` and vocab.json write it."""
    # Latin-1 gives each byte the character of its number.
    return token.decode("latin-1").translate(_TO_CHARS)


def to_bytes(token: str) -> bytes:
    """The bytes of a token as `to_chars` writes it; ValueError for other characters."""
    if not CHARS.issuperset(token):
        raise ValueError(f"token {token!r} is not written in the alphabet of byte-level BPE")
    return token.translate(_TO_BYTES).encode("latin-1")


def pairs_of(
    merges: list[tuple[bytes, bytes]], tokens: Mapping[bytes, int]
) -> list[tuple[int, int]]:
    """Merges as pairs of ids; ValueError for one of a token that there is not."""
    try:
        return [(tokens[left], tokens[right]) for left, right in merges]
    except KeyError as error:
        raise ValueError(
            f"a merge uses {error.args[0]!r}, which is not in the vocabulary"
        ) from None


def merges_of(contents: Contents) -> list[tuple[bytes, bytes]]:
    """The merges as pairs of bytes; from ranks, for each token the two that it is made of.

    Empty for a model that merges nothing.
    """
    if not isinstance(contents.model, Bpe | CharBpe):
        return []
    if contents.model.merges is not None:
        token_of = {id: token for token, id in contents.tokens.items()}
        return [(token_of[left], token_of[right]) for left, right in contents.model.merges]
    ranks = contents.tokens
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = _merged_below(token, ranks, rank)
        # A token that no two others make is reached only as a whole piece.
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _merged_below(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    """The parts of `token` after all merges of a rank below `limit`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        # Of equal ranks the leftmost, as tiktoken merges.
        rank, i = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def contents_of(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    pattern: str,
    special_tokens: dict[str, int] | None,
) -> Contents:
    """From tokens and merges as vocab.json and merges.txt write them.

    Without `special_tokens`, the tokens that are no byte and no merge makes are special.
    """
    # The two files do not say which tokens are special.
    if special_tokens is None:
        made = {left + right for left, right in merges}
        special_tokens = {
            token: id
            for token, id in vocab.items()
            if token not in CHAR_TO_BYTE and token not in made
        }
    for token, id in special_tokens.items():
        if token in CHAR_TO_BYTE and vocab.get(token) == id:
            refuse_special(token)
    tokens = {to_bytes(token): id for token, id in vocab.items() if special_tokens.get(token) != id}
    pairs = pairs_of([(to_bytes(left), to_bytes(right)) for left, right in merges], tokens)
    return Contents(tokens, Bpe(pairs, whole_pieces=False), pattern, special(special_tokens))


def digest(contents: Contents, more: Mapping[str, object]) -> str:
    """The SHA-256 of everything that decides the ids of a text, and of `more`."""
    model = contents.model
    merges = model.merges if isinstance(model, Bpe | CharBpe) else None
    head: dict[str, object] = {
        "pattern": contents.pattern,
        "whole_pieces": isinstance(model, Bpe | CharBpe) and model.whole_pieces,
        "merges": None if merges is None else len(merges),
        "special_tokens": sorted(contents.special_tokens.items()),
    }
    # Most tokenizers have none of these, and their hash is older.
    if contents.plain_tokens:
        head["plain_tokens"] = sorted(contents.plain_tokens.items())
    if late := late_tokens(contents.added_tokens):
        head["late_tokens"] = sorted(late)
    if edges := [(t.id, t.edges) for t in contents.added_tokens if True in t.edges]:
        head["edges"] = sorted(edges)
    if not isinstance(model, Bpe):
        head["model"] = repr(replace(model, merges=None) if isinstance(model, CharBpe) else model)
    if contents.stages != Stages():
        head["stages"] = repr(contents.stages)
    found = hashlib.sha256(json.dumps(head | dict(more), sort_keys=True).encode())
    for token, id in sorted(contents.tokens.items(), key=lambda item: item[1]):
        # The length comes before the bytes, so that two vocabularies cannot give equal input.
        found.update(b"\n%d %d " % (id, len(token)) + token)
    found.update(b"".join(b"\n%d %d" % pair for pair in merges or ()))
    return found.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError with the place where it is broken."""
    # Editors of Windows put a mark of the byte order before UTF-8.
    return parse_json(path, path.read_bytes().removeprefix(b"\xef\xbb\xbf"))


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """The object that the bytes of a JSON file say; ValueError as `read_json`."""
    try:
        value = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    refuse_halves(path, data, value)
    return value
