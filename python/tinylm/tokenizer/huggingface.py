"""`tokenizer.json`, the file of Hugging Face's `tokenizers`, read and written.

Written files give equal ids there. Files read may come from `tokenizers` or `transformers`. Every
key is applied, or kept (no id of `Tokenizer.encode` depends on it), or refused with its name and
value. A value of another type than `tokenizers` takes is refused too. What was read is written back
as it stood:

| key | |
|---|---|
| version | "1.0" |
| truncation, padding | kept: `encode` neither cuts nor fills |
| added_tokens | applied: see `contents.AddedToken` |
| normalizer | applied: see `steps.NORMALIZERS` |
| pre_tokenizer | applied: see `steps.PRE_TOKENIZERS`; `trim_offsets` moves no id |
| post_processor | applied with `template=True` of `encode`: see `template` |
| decoder | applied: see `decoders` |
| model: type | "BPE", "Unigram", "WordPiece", "WordLevel"; old files leave it out |
| model: vocab, merges, ignore_merges | applied |
| model: dropout | kept: `encode` drops no merge, `sample_encode(dropout=)` does |
| model: unk_token | refused unless null or "", or all bytes are tokens |
| model: continuing_subword_prefix, end_of_word_suffix | refused unless null or "" |
| model: byte_fallback, fuse_unk | kept: bytes that are no tokens are dropped, as there |
| any other | refused |
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinylm import _rust, disk
from tinylm.tokenizer import beside as files_beside
from tinylm.tokenizer import (
    decoders,
    json_models,
    model_json,
    pre_tokenizer,
    steps,
    tekken,
    template,
)
from tinylm.tokenizer.checks import check_keys, checked, shown
from tinylm.tokenizer.contents import (
    CHAR_TO_BYTE,
    AddedToken,
    Contents,
    Stages,
    parse_json,
    refuse_written_alike,
)

# Editors of Windows put it before UTF-8.
MARK = b"\xef\xbb\xbf"
# Only a file of this name has others beside it.
NAME = "tokenizer.json"
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
# What a file of a tokenizer that comes from none says, with the pre_tokenizer and the tokens.
DOCUMENT: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {**pre_tokenizer.BYTE_LEVEL, "use_regex": True},
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {},
        "merges": [],
    },
}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
TRUNCATION = {"direction", "max_length", "strategy", "stride"}
PADDING = {"strategy", "direction", "pad_to_multiple_of", "pad_id", "pad_type_id", "pad_token"}


def write(contents: Contents, path: Path, beside: Mapping[str, bytes], *, says_eos: bool) -> None:
    """Writes `tokenizer.json`; into a folder, with the files `beside` it.

    Those go beside a file too if only they can say which token ends a text (`says_eos`).
    """
    document = (
        _document(contents) if contents.proto is None else model_json.document(contents, path)
    )
    data = json.dumps(document, ensure_ascii=False, indent=1).encode()
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
    for token in () if contents.stages.chars else contents.added_tokens:
        refuse_written_alike(token.content, contents.tokens, token.id)
    document = dict(contents.kept or DOCUMENT)
    if not contents.kept:
        document["pre_tokenizer"] = pre_tokenizer.written(contents.pattern)
    document["model"] = json_models.written(contents, document["model"])
    as_read = {entry["content"]: entry for entry in document.get("added_tokens", [])}
    added = [
        _entry(token, as_read.get(token.content))
        # By id, unless a file has them otherwise: `tokenizers` gives each one the next free id, in
        # this order.
        for token in sorted(contents.added_tokens, key=lambda t: 0 if contents.kept else t.id)
    ]
    return {**document, "added_tokens": added} if added or "added_tokens" in document else document


def unigram(pattern: str) -> dict[str, Any]:
    """The file of a Unigram over bytes, as `Contents.kept` has it: ByteLevel writes its tokens."""
    model: dict[str, Any] = {"type": "Unigram", "unk_id": None, "vocab": {}, "byte_fallback": False}
    return {**DOCUMENT, "pre_tokenizer": pre_tokenizer.written(pattern), "model": model}


def _entry(token: AddedToken, as_read: Mapping[str, Any] | None) -> dict[str, Any]:
    """An added token as the file writes it, with the keys that it had there."""
    written = {key: getattr(token, key) for key in ("id", "content", *FLAGS)}
    return {key: written[key] for key in as_read or written}


def read(path: Path) -> Contents:
    """The contents of a `tokenizer.json`; ValueError names what in it is not supported."""
    document = _read(path)
    if "model" not in document:
        if "config" in document and "vocab" in document:
            return tekken.read(path, document)
        if document and all(isinstance(id, int) for id in document.values()):
            raise ValueError(f"{path}: a vocab.json alone has no merges: name its folder")
    try:
        contents = contents_of(document)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not a tokenizer.json as TinyLM knows it: {what}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if path.name != NAME:
        return contents
    return files_beside.read(path.parent, contents, source=NAME)


def _read(path: Path) -> dict[str, Any]:
    """The document in a file; the merges of a BPE may be a `_rust.Merges`."""
    data = path.read_bytes().removeprefix(MARK)
    found = _rust.read_merges(data)
    if found is None:
        return parse_json(path, data)
    merges, start, end = found
    try:
        document = parse_json(path, data[:start] + b"[]" + data[end:])
    except ValueError:
        # The place of an error is that in the whole file.
        return parse_json(path, data)
    model = document["model"]
    model["merges"] = merges if json_models.kind_of(model) == "BPE" else merges.to_list()
    return document


def contents_of(document: dict[str, Any]) -> Contents:
    """The contents that a document says; an error names what is not supported."""
    model = checked(document["model"], dict, "model")
    check_keys(document, KEYS, "")
    version = document.get("version", "1.0")
    if version != "1.0":
        raise ValueError(f'version {shown(version)} is not supported, only "1.0"')
    _check_kept(document)
    normalizers = steps.normalizers(document.get("normalizer"))
    pre_tokenizers = steps.pre_tokenizers(document.get("pre_tokenizer"))
    decoder = decoders.steps(document.get("decoder"))
    vocab = json_models.vocab_of(model)
    added = _added_tokens(document.get("added_tokens", []), vocab)
    _check_ids(added, vocab)
    byte_level = any(step["type"] == "ByteLevel" for step in pre_tokenizers)
    parts = json_models.read(model, vocab, added, byte_level=byte_level)
    by_words = json_models.ends_before_marks(parts)
    if by_words and pre_tokenizers:
        pre_tokenizers.append(steps.BEFORE_MARKS)
    pattern = None if parts.chars else pre_tokenizer.pattern_of(document.get("pre_tokenizer"))
    kept_model = {**model, "vocab": {}}
    if "merges" in model:
        kept_model["merges"] = json_models.JOINED if json_models.is_joined(model) else []
    kept = {**document, "model": kept_model}
    contents = Contents(
        parts.tokens,
        parts.model,
        pattern or ("marks" if by_words and not pre_tokenizers else "whole"),
        added,
        Stages(
            tuple(normalizers),
            () if pattern else tuple(pre_tokenizers),
            parts.chars,
            parts.missing,
        ),
        inert=dict(parts.inert),
        kept=kept,
    )
    return replace(contents, surfaces=_surfaces(contents, decoder, vocab))


def _surfaces(
    contents: Contents, decoder: list[dict[str, Any]], vocab: Mapping[str, int]
) -> decoders.Surfaces | None:
    """How the tokens look in a text; None if they look as their bytes are."""
    # Bytes join as they are with ByteLevel's decoder, and without any.
    if not contents.stages.chars and (not decoder or decoders.is_byte_level(decoder)):
        inert = {id: token for token, id in contents.inert.items()}
        decoder = [pre_tokenizer.BYTE_LEVEL]
        return decoders.surfaces(decoder, inert, CHAR_TO_BYTE) if inert else None
    spelled = {id: token for token, id in vocab.items()}
    normalizers = contents.stages.normalizers
    spelled |= {
        # A token that is found in normalised text is decoded as it stands there.
        token.id: _rust.normalise(token.content, normalizers) if token.normalized else token.content
        for token in contents.added_tokens
    }
    return decoders.surfaces(decoder, spelled, CHAR_TO_BYTE)


def _check_kept(document: Mapping[str, Any]) -> None:
    """ValueError for what cannot be written back unseen: parts of a kind that is not known."""
    for key, known in (("truncation", TRUNCATION), ("padding", PADDING)):
        if document.get(key) is not None:
            check_keys(checked(document[key], dict, key), known, f"{key}.")
    template.check(document.get("post_processor"))


def _added_tokens(entries: object, vocab: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """The added tokens in the order of the file; their ids are checked by `_check_ids`."""
    added: dict[str, AddedToken] = {}
    for item in checked(entries, list, "added_tokens"):
        entry = checked(item, dict, "an entry of added_tokens")
        content = checked(entry["content"], str, "content of an added token")
        place = f"added_tokens {content!r} "
        check_keys(entry, {"id", "content", *FLAGS}, place)
        if content in added:
            raise ValueError(f"added token {content!r} is listed twice")
        added[content] = AddedToken(
            content,
            id=checked(entry["id"], int, f"{place}id"),
            listed=content in vocab,
            **{
                flag: checked(entry.get(flag, flag == "special"), bool, place + flag)
                for flag in FLAGS
            },
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
