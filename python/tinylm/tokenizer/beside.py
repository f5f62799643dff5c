"""The files that stand beside a `tokenizer.json` or GPT-2's two files, read and written.

| file | |
|---|---|
| tokenizer_config.json: eos_token, bos_token, pad_token | applied (`Contents.roles`), kept |
| the same, with other keys that name tokens (`_named`) | must be added tokens; kept |
| tokenizer_config.json: added_tokens_decoder | must agree with the added tokens; kept |
| tokenizer_config.json: the keys of `CHANGE_IDS` | refused if true: they change ids |
| tokenizer_config.json: any other | kept |
| special_tokens_map.json | as the tokens above, where the former does not say them; kept |
| added_tokens.json | must agree with a `tokenizer.json`; its tokens are added to GPT-2's files |
| chat_template.jinja | kept: nothing here renders it |

What is kept is written back into the folder that `Tokenizer.save` writes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinylm import disk
from tinylm.tokenizer.contents import AddedToken, Contents, late_tokens, read_json

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TEMPLATE_FILE = "chat_template.jinja"
# The keys of the tokens that end, begin and fill up a text. Where no file says which token has a
# role, it is the first of these names that there is.
NAMES = {
    "eos_token": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]"),
    "bos_token": ("<|begin_of_text|>", "<|startoftext|>", "<s>", "<bos>", "<|bos|>", "[BOS]"),
    "pad_token": ("<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<pad>", "[PAD]"),
}
ROLES = tuple(NAMES)
# The keys of more tokens: a list, or an object whose values are tokens.
MORE = ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
CHANGE_IDS = ("add_prefix_space", "do_lower_case", "split_special_tokens")


def read(folder: Path, contents: Contents, *, source: str) -> Contents:
    """The contents with what the files of `folder` say about them; ValueError where they differ.

    `source` names what holds the vocabulary.
    """
    found: dict[str, Any] = {
        name: read_json(folder / name) for name in (CONFIG, MAP) if (folder / name).exists()
    }
    if (folder / TEMPLATE_FILE).exists():
        found[TEMPLATE_FILE] = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    config = found.get(CONFIG, {})
    for key in CHANGE_IDS:
        # Refused and not kept: transformers would apply them and give other ids for the same
        # folder.
        if config.get(key) and not _applied(key, contents):
            raise ValueError(f"{folder / CONFIG}: {key} = true is not supported: it changes ids")
    for name, tokens in _named_ids(folder, config):
        for content, id in tokens.items():
            if contents.id_of(content) != id:
                there = contents.id_of(content)
                raise ValueError(
                    f"{folder / name}: token {content!r} has the id {id}, but {source} gives it "
                    f"{'none' if there is None else there}; take one of the two files out"
                )
            _check_added(content, contents, f"{folder / name}: token {content!r}", source)
    _check_flags(config.get("added_tokens_decoder") or {}, contents, folder / CONFIG)
    # transformers reads the map only if the configuration does not list the added tokens.
    for name in (CONFIG,) if "added_tokens_decoder" in config else (CONFIG, MAP):
        for key, content in _named(found.get(name, {}), folder / name):
            # `Tokenizer.with_eos` takes an ordinary token too.
            if key not in ROLES or contents.id_of(content) is None:
                _check_added(content, contents, f"{folder / name}: {key} {content!r}", source)
    roles: dict[str, str] = {}
    for key in ROLES:
        for name in (CONFIG, MAP):
            stated = _content(found.get(name, {}).get(key), folder / name, key)
            if stated is not None:
                roles.setdefault(key, stated)
    return replace(contents, roles=roles, beside=found)


def _named_ids(folder: Path, config: Mapping[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """The tokens and ids that the files list, by file."""
    found = []
    try:
        listed = config.get("added_tokens_decoder") or {}
        found.append((CONFIG, {entry["content"]: int(id) for id, entry in listed.items()}))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"{folder / CONFIG}: added_tokens_decoder = {json.dumps(listed)[:200]} does not give "
            "each id an object with its content"
        ) from None
    if (folder / ADDED).exists():
        found.append((ADDED, _added_ids(folder)))
    return found


def _added_ids(folder: Path) -> dict[str, int]:
    """The tokens of added_tokens.json and their ids."""
    ids = read_json(folder / ADDED)
    for content, id in ids.items():
        if not isinstance(id, int) or isinstance(id, bool):
            raise ValueError(f"{folder / ADDED}: {content!r} has the id {id!r}, not an integer")
    return ids


def _named(file: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    """The tokens that a file names, each with its key."""
    for key, value in file.items():
        if key in MORE:
            # The older name counts only without the newer one.
            if value is None or (key == MORE[1] and file.get(MORE[0])):
                continue
            if not isinstance(value, list | dict):
                raise ValueError(f"{path}: {key} = {json.dumps(value)[:200]} is not a list")
            values = value.values() if isinstance(value, dict) else value
        elif key.endswith("_token") and isinstance(_text(value), str):
            values = [value]
        else:
            continue
        for one in values:
            if content := _content(one, path, key):
                yield key, content


def _applied(key: str, contents: Contents) -> bool:
    """Whether the tokenizer itself does what a key of `CHANGE_IDS` asks for."""
    if key == "do_lower_case":
        steps = contents.stages.normalizers
        return any(s["type"] == "Lowercase" or s.get("lowercase") for s in steps)
    if key == "add_prefix_space":
        cuts = contents.stages.pre_tokenizers
        return any(s.get(key) or s.get("prepend_scheme", "never") != "never" for s in cuts)
    return False


def _check_added(content: str, contents: Contents, what: str, source: str) -> None:
    """ValueError for a token that is not an added one: transformers would add it when it loads.

    Then it matches in every text, and a new token gets a new id.
    """
    if all(token.content != content for token in contents.added_tokens):
        raise ValueError(
            f"{what} is not an added token of {source}, and transformers would add it, which "
            "changes ids; save the tokenizer again with transformers, or take the token out"
        )


def _check_flags(listed: Mapping[str, Any], contents: Contents, path: Path) -> None:
    """ValueError for flags that move ids: in transformers they replace those of tokenizer.json.

    `special` may differ: transformers finds the token in a text with either value.
    """
    normalized: dict[str, bool] = {}
    for id, entry in listed.items():
        what = f"{path}: added_tokens_decoder[{json.dumps(id)}] ({entry['content']!r})"
        for flag in FLAGS:
            if not isinstance(entry.get(flag, False), bool):
                raise ValueError(f"{what}: {flag} = {json.dumps(entry[flag])} is not true or false")
        for flag in ("single_word", "lstrip", "rstrip"):
            theirs = any(
                getattr(token, flag)
                for token in contents.added_tokens
                if token.content == entry["content"]
            )
            if entry.get(flag, False) != theirs:
                raise ValueError(
                    f"{what}: {flag} = {json.dumps(entry.get(flag, False))}, other than the "
                    "tokenizer, which changes ids; make both equal"
                )
        # The default of transformers.
        default = not entry.get("special", False)
        normalized[entry["content"]] = entry.get("normalized", default)
    changed = tuple(
        token._replace(normalized=normalized.get(token.content, token.normalized))
        for token in contents.added_tokens
    )
    if late_tokens(changed) != late_tokens(contents.added_tokens):
        one = next(
            new for new, old in zip(changed, contents.added_tokens, strict=True) if new != old
        )
        raise ValueError(
            f"{path}: added_tokens_decoder gives {one.content!r} normalized = "
            f"{json.dumps(one.normalized)}, other than the tokenizer, which changes ids; "
            "make both equal"
        )


def _content(value: object, path: Path, key: str) -> str | None:
    """A token that a file names by its text, or by an object with the text."""
    match value:
        case None:
            return None
        case str(token) | {"content": str(token)}:
            return token
    raise ValueError(f"{path}: {key} = {json.dumps(value)[:200]} is not a token")


def added_to_gpt2(folder: Path) -> tuple[AddedToken, ...]:
    """The tokens of added_tokens.json; special are those that another file calls so."""
    if not (folder / ADDED).exists():
        return ()
    files = [read_json(folder / name) for name in (CONFIG, MAP) if (folder / name).exists()]
    special: set[str] = set()
    for file in files:
        extra = file.get("additional_special_tokens") or file.get("extra_special_tokens")
        listed = file.get("added_tokens_decoder") or {}
        values = [*file.values(), *(extra or ())]
        values += [entry for entry in listed.values() if entry.get("special")]
        for value in values:
            text = value.get("content") if isinstance(value, dict) else value
            special |= {text} if isinstance(text, str) else set()
    ids = _added_ids(folder)
    return tuple(AddedToken(content, id, content in special) for content, id in ids.items())


def written(contents: Contents, roles: Mapping[str, str], **changes: object) -> dict[str, bytes]:
    """The files to write beside a tokenizer: what was read, with these roles and `changes`."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **contents.beside.get(CONFIG, {}),
    }
    documents = {CONFIG: config | changes}
    if MAP in contents.beside:
        documents[MAP] = dict(contents.beside[MAP])
    for name, document in documents.items():
        for key, token in roles.items():
            # A token that another token replaces is written as plain text.
            if (name == CONFIG or key in document) and _text(document.get(key)) != token:
                document[key] = token
    files: dict[str, bytes] = {
        name: json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n"
        for name, document in documents.items()
    }
    if TEMPLATE_FILE in contents.beside:
        files[TEMPLATE_FILE] = contents.beside[TEMPLATE_FILE].encode()
    return files


def _text(value: object) -> object:
    return value.get("content") if isinstance(value, dict) else value


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes what `written` made."""
    for name, data in files.items():
        disk.replace(folder / name, data)
