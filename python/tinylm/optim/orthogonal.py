"""Matrices to orthogonal ones of the same directions, by products alone.

    moves = orthogonalise(updates, "polar_express")      # [N, rows, columns]

Each step applies an odd polynomial a s + b s^3 + c s^5 to every singular value s and leaves the
singular vectors alone. The methods differ in the coefficients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tinylm.config import choose
from tinylm.device import has_bfloat16

Coefficients = list[tuple[float, float, float]]

# Chosen for a steep start: small singular values grow fast, at the price that none converges to
# exactly 1. Five steps end between 0.7 and 1.2. Source: Jordan et al. 2024, "Muon".
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# Step n has the polynomial that brings the singular values which n - 1 steps leave nearest to 1, if
# they began between 0.001 and 1; the last one repeats. Source: Amsel et al. 2025, "The Polar
# Express", algorithm 1.
POLAR_EXPRESS: Coefficients = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]
# Keeps singular values that rounding lifts past the end of a polynomial's interval from growing.
SAFETY = 1.01
# The largest share of rounding in the last Gram matrix at which the shorter way is taken.
ROUNDING = 10.0


@dataclass(frozen=True)
class Method:
    """Coefficients for a number of steps, and the default number.

    The singular values begin at 1 or less. If `tight`, they are divided by (sum s^8)^(1/8), else
    by the Frobenius norm, which is larger: they begin smaller and need a step more.
    """

    coefficients: Callable[[int], Coefficients]
    steps: int
    tight: bool


def newton_schulz(steps: int) -> Coefficients:
    """The same polynomial in every step."""
    return [NEWTON_SCHULZ] * steps


def polar_express(steps: int) -> Coefficients:
    """A polynomial per step, each with the safety factor of the paper, but not the last one."""
    *changing, last = POLAR_EXPRESS
    safe = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in changing]
    return [*safe, *[last] * steps][:steps]


ORTHOGONAL: dict[str, Method] = {
    # Two steps from the tight bound end where three from the Frobenius norm do, at two thirds of
    # the work; characters of tinyshakespeare, 3 x 64: losses 1.813 and 1.812, 1.800 and 1.799
    # (seeds 0 and 1), but 1.835 with two steps from the Frobenius norm.
    "polar_express": Method(polar_express, 2, tight=True),
    "newton_schulz": Method(newton_schulz, 5, tight=False),
}


@cache
def working_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which matrices of `dtype` are made orthogonal: the fastest of the device.

    float64 stays: whoever computes in it wants its digits.
    """
    if dtype == torch.float64:
        return dtype
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def orthogonalise(
    updates: Tensor, method: str = "polar_express", steps: int | None = None
) -> Tensor:
    """About the nearest semi-orthogonal matrix to each of `updates` [N, rows, columns].

    `steps=None` takes the method's own number. It computes in the dtype of `updates`: callers
    pass them in `working_dtype`.
    """
    chosen = choose(ORTHOGONAL, "optim.orthogonal", method)
    coefficients = chosen.coefficients(chosen.steps if steps is None else steps)
    # The Frobenius norm is at least the largest singular value, so all of them start between 0 and
    # 1. The small term keeps a gradient of zeros from giving nan.
    size = torch.linalg.vector_norm(updates, dim=(-2, -1), keepdim=True)
    x = updates / (size + 1e-7)
    rows, columns = x.shape[-2:]
    short, long = min(rows, columns), max(rows, columns)
    if 2 * short <= long and _loss(coefficients, x.dtype) <= ROUNDING:
        return _by_gram(x, coefficients, chosen.tight)
    # The Gram matrix has the size of the shorter side.
    near = _directly(x.mT if rows > columns else x, coefficients, chosen.tight)
    return near.mT if rows > columns else near


def _loss(coefficients: Coefficients, dtype: torch.dtype) -> float:
    """Rounding of the first Gram matrix as a share of the last: each step multiplies it by a^2."""
    growth = math.prod(a * a for a, _, _ in coefficients[:-1])
    return growth * torch.finfo(dtype).eps


def _bound(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The square G^2 of a Gram matrix, and a bound [N, 1, 1] of the largest squared s.

    The sum of all s^8 is the squared Frobenius norm of G^2, which the first step needs anyway.
    """
    square = gram @ gram
    largest = torch.linalg.vector_norm(square, dim=(-2, -1), keepdim=True).sqrt()
    return square, SAFETY**2 * largest + 1e-7


def _directly(x: Tensor, coefficients: Coefficients, tight: bool) -> Tensor:
    """Apply the steps to x [N, short, long] itself."""
    for place, (a, b, c) in enumerate(coefficients):
        gram = x @ x.mT
        if tight and place == 0:
            square, bound = _bound(gram)
            # x / sqrt(bound) goes into the step: one pass over the Gram matrix less, and none over
            # x.
            root = bound.rsqrt()
            step = torch.addcmul(gram * (b * root / bound), square, c * root / bound.square())
            step.diagonal(dim1=-2, dim2=-1).add_(a * root[..., 0])
            x = step @ x
        else:
            rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, rest, x, beta=a)
    return x


def _by_gram(x: Tensor, coefficients: Coefficients, tight: bool) -> Tensor:
    """Apply the steps to the Gram matrix G of x, then their product Q to x once.

    A step is P = a I + b G + c G^2, which commutes with G: x becomes P x, and G becomes P G P. So
    only the first and the last product have the long side of x; for a matrix of 1 to 4 that is a
    third less work.
    """
    tall = x.size(-2) > x.size(-1)
    gram = x.mT @ x if tall else x @ x.mT
    bound: Tensor | None = None
    product: Tensor | None = None
    last = len(coefficients) - 1
    for place, (a, b, c) in enumerate(coefficients):
        # P without its a I, which `beta` adds: in bfloat16 a sum with it would lose digits.
        if tight and place == 0:
            square, bound = _bound(gram)
            gram, rest = gram / bound, gram * (b / bound) + square * (c / bound.square())
        else:
            rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if place < last:
            half = torch.baddbmm(gram, rest, gram, beta=a)
            gram = torch.baddbmm(half, half, rest, beta=a)
        if product is None:
            product = rest
            product.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            product = torch.baddbmm(product, rest, product, beta=a)
    if product is None:
        return x
    if bound is not None:
        product = product * bound.rsqrt()
    return x @ product if tall else product @ x
