"""`tokenizer.json`, the file of Hugging Face's `tokenizers`: its byte-level BPE, read and written.

Written files give equal ids there. Files read may come from `tokenizers` or `transformers`. Every
key is applied, or kept (no id of `Tokenizer.encode` depends on it; it is written back as it stood),
or refused with its name and value. A value of another type than `tokenizers` takes is refused too:

| key | |
|---|---|
| version | "1.0" |
| truncation, padding | kept: `encode` neither cuts nor fills |
| added_tokens: id, content, special, normalized | applied: see `contents.AddedToken` |
| added_tokens: single_word, lstrip, rstrip | refused unless false |
| normalizer | refused unless null |
| pre_tokenizer | applied, and kept for its spelling: see `_pattern`; `trim_offsets` moves no id |
| post_processor | kept: `encode` adds no template, not the BOS of Llama 3 either |
| decoder | null or ByteLevel, kept: `decode` gives the bytes |
| model: type | "BPE", or no type but merges |
| model: vocab, merges, ignore_merges | applied |
| model: dropout | refused unless null or 0; kept |
| model: unk_token | refused unless null or ""; kept |
| model: continuing_subword_prefix, end_of_word_suffix | refused unless null or ""; kept |
| model: fuse_unk | kept: all bytes are tokens, so nothing is unknown |
| model: byte_fallback | refused unless null or false: it is for BPE over characters; kept |
| any other | refused |
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tinylm import disk
from tinylm.tokenizer.contents import (
    AddedToken,
    Bpe,
    Contents,
    every_split,
    pairs_of,
    read_json,
    to_bytes,
    to_chars,
)

# Oniguruma reads `$` as the end of a line and `{1,3}+` as a repetition, so GPT-4's pattern is
# written in its first form, with `\z` for the end of the text.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REGEX_OF_PATTERN = {
    "gpt4": _LLAMA3.replace(r"|\s*[\r\n]+", r"|\s+\z|\s*[\r\n]+"),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "llama3": _LLAMA3,
    # Oniguruma's dialect takes (?m:.) for a dot that matches line ends.
    "character": r"(?m:.)",
    "word": r" ?\S+|\s",
}
PATTERN_OF_REGEX = {regex: name for name, regex in REGEX_OF_PATTERN.items()}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
# The keys that are there, and those that are written back as they stood.
KEYS = {
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
}
KEPT = ("truncation", "padding", "pre_tokenizer", "post_processor", "decoder")
# The one value beside null with which the key moves no id.
EMPTY_IN_MODEL: dict[str, object] = {
    "dropout": 0,
    "unk_token": "",
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "byte_fallback": False,
}
KEPT_IN_MODEL = (*EMPTY_IN_MODEL, "fuse_unk")
MODEL_KEYS = {*KEPT_IN_MODEL, "type", "ignore_merges", "vocab", "merges"}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
PRE_TOKENIZER_KEYS = {
    "ByteLevel": {"type", "add_prefix_space", "trim_offsets", "use_regex"},
    "Split": {"type", "pattern", "behavior", "invert"},
}
POST_PROCESSORS = {
    "TemplateProcessing",
    "RobertaProcessing",
    "BertProcessing",
    "ByteLevel",
    "Sequence",
}
KINDS = {
    bool: "true or false",
    int: "an id, an integer from 0 to 4294967295",
    str: "a string",
    dict: "an object",
    list: "a list",
}
Kind = TypeVar("Kind", bool, int, str, dict[str, Any], list[Any])


def write(contents: Contents, path: Path, named: Mapping[str, int | None]) -> None:
    """Writes `tokenizer.json`; into a folder, with the `tokenizer_config.json` of transformers.

    `named` are the ids of eos, bos and pad.
    """
    data = json.dumps(_document(contents), ensure_ascii=False, indent=1).encode()
    if path.suffix == ".json":
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.replace(path, data)
        return
    path.mkdir(parents=True, exist_ok=True)
    disk.replace(path / "tokenizer.json", data)
    token_of = {id: token for token, id in contents.special_tokens.items()}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    config |= {name: token_of[id] for name, id in named.items() if id is not None}
    disk.replace(path / "tokenizer_config.json", json.dumps(config, indent=1).encode())


def _document(contents: Contents) -> dict[str, Any]:
    vocab = {to_chars(token): id for token, id in contents.tokens.items()}
    vocab |= {token.content: token.id for token in contents.added_tokens if token.listed}
    merges = contents.model.merges
    pairs = every_split(contents.tokens) if merges is None else merges
    chars_of = {id: token for token, id in vocab.items()}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": contents.model.whole_pieces,
        "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
        "merges": [[chars_of[left], chars_of[right]] for left, right in pairs],
    }
    kept = dict(contents.kept)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token.id,
                "content": token.content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": token.normalized,
                "special": token.special,
            }
            for token in sorted(contents.added_tokens, key=lambda token: token.id)
        ],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(contents.pattern),
        "post_processor": None,
        "decoder": {**_BYTE_LEVEL, "use_regex": True},
        "model": model | kept.pop("model", {}),
    }
    return document | kept


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    if pattern in ("gpt2", "whole"):
        return {**_BYTE_LEVEL, "use_regex": pattern == "gpt2"}
    split = {
        "type": "Split",
        "pattern": {"Regex": REGEX_OF_PATTERN.get(pattern, pattern)},
        "behavior": "Isolated",
        "invert": False,
    }
    bytes_only = {**_BYTE_LEVEL, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, bytes_only]}


def read(path: Path) -> Contents:
    """The contents of a `tokenizer.json`; ValueError names what in it is not supported."""
    document = read_json(path)
    try:
        return _contents(document)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not a tokenizer.json as TinyLM knows it: {what}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _contents(document: dict[str, Any]) -> Contents:
    model = _checked(document["model"], dict, "model")
    # Old files leave the type out; only BPE has merges.
    kind = model.get("type", "BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise ValueError(f"model type {_shown(kind)} is not supported, only BPE over bytes")
    _check_keys(document, KEYS, "")
    _check_keys(model, MODEL_KEYS, "model.")
    for name, empty in EMPTY_IN_MODEL.items():
        value = model.get(name)
        # In Python False == 0.
        same = value == empty and isinstance(value, bool) == isinstance(empty, bool)
        if value is not None and not same:
            raise ValueError(
                f"model.{name} = {_shown(value)} is not supported, only null or {_shown(empty)}"
            )
    for name in ("ignore_merges", "fuse_unk"):
        if model.get(name) is not None:
            _checked(model[name], bool, f"model.{name}")
    version = document.get("version", "1.0")
    if version != "1.0":
        raise ValueError(f'version {_shown(version)} is not supported, only "1.0"')
    if (normalizer := document.get("normalizer")) is not None:
        raise ValueError(f"normalizer = {_shown(normalizer)} is not supported, only null")
    _check_kept(document)
    vocab = _checked(model["vocab"], dict, "model.vocab")
    for token, id in vocab.items():
        _checked(id, int, f"model.vocab {token!r}")
    added = _added_tokens(document.get("added_tokens", []), vocab)
    merges = [_merge(merge) for merge in _checked(model["merges"], list, "model.merges")]
    listed = {token.content for token in added if token.listed}
    for left, right in merges:
        for content in (left, right, left + right):
            if content in listed:
                raise ValueError(
                    f"added token {content!r} is also a part or the result of a merge, which is "
                    "not supported; take it out of added_tokens"
                )
    tokens = {to_bytes(token): id for token, id in vocab.items() if token not in listed}
    pairs = pairs_of([(to_bytes(left), to_bytes(right)) for left, right in merges], tokens)
    _check_ids(added, vocab)
    whole_pieces = bool(model.get("ignore_merges"))
    # Ranks are written as all the merges that they allow.
    ranks = whole_pieces and bool(pairs) and pairs == every_split(tokens)
    kept = {key: document[key] for key in KEPT if key in document}
    kept["model"] = {key: model[key] for key in KEPT_IN_MODEL if key in model}
    return Contents(
        tokens,
        Bpe(None if ranks else pairs, whole_pieces),
        _pattern(document.get("pre_tokenizer")),
        added,
        kept,
    )


def _shown(value: object) -> str:
    """A value of the file, short enough for one line."""
    return json.dumps(value)[:200]


def _checked(value: object, kind: type[Kind], name: str) -> Kind:
    """A value of the file, if it is of its type; ValueError with its name otherwise."""
    # In Python a bool is an int. The integers of the file are ids.
    fits = not isinstance(value, int) or kind is bool or 0 <= value < 2**32
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not fits:
        raise ValueError(f"{name} = {_shown(value)} is not {KINDS[kind]}")
    return value


def _check_keys(found: Mapping[str, Any], known: set[str], place: str) -> None:
    """ValueError for a key that is not known: what it asks for would be lost."""
    for key in found:
        if key not in known:
            raise ValueError(
                f"key {place}{key} = {_shown(found[key])} is not known; take it out if no id "
                "depends on it"
            )


def _check_kept(document: Mapping[str, Any]) -> None:
    """ValueError for what cannot be written back unseen: parts of a kind that is not known."""
    for key in ("truncation", "padding"):
        if document.get(key) is not None:
            _checked(document[key], dict, key)
    for step in _steps(document.get("post_processor"), "post_processor", "processors"):
        if step["type"] not in POST_PROCESSORS:
            raise ValueError(
                f"post_processor {step['type']} is not known, only "
                f"{', '.join(sorted(POST_PROCESSORS))}: {_shown(step)}"
            )
    for step in _steps(document.get("decoder"), "decoder", "decoders"):
        if step["type"] != "ByteLevel":
            raise ValueError(
                f"decoder {step['type']} is not supported, only ByteLevel or null: {_shown(step)}; "
                "the text of its ids would be another one"
            )


def _steps(part: Any, name: str, inner: str) -> list[dict[str, Any]]:
    """The steps of a part of the document: none, itself, or those of a Sequence."""
    match part:
        case None:
            return []
        case {"type": "Sequence"}:
            children = _checked(part[inner], list, f"{name} {inner}")
            return [step for child in children for step in _steps(child, name, inner)]
        case {"type": str()}:
            return [part]
    raise ValueError(f"{name} = {_shown(part)} is not an object with a type")


def _added_tokens(entries: object, vocab: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """The added tokens in the order of the file; their ids are checked by `_check_ids`."""
    added: dict[str, AddedToken] = {}
    for item in _checked(entries, list, "added_tokens"):
        entry = _checked(item, dict, "an entry of added_tokens")
        content = _checked(entry["content"], str, "content of an added token")
        place = f"added_tokens {content!r} "
        _check_keys(entry, {"id", "content", *FLAGS}, place)
        for flag in ("single_word", "lstrip", "rstrip"):
            if entry.get(flag, False) is not False:
                raise ValueError(
                    f"added token {content!r} has {flag} = {_shown(entry[flag])}: not supported, "
                    "it must be false"
                )
        if content in added:
            raise ValueError(f"added token {content!r} is listed twice")
        added[content] = AddedToken(
            content,
            id=_checked(entry["id"], int, f"{place}id"),
            special=_checked(entry.get("special", True), bool, f"{place}special"),
            normalized=_checked(entry.get("normalized", False), bool, f"{place}normalized"),
            listed=content in vocab,
        )
    return tuple(added.values())


def _check_ids(added: tuple[AddedToken, ...], vocab: Mapping[str, int]) -> None:
    """ValueError for an added token with another id than `tokenizers` gives it.

    It takes no id from the file: a token has that of the vocabulary, or the next free one. A model
    was trained with those ids, and the file as TinyLM writes it would be read with those again.
    """
    highest = -1
    for token in added:
        following = highest + 1 if highest >= len(vocab) else len(vocab)
        expected = vocab.get(token.content, following)
        if token.id != expected:
            raise ValueError(
                f"added token {token.content!r} has the id {_shown(token.id)}, but tokenizers "
                f"gives it {expected}; list it in model.vocab with its id"
            )
        highest = max(highest, token.id)


def _merge(merge: object) -> tuple[str, str]:
    # Older files join the two tokens with a space.
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)]:
            return left, right
    raise ValueError(f"merge {_shown(merge)} is not two tokens")


def _pattern(pre_tokenizer: object) -> str:
    """The pattern that a pre-tokenizer stands for: ByteLevel, or Split and then ByteLevel."""
    if pre_tokenizer is None:
        raise ValueError("pre_tokenizer is missing: BPE over characters is not supported")
    steps = _steps(pre_tokenizer, "pre_tokenizer", "pretokenizers")
    for step in steps:
        place = f"pre_tokenizer {step['type']}."
        if step["type"] in PRE_TOKENIZER_KEYS:
            _check_keys(step, PRE_TOKENIZER_KEYS[step["type"]], place)
        for flag in ("add_prefix_space", "trim_offsets", "use_regex", "invert"):
            if flag in step:
                _checked(step[flag], bool, place + flag)
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, **rest}]:
            return "gpt2" if rest.get("use_regex", True) else "whole"
        case [
            {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": how, "invert": inverse},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            known = PATTERN_OF_REGEX.get(regex)
            if (how, inverse) == ("Isolated", False):
                return known or regex
            # What matches is kept, what is between is dropped; our patterns leave nothing between.
            if (how, inverse) == ("Removed", True) and known:
                return known
    raise ValueError(
        "pre_tokenizer is not supported, only ByteLevel without prefix space, alone or after one "
        f"Split with an isolating Regex: {_shown(pre_tokenizer)}"
    )
