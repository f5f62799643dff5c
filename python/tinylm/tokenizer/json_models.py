"""The model of a `tokenizer.json`: its tokens, and the rule by which pieces become tokens.

A file whose pre_tokenizer has ByteLevel writes bytes as the characters of GPT-2's alphabet; its
tokens are read as bytes. The tokens of other files are characters as they stand.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tinylm import _rust
from tinylm.tokenizer.checks import check_keys, checked, shown
from tinylm.tokenizer.contents import (
    BYTE_TO_CHAR,
    CHAR_TO_BYTE,
    CHARS,
    AddedToken,
    Contents,
    to_bytes,
    to_chars,
)
from tinylm.tokenizer.models import (
    NO_PREFIX,
    Bpe,
    CharBpe,
    Model,
    Unigram,
    WordLevel,
    WordPiece,
)
from tinylm.tokenizer.token_map import given

UNIGRAM = {"type", "unk_id", "vocab", "byte_fallback"}
WORDPIECE = {
    "type",
    "unk_token",
    "continuing_subword_prefix",
    "max_input_chars_per_word",
    "vocab",
}
WORDLEVEL = {"type", "unk_token", "vocab"}
BPE = {
    "type",
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
    "vocab",
    "merges",
}


KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
# In the place of merges that a file joins with a space, as older ones do.
JOINED = ""


class Parts(NamedTuple):
    """What a model brings into `Contents`."""

    tokens: dict[bytes, int]
    model: Model
    chars: bool
    missing: bytes = b""
    inert: Mapping[str, int] = MappingProxyType({})


def vocab_of(model: Mapping[str, Any]) -> dict[str, int]:
    """The tokens of the file and their ids; ValueError for a value that is no id or no score."""
    kind = kind_of(model)
    if kind not in KINDS:
        named = shown(model.get("type", kind))
        raise ValueError(f"model type {named} is not supported, only {', '.join(KINDS)}")
    if kind == "Unigram":
        vocab = {}
        for id, item in enumerate(checked(model["vocab"], list, "model (type Unigram) vocab")):
            match item:
                case [str(token), int() | float()] if token not in vocab:
                    vocab[token] = id
                case _:
                    raise ValueError(f"model.vocab {shown(item)} is not a new token and a score")
        return vocab
    vocab = checked(model["vocab"], dict, "model.vocab")
    ids = vocab.values()
    # All at once; one by one only to name the one that is wrong.
    if (
        not {*map(type, ids)} <= {int}
        or not 0 <= min(ids, default=0) <= max(ids, default=0) < 2**32
    ):
        for token, id in vocab.items():
            checked(id, int, f"model.vocab {token!r}")
    return vocab


def read(
    model: Mapping[str, Any],
    vocab: dict[str, int],
    added: tuple[AddedToken, ...],
    *,
    byte_level: bool,
) -> Parts:
    """The parts of a model; ValueError names what is not supported.

    With `byte_level` the tokens are written in GPT-2's alphabet.
    """
    match kind_of(model):
        case "BPE":
            return _bpe(model, vocab, added, byte_level=byte_level)
        case "Unigram":
            return _unigram(model, vocab, byte_level=byte_level)
        case "WordLevel":
            return _word_level(model, vocab)
    return _word_piece(model, vocab)


def _word_piece(model: Mapping[str, Any], vocab: Mapping[str, int]) -> Parts:
    check_keys(model, WORDPIECE, "model (type WordPiece) ")
    unknown = checked(model["unk_token"], str, "model.unk_token")
    longest = checked(model["max_input_chars_per_word"], int, "model.max_input_chars_per_word")
    name = "continuing_subword_prefix"
    prefix = checked(model[name], str, f"model.{name}")
    return Parts(_texts(vocab), WordPiece(_known(unknown, vocab), prefix, longest), chars=True)


def _word_level(model: Mapping[str, Any], vocab: Mapping[str, int]) -> Parts:
    check_keys(model, WORDLEVEL, "model (type WordLevel) ")
    unknown = checked(model["unk_token"], str, "model.unk_token")
    if odd := next((token for token in vocab if token.startswith(NO_PREFIX)), None):
        raise ValueError(f"model.vocab has {shown(odd)}, which begins with two noncharacters")
    return Parts(_texts(vocab), WordLevel(_known(unknown, vocab)), chars=True)


def _unigram(model: Mapping[str, Any], vocab: Mapping[str, int], *, byte_level: bool) -> Parts:
    check_keys(model, UNIGRAM, "model (type Unigram) ")
    unknown = model.get("unk_id")
    if unknown is not None and checked(unknown, int, "model.unk_id") >= len(vocab):
        raise ValueError(f"model.unk_id = {unknown} is not below the {len(vocab)} tokens")
    fallback = checked(model.get("byte_fallback", False), bool, "model.byte_fallback")
    scores = tuple(float(score) for _, score in model["vocab"])
    # Tokens of bytes are known by all bytes being tokens: then nothing is unknown.
    if byte_level and CHAR_TO_BYTE.keys() <= vocab.keys() and all(map(_is_bytes, vocab)):
        tokens = {to_bytes(token): id for token, id in vocab.items()}
        return Parts(tokens, Unigram(scores), chars=False)
    return Parts(_texts(vocab), Unigram(scores, unknown, fallback), chars=True)


def _bpe(
    model: Mapping[str, Any],
    vocab: dict[str, int],
    added: tuple[AddedToken, ...],
    *,
    byte_level: bool,
) -> Parts:
    check_keys(model, BPE, "model.")
    options = _options(model)
    found = model["merges"]
    if not isinstance(found, _rust.Merges):
        found = checked(found, list, "model.merges")
    missing = bytes(byte for byte, char in enumerate(BYTE_TO_CHAR) if char not in vocab)
    prefix, suffix = options["continuing_subword_prefix"], options["end_of_word_suffix"]
    unknowns = (options["unk_token"] or options["byte_fallback"]) and missing
    if not byte_level or prefix or suffix or unknowns:
        return _char_bpe(vocab, _merges(found), options)
    # Added tokens have ids of their own, but one may be a byte or a part of a merge too.
    listed = {token.content for token in added if token.listed} - CHAR_TO_BYTE.keys()
    if listed and isinstance(found, _rust.Merges):
        listed -= {*found.using([*listed])}
    elif listed:
        for left, right in _merges(found):
            listed -= {left, right, left + right}
    spelled = {t: id for t, id in vocab.items() if t not in listed} if listed else vocab
    # In Rust if there is nothing but bytes; slowly what is left out, or wrong.
    tokens = _rust.byte_tokens(spelled)
    if tokens is None:
        spelled = {t: id for t, id in spelled.items() if t and _is_bytes(t)}
        tokens = {to_bytes(token): id for token, id in spelled.items()}
    whole_pieces = options["ignore_merges"]
    # Ranks are written as all the merges that they allow.
    ranks = whole_pieces and bool(found) and _rust.is_every_split(found, spelled, tokens)
    pairs = None if ranks else _rust.merge_ids(found, spelled)
    if pairs is None and not ranks:
        pairs = _pairs(_merges(found), spelled)
    inert: dict[str, int] = {}
    if len(spelled) + len(listed) < len(vocab):
        inert = {t: id for t, id in vocab.items() if t not in spelled and t not in listed}
    made = Bpe(pairs, whole_pieces)
    return Parts(tokens, made, chars=False, missing=missing, inert=inert)


def _char_bpe(
    vocab: Mapping[str, int], merges: list[tuple[str, str]], options: Mapping[str, Any]
) -> Parts:
    tokens = _texts(vocab)
    prefix = options["continuing_subword_prefix"]
    if wrong := next((pair for pair in merges if not pair[1].startswith(prefix)), None):
        raise ValueError(
            f"merge {shown(wrong)}: the second token lacks model.continuing_subword_prefix = "
            f"{shown(prefix)}"
        )
    made = CharBpe(
        _pairs(merges, vocab),
        whole_pieces=options["ignore_merges"],
        unknown=_known(options["unk_token"], vocab) if options["unk_token"] else None,
        fuse_unknown=options["fuse_unk"],
        byte_fallback=options["byte_fallback"],
        prefix=prefix,
        suffix=options["end_of_word_suffix"],
    )
    inert = {"": vocab[""]} if "" in vocab else {}
    return Parts(tokens, made, chars=True, inert=inert)


def _texts(vocab: Mapping[str, int]) -> dict[bytes, int]:
    return {token.encode(): id for token, id in vocab.items() if token}


def _known(unknown: str, vocab: Mapping[str, int]) -> int:
    if unknown not in vocab:
        raise ValueError(f"model.unk_token = {shown(unknown)} is not in model.vocab")
    return vocab[unknown]


def written(contents: Contents, model: Mapping[str, Any]) -> dict[str, Any]:
    """The model of a file with the tokens and merges, in which `model` has none."""
    spell = bytes.decode if contents.stages.chars else to_chars
    vocab = {spell(token): id for token, id in contents.tokens.items()} | dict(contents.inert)
    # Only those that the file had there: a longer vocabulary would move the ids that `tokenizers`
    # gives to the others.
    vocab |= {token.content: token.id for token in contents.added_tokens if token.listed}
    vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
    made = contents.model
    if isinstance(made, Unigram):
        return {**model, "vocab": [list(pair) for pair in zip(vocab, made.scores, strict=True)]}
    if isinstance(made, WordPiece | WordLevel):
        return {**model, "vocab": vocab}
    chars_of = {id: token for token, id in vocab.items()}
    merges = _rust.every_split(given(contents.tokens)) if made.merges is None else made.merges
    pairs = [[chars_of[left], chars_of[right]] for left, right in merges]
    joined = model["merges"] == JOINED
    options = {} if contents.kept else {"ignore_merges": made.whole_pieces}
    return {
        **model,
        **options,
        "vocab": vocab,
        "merges": [" ".join(pair) for pair in pairs] if joined else pairs,
    }


def kind_of(model: Mapping[str, Any]) -> str:
    """The type of a model; old files leave it out."""
    if "type" in model:
        return str(model["type"])
    if "merges" in model:
        return "BPE"
    if "max_input_chars_per_word" in model:
        return "WordPiece"
    return "Unigram" if "unk_id" in model else "WordLevel"


def ends_before_marks(parts: Parts) -> bool:
    """Whether no token reaches over a U+2581 that follows another character.

    Then a piece may be cut there. U+2581 must be a token, or unknown neighbours would be one.
    """
    model = parts.model
    if not isinstance(model, CharBpe) or model.whole_pieces or model.prefix or model.suffix:
        return False
    mark = "\u2581"
    spelled = (token.decode() for token in parts.tokens)
    return mark.encode() in parts.tokens and not any(mark in t.lstrip(mark) for t in spelled)


def is_joined(model: Mapping[str, Any]) -> bool:
    """Whether the merges are written as two tokens with a space between them."""
    merges = model.get("merges")
    if isinstance(merges, _rust.Merges):
        return merges.joined
    return isinstance(merges, list) and bool(merges) and isinstance(merges[0], str)


def _options(model: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the keys of BPE beside its tokens; ValueError for one of another type."""
    found: dict[str, Any] = {}
    for name in ("ignore_merges", "fuse_unk", "byte_fallback"):
        value = model.get(name)
        found[name] = value is not None and checked(value, bool, f"model.{name}")
    for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        value = model.get(name)
        found[name] = "" if value is None else checked(value, str, f"model.{name}")
    dropout = model.get("dropout")
    is_share = isinstance(dropout, int | float) and not isinstance(dropout, bool)
    if dropout is not None and not (is_share and 0 <= dropout <= 1):
        raise ValueError(f"model.dropout = {shown(dropout)} is not a number from 0 to 1")
    return found


def _is_bytes(token: str) -> bool:
    return CHARS.issuperset(token)


def _merges(found: list[Any] | _rust.Merges) -> list[tuple[str, str]]:
    """The two tokens of each merge; ValueError for what is not two tokens."""
    merges = []
    for merge in found.to_list() if isinstance(found, _rust.Merges) else found:
        # Older files join the two tokens with a space.
        two = merge.split(" ") if isinstance(merge, str) else merge
        if type(two) is not list or len(two) != 2 or not all(isinstance(one, str) for one in two):
            raise ValueError(f"merge {shown(merge)} is not two tokens")
        merges.append((two[0], two[1]))
    return merges


def _pairs(merges: list[tuple[str, str]], ids: Mapping[str, int]) -> list[tuple[int, int]]:
    try:
        return [(ids[left], ids[right]) for left, right in merges]
    except KeyError as error:
        raise ValueError(
            f"a merge uses {error.args[0]!r}, which is not in the vocabulary"
        ) from None
