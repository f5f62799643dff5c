"""`python -m tinylm.sample RUN --chat`: a conversation in the terminal."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from tinylm import commands
from tinylm.config import SampleConfig

if TYPE_CHECKING:
    from tinylm.model import Model
    from tinylm.tokenizer import Tokenizer

ASK = "you: "
SAY = "model: "
HINT = "Ctrl-D ends the conversation, Ctrl-C an answer; /new forgets what was said."
NEW = "/new"


def talk(
    model: "Model", tokenizer: "Tokenizer", question: str | None, config: SampleConfig
) -> None:
    """Answer `question`; without one every line of standard input, with all turns before it.

    Where standard input is a terminal, it is asked for, and the answers are marked.
    """
    from tinylm.sample.chat import reply
    from tinylm.sample.drafts import find

    draft = find(config, model, tokenizer)
    if question is not None:
        turns = [{"role": "user", "content": question}]
        for number in range(config.samples):
            _print(reply(model, tokenizer, turns, config, sample=number, draft=draft))
        return
    watched = sys.stdin.isatty()
    if watched:
        commands.tell(HINT)
    turns = []
    for line in _lines(watched):
        if line == NEW:
            turns = []
            continue
        turns.append({"role": "user", "content": line})
        if watched:
            print(SAY, end="", flush=True)
        answer = _print(reply(model, tokenizer, turns, config, draft=draft))
        turns.append({"role": "assistant", "content": answer})


def _lines(watched: bool) -> Iterator[str]:
    """The lines that are not blank, until the input ends."""
    if watched:
        # Arrow keys and earlier lines, where this Python has them.
        with suppress(ImportError):
            import readline  # noqa: F401
    while True:
        try:
            line = input(ASK if watched else "")
        except EOFError:
            if watched:
                print()
            return
        if line.strip():
            yield line.strip()


def _print(pieces: Iterator[str]) -> str:
    """Write an answer as it comes; what was written when it ended or was stopped by Ctrl-C."""
    written = ""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            written += piece
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    print(flush=True)
    return written
