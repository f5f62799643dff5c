"""Logits to the next token: the steps of sampling, each a pure function.

Logits are [R, V] floats, one row per text; a token that cannot be drawn has -inf. The order is that
of transformers: penalties, temperature, top_k, top_p, min_p, typical_p. (llama.cpp divides by the
temperature last, so that its filters see the unscaled probabilities.) The slow definitions are in
`tinylm.reference.choice`.

Everything stays in the dtype of the logits, float32 as a rule, because a pass over [32, 32000]
numbers in float64 costs up to ten times as much. Sums of probabilities are taken in float64.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinylm.config import SampleConfig
from tinylm.config.limits import show
from tinylm.sample import nucleus

# The second word of the generator's key: no other part of TinyLM draws from this stream.
STREAM = int.from_bytes(b"sample")
# Those of speculation: what a draft draws, and which of its tokens are kept.
DRAFT, KEEP = int.from_bytes(b"draft"), int.from_bytes(b"keep")
# In a larger vocabulary than this, stretches of so many tokens are added up before one of them is
# looked into.
LARGE, TOKENS = 2**13, 128
NEVER = -math.inf
PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")


class RowError(ValueError):
    """No token of a row can be drawn; `row` is its index. The other rows are not at fault."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(problem)
        self.row = row


def process(
    logits: Tensor, seen: Tensor | None, counts: Tensor | None, config: SampleConfig
) -> Tensor:
    """Raw logits [R, V] to the logits that a token is drawn from; a step at its default is skipped.

    `seen` [R, V] bool marks the tokens of prompt and continuation, `counts` [R, V] tells how
    often the continuation has each; without penalties both may be None. Raises `RowError` if the
    largest logit of a row is not finite.
    """
    if seen is not None and counts is not None:
        if config.repetition_penalty != 1:
            logits = repetition_penalty(logits, seen, config.repetition_penalty)
        if config.frequency_penalty:
            logits = frequency_penalty(logits, counts, config.frequency_penalty)
        if config.presence_penalty:
            logits = presence_penalty(logits, counts, config.presence_penalty)
    # NaN is a largest value too; single logits of -inf are ids that cannot be drawn.
    check_largest(logits.amax(-1), config)
    if config.temperature == 0:
        return logits
    logits = temperature(logits, config.temperature)
    for name, filter in FILTERS.items():
        value = getattr(config, name)
        if value is not None:
            # In place: this tensor is that of `temperature`.
            logits.masked_fill_(filter(logits, value), NEVER)
    return logits


def check_largest(largest: Tensor, config: SampleConfig) -> None:
    """Raise `RowError` for the first row whose largest logit, of [R], is not finite."""
    values = largest.tolist()
    row = next((row for row, value in enumerate(values) if not math.isfinite(value)), None)
    if row is None:
        return
    names = [*PENALTIES, *(["logit_bias"] if config.logit_bias else [])]
    settings = ", ".join(f"{name}={show(getattr(config, name))}" for name in names)
    raise RowError(
        row,
        f"the largest logit of row {row} is {values[row]}: the model's logits are not finite, or "
        f"{settings} pass the range of {largest.dtype}: choose smaller ones",
    )


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """A seen token's logit divided by `penalty` where positive, multiplied where negative.

    Either way it falls for penalty > 1. Source: Keskar et al. 2019 (CTRL), section 4.1, with
    the case of negative logits that transformers and llama.cpp add.
    """
    # Dividing a negative logit would make its token more likely.
    weakened = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, weakened, logits)


def frequency_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """logit - penalty * count, the count over the continuation alone. Source: OpenAI's API."""
    return logits - (penalty * counts).to(logits.dtype)


def presence_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """logit - penalty where the continuation has the token. Source: OpenAI's API."""
    return logits - penalty * (counts > 0).to(logits.dtype)


def temperature(logits: Tensor, value: float) -> Tensor:
    """(logit - largest) / value: the same probabilities as logit / value, but no overflow."""
    # A divisor that the dtype rounds to 0 would make the largest logit 0 / 0.
    value = max(value, torch.finfo(logits.dtype).tiny)
    return (logits - logits.amax(-1, keepdim=True)).div_(value)


def top_k(logits: Tensor, k: int) -> Tensor:
    """The tokens that are not among the k likeliest; of equal ones the smaller ids stay.

    Source: Fan et al. 2018, section 5.4.
    """
    if k >= logits.size(-1):
        return torch.zeros_like(logits, dtype=torch.bool)
    return nucleus.below(logits, *nucleus.largest(logits, k))


def top_p(logits: Tensor, p: float) -> Tensor:
    """The tokens that are not among the fewest likeliest ones whose probabilities reach p.

    The token that crosses p stays: a token goes only where those before it reach p already. Of
    equal logits the smaller ids come first. Source: Holtzman et al. 2020, section 3.1.
    """
    # The sum of a row may round to 1 before its end; p=1 keeps every token all the same.
    if p >= 1:
        return torch.zeros_like(logits, dtype=torch.bool)
    return nucleus.below(logits, *nucleus.likeliest(logits, p))


def min_p(logits: Tensor, share: float) -> Tensor:
    """The tokens less than `share` times as likely as the likeliest one.

    Source: Nguyen et al. 2024, algorithm 1.
    """
    return logits < logits.amax(-1, keepdim=True) + math.log(share)


def typical_p(logits: Tensor, p: float) -> Tensor:
    """The tokens that are not among the fewest most typical ones whose probabilities reach p.

    A token is the more typical the closer its information, -log of its probability, is to the
    entropy. Of equally typical tokens the smaller ids come first. Source: Meister et al. 2022,
    section 3.2.
    """
    if p >= 1:
        return torch.zeros_like(logits, dtype=torch.bool)
    # In float64, because the order is that of small differences.
    logs = logits.double().log_softmax(-1)
    shares = logs.exp()
    entropy = -(shares * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(-1, keepdim=True)
    keys = -(entropy + logs).abs()
    return nucleus.below(keys, *nucleus.most_typical(keys, shares, p))


# In the order in which they apply. Each returns which tokens of [R, V] go: bool [R, V].
FILTERS = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One id per row [R]: the first whose cumulative probability exceeds the row's number.

    The numbers, `uniforms` [R], are in [0, 1). This is the inverse of the distribution
    function, in the order of the ids.
    """
    # Not normalised: scaling the number by the sum saves a division of the whole row.
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    size = weights.size(-1)
    if size <= LARGE:
        reached = weights.double().cumsum(-1)
        # `right` never stops at a weight of 0, not even for the number 0.
        return torch.searchsorted(reached, uniforms[:, None] * reached[:, -1:], right=True)[:, 0]
    whole = size // TOKENS * TOKENS
    # Sums over stretches of tokens, then one stretch alone: a cumulative sum of [32, 32000] numbers
    # in float64 takes 20 times as long. A stretch sums up to 128 numbers, so its error in float32
    # is that of the numbers themselves.
    sums = weights[:, :whole].view(len(weights), -1, TOKENS).sum(-1)
    if whole < size:
        sums = torch.cat((sums, weights[:, whole:].sum(-1, keepdim=True)), 1)
    reached = sums.double().cumsum(-1)
    target = uniforms[:, None] * reached[:, -1:]
    stretch = torch.searchsorted(reached, target, right=True)
    before = torch.where(stretch > 0, reached.gather(1, (stretch - 1).clamp(min=0)), 0)
    ids = stretch * TOKENS + torch.arange(TOKENS, device=logits.device)
    inside = weights.gather(1, ids.clamp(max=size - 1)).double()
    reached = torch.where(ids < size, inside, 0).cumsum(-1)
    # The sum of the stretch was rounded: a target just below it may pass all of its numbers.
    last = torch.searchsorted(reached, reached[:, -1:].contiguous())
    place = torch.searchsorted(reached, target - before, right=True).minimum(last)
    return (stretch * TOKENS + place).squeeze(-1)


def greedy(logits: Tensor) -> Tensor:
    """The likeliest id of each row [R], the smallest of equal ones."""
    return logits.argmax(-1)


def uniforms(
    seed: int, prompt: int, sample: int, first: int, count: int, *, stream: int = STREAM
) -> NDArray[np.float64]:
    """The numbers in [0, 1) at positions `first`, `first` + 1, ... of one continuation; [count].

    They are counted, not carried: position n of sample `sample` of prompt `prompt` is number n of
    the Philox generator with key (seed, stream) from counter (0, 0, sample, prompt) on, four of
    them per count. So a text does not depend on how many others are drawn, nor on which of them
    end, and a draft that was refused can be drawn again. Source: Salmon et al. 2011.
    """
    counter = np.array([first // 4, 0, sample, prompt], dtype=np.uint64)
    bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=counter)
    raw = bits.random_raw(first % 4 + count)[first % 4 :]
    # The upper 53 bits, as many as a float64 holds exactly: no number rounds up to 1.
    return np.ldexp((raw >> np.uint64(11)).astype(np.float64), -53)
