"""GPTQ: what rounding a column adds to the outputs, the columns after it take back.

Source: Frantar et al. 2022 (arXiv 2210.17323), section 3.3. Defined by
`tinylm.reference.quant.gptq`.
"""

import torch
from torch import Tensor

from tinylm.ops.rounding import rounded, searched

# A share of the mean of the diagonal is added to it: with few inputs the moments are singular.
DAMPING = 0.01
# Columns whose effect on all later ones is applied at once, by one product.
BLOCK = 128


def gptq(weight: Tensor, moments: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """weight [N, K] to numbers on the grid [N, K] float64 and scales [N, K / group].

    moments [K, K] are X^T X of the inputs, without damping. An input that is always 0 has no effect
    on the outputs and its column none on the others. Raises `ValueError` if the moments
    are not positive definite even with damping.
    """
    weight, width = weight.double().clone(), weight.size(1)
    factor = inverse_factor(moments)
    done = torch.empty_like(weight)
    parts = []
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = weight.new_empty(len(weight), stop - start)
        for k in range(start, stop):
            if k % group == 0:
                # BLOCK is a multiple of every group, so the whole group is up to date.
                parts.append(searched(weight[:, k : k + group], group))
                scale = parts[-1][:, 0].double()
            done[:, k] = rounded(weight[:, k], scale) * scale
            errors[:, k - start] = (weight[:, k] - done[:, k]) / factor[k, k]
            weight[:, k + 1 : stop] -= errors[:, k - start, None] * factor[k, k + 1 : stop]
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return done, torch.cat(parts, 1)


def inverse_factor(moments: Tensor) -> Tensor:
    """The upper U [K, K] with U^T U = the inverse of the damped moments.

    Row k of U over U[k, k] is row k of the inverse of the moments of the columns from k on, over
    its first number: what each later column takes back.
    """
    moments = moments.double()
    diagonal = moments.diagonal()
    eye = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    # At least the damping of inputs of 1 where all are 0: any weights do then.
    share = diagonal.mean() if diagonal.any() else 1.0
    factor, problem = torch.linalg.cholesky_ex(moments + DAMPING * share * eye)
    if int(problem):
        raise ValueError(
            "the second moments of the inputs are not positive definite: give more rows"
        )
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    return upper
