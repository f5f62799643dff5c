"""`tokenizer.json`, the file of Hugging Face's `tokenizers`: its byte-level BPE, read and written.

Written files give equal ids there. Files read may come from `tokenizers` or `transformers`; what
TinyLM does not do (normalizers, prefix spaces, unknown tokens, ...) is an error that names it.
"""

import json
from pathlib import Path
from typing import Any

from tinylm.tokenizer import files
from tinylm.tokenizer.files import Contents

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


def write(contents: Contents, path: Path, named: dict[str, int | None]) -> None:
    """Writes `tokenizer.json`; into a folder, with the `tokenizer_config.json` of transformers."""
    data = json.dumps(_document(contents), ensure_ascii=False, indent=1).encode()
    if path.suffix == ".json":
        files.write_atomically(path, data)
        return
    files.write_atomically(path / "tokenizer.json", data)
    token_of = {id: token for token, id in contents.special_tokens.items()}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    config |= {name: token_of[id] for name, id in named.items() if id is not None}
    files.write_atomically(path / "tokenizer_config.json", json.dumps(config, indent=1).encode())


def _document(contents: Contents) -> dict[str, Any]:
    vocab = {files.to_chars(token): id for token, id in contents.tokens.items()}
    vocab |= contents.special_tokens
    pairs = files.every_split(contents.tokens) if contents.merges is None else contents.merges
    chars_of = {id: token for token, id in vocab.items()}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token, id in sorted(contents.special_tokens.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(contents.pattern),
        "post_processor": None,
        "decoder": {**_BYTE_LEVEL, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": contents.whole_pieces,
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
            "merges": [[chars_of[left], chars_of[right]] for left, right in pairs],
        },
    }


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
    document = files.read_json(path)
    try:
        return _contents(document)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not a tokenizer.json as TinyLM knows it: {what}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _contents(document: dict[str, Any]) -> Contents:
    model = document["model"]
    # Old files leave the type out; only BPE has merges.
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise ValueError(f"model type {kind} is not supported, only BPE over bytes")
    for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"model.{name} = {model[name]!r} is not supported")
    if model.get("byte_fallback"):
        raise ValueError("model.byte_fallback is not supported: it is for BPE over characters")
    if document.get("normalizer"):
        raise ValueError(f"normalizer {document['normalizer'].get('type')} is not supported")
    special = {}
    for token in document.get("added_tokens") or []:
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise ValueError(f"added token {token['content']!r} has {flag}: not supported")
        special[token["content"]] = token["id"]
    merges = [_merge(merge) for merge in model["merges"]]
    pattern = _pattern(document.get("pre_tokenizer"))
    contents = files.contents_of(model["vocab"], merges, pattern, special)
    whole = bool(model.get("ignore_merges"))
    if whole and contents.merges and contents.merges == files.every_split(contents.tokens):
        # Ranks, written as all the merges that they allow.
        return Contents(contents.tokens, None, True, pattern, special)
    return Contents(contents.tokens, contents.merges, whole, pattern, special)


def _merge(merge: str | list[str]) -> tuple[str, str]:
    # Older files join the two tokens with a space.
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if len(parts) != 2:
        raise ValueError(f"merge {merge!r} is not two tokens")
    return parts[0], parts[1]


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str:
    """The pattern that a pre-tokenizer stands for: ByteLevel, or Split and then ByteLevel."""
    if pre_tokenizer is None:
        raise ValueError("pre_tokenizer is missing: BPE over characters is not supported")
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else None
    match steps or [pre_tokenizer]:
        case [{"type": "ByteLevel", "add_prefix_space": False, **rest}]:
            return "gpt2" if rest.get("use_regex", True) else "whole"
        case [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return PATTERN_OF_REGEX.get(str(regex), str(regex))
        # What matches is kept, what is between is dropped; our patterns leave nothing between.
        case [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ] if regex in PATTERN_OF_REGEX:
            return PATTERN_OF_REGEX[regex]
    described = json.dumps(pre_tokenizer)
    raise ValueError(
        "pre_tokenizer is not supported, only ByteLevel without prefix space, alone or after one "
        f"Split with an isolating Regex: {described[:200]}"
    )
