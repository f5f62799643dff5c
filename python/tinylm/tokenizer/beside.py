"""The files that stand beside a `tokenizer.json` or GPT-2's two files, read and written.

| file | |
|---|---|
| tokenizer_config.json: eos_token, bos_token, pad_token | applied (`Contents.roles`), kept |
| tokenizer_config.json: added_tokens_decoder | must agree with the vocabulary; kept |
| tokenizer_config.json: add_prefix_space, do_lower_case | refused if true: they change ids |
| tokenizer_config.json: any other | kept |
| special_tokens_map.json | as the three tokens above, where the former does not say them; kept |
| added_tokens.json | must agree with a `tokenizer.json`; its tokens are added to GPT-2's files |
| chat_template.jinja | kept: nothing here renders it |

What is kept is written back into the folder that `Tokenizer.save` writes.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinylm import disk
from tinylm.tokenizer.contents import AddedToken, Contents, read_json

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TEMPLATE = "chat_template.jinja"
# The keys of the tokens that end, begin and fill up a text.
ROLES = ("eos_token", "bos_token", "pad_token")


def read(folder: Path, contents: Contents, *, source: str) -> Contents:
    """The contents with what the files of `folder` say about them; ValueError where they differ.

    `source` names what holds the vocabulary.
    """
    found: dict[str, Any] = {
        name: read_json(folder / name) for name in (CONFIG, MAP) if (folder / name).exists()
    }
    if (folder / TEMPLATE).exists():
        found[TEMPLATE] = (folder / TEMPLATE).read_text(encoding="utf-8")
    config = found.get(CONFIG, {})
    for key in ("add_prefix_space", "do_lower_case"):
        # Refused and not kept: transformers would apply them and give other ids for the same
        # folder.
        if config.get(key):
            raise ValueError(f"{folder / CONFIG}: {key} = true is not supported: it changes ids")
    for name, tokens in _named_ids(folder, config):
        for content, id in tokens.items():
            if contents.id_of(content) != id:
                there = contents.id_of(content)
                raise ValueError(
                    f"{folder / name}: token {content!r} has the id {id}, but {source} gives it "
                    f"{'none' if there is None else there}; take one of the two files out"
                )
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
        found.append((ADDED, read_json(folder / ADDED)))
    return found


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
    ids = read_json(folder / ADDED)
    for content, id in ids.items():
        if not isinstance(id, int) or isinstance(id, bool):
            raise ValueError(f"{folder / ADDED}: {content!r} has the id {id!r}, not an integer")
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
    if TEMPLATE in contents.beside:
        files[TEMPLATE] = contents.beside[TEMPLATE].encode()
    return files


def _text(value: object) -> object:
    return value.get("content") if isinstance(value, dict) else value


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes what `written` made."""
    for name, data in files.items():
        disk.replace(folder / name, data)
