"""A bigram model as two vectors per token, from the pairs of neighbours in a text.

    log p(j | i) = after_i . what_j + a number of i alone

`after_i` says what token i is followed by, `what_j` what token j is as a successor. They are the
largest singular triples of the matrix M of these logarithms, in which a row or column counts by
the share of its token:

    M_ij = log((count_ij + S share_j) / (count_i + S))
         = log share_j - log(1 + count_i / S) + log(1 + count_ij / (S share_j))

The first two terms make a matrix of rank 2, and the third is zero for pairs that never occur. So M
is never formed, and a vocabulary of 100,000 tokens costs no more than the pairs that its text has.
"""

import torch
from torch import Tensor

# S above: how many counts the share of a token weighs.
SMOOTHING = 100.0
# More directions than are kept, and rounds of the subspace iteration; Halko et al. 2011, section
# 4.5. On the standard library, V = 2,048 and rank 59, the product of the factors misses M by 0.3%
# more than the best product of that rank does.
MORE, ROUNDS = 16, 3
# Pairs that are multiplied together: a few MiB of memory.
TOGETHER = 2**14


@torch.no_grad()
def factors(
    ids: Tensor, vocab_size: int, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`after` and `what` [V, rank] float32 of a text's ids [N] int64.

    `rank` is at most V. Raises `ValueError` for fewer than two ids.
    """
    if len(ids) < 2:
        raise ValueError(f"a text of {len(ids)} tokens has no pairs: it must have at least 2")
    pairs, counts = torch.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)
    first, second = pairs // vocab_size, pairs % vocab_size
    share = (torch.bincount(ids, minlength=vocab_size) + 1).float()
    share /= share.sum()
    root = share.sqrt()
    seen = (1 + counts / (SMOOTHING * share[second])).log()
    given = torch.bincount(ids[:-1], minlength=vocab_size) / SMOOTHING
    rows = -torch.log1p(given)
    # Minus the mean over all pairs of tokens: it changes no probability.
    rows -= share @ (rows + share.log()) + (share[first] * share[second] * seen).sum()
    # Row i and column j of M times the roots of their shares, as the sum of the three terms.
    weighed = root[first] * seen * root[second]
    across = torch.stack((root, root * rows))
    down = torch.stack((root * share.log(), root))

    def product(x: Tensor, to: Tensor, of: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """M x, or its transpose times x, with `to` and `of` exchanged."""
        y = left.T @ (right @ x)
        for some in torch.split(torch.arange(len(weighed)), TOGETHER):
            y.index_add_(0, to[some], weighed[some, None] * x[of[some]])
        return y

    basis = torch.randn(vocab_size, min(vocab_size, rank + MORE), generator=generator)
    for _ in range(ROUNDS):
        image = torch.linalg.qr(product(basis, first, second, across, down))[0]
        basis = torch.linalg.qr(product(image, second, first, down, across))[0]
    image = product(basis, first, second, across, down)
    left, strength, turned = torch.linalg.svd(image, full_matrices=False)
    scale = strength[:rank].sqrt() / root[:, None]
    return left[:, :rank] * scale, (basis @ turned.T)[:, :rank] * scale
