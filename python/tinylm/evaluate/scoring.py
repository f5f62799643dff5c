"""A model and a split of tokens to loss, perplexity and bits per byte.

Bits per byte = (nats over every target) / ln 2 / (bytes of the text). A tokenizer that packs more
bytes into a token has a higher loss per token, yet no better score: only this figure compares
models across tokenizers.

torch is imported inside `evaluate`, so that the command answers `--help` at once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tinylm.data import Dataset
    from tinylm.model import Model
    from tinylm.tokenizer import Tokenizer

# Tokens that go through the blocks at once, and logits that are made at once: 2^25 of them are
# 128 MiB in float32. All logits of 256 rows of 1,024 tokens would be 49 GiB for 50,000 tokens.
TOKENS = 2**14
LOGITS = 2**25


@dataclass(frozen=True)
class Scores:
    """The scores of a model on a text of `bytes` bytes, over `tokens` targets."""

    # Mean nats per target.
    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int


def evaluate(
    model: "Model",
    dataset: "Dataset",
    *,
    tokenizer: "Tokenizer",
    batch_size: int = 8,
    max_tokens: int | None = None,
    dtype: "torch.dtype | None" = None,
    progress: Callable[[int, int], None] | None = None,
    loss: str = "auto",
    share: tuple[int, int] = (0, 1),
    add: "Callable[[torch.Tensor], torch.Tensor] | None" = None,
) -> Scores:
    """Score every token of a split but its first, once, in windows of the context length.

    `loss` is `data.loss`: of conversations only the assistant's turns are scored, over the bytes
    of its words, unless it is "all".

    A window sees nothing of the one before it. `max_tokens` scores only the first so many, over
    the bytes that they stand for; `dtype` is that of the stream and its products (default the
    weights'). Logits and losses are float32 in any case, and made a part at a time, whatever
    `batch_size`, which changes the figures by rounding alone; `progress` is told the targets
    scored and to score. Of several processes, each scores its `share` (rank, world) of the
    batches, and `add` sums a tensor over them: all get the same scores, or all an error.
    `ValueError` for a split of another tokenizer, for one of fewer than 2 tokens, and for a loss
    that is not finite.
    """
    import torch

    from tinylm import device as devices
    from tinylm.data.turns import answers
    from tinylm.model import inference
    from tinylm.ops import IGNORED

    total = _check(model, dataset, tokenizer, batch_size, max_tokens)
    device = model.weight.device
    keep = answers(loss, dataset, tokenizer)
    sizes = torch.from_numpy(_sizes(tokenizer)) if keep is not None else None
    nats, done, counted, kept_bytes = 0.0, 0, 0, 0
    problem: ValueError | None = None
    length = model.config.context_length
    # More rows than this at once gain nothing and only fill the memory.
    rows = min(batch_size, max(1, TOKENS // length))
    for first, tokens, targets in _batches(dataset, total, rows, length, share):
        if tokens.max() >= model.embedding.num_embeddings:
            raise ValueError(
                f"token {tokens.max()} of the dataset: the model's vocabulary has "
                f"{model.embedding.num_embeddings}"
            )
        inputs, wanted = (torch.from_numpy(a).to(device) for a in (tokens, targets))
        if keep is not None and sizes is not None:
            wanted = keep(inputs, wanted)
            scored = wanted[wanted != IGNORED].cpu()
            counted += len(scored)
            kept_bytes += int(sizes[scored].sum())
        with inference(model):
            # No cache: each window starts with an empty context.
            losses, computed_in = _losses(model, inputs, wanted.flatten(), dtype)
        if not losses.isfinite().all():
            place = int((~losses.isfinite()).nonzero()[0])
            what = f"the loss of target {first + place + 1} of the split"
            value = float(losses[place])
            problem = ValueError(devices.not_finite(what, value, computed_in, model))
            if add is None:
                raise problem
        # On the CPU, for MPS has no float64.
        nats += losses.cpu().double().sum().item()
        done += int((targets != IGNORED).sum())
        if progress is not None:
            progress(done, total)
    if add is not None:
        sums = [nats, counted, kept_bytes, problem is not None]
        found = add(torch.tensor(sums, dtype=torch.float64)).tolist()
        nats, counted, kept_bytes = found[0], int(found[1]), int(found[2])
        if found[3]:
            raise problem or ValueError("a loss that another process scored is not finite")
    if keep is None:
        counted, kept_bytes = total, _count_bytes(dataset, tokenizer, total)
    if counted == 0:
        raise ValueError("no turn of the assistant among the tokens to score: score more of them")
    mean = nats / counted
    # exp overflows above 709 nats.
    perplexity = math.exp(mean) if not mean > 709 else math.inf
    bits = nats / math.log(2) / kept_bytes if kept_bytes else math.inf
    return Scores(mean, perplexity, bits, counted, kept_bytes)


def _losses(
    model: "Model",
    tokens: "torch.Tensor",
    targets: "torch.Tensor",
    wanted_dtype: "torch.dtype | None",
) -> "tuple[torch.Tensor, torch.dtype]":
    """tokens [B, T] and targets [B * T] to the loss of each in float32, and the logits' dtype."""
    import torch
    from torch.nn.functional import cross_entropy

    from tinylm.ops import IGNORED

    context = model.context(tokens.size(1), tokens=tokens)
    x = model.hidden(model.embed(tokens, wanted_dtype), context).flatten(0, 1)
    found, dtype = [], x.dtype
    size = max(1, LOGITS // model.embedding.num_embeddings)
    for part, wanted in zip(torch.split(x, size), torch.split(targets, size), strict=True):
        logits = model.head(part)
        dtype = logits.dtype
        found.append(cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="none"))
    return torch.cat(found), dtype


def _check(
    model: "Model",
    dataset: "Dataset",
    tokenizer: "Tokenizer",
    batch_size: int,
    max_tokens: int | None,
) -> int:
    """How many targets to score."""
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if dataset.n_tokens < 2:
        raise ValueError(f"the split has {dataset.n_tokens} tokens: scoring takes at least 2")
    theirs, ours = dataset.tokenizer_sha256, tokenizer.sha256
    if theirs != ours:
        raise ValueError(
            f"the dataset was made by tokenizer {theirs[:12]}, the model's is {ours[:12]}: "
            f"prepare the text with the model's tokenizer"
        )
    targets = dataset.n_tokens - 1
    return targets if max_tokens is None else min(max_tokens, targets)


def _batches(
    dataset: "Dataset", total: int, batch_size: int, length: int, share: tuple[int, int]
) -> "Iterator[tuple[int, np.ndarray, np.ndarray]]":
    """Windows of the first `total` targets: the first one's number, tokens, targets [B, T].

    What is left over of the last window has the targets -100. Of every `world` batches, process
    `rank` gets one; each gets as many as the others, the last perhaps without a target.
    """
    import numpy as np

    from tinylm.ops import IGNORED

    firsts, (rank, world) = range(0, total, batch_size * length), share
    for at in range(rank, -(-len(firsts) // world) * world, world):
        first = firsts[min(at, len(firsts) - 1)]
        count = min(batch_size * length, total - first)
        rows = -(-count // length)
        # One token more than targets: the last token of a window is only a target.
        read = np.asarray(dataset.read(first, count + 1)).astype(np.int64)
        tokens = np.zeros(rows * length, np.int64)
        targets = np.full(rows * length, IGNORED)
        tokens[:count], targets[:count] = read[:-1], read[1:]
        if at >= len(firsts):
            targets[:] = IGNORED
        yield first, tokens.reshape(rows, length), targets.reshape(rows, length)


def _count_bytes(dataset: "Dataset", tokenizer: "Tokenizer", total: int) -> int:
    """Bytes of text that the first `total` targets stand for; of the whole split, its own count.

    A special token stands for none. The whole split includes its first token, which is no
    target: the figure is over the text, not over what could be predicted of it.
    """
    import numpy as np

    whole = total == dataset.n_tokens - 1
    if whole and dataset.n_bytes is not None:
        return dataset.n_bytes
    lengths = _sizes(tokenizer)
    start = 0 if whole else 1
    block = 2**20
    return sum(
        int(lengths[np.asarray(dataset.read(at, min(block, total + 1 - at)))].sum())
        for at in range(start, total + 1, block)
    )


def _sizes(tokenizer: "Tokenizer") -> "np.ndarray":
    """Bytes of text that each id stands for (V,) int64."""
    import numpy as np

    vocab = tokenizer.vocab
    lengths = np.zeros(max(vocab) + 1, np.int64)
    for token, content in vocab.items():
        lengths[token] = len(content)
    # A special token separates documents or turns and is no text.
    lengths[list(tokenizer.special_tokens.values())] = 0
    return lengths
