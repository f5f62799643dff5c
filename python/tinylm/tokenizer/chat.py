"""Conversations to token ids and back: a mark begins each turn, and one ends it.

    <|user|>What is 3 + 4?<|end|><|assistant|>7<|end|>

Each mark is one special token. The words between two marks are encoded by themselves, with
`special="text"`: whoever writes `<|end|>` in a message writes seven characters, and ends no turn.
`TEMPLATE` says the same in the language of transformers' `apply_chat_template`, which
tokenizer_config.json carries; nothing here needs that language. (transformers finds marks also in
the words of a message. So it gives these ids for words that hold none.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylm.corpus.chats import ROLES, Message, check, messages_of
from tinylm.tokenizer.beside import CONFIG, TEMPLATE_FILE
from tinylm.tokenizer.contents import AddedToken, Contents
from tinylm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

END = "<|end|>"
MARKS = (*(f"<|{role}|>" for role in ROLES), END)
# `generation` marks what the assistant writes, for transformers' return_assistant_tokens_mask.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Marks:
    """The ids of a tokenizer's marks: of the roles by name, and of the end of a turn."""

    roles: dict[str, int]
    end: int

    @property
    def assistant(self) -> int:
        """The id after which the model speaks."""
        return self.roles["assistant"]


def marks(tokenizer: Tokenizer) -> Marks | None:
    """The marks of a tokenizer, or None if it lacks one of them or has another chat template."""
    special = tokenizer.special_tokens
    if not is_ours(tokenizer._contents):
        return None
    return Marks({role: special[f"<|{role}|>"] for role in ROLES}, special[END])


def is_ours(contents: Contents) -> bool:
    """Whether all four marks are special tokens and no file names another template."""
    template = contents.beside.get(TEMPLATE_FILE) or contents.beside.get(CONFIG, {}).get(
        "chat_template"
    )
    return template in (None, TEMPLATE) and contents.special_tokens.keys() >= {*MARKS}


def need_marks(tokenizer: Tokenizer) -> Marks:
    """The marks of a tokenizer; `ValueError` if it has none."""
    found = marks(tokenizer)
    if found is None:
        raise ValueError(
            f"the tokenizer has no marks of turns ({', '.join(MARKS)}): train on conversations, "
            f"such as data.source=tasks, which adds them"
        )
    return found


def with_marks(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the marks that it lacks as new last ids, and with `TEMPLATE`."""
    contents = tokenizer._contents
    stated = contents.beside.get(CONFIG, {}).get("chat_template")
    if marks(tokenizer) is not None and stated == TEMPLATE:
        return tokenizer
    added = [*contents.added_tokens]
    there = {token.content: token for token in added}
    for number, mark in enumerate(m for m in MARKS if m not in there):
        added.append(AddedToken(mark, tokenizer.vocab_size + number))
    # One that always matched would be found in the words of a message.
    added = [t._replace(special=True) if t.content in MARKS else t for t in added]
    beside = {name: file for name, file in contents.beside.items() if name != TEMPLATE_FILE}
    config: dict[str, Any] = {**beside.get(CONFIG, {}), "chat_template": TEMPLATE}
    if listed := config.get("added_tokens_decoder"):
        new = {str(t.id): {"content": t.content, "special": True} for t in added}
        config["added_tokens_decoder"] = new | listed
    beside[CONFIG] = config
    return Tokenizer(replace(contents, added_tokens=tuple(added), beside=beside))


def encode(tokenizer: Tokenizer, messages: Sequence[Message], *, answer: bool = False) -> list[int]:
    """The ids of turns; with `answer` the mark follows after which the assistant speaks.

    `ValueError` for messages that `corpus.chats.check` refuses, and for a tokenizer without marks.
    """
    check(messages)
    found = need_marks(tokenizer)
    ids: list[int] = []
    for turn in messages:
        words = tokenizer.encode(turn["content"], special="text")
        ids += [found.roles[turn["role"]], *words, found.end]
    return [*ids, found.assistant] if answer else ids


def encode_documents(
    tokenizer: Tokenizer, documents: Iterable[str]
) -> "tuple[NDArray[np.uint32], NDArray[np.int64], int]":
    """Documents of a chat corpus to ids and offsets, as `Tokenizer.encode_batch` gives them, and
    the bytes of their words, over all cores."""
    found = need_marks(tokenizer)
    turns, ends = [], [0]
    for document in documents:
        turns += messages_of(document)
        ends.append(len(turns))
    words = [turn["content"] for turn in turns]
    flat, bounds = tokenizer.encode_batch(words, special="text")
    # Every turn grows by two marks, so its words move by two for each turn before it, and by one.
    ids = np.empty(len(flat) + 2 * len(turns), np.uint32)
    starts = bounds[:-1] + 2 * np.arange(len(turns))
    stops = bounds[1:] + 2 * np.arange(len(turns)) + 1
    place = np.ones(len(ids), bool)
    place[starts] = place[stops] = False
    ids[place] = flat
    ids[starts] = [found.roles[turn["role"]] for turn in turns]
    ids[stops] = found.end
    offsets = (bounds + 2 * np.arange(len(bounds)))[ends]
    return ids, offsets, sum(len(text.encode()) for text in words)


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> list[dict[str, str]]:
    """Ids to the turns that they hold; what stands before the first mark is left out."""
    found = need_marks(tokenizer)
    names = {id: role for role, id in found.roles.items()}
    turns: list[tuple[str, list[int]]] = []
    speaks = False
    for id in ids:
        if id in names:
            turns.append((names[id], []))
        elif speaks and id not in (found.end, tokenizer.eos_id):
            turns[-1][1].append(id)
        speaks = id in names or (speaks and id not in (found.end, tokenizer.eos_id))
    return [{"role": role, "content": tokenizer.decode(words)} for role, words in turns]
