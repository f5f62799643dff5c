"""Conversations: an answer to the turns before it, as the model writes it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tinylm.config import SampleConfig
from tinylm.corpus.chats import Message
from tinylm.model import Model
from tinylm.sample.completions import generate
from tinylm.sample.decoding import stream_ids, write
from tinylm.sample.guesses import Ahead
from tinylm.sample.prompt import Prompt
from tinylm.tokenizer import chat

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer


def reply(
    model: Model,
    tokenizer: "Tokenizer",
    messages: Sequence[Message],
    config: SampleConfig,
    *,
    sample: int = 0,
    draft: Ahead | None = None,
) -> Iterator[str]:
    """The assistant's answer to `messages` in pieces of text, without the mark that ends it.

    Of turns that do not fit into the context with an answer the oldest are left out. `draft` is
    what `config.draft` names, which is loaded here otherwise. `ValueError` for a tokenizer without
    marks, and for messages that are none.
    """
    settings = stopping(tokenizer, config)
    prompt = Prompt((), tuple(asked(model, tokenizer, messages, config)), ())
    ids = stream_ids(model, tokenizer, prompt, settings, sample=sample, draft=draft)
    return write(tokenizer, ids, settings)


def replies(
    model: Model,
    tokenizer: "Tokenizer",
    conversations: Sequence[Sequence[Message]],
    config: SampleConfig,
) -> list[str]:
    """The answer to each of several conversations, decoded together."""
    prompts = [asked(model, tokenizer, messages, config) for messages in conversations]
    found = generate(model, prompts, stopping(tokenizer, config), tokenizer=tokenizer)
    return [tokenizer.decode(ids) for ids in found]


def asked(
    model: Model, tokenizer: "Tokenizer", messages: Sequence[Message], config: SampleConfig
) -> list[int]:
    """The ids that a model reads before it answers; they leave room for some of its answer."""
    # In training every conversation follows the end of another.
    opening = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    length = model.config.context_length
    room = length - min(config.max_tokens, length // 4)
    first = [turn for turn in messages[:1] if turn["role"] == "system"]
    rest = [*messages[len(first) :]]
    while True:
        ids = [*opening, *chat.encode(tokenizer, [*first, *rest], answer=True)]
        if len(ids) <= room or len(rest) <= 1:
            return ids
        # Up to the next question: an answer without it would be no conversation.
        rest = rest[1:]
        while len(rest) > 1 and rest[0]["role"] != "user":
            rest = rest[1:]


def stopping(tokenizer: "Tokenizer", config: SampleConfig) -> SampleConfig:
    """The settings with every mark as a stop: whichever comes, the assistant's turn is over."""
    found = chat.need_marks(tokenizer)
    return replace(config, stop=(*config.stop, found.end, *found.roles.values()))
