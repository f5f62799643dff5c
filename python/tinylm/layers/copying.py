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

With a text, the rest of the embedding is the two vectors per token of a bigram model of it
(`layers.bigram`), and an untrained model predicts by both:

    stream   0 | three sketches | what follows the token | what the token is as a successor
                                        after_i                       what_i

    block 1, head 2   looks at the current token and adds its after_i to its what_i,
                      which a tied head then compares with what_j of every token j
    untied head       row j begins as what_j in the channels of after_i

Without training, the model of the default run has 5.0 nats per token on files that it is not made
of, and 2.0 on the second reading of 64 tokens. With heads that copy alone these are 7.2 and 5.9,
with plain weights 7.7 and 7.7.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tinylm.config import ModelConfig
from tinylm.layers.bigram import factors

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
# Deviation of what is added to the bigram's vectors: tokens that are used alike must differ too.
NOISE = 0.12
# How strongly what follows a token is written, and what a head has copied, beside the embedding.
PREDICTED, COPIED = 0.9, 0.7
# Of an untied head, relative to the embedding: rows that answer to a token that was copied.
ANSWER = 0.07
# Fewer channels for each of the two vectors are no model of a text.
LEAST_RANK = 8


def refusal(config: ModelConfig) -> str | None:
    """Why a model of these settings has no such start; None if it has one."""
    chosen, size = config.components(), config.head_width
    bigram = config.start == "bigram"
    for part, needed in (("position", "rope"), ("norm", "rmsnorm"), ("qk_norm", True)):
        if chosen[part] != needed:
            words = "position=rope, norm=rmsnorm and qk_norm=true"
            return f"needs {words}, and {part} is {str(chosen[part]).lower()}"
    heads = 3 if bigram and config.tied else 2
    if config.n_layers < 2 or config.kv_heads < heads:
        return (
            f"needs at least 2 blocks and {heads} heads of keys and values, and there are "
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
    least = 1 + (3 * slow + 2 * LEAST_RANK if bigram else max(3 * slow, size))
    if config.d_model < least:
        return f"needs a d_model of at least {least}, and it is {config.d_model}"
    return None


@torch.no_grad()
def start_copying(
    config: ModelConfig,
    embedding: nn.Embedding,
    blocks: Sequence[Any],
    last_norm: Any,
    head: Any,
    generator: torch.Generator,
    text: Tensor | None = None,
) -> None:
    """Give the embedding, the last norm and heads of blocks 0 and 1 these weights, in place.

    With the ids of a text [N] int64 the model also begins as a bigram model of it; then an untied
    `head` gets weights too. Raises `ValueError` if the settings do not allow it (see `refusal`).
    """
    problem = refusal(config)
    if problem is not None:
        raise ValueError(f"model.start={config.start}: {problem}, or set model.start=plain")
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
        seeker = _Head(blocks[1], config, back)
        _look_for(seeker, slow, sketch, earlier[0])
        if back:
            # Every other pair compares the tokens before those.
            _look_for(seeker, slow[1::2], earlier[0][1::2], earlier[1][1::2], LARGER, clear=False)
        if text is None:
            copied = 1 + torch.randperm(width - 1, generator=generator)[: config.head_width]
            _copy(seeker, torch.arange(config.head_width), copied, copied, 1.0)
    if text is not None:
        rest = shuffled[3 * size :]
        bigram = _Bigram(config, embedding.weight, rest, text, generator)
        for back in range(2):
            bigram.copy(_Head(blocks[1], config, back), sketch)
        if config.tied:
            bigram.predict(_Head(blocks[1], config, 2), frequencies, last_norm.weight)
        else:
            bigram.answer(head.weight, embedding.weight, sketch)


class _Bigram:
    """The two vectors per token of a bigram model, in channels `after` and `what` of the stream.

    Writes them into the embedding, and zeros into the channels that are left.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor,
        channels: Tensor,
        text: Tensor,
        generator: torch.Generator,
    ) -> None:
        vocabulary = len(embedding)
        rank = min(len(channels) // 2, config.head_width, vocabulary)
        self.after, self.what = channels[:rank], channels[rank : 2 * rank]
        self.inner = torch.arange(rank)
        embedding[:, channels] = 0.0
        # Both as large as random channels would be, times a half more in the square.
        size, self.scale = EMBEDDING * math.sqrt(1.5 * rank), 1.0
        both = factors(text, vocabulary, rank, generator)
        for own, values in zip((self.after, self.what), both, strict=True):
            scale = float(size / values.norm(dim=1).mean())
            noise = torch.randn(values.shape, generator=generator)
            embedding[:, own] = scale * values + NOISE * noise
            self.scale *= scale
        # The norm that a head reads through divides by this, and so does the last one, nearly.
        share = torch.bincount(text, minlength=vocabulary) / len(text)
        self.rms = float((share @ embedding.square().mean(1)).sqrt())
        # Vectors of tokens that differ in little are made to differ in all: W with W Cov W = 0.09.
        own = embedding[:, self.what]
        spread, axes = torch.linalg.eigh(own.T @ own / vocabulary)
        self.white = EMBEDDING * (axes * spread.clamp_min(1e-6).rsqrt()) @ axes.T

    def copy(self, head: "_Head", sketch: Tensor) -> None:
        """Let the head copy the token that it sees, by `what` and as much as fits of its sketch."""
        sketch = sketch[: len(head.v) - len(self.inner)]
        _copy(head, len(self.inner) + torch.arange(len(sketch)), sketch, sketch, 1.0)
        # The random weights of the other channels stay: with zeros `speedrun` ends at 1.208 bits
        # per byte and not at 1.201 (docs/log.md), though an untrained model copies better.
        head.v[: len(self.inner), self.what] = self.white
        head.o[self.what, : len(self.inner)] = COPIED * self.white.T

    def predict(self, head: "_Head", frequencies: Tensor, last_gain: Tensor) -> None:
        """Let the head write what follows the token, and the last norm's gain undo all scales."""
        _look_back(head, 0, frequencies)
        _copy(head, self.inner, self.after, self.what, PREDICTED)
        last_gain.fill_(self.rms**2 / (PREDICTED * self.scale))
        last_gain[0] = 0.0
        last_gain[self.after] = 0.0

    def answer(self, head: Tensor, embedding: Tensor, sketch: Tensor) -> None:
        """Let the rows of an untied head answer to what follows, and to a token that was copied."""
        head.zero_()
        head[:, self.after] = self.rms / self.scale * embedding[:, self.what]
        for channels in (self.what, sketch):
            head[:, channels] = ANSWER * embedding[:, channels]


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
