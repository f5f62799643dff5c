"""A text prompt to the ids that a model reads, and to the ways in which its end may go on.

A prompt may end where the tokenizer would not have cut. After "def " training never saw the token
" " and then "main", only " main". Token healing reads a beginning of the prompt and lets the next
token spell the rest of it and more. guidance and transformers cut exactly the last token, llama.cpp
the longest end that begins a token; both then allow, token by token, what spells the cut text.
That favours short tokens: each is drawn without a look at how unlikely the rest is after it. Here
whole ways are compared, each by the probability that the model gives to all its tokens, so that
one draw decides.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from tinylm.config import SampleConfig
from tinylm.config.limits import show

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Bytes of text before the shortest beginning that are encoded again with each way. More would
# change nothing: a token depends on the words next to it, hardly ever on those further away.
CONTEXT = 32


@dataclass(frozen=True)
class Way:
    """The ids of a beginning of the text, and the tokens that spell the rest of it and more."""

    beginning: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A text as a model reads it: the ids before it, its own ids, and the ways to heal its end."""

    opening: tuple[int, ...]
    ids: tuple[int, ...]
    ways: tuple[Way, ...]

    @property
    def shared(self) -> int:
        """How many of the text's own ids begin every way: those are read in any case."""
        count = len(self.ids)
        for way in self.ways:
            pairs = zip(self.ids, way.beginning, strict=False)
            alike = next((i for i, (a, b) in enumerate(pairs) if a != b), len(way.beginning))
            count = min(count, alike)
        return count


def as_ids(prompts: object) -> list[list[int]]:
    """Prompts as lists of Python's ints; `ValueError` for what is no sequence of ids.

    Each prompt may be a list, a tuple or an array. True is no id, and neither is 2.0.
    """
    form = "expected a list of prompts, each a list of ids"
    if isinstance(prompts, str | bytes | dict) or not isinstance(prompts, Iterable):
        raise ValueError(f"prompts={show(repr(prompts))}: {form}")
    found = []
    for number, prompt in enumerate(prompts):
        # An array or tensor gives ints of its own kind; `tolist` makes them Python's.
        items = prompt.tolist() if hasattr(prompt, "tolist") else prompt
        if isinstance(items, str | bytes | dict) or not isinstance(items, Iterable):
            kind = type(items).__name__
            raise ValueError(f"prompt {number} is {kind} {show(repr(items))}: {form}")
        items = [id.item() if isinstance(id, np.generic) else id for id in items]
        for id in items:
            if not isinstance(id, int) or isinstance(id, bool):
                kind = type(id).__name__
                raise ValueError(f"prompt {number} holds {kind} {show(repr(id))}: {form}")
        found.append(items)
    return found


def read(tokenizer: "Tokenizer", text: str, config: SampleConfig, vocab_size: int) -> Prompt:
    """A text to what a model of `vocab_size` reads, by `config.bos` and `config.heal`.

    `ValueError` for a special token in the text, and for a text without a token to begin with.
    """
    if not isinstance(text, str):
        kind = type(text).__name__
        advice = "decode it first" if isinstance(text, bytes) else "generate() takes ids"
        raise ValueError(f"prompt: expected a str, not {kind} {show(repr(text))}: {advice}")
    ids = tuple(tokenizer.encode(text, special="raise"))
    opening = _opening(tokenizer, config, empty=not ids)
    data = text.encode()
    # A restriction is about the text after the prompt, of which a longer token is only partly.
    healing = config.heal and not config.restricted and ids
    ways = _ways(tokenizer, data, ids, vocab_size) if healing else ()
    if not opening:
        # A model reads one token at least, and here none stands before the text.
        ways = tuple(way for way in ways if way.beginning[:1] == ids[:1])
    return Prompt(opening, ids, ways)


def _opening(tokenizer: "Tokenizer", config: SampleConfig, *, empty: bool) -> tuple[int, ...]:
    """The ids before a text."""
    eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    opening: tuple[int, ...] = ()
    if config.bos is True:
        if not eos:
            raise ValueError(
                "sample.bos=true: the tokenizer has no end-of-text token to begin with; "
                "sample.bos=false begins with the prompt itself"
            )
        opening = eos
    elif config.bos == "auto":
        # A file that says what to add knows better; ours says nothing, and its texts began so.
        added = tokenizer.prefix_ids
        opening = eos if added is None else added
    if empty and not opening:
        if not eos:
            raise ValueError("the prompt is empty, and the tokenizer has no end-of-text token")
        opening = eos
    return opening


def _ways(
    tokenizer: "Tokenizer", text: bytes, ids: Sequence[int], vocab_size: int
) -> tuple[Way, ...]:
    """Every way to spell more than `text` that the tokenizer itself would take.

    That is, a beginning of the text and one token after it, where encoding the text that they
    spell gives these very ids: training can have seen no others.
    """
    vocab = tokenizer.vocab
    # A tokenizer that changes its text (a normalizer) cannot be asked which tokens begin with it.
    if b"".join(vocab[id] for id in ids) != text:
        return ()
    special = {*tokenizer.special_tokens.values()}
    known = sorted(
        (token, id) for id, token in vocab.items() if id < vocab_size and id not in special
    )
    spelled = [token for token, _ in known]
    longest = max(map(len, spelled), default=0)
    first = max(0, len(text) - longest + 1)
    head, start = _head(tokenizer, text, ids, first - CONTEXT, vocab)
    ways = []
    for cut in range(first, len(text)):
        rest = text[cut:]
        found = range(bisect_left(spelled, rest), bisect_right(spelled, rest + b"\xff" * longest))
        longer = [known[i] for i in found if len(spelled[i]) > len(rest)]
        before = text[start:cut]
        own = tokenizer.encode(before, special="text") if longer else []
        if longer and b"".join(vocab[id] for id in own) == before:
            tokens = _taken(tokenizer, before, own, longer)
            if tokens:
                ways.append(Way((*head, *own), tokens))
    return tuple(ways)


def _head(
    tokenizer: "Tokenizer", text: bytes, ids: Sequence[int], most: int, vocab: dict[int, bytes]
) -> tuple[tuple[int, ...], int]:
    """Ids of the prompt that no way changes, and the number of their bytes, at most `most`."""
    sizes = list(accumulate((len(vocab[id]) for id in ids), initial=0))
    # The whole text in any case: what may be left out only saves time.
    count = max(bisect_right(sizes, most) - 1, 0)
    while count and not _stands(tokenizer, text[sizes[count] :], ids[count:]):
        count -= 1
    return tuple(ids[:count]), sizes[count]


def _stands(tokenizer: "Tokenizer", text: bytes, ids: Sequence[int]) -> bool:
    """Whether `text` begins with a whole character and has these ids on its own."""
    whole = text[0] & 0xC0 != 0x80
    return whole and tokenizer.encode(text, special="text") == [*ids]


def _taken(
    tokenizer: "Tokenizer", before: bytes, own: Sequence[int], longer: Sequence[tuple[bytes, int]]
) -> tuple[int, ...]:
    """The ids, in order, of those tokens that the tokenizer itself puts after `own`."""
    texts = [before + token for token, _ in longer]
    flat, offsets = tokenizer.encode_batch(texts, special="text")
    wanted, last = np.array([id for _, id in longer]), np.array(own, dtype=np.int64)
    size = len(own) + 1
    fits = np.diff(offsets) == size
    rows = flat[offsets[:-1][fits][:, None] + np.arange(size)]
    same = (rows[:, :-1] == last).all(1) & (rows[:, -1] == wanted[fits])
    return tuple(sorted(wanted[fits][same].tolist()))
