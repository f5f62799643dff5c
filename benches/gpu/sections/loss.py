"""The head's product fused with the cross-entropy: loss and both gradients of 16,384 tokens."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benches.gpu.case import Case, Contest, Missing, Patient, Place
from benches.gpu.peers import liger
from tinylm import ops

TOKENS = 16384
SIZES = ((1024, 32768), (4096, 32768), (1024, 131072), (4096, 131072))
# The gate looks at the gradients of this many tokens and of this many words, and takes the logits
# of this many tokens at a time.
SEEN, CHUNK = 256, 2048

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def cases(place: Place) -> Iterator[Case]:
    """Vocabularies of 32k and 128k, widths from 1,024 to 4,096."""
    tokens = place.sized(TOKENS, 24)
    for width, words in place.sized(SIZES, ((32, 300),)):
        at = {"tokens": tokens, "width": width, "words": words}
        yield Case("loss", at, lambda d=width, v=words: loss(place, tokens, d, v))


def unchunked(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits at once, the loss in float32."""
    return F.cross_entropy(F.linear(x, weight).float(), targets)


def by_torch() -> Loss | Missing:
    """F.linear_cross_entropy in chunks, by its own defaults; torch has it from 2.13 on."""
    if not hasattr(F, "linear_cross_entropy"):
        return Missing(f"torch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda x, weight, targets: F.linear_cross_entropy(x, weight, targets, options=options)


def exact(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, dx of the first tokens and dweight of the first words, in float32 or float64."""
    dtype = torch.float32 if x.is_cuda else torch.float64
    wide, w = x.to(dtype), weight.to(dtype)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    dweight = torch.zeros_like(w[:SEEN])
    dx = torch.zeros_like(wide[:SEEN])
    for first in range(0, len(x), CHUNK):
        rows, ids = wide[first : first + CHUNK], targets[first : first + CHUNK, None]
        logits = rows @ w.T
        lse = logits.logsumexp(-1, keepdim=True)
        total += (lse - logits.gather(1, ids)).double().sum()
        slope = (logits - lse).exp_().scatter_add_(1, ids, -torch.ones_like(lse)) / len(x)
        dweight += slope[:, :SEEN].T @ rows
        if first == 0:
            dx = slope[:SEEN] @ w
    return total / len(x), dx, dweight


def loss(place: Place, tokens: int, width: int, words: int) -> Contest:
    """Three products: forward, the gradient of the tokens and that of the weight."""
    x = place.randn(tokens, width).requires_grad_()
    weight = place.randn(words, width, scale=width**-0.5).requires_grad_()
    targets = torch.randint(0, words, (tokens,), device=place.device)

    def both(f: Loss) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            value = f(x, weight, targets)
            return value.detach(), *torch.autograd.grad(value, (x, weight))

        return call

    theirs = by_torch()
    return Contest(
        {
            "tinylm": both(ops.linear_cross_entropy),
            "unchunked eager": both(unchunked),
            "unchunked compiled": Patient(both(place.compiled(unchunked))),
            "F.linear_cross_entropy": theirs if isinstance(theirs, Missing) else both(theirs),
            "Liger": liger(
                place,
                "fused_linear_cross_entropy",
                lambda m: both(lambda *a: m.LigerFusedLinearCrossEntropyFunction.apply(*a)[0]),
            ),
        },
        lambda: exact(x.detach(), weight.detach(), targets),
        5e-2,
        pick=lambda found: (found[0], found[1][:SEEN], found[2][:SEEN]),
        flops=6 * tokens * width * words,
        memory=True,
    )
