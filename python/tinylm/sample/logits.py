"""Logits to the next token: the steps of sampling, each a pure function.

Logits are [R, V] float64, one row per text; a token that cannot be drawn has -inf. The order is
that of transformers: penalties, temperature, top_k, top_p, min_p. (llama.cpp divides by the
temperature last, so that its filters see the unscaled probabilities.)
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tinylm.config import SampleConfig

# The second word of the generator's key: no other part of TinyLM draws from this stream.
STREAM = int.from_bytes(b"sample")
# Those of speculation: what a draft draws, and which of its tokens are kept.
DRAFT, KEEP = int.from_bytes(b"draft"), int.from_bytes(b"keep")


def process(logits: Tensor, seen: Tensor, counts: Tensor, config: SampleConfig) -> Tensor:
    """Raw logits [R, V] to the logits that a token is drawn from; a step at its default is skipped.

    `seen` [R, V] bool marks the tokens of prompt and continuation, `counts` [R, V] tells how
    often the continuation has each. `ValueError` if the largest logit of a row is not finite.
    """
    if config.repetition_penalty != 1:
        logits = repetition_penalty(logits, seen, config.repetition_penalty)
    if config.frequency_penalty:
        logits = frequency_penalty(logits, counts, config.frequency_penalty)
    if config.presence_penalty:
        logits = presence_penalty(logits, counts, config.presence_penalty)
    # NaN is a largest value too; single logits of -inf are ids that cannot be drawn.
    largest = logits.amax(-1)
    if not largest.isfinite().all():
        raise ValueError(_problem(largest, config))
    if config.temperature == 0:
        return logits
    logits = temperature(logits, config.temperature)
    if config.top_k is not None:
        logits = top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = min_p(logits, config.min_p)
    return logits


def _problem(largest: Tensor, config: SampleConfig) -> str:
    """Which row has no logit to draw by, and the settings that may have caused it."""
    row = int((~largest.isfinite()).nonzero()[0])
    names = ("repetition_penalty", "frequency_penalty", "presence_penalty")
    values = [f"{name}={getattr(config, name)}" for name in names]
    return (
        f"the largest logit of row {row} is {float(largest[row])}: the model's logits are not "
        f"finite, or {', '.join(values)} pass the range of {largest.dtype}: choose smaller ones"
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
    return logits - penalty * counts


def presence_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """logit - penalty where the continuation has the token. Source: OpenAI's API."""
    return logits - penalty * (counts > 0).to(logits.dtype)


def temperature(logits: Tensor, value: float) -> Tensor:
    """(logit - largest) / value: the same probabilities as logit / value, but no overflow."""
    return (logits - logits.amax(-1, keepdim=True)) / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """The k largest logits of a row, all others -inf; of equal ones the smaller ids stay.

    Source: Fan et al. 2018, section 5.4.
    """
    # Equal logits are told apart by id: topk alone may keep any of them.
    smallest = logits.topk(min(k, logits.size(-1))).values[:, -1:]
    above, equal = logits > smallest, logits == smallest
    room = k - above.sum(-1, keepdim=True)
    return logits.masked_fill(~(above | (equal & (equal.cumsum(-1) <= room))), -math.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens whose probabilities reach p, all others -inf.

    The token that crosses p stays: a token goes only where those before it reach p already. Of
    equal logits the smaller ids come first. Source: Holtzman et al. 2020, section 3.1.
    """
    # The sum of a row may round to 1 before its end; p=1 keeps every token all the same.
    if p >= 1:
        return logits
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    reached = ordered.softmax(-1).cumsum(-1)
    late = F.pad(reached[:, :-1], (1, 0)) >= p
    return logits.masked_fill(torch.empty_like(late).scatter(-1, ids, late), -math.inf)


def min_p(logits: Tensor, share: float) -> Tensor:
    """The tokens at least `share` times as likely as the likeliest one, all others -inf.

    Source: Nguyen et al. 2024, algorithm 1.
    """
    floor = logits.amax(-1, keepdim=True) + math.log(share)
    return logits.masked_fill(logits < floor, -math.inf)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One id per row [R]: the first whose cumulative probability exceeds the row's number.

    The numbers, `uniforms` [R], are in [0, 1). This is the inverse of the distribution
    function, in the order of the ids.
    """
    # Not normalised: scaling the number by the sum saves a division of the whole row.
    cumulative = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    # `right` never stops at a token of probability 0, not even for the number 0.
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


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
