"""The one draw that decides how the end of a prompt goes on."""

from collections.abc import Iterable, Set
from typing import NamedTuple

import torch
from torch import Tensor

from tinylm.config import SampleConfig
from tinylm.sample.logits import NEVER, draw, greedy, process, uniforms
from tinylm.sample.prompt import Prompt
from tinylm.sample.reader import Reader

# The position of this draw's random number: no continuation gets that far, so that the numbers
# of all other draws are those of a prompt that is not healed.
POSITION = 2**40


class Healed(NamedTuple):
    """The ids of the text or of a beginning of it, and the token drawn after it, if any."""

    ids: tuple[int, ...]
    token: int | None


def heal(
    reader: Reader,
    prompt: Prompt,
    config: SampleConfig,
    *,
    sample: int,
    ends: Set[int] = frozenset(),
) -> Healed:
    """Draw the prompt as it is, or one of its ways and a token; the reader then has their ids.

    `reader` holds the opening and the shared ids of `prompt`.
    """
    healed = decide(*choices(reader, prompt), prompt, config, sample=sample, ends=ends)
    rest = healed.ids[prompt.shared :]
    if rest:
        reader.read([rest])
    return healed


def decide(
    logits: Tensor,
    seen: Tensor,
    prompt: Prompt,
    config: SampleConfig,
    *,
    sample: int,
    ends: Set[int] = frozenset(),
) -> Healed:
    """Draw one of the `choices`, for one sample.

    The settings of `config` apply to these choices as to any tokens; greedy decoding takes the
    likeliest. With `config.min_tokens` no token of `ends`, those that end a text, is drawn.
    """
    ways = [(way, token) for way in prompt.ways for token in way.tokens]
    if config.min_tokens:
        early = [False, *(token in ends for _, token in ways)]
        logits = logits.masked_fill(torch.tensor(early, device=logits.device), NEVER)
    logits = process(logits, seen, torch.zeros_like(logits), config)
    if config.temperature == 0:
        index = int(greedy(logits))
    else:
        number = torch.from_numpy(uniforms(config.seed, 0, sample, POSITION, 1))
        index = int(draw(logits, number.to(logits.device)))
    if not index:
        return Healed(prompt.ids, None)
    way, token = ways[index - 1]
    return Healed(way.beginning, token)


def choices(reader: Reader, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Log-probability [1, N] of the prompt as it is and of each token of each way, in order.

    Each is that of all its ids together, after the ids that are read in any case. The second
    tensor, bool, tells where the last id stands among those before it, for the penalties.
    """
    shared = prompt.shared
    own, tails = prompt.ids[shared:], [way.beginning[shared:] for way in prompt.ways]
    after = _read(reader, {own[:-1], *tails})
    scores = [_likelihood(after, own)[None]]
    seen = [own[-1] in {*prompt.opening, *prompt.ids[:-1]}]
    for way, tail in zip(prompt.ways, tails, strict=True):
        scores.append(_likelihood(after, tail) + after[tail][[*way.tokens]])
        before = {*prompt.opening, *way.beginning}
        seen += [token in before for token in way.tokens]
    logits = torch.cat(scores)[None]
    return logits, torch.tensor([seen], device=logits.device)


def _read(reader: Reader, tails: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
    """Each tail, and each beginning of one, to the log-probabilities [V] of the token after it."""
    last, length = reader.last, len(reader.texts[0])
    after: dict[tuple[int, ...], Tensor] = {(): last[0].log_softmax(-1)}
    # The longest first: what begins it need not be read again.
    for tail in sorted(tails, key=len, reverse=True):
        if tail not in after:
            rows = reader.read([tail])[0].log_softmax(-1)
            after |= {tail[: end + 1]: row for end, row in enumerate(rows)}
            reader.truncate([length])
    # `truncate` leaves the logits after what it took back.
    reader.last = last
    return after


def _likelihood(after: dict[tuple[int, ...], Tensor], tail: tuple[int, ...]) -> Tensor:
    """Log-probability of all ids of a tail."""
    parts = [after[tail[:end]][token] for end, token in enumerate(tail)]
    return torch.stack(parts).sum() if parts else torch.zeros_like(after[()][0])
