"""Starting weights of heads that copy: what a short run would otherwise spend its time to find.

A model learns to copy from its context when two heads learn to work together (Olsson et al. 2022,
"In-context learning and induction heads"): one writes into each token what the token before it
was, another looks for the place where that equals the current token, and copies what stands there.
In a run of a few hundred steps this happens late, or not at all, by the draw of the weights. So the
two are given as starting weights of an ordinary model, which may change them like all others:

    block 0, head d   looks d + 1 tokens back            d = 0, 1
                      and copies the sketch of that token to channels of its own

    block 1, head 0   looks for where the token before was the current one
             head 1   the same, and the token before that was the one before the current one
                      and both copy the token found there

    stream   0 | sketch of the token | of the one before | of the one before that | the rest
             constant, equal for all tokens

Those of block 0 look by position alone: query and key see the constant channel only, and are one
vector, the key turned by d + 1 positions; the rotation brings it back where the distance is d + 1.
Looking for a token is done in those pairs of a head that hardly turn within a row. The sketch is a
few channels of the embedding as they are, because embeddings are random.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tinylm.config import ModelConfig

# Deviation of the embedding at the start, and of the logits relative to it by the last norm's gain,
# if embedding and head are one matrix.
EMBEDDING, LAST_GAIN = 0.3, 0.067
# Pairs of a head, the fastest first, that find a place, and the gain of queries and keys in them:
# twice 2 lets the place at the right distance win over its neighbours.
FAST, FAST_GAIN = 8, 2.0
# A pair that turns by less than this within a row counts as one that does not turn.
SLOW = 0.5 * math.pi
SLOW_GAIN = 1.5
# How strongly the sketch of an earlier token is written beside the embedding.
WRITTEN = 0.3
# The written sketch is smaller than the embedding: queries that read it are larger by this.
LARGER = 1.4


def refusal(config: ModelConfig) -> str | None:
    """Why a model of these settings has no such start; None if it has one."""
    chosen, size = config.components(), config.head_width
    for part, needed in (("position", "rope"), ("norm", "rmsnorm"), ("qk_norm", True)):
        if chosen[part] != needed:
            words = "position=rope, norm=rmsnorm and qk_norm=true"
            return f"needs {words}, and {part} is {str(chosen[part]).lower()}"
    if config.n_layers < 2 or config.kv_heads < 2:
        return (
            f"needs at least 2 blocks and 2 heads of keys and values, and there are "
            f"{config.n_layers} and {config.kv_heads}: raise model.n_layers or model.n_kv_heads"
        )
    if size < 4 * FAST:
        return f"needs heads of at least {4 * FAST} channels, and they have {size}: set head_size"
    slow = len(_slow(_frequencies(config), config.context_length))
    if not slow:
        return (
            f"needs a larger rope_theta than {config.rope_theta:g}: all pairs of a head turn far "
            f"within {config.context_length} tokens"
        )
    least = 1 + max(3 * slow, size)
    if config.d_model < least:
        return f"needs a d_model of at least {least}, and it is {config.d_model}"
    return None


@torch.no_grad()
def start_copying(
    config: ModelConfig,
    embedding: nn.Embedding,
    blocks: Sequence[Any],
    last_norm: Any,
    generator: torch.Generator,
) -> None:
    """Give the embedding, the last norm and two heads of blocks 0 and 1 these weights, in place.

    Raises `ValueError` if the settings do not allow it (see `refusal`).
    """
    problem = refusal(config)
    if problem is not None:
        raise ValueError(f"model.start=copying: {problem}")
    frequencies, width = _frequencies(config), config.d_model
    slow = _slow(frequencies, config.context_length)
    shuffled = 1 + torch.randperm(width - 1, generator=generator)
    # Channels of the stream: what is kept of a token, of the one before, and of the one before it.
    size = len(slow)
    sketch, earlier = shuffled[:size], (shuffled[size : 2 * size], shuffled[2 * size : 3 * size])
    embedding.weight.normal_(0.0, EMBEDDING, generator=generator)
    embedding.weight[:, 0] = EMBEDDING * math.sqrt(width)
    for channels in earlier:
        embedding.weight[:, channels] = 0.0
    if config.tied:
        last_norm.weight.fill_(LAST_GAIN)
    # The constant says nothing of the next token.
    last_norm.weight[0] = 0.0
    for back, channels in enumerate(earlier):
        _look_back(_Head(blocks[0], config, back), back + 1, frequencies)
        _copy(_Head(blocks[0], config, back), slow, sketch, channels, WRITTEN)
        head = _Head(blocks[1], config, back)
        _look_for(head, slow, sketch, earlier[0])
        if back:
            # Every other pair compares the tokens before those.
            _look_for(head, slow[1::2], earlier[0][1::2], earlier[1][1::2], LARGER, clear=False)
        copied = 1 + torch.randperm(width - 1, generator=generator)[: config.head_width]
        _copy(head, torch.arange(config.head_width), copied, copied, 1.0)


class _Head:
    """The weights of one head of a block: q, k and v [head, D], o [D, head] and the norms' gains.

    Of grouped heads it is the first of its group.
    """

    def __init__(self, block: Any, config: ModelConfig, number: int) -> None:
        attention, size = block.attention, config.head_width
        first = number * (config.n_heads // config.kv_heads) * size
        mine, shared = slice(first, first + size), slice(number * size, (number + 1) * size)
        self.q: Tensor = attention.q.weight[mine]
        self.k: Tensor = attention.k.weight[shared]
        self.v: Tensor = attention.v.weight[shared]
        self.o: Tensor = attention.o.weight[:, mine]
        self.gains: list[Tensor] = [attention.q_norm.weight, attention.k_norm.weight]


def _look_back(head: _Head, distance: int, frequencies: Tensor) -> None:
    """Let the head attend to the token `distance` before the current one."""
    half = len(frequencies)
    head.q.zero_()
    head.k.zero_()
    fast = torch.arange(FAST)
    # All of one size; a norm follows, so the size does not matter.
    head.q[fast, 0] = 1.0
    head.k[fast, 0] = torch.cos(distance * frequencies[:FAST])
    head.k[half + fast, 0] = torch.sin(distance * frequencies[:FAST])
    for gain in head.gains:
        gain[fast] = gain[half + fast] = FAST_GAIN


def _look_for(
    head: _Head,
    slow: Tensor,
    current: Tensor,
    there: Tensor,
    strength: float = 1.0,
    *,
    clear: bool = True,
) -> None:
    """Let the head attend to where the channels `there` equal `current` of this token."""
    rows = slice(None) if clear else slow
    head.q[rows] = 0.0
    head.k[rows] = 0.0
    head.q[slow, current] = strength
    head.k[slow, there] = 1.0
    for gain in head.gains:
        gain[slow] = SLOW_GAIN


def _copy(head: _Head, inner: Tensor, read: Tensor, written: Tensor, strength: float) -> None:
    """Let the head copy the channels `read` of the token that it sees to `written`."""
    head.v[inner] = 0.0
    head.v[inner, read] = 1.0
    head.o.zero_()
    head.o[written, inner] = strength


def _frequencies(config: ModelConfig) -> Tensor:
    """The angle [head / 2] by which each pair of a head turns per position."""
    size = config.head_width
    return config.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)


def _slow(frequencies: Tensor, length: int) -> Tensor:
    """The channels of a head whose pairs turn little within `length` positions."""
    first, half = int((frequencies * length > SLOW).sum()), len(frequencies)
    return torch.cat((torch.arange(first, half), half + torch.arange(first, half)))
