"""Log-probabilities of tokens, as the model gives them: of what was drawn, and of a prompt."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.config import ConfigError, SampleConfig
from tinylm.model import Model
from tinylm.sample.reader import AT_ONCE, visible


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of a token after the tokens before it, and the likeliest tokens there.

    `rank` counts from 1 for the likeliest token. `top` holds (id, log-probability), likeliest
    first, of equal ones the smaller id. The probabilities are those of the model before any
    setting of the sampler, such as a temperature or a bias.
    """

    id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


# A drawn token as a stream has it: its log-probability where that is asked for, or its id alone.
Told = int | TokenLogprobs


def id_of(token: Told) -> int:
    """The id of a drawn token."""
    return token if isinstance(token, int) else token.id


def refuse_logprobs(
    config: SampleConfig, why: str, names: Sequence[str] = ("logprobs", "prompt_logprobs")
) -> None:
    """Raise `ConfigError` for a config that asks for log-probabilities where there are none."""
    for name in names:
        value = getattr(config, name)
        if value is not None:
            raise ConfigError(f"sample.{name}={value}: {why}: leave it out, or use complete()")


def table(found: Sequence[TokenLogprobs | None], text: Callable[[int], str]) -> Iterator[str]:
    """Lines that a person can read, one per token; `text` returns the text of an id."""
    yield f"{'token':<20} {'logprob':>8} {'prob':>6} {'rank':>5}  likeliest"
    for one in found:
        if one is not None:
            likeliest = "  ".join(f"{text(id)!r} {_percent(x)}" for id, x in one.top)
            line = f"{text(one.id)!r:<20} {one.logprob:>8.3f} {_percent(one.logprob):>6}"
            yield f"{line} {one.rank:>5}  {likeliest}".rstrip()


def _percent(logprob: float) -> str:
    return f"{math.exp(logprob):.1%}"


def of_tokens(logits: Tensor, ids: Sequence[int], n: int) -> list[TokenLogprobs]:
    """logits [N, V] to the log-probability of one id per row, with the `n` likeliest of the row."""
    rows = logits.double().log_softmax(-1)
    own = rows.gather(1, torch.tensor(ids, device=rows.device)[:, None])
    # Of equal tokens the smaller id comes first, as in `greedy`.
    earlier = (
        torch.arange(rows.size(1), device=rows.device)
        < torch.tensor(ids, device=rows.device)[:, None]
    )
    ranks = ((rows > own) | ((rows == own) & earlier)).sum(-1) + 1
    tops = [_top(row, n) for row in rows]
    return [
        TokenLogprobs(id, logprob, rank, top)
        for id, logprob, rank, top in zip(
            ids, own[:, 0].tolist(), ranks.tolist(), tops, strict=True
        )
    ]


def _top(row: Tensor, n: int) -> tuple[tuple[int, float], ...]:
    """The `n` largest of a row [V] that can be drawn, with their ids."""
    n = min(n, row.numel())
    if n == 0:
        return ()
    least = row.topk(n).values[-1]
    # `topk` alone may choose any of equal ones.
    ids = (row >= least).nonzero()[:, 0]
    values, order = row[ids].sort(descending=True, stable=True)
    found = zip(ids[order][:n].tolist(), values[:n].tolist(), strict=True)
    return tuple((id, value) for id, value in found if value > -float("inf"))


def of_prompt(
    model: Model, ids: Sequence[int], n: int, vocab_size: int, missing: Sequence[int] = ()
) -> list[TokenLogprobs | None]:
    """The log-probability of each token of a prompt, with the `n` likeliest in its place.

    None for the first token, and for tokens that the model does not see any more because the
    prompt is longer than its context. As for a `Reader`, only the ids below `vocab_size` that are
    not `missing` count. Used inside `model.inference`.
    """
    seen = visible(len(ids), model.context_length)
    window = [*ids[len(ids) - seen :]]
    found: list[TokenLogprobs | None] = [None] * (len(ids) - seen + 1)
    x = _hidden(model, window)
    # The logits of a part of the tokens at a time: all would be T x V numbers.
    size = max(1, AT_ONCE * 64 // vocab_size)
    for start in range(0, seen - 1, size):
        part = x[start : min(start + size, seen - 1)]
        logits = model.head(part)[:, :vocab_size].clone()
        logits[:, [*missing]] = -torch.inf
        found += of_tokens(logits, window[start + 1 : start + 1 + len(part)], n)
    return found


def _hidden(model: Model, ids: Sequence[int]) -> Tensor:
    """What the head reads [T, D] after each of the ids."""
    tokens = torch.tensor([[*ids]], device=model.weight.device)
    context = model.context(tokens.size(1), tokens=tokens)
    return model.hidden(model.embed(tokens), context)[0]
