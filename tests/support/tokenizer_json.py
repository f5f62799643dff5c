"""tokenizer.json files with other parts than TinyLM writes, and what `tokenizers` reads in them."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from tests.support.tokenizer_data import TOKENIZERS
from tinylm import Tokenizer

MAIN = TOKENIZERS["gpt4"]


def added(content: str, id: int, **flags: bool) -> dict[str, Any]:
    """An added token as `tokenizers` writes it, special unless `flags` say otherwise."""
    rest = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": content, **rest, "special": True, **flags}


def document_of(tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """The tokenizer.json of a tokenizer."""
    tokenizer.save(path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def with_added(path: Path, *tokens: dict[str, Any], **keys: object) -> Path:
    """The file of MAIN without its special tokens, with others and with other keys instead."""
    document = document_of(MAIN, path)
    for token in MAIN.special_tokens:
        del document["model"]["vocab"][token]
    document |= {"added_tokens": [*tokens], **keys}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def by_theirs(path: Path) -> dict[str, Any]:
    """The whole document as `tokenizers` reads it."""
    found: dict[str, Any] = json.loads(tokenizers.Tokenizer.from_file(str(path)).to_str())
    return found
