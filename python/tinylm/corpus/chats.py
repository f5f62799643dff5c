"""Rows of conversations: one JSON object per line, its turns in the field `messages`.

    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}

A document of such a file is its list of turns as JSON on one line (`document`), which no
tokenizer sees: it becomes marks and texts (`tinylm.tokenizer.chat`). Other fields of a row are
passed over, as in rows of text. A field of a turn other than these two would change what it means
(a tool's call, a weight), so it is refused by name.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tinylm.corpus import tables
from tinylm.corpus.reading import TEXT
from tinylm.corpus.rows import find, kind_of, lines, record

FIELD = "messages"
ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]


def conversations(path: Path) -> Iterator[str]:
    """The document of each row; `ValueError` names the file and the line of a bad one."""
    if tables.is_table(path):
        for where, messages in tables.values(path, FIELD):
            yield document(messages or (), where)
        return
    for where, line in lines(path):
        yield document(_messages(record(line, where), where), where)


def has_chats(path: Path, text_field: str = TEXT) -> bool:
    """Whether the first row of a file holds a conversation and no text."""
    if tables.is_table(path):
        names = set(tables.shape(path, FIELD).columns)
        return FIELD in names and text_field.partition(".")[0] not in names
    for where, line in islice(lines(path), 1):
        try:
            found = record(line, where)
        except ValueError:
            return False
        return not find(found, FIELD)[1] and bool(find(found, text_field)[1])
    return False


def document(messages: Sequence[Message], where: str = FIELD) -> str:
    """Turns to the JSON that stands for them in a corpus; `ValueError` as `check` says."""
    check(messages, where)
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError(
            f"{where}: no turn of the assistant, so nothing to learn: add its answer or remove the "
            f"conversation"
        )
    return json.dumps(turns, ensure_ascii=False)


def messages_of(text: str) -> list[dict[str, str]]:
    """The turns of a document that `document` made."""
    found: list[dict[str, str]] = json.loads(text)
    return found


def check(messages: Sequence[Message], where: str = FIELD) -> None:
    """Raise `ValueError`, which begins with `where`, unless these are turns with texts.

    A system's turn comes first if there is one. `where` is a file and a line, or an argument.
    """
    if not messages:
        raise ValueError(f"{where}: no turns: give at least one message")
    for number, turn in enumerate(messages, 1):
        at = f"{where}: message {number}"
        if not isinstance(turn, Mapping):
            raise ValueError(f"{at} is {kind_of(turn)}: expected an object with role and content")
        for name in ("role", "content"):
            if name not in turn:
                names = ", ".join(map(json.dumps, turn)) or "none"
                raise ValueError(f'{at} lacks "{name}" (its fields: {names}): add it')
            if not isinstance(turn[name], str):
                raise ValueError(f'{at}: "{name}" is {kind_of(turn[name])}: expected a string')
        for name, value in turn.items():
            # Exports of other programs write what a turn does not have as null.
            if name not in ("role", "content") and value is not None:
                raise ValueError(
                    f'{at} has the field "{name}", which TinyLM does not read: remove it, or the '
                    f"conversation"
                )
        if turn["role"] not in ROLES:
            raise ValueError(f'{at} has the role "{turn["role"]}": expected {", ".join(ROLES)}')
        if turn["role"] == "system" and number > 1:
            raise ValueError(f"{at} is the system's: only the first one may be")
        try:
            turn["content"].encode()
        except UnicodeEncodeError as error:
            problem = f"half of a surrogate pair at character {error.start + 1} of its content"
            raise ValueError(f"{at} is not UTF-8 text: {problem}: mend it") from None


def _messages(row: Any, where: str) -> list[Any]:
    """The turns of a decoded row, objects as dictionaries."""
    if not isinstance(row, tuple):
        raise ValueError(f'{where} is {kind_of(row)}: expected an object with "{FIELD}"')
    found = [value for name, value in row if name == FIELD]
    if len(found) != 1 or not isinstance(found[0], list):
        names = ", ".join(json.dumps(name) for name, _ in row[:5]) or "none"
        raise ValueError(
            f'{where} has no list of turns in one field "{FIELD}" (its fields: {names}), as the '
            f"first row of the file has"
        )
    turns = []
    for number, turn in enumerate(found[0], 1):
        turns.append(dict(turn) if isinstance(turn, tuple) else turn)
        if isinstance(turn, tuple) and len(turn) > len(turns[-1]):
            raise ValueError(f"{where}: message {number} has a field twice: keep one")
    return turns
