"""Weights and gradients to new weights: optimizers, clipping, and learning rate schedules.

    state = {}
    for step in range(steps):
        loss, gradients = ...
        rate = schedule(step, steps, course="cosine", warmup=0.1)
        weights, state = adamw(weights, clip(gradients, 1.0), state, lr=3e-4 * rate)

Weights, gradients and state are dictionaries of arrays. The first two go by parameter name, the
state by `<parameter>.<quantity>`, as in `tinylm.optim.Optimizer.state`. Nothing is changed in
place. The caller splits the dictionary into the parameters that decay or go to Muon;
`tinylm.layers` has the table. g is the gradient, w the weight, t = 1, 2, ... the step.

Cost: SGD and Muon keep one number per weight, AdamW two. Muon adds 2 or 5 steps of 3 matrix
products.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = dict[str, Array]


def sgd(
    weights: Arrays,
    gradients: Arrays,
    state: Arrays,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> tuple[Arrays, Arrays]:
    """b = momentum b + (g + decay w);  w = w - lr b.

    b sums past gradients: where they agree the step grows to lr g / (1 - momentum), where they
    alternate it shrinks. The decay goes through b (L2 regularisation), not past it as AdamW's.
    Source: Polyak 1964; Sutskever et al. 2013, with the rate outside of b.
    """
    moved, kept = {}, {}
    for name, w in weights.items():
        # The first step finds no state and starts from 0.
        b = momentum * state.get(f"{name}.momentum_buffer", np.zeros_like(w))
        b = b + gradients[name] + weight_decay * w
        moved[name], kept[f"{name}.momentum_buffer"] = w - lr * b, b
    return moved, kept


def adamw(
    weights: Arrays,
    gradients: Arrays,
    state: Arrays,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    cautious: bool = False,
) -> tuple[Arrays, Arrays]:
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
    w = w - lr decay w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    Each weight moves by about lr, whatever the scale of its gradient: m / sqrt(v) is 1 where the
    gradient is steady and near 0 where it is noise. m and v start at 0 and so are too small by
    1 - b^t, which the divisions undo. Kingma and Ba 2015, algorithm 1; the decay past the
    moments: Loshchilov and Hutter 2019, algorithm 2; `decayed` has its cautious form.
    """
    b1, b2 = betas
    moved: Arrays = {}
    kept: Arrays = {}
    for name, w in weights.items():
        g, zero = gradients[name], np.zeros_like(w)
        # An array without axes: the state holds arrays alone. Each parameter counts its own steps.
        t = state.get(f"{name}.step", np.zeros(())) + 1
        m = b1 * state.get(f"{name}.exp_avg", zero) + (1 - b1) * g
        v = b2 * state.get(f"{name}.exp_avg_sq", zero) + (1 - b2) * g * g
        # eps bounds the step where v is near 0, as in a row of the embedding that is seldom read.
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        moved[name] = decayed(w, step, lr * weight_decay, cautious) - lr * step
        kept |= {f"{name}.step": t, f"{name}.exp_avg": m, f"{name}.exp_avg_sq": v}
    return moved, kept


# One polynomial for every step: small s grow fast, and five steps leave those above 0.003 between
# 0.68 and 1.21. Source: Jordan et al. 2024, "Muon".
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# A polynomial for each step, the last one for all that follow: each is the best for where those
# before it leave s, if they begin between 0.001 and 1. Two steps leave s above 0.01 between
# 0.19 and 1.97, five between 0.87 and 1.13. Source: Amsel et al. 2025, "The Polar Express".
POLAR_EXPRESS = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def orthogonalise(update: Array, method: str = "polar_express", steps: int | None = None) -> Array:
    """The semi-orthogonal matrix U V^T near `update` = U S V^T [rows, columns], about.

    A polynomial in x x^T leaves U and V alone and acts on the singular values s one by one:
    x = a x + b (x x^T) x + c (x x^T)^2 x is s = a s + b s^3 + c s^5. Dividing by a norm brings
    every s into (0, 1]; the polynomials of `method` then bring them near 1, without computing U
    or V. `steps` is their number, by default 2 or, for newton_schulz, 5.

    The norm of newton_schulz is Frobenius's, the root of the sum of all s^2. That of polar_express
    is (sum s^8)^(1/8), which is nearer to the largest s and so saves a step: the s^4 are the
    singular values of (x x^T)^2.
    """
    # The 1e-7 are for an update of zeros.
    x: Array = update / (np.linalg.norm(update) + 1e-7)
    # x x^T has the side of x's rows, so the products are smallest with the short side first.
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    if method == "newton_schulz":
        coefficients = [NEWTON_SCHULZ] * (steps or 5)
    else:
        # Rounding may lift an s past the 1 of its polynomial: all but the last leave 1% for it.
        safety, steps = 1.01, steps or 2
        safe = [(a / safety, b / safety**3, c / safety**5) for a, b, c in POLAR_EXPRESS[:-1]]
        coefficients = [*safe, *[POLAR_EXPRESS[-1]] * steps][:steps]
        largest = np.sqrt(np.linalg.norm(x @ x.T @ x @ x.T))
        x = x / np.sqrt(safety**2 * largest + 1e-7)
    for a, b, c in coefficients:
        # Odd powers alone: they act on the singular values and keep U and V.
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def decayed(w: Array, update: Array, amount: float, cautious: bool) -> Array:
    """w shrunk by the share `amount`; if cautious, only where `update` and w agree in sign.

    The update is subtracted from w. Where their signs differ, it moves w away from 0 for the
    loss's sake, and a decay would only undo it. Source: Chen et al. 2025, "Cautious Weight Decay".
    """
    return w - amount * w * (update * w >= 0) if cautious else w - amount * w


def muon(
    weights: Arrays,
    gradients: Arrays,
    state: Arrays,
    *,
    lr: float,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    cautious: bool = False,
    orthogonal: str = "polar_express",
    steps: int | None = None,
) -> tuple[Arrays, Arrays]:
    """m = beta m + (1 - beta) g;  W = W - lr (s O(g + beta (m - g)) + decay W), beta = momentum.

    O is `orthogonalise`, s = sqrt(max(1, rows / columns)). A gradient of a matrix is dominated by
    few directions; O moves W by the same amount along all of them. Looking beta ahead of m is
    Nesterov's momentum. Weights are matrices. `decayed` has the decay. Source: Jordan et al. 2024,
    "Muon".
    """
    moved, kept = {}, {}
    for name, w in weights.items():
        g = gradients[name]
        m = momentum * state.get(f"{name}.momentum", np.zeros_like(w)) + (1 - momentum) * g
        # An orthogonal matrix of more rows than columns has smaller entries; this makes up for it.
        scale = math.sqrt(max(1.0, w.shape[0] / w.shape[1]))
        step = scale * orthogonalise(g + momentum * (m - g), orthogonal, steps)
        moved[name] = decayed(w, step, lr * weight_decay, cautious) - lr * step
        kept[f"{name}.momentum"] = m
    return moved, kept


def gradient_norm(gradients: Arrays) -> float:
    """The 2-norm of all gradients together, as if they were one vector."""
    return math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))


def clip(gradients: Arrays, limit: float) -> Arrays:
    """The gradients, scaled down together where their norm passes `limit`; their direction stays.

    The 1e-6 in the divisor is torch's, and only matters for norms near it. Source: Pascanu et al.
    2013, algorithm 1.
    """
    scale = min(1.0, limit / (gradient_norm(gradients) + 1e-6))
    return {name: g * scale for name, g in gradients.items()}


# A course takes the progress p of the run, step / steps in [0, 1), to the share of the peak rate.


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def wsd(progress: float, *, decay: float = 0.6, min_lr: float = 0.0) -> float:
    """Warm-up, stable, decay: 1, then a straight fall to min_lr in the last `decay` of the run.

    Source: Hu et al. 2024, "MiniCPM", section 4.
    """
    # Without a decay the fall would divide by 0: the rate stays at its peak.
    return min_lr + (1 - min_lr) * min(1.0, (1 - progress) / decay) if decay else 1.0


def wsd_sqrt(progress: float, *, decay: float = 0.6, min_lr: float = 0.0) -> float:
    """`wsd` with a fall of 1 - sqrt(x), x its progress: steep at first. Haegele et al. 2024."""
    past = max(0.0, 1 - (1 - progress) / decay) if decay else 0.0
    return min_lr + (1 - min_lr) * (1 - math.sqrt(past))


def after_warmup(progress: float, warmup: float) -> float:
    """Progress from the end of the warm-up, 0, to the end of the run, 1."""
    return max(0.0, (progress - warmup) / (1 - warmup)) if warmup < 1 else 1.0


def cosine(progress: float, *, warmup: float = 0.0, min_lr: float = 0.0) -> float:
    """Half a cosine from 1, at the end of the warm-up, to min_lr. Loshchilov and Hutter 2017."""
    return min_lr + (1 - min_lr) * (1 + math.cos(math.pi * after_warmup(progress, warmup))) / 2


def linear(progress: float, *, warmup: float = 0.0, min_lr: float = 0.0) -> float:
    """A straight line from 1, at the end of the warm-up, to min_lr."""
    return 1 - (1 - min_lr) * after_warmup(progress, warmup)


def schedule(
    step: int,
    steps: int,
    *,
    course: str = "wsd",
    warmup: float = 0.0,
    decay: float = 0.6,
    min_lr: float = 0.0,
) -> float:
    """The rate of step 0 to steps - 1 as a share of its peak: a rise in `warmup` of the run.

    The rise ends at 1 with step round(warmup steps) - 1, then the course takes over. Early
    gradients are large and agree; a full step along them would be undone for a long time.
    """
    # step + 1, so that the first step moves the weights too.
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    progress = step / steps
    if course == "constant":
        return constant(progress)
    if course in ("wsd", "wsd_sqrt"):
        ending = {"wsd": wsd, "wsd_sqrt": wsd_sqrt}[course]
        return ending(progress, decay=decay, min_lr=min_lr)
    falling = {"cosine": cosine, "linear": linear}[course]
    return falling(progress, warmup=warmup, min_lr=min_lr)


def line(points: list[tuple[float, float]], progress: float) -> float:
    """The value at `progress` of the straight lines through (progress, value), constant outside.

    The points are in order. This is the course of a rate, a momentum or a weight decay.
    """
    places, values = zip(*points, strict=True)
    return float(np.interp(progress, list(places), list(values)))


def stairs(points: list[tuple[float, int]], progress: float) -> int:
    """The value of the last of (progress, value) that `progress` has reached, or the first."""
    reached = [value for place, value in points if place <= progress]
    return reached[-1] if reached else points[0][1]
