"""Mistral's tekken.json: ranks of bytes, numbered after the special tokens.

| key | |
|---|---|
| config: pattern, default_vocab_size, default_num_special_tokens | applied |
| config: any other | no id depends on it |
| vocab | the first of them, as many as the vocabulary has beside its special tokens |
| special_tokens | applied; ids that they leave free are `<SPECIAL_20>` and so on |
| image, audio, multimodal | no id of a text depends on them |

The file is read and not written: `save` gives a tokenizer.json with equal ids. Old files leave
their special tokens out; they are those of `DEFAULT`, as in mistral-common.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

from tinylm.tokenizer.checks import checked, shown
from tinylm.tokenizer.contents import Contents, special
from tinylm.tokenizer.models import Bpe

NAME = "tekken.json"
DEFAULT = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"),
    *("[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    "[TOOL_CONTENT]",
)


def read(path: Path, document: dict[str, Any]) -> Contents:
    """The contents of a tekken.json, of which `document` is all; ValueError names what is wrong."""
    try:
        return _contents(document)
    except KeyError as error:
        raise ValueError(f"{path}: not a tekken.json: no {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _contents(document: dict[str, Any]) -> Contents:
    config = checked(document["config"], dict, "config")
    size = checked(config["default_vocab_size"], int, "config.default_vocab_size")
    first = checked(config["default_num_special_tokens"], int, "config.default_num_special_tokens")
    vocab = checked(document["vocab"], list, "vocab")
    if not first + 256 <= size <= first + len(vocab):
        raise ValueError(
            f"config.default_vocab_size = {size} does not fit {first} special tokens and "
            f"{len(vocab)} others"
        )
    tokens: dict[bytes, int] = {}
    for rank, item in enumerate(vocab[: size - first]):
        match item:
            case {"rank": found, "token_bytes": str(text)} if found == rank:
                try:
                    token = base64.b64decode(text, validate=True)
                except binascii.Error as error:
                    raise ValueError(f"vocab[{rank}]: {error}") from None
            case _:
                raise ValueError(f"vocab[{rank}] = {shown(item)} is not the token of this rank")
        if tokens.setdefault(token, first + rank) != first + rank:
            raise ValueError(f"vocab[{rank}]: the token {token!r} is there twice")
    pattern = checked(config["pattern"], str, "config.pattern")
    names = _special(document.get("special_tokens"), first)
    return Contents(tokens, Bpe(None, whole_pieces=True), pattern, special(names))


def _special(found: object, count: int) -> dict[str, int]:
    """The special tokens and their ids, which are all below `count`."""
    names = dict(enumerate(DEFAULT[:count]))
    if found is not None:
        names = {}
        for item in checked(found, list, "special_tokens"):
            match item:
                case {"rank": int(rank), "token_str": str(name)} if rank < count:
                    names[rank] = name
                case _:
                    raise ValueError(f"special_tokens has {shown(item)}, not below {count}")
    return {names.get(id, f"<SPECIAL_{id}>"): id for id in range(count)}
