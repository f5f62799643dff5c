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
from typing import Any

from tinylm import disk
from tinylm.tokenizer import beside as files_beside
from tinylm.tokenizer import pre_tokenizer
from tinylm.tokenizer.checks import check_keys, checked, shown, steps_of
from tinylm.tokenizer.contents import (
    CHAR_TO_BYTE,
    AddedToken,
    Bpe,
    Contents,
    every_split,
    pairs_of,
    read_json,
    refuse_written_alike,
    to_bytes,
    to_chars,
)

# Only a file of this name has others beside it.
NAME = "tokenizer.json"
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
POST_PROCESSORS = {
    "TemplateProcessing": {"type", "single", "pair", "special_tokens"},
    "RobertaProcessing": {"type", "sep", "cls", "trim_offsets", "add_prefix_space"},
    "BertProcessing": {"type", "sep", "cls"},
    "ByteLevel": pre_tokenizer.KEYS["ByteLevel"],
}
TRUNCATION = {"direction", "max_length", "strategy", "stride"}
PADDING = {"strategy", "direction", "pad_to_multiple_of", "pad_id", "pad_type_id", "pad_token"}


def write(contents: Contents, path: Path, beside: Mapping[str, bytes], *, says_eos: bool) -> None:
    """Writes `tokenizer.json`; into a folder, with the files `beside` it.

    Those go beside a file too if only they can say which token ends a text (`says_eos`).
    """
    data = json.dumps(_document(contents), ensure_ascii=False, indent=1).encode()
    if path.suffix != ".json":
        path = path / NAME
    elif not says_eos:
        beside = {}
    elif path.name != NAME:
        raise ValueError(
            f"{path}: a tokenizer.json cannot say its end-of-text token, and the "
            f"tokenizer_config.json that can belongs to a {NAME}: save to a folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.replace(path, data)
    files_beside.write(path.parent, beside)


def _document(contents: Contents) -> dict[str, Any]:
    for token in contents.added_tokens:
        refuse_written_alike(token.content, contents.tokens)
    vocab = {to_chars(token): id for token, id in contents.tokens.items()}
    # Only those that the file had there: a longer vocabulary would move the ids that `tokenizers`
    # gives to the others.
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
            # By id: `tokenizers` gives each one the next free id, in this order.
            for token in sorted(contents.added_tokens, key=lambda token: token.id)
        ],
        "normalizer": None,
        "pre_tokenizer": kept.pop("pre_tokenizer", None) or pre_tokenizer.written(contents.pattern),
        "post_processor": None,
        "decoder": {**pre_tokenizer.BYTE_LEVEL, "use_regex": True},
        "model": model | kept.pop("model", {}),
    }
    # Last, so that what was read stands as it was.
    return document | kept


def read(path: Path) -> Contents:
    """The contents of a `tokenizer.json`; ValueError names what in it is not supported."""
    document = read_json(path)
    if "model" not in document:
        if "config" in document and "vocab" in document:
            raise ValueError(
                f"{path}: Mistral's tekken.json is not supported, only tokenizer.json, tiktoken's "
                "ranks, and vocab.json with merges.txt"
            )
        if document and all(isinstance(id, int) for id in document.values()):
            raise ValueError(f"{path}: a vocab.json alone has no merges: name its folder")
    try:
        contents = _contents(document)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not a tokenizer.json as TinyLM knows it: {what}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if path.name != NAME:
        return contents
    return files_beside.read(path.parent, contents, source=NAME)


def _contents(document: dict[str, Any]) -> Contents:
    model = checked(document["model"], dict, "model")
    # Old files leave the type out; only BPE has merges.
    kind = model.get("type", "BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise ValueError(f"model type {shown(kind)} is not supported, only BPE over bytes")
    check_keys(document, KEYS, "")
    check_keys(model, MODEL_KEYS, "model.")
    for name, empty in EMPTY_IN_MODEL.items():
        value = model.get(name)
        # In Python False == 0.
        same = value == empty and isinstance(value, bool) == isinstance(empty, bool)
        if value is not None and not same:
            raise ValueError(
                f"model.{name} = {shown(value)} is not supported, only null or {shown(empty)}"
            )
    for name in ("ignore_merges", "fuse_unk"):
        if model.get(name) is not None:
            checked(model[name], bool, f"model.{name}")
    version = document.get("version", "1.0")
    if version != "1.0":
        raise ValueError(f'version {shown(version)} is not supported, only "1.0"')
    if (normalizer := document.get("normalizer")) is not None:
        raise ValueError(f"normalizer = {shown(normalizer)} is not supported, only null")
    _check_kept(document)
    vocab = checked(model["vocab"], dict, "model.vocab")
    for token, id in vocab.items():
        checked(id, int, f"model.vocab {token!r}")
    added = _added_tokens(document.get("added_tokens", []), vocab)
    merges = [_merge(merge) for merge in checked(model["merges"], list, "model.merges")]
    # These have an id of their own in the vocabulary and are no tokens of the BPE.
    listed = {token.content for token in added if token.listed}
    for left, right in merges:
        for content in (left, right, left + right):
            if content in listed:
                raise ValueError(
                    f"added token {content!r} is also a part or the result of a merge, which is "
                    "not supported; take it out of added_tokens"
                )
    for content in listed & CHAR_TO_BYTE.keys():
        raise ValueError(
            f"added token {content!r} is also the byte 0x{CHAR_TO_BYTE[content]:02x} of the "
            "vocabulary, which is not supported; take it out of added_tokens"
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
        pre_tokenizer.pattern_of(document.get("pre_tokenizer")),
        added,
        kept,
    )


def _check_kept(document: Mapping[str, Any]) -> None:
    """ValueError for what cannot be written back unseen: parts of a kind that is not known."""
    for key, known in (("truncation", TRUNCATION), ("padding", PADDING)):
        if document.get(key) is not None:
            check_keys(checked(document[key], dict, key), known, f"{key}.")
    for step in steps_of(document.get("post_processor"), "post_processor", "processors"):
        if step["type"] not in POST_PROCESSORS:
            raise ValueError(
                f"post_processor {step['type']} is not known, only "
                f"{', '.join(sorted(POST_PROCESSORS))}: {shown(step)}"
            )
        check_keys(step, POST_PROCESSORS[step["type"]], f"post_processor {step['type']}.")
    for step in steps_of(document.get("decoder"), "decoder", "decoders"):
        if step["type"] != "ByteLevel":
            raise ValueError(
                f"decoder {step['type']} is not supported, only ByteLevel or null: {shown(step)}; "
                "the text of its ids would be another one"
            )
        check_keys(step, pre_tokenizer.KEYS["ByteLevel"], "decoder ByteLevel.")


def _added_tokens(entries: object, vocab: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """The added tokens in the order of the file; their ids are checked by `_check_ids`."""
    added: dict[str, AddedToken] = {}
    for item in checked(entries, list, "added_tokens"):
        entry = checked(item, dict, "an entry of added_tokens")
        content = checked(entry["content"], str, "content of an added token")
        place = f"added_tokens {content!r} "
        check_keys(entry, {"id", "content", *FLAGS}, place)
        for flag in ("single_word", "lstrip", "rstrip"):
            if entry.get(flag, False) is not False:
                raise ValueError(
                    f"added token {content!r} has {flag} = {shown(entry[flag])}: not supported, "
                    "it must be false"
                )
        if content in added:
            raise ValueError(f"added token {content!r} is listed twice")
        added[content] = AddedToken(
            content,
            id=checked(entry["id"], int, f"{place}id"),
            special=checked(entry.get("special", True), bool, f"{place}special"),
            normalized=checked(entry.get("normalized", False), bool, f"{place}normalized"),
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
                f"added token {token.content!r} has the id {shown(token.id)}, but tokenizers "
                f"gives it {expected}; list it in model.vocab with its id"
            )
        highest = max(highest, token.id)


def _merge(merge: object) -> tuple[str, str]:
    # Older files join the two tokens with a space.
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)]:
            return left, right
    raise ValueError(f"merge {shown(merge)} is not two tokens")
