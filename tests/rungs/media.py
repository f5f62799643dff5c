"""The operations in neighbouring media: from differences and scalars to what the model calls."""

from functools import partial
from itertools import chain

import numpy as np
import torch
from hypothesis import strategies as st

from tests.rungs.operations import FEW, LARGE, MANUAL, OPERATIONS, SIZES, SMALL
from tests.rungs.rung import SEEDS, Rung, near, norm
from tinylm import layers, ops
from tinylm.reference import arrays, scalars, tensors
from tinylm.reference.smallest import backward, total

# Relative to 1 + the 2-norm. The same formula in another order of sums, all numbers near 1.
FLOAT64 = 1e-11
# Central differences at H: H^2 of the third derivative, 1e-16 / H of rounding, and H where the
# second derivative jumps (relu2 at 0).
H, DIFFERENCES = 1e-5, 3e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Parts:
    """The operations that the model takes from its layers and not from `ops`."""

    @staticmethod
    def embedding(tokens, weight):
        return torch.func.functional_call(
            layers.Embedding(*weight.shape), {"weight": weight}, tokens
        )


def draw(operation, sizes, seed, *dtype):
    """Inputs near 1, the other inputs, a gradient dy of the result, and the dtype if there is one.

    All numbers are float64, and such as `dtype` has; those of `others` such as float32 has.
    """
    random = np.random.default_rng(seed)
    inputs = [random.normal(size=shape) for shape in operation.shapes(sizes)]
    others = list(operation.others(random, sizes))
    dy = random.normal(size=np.shape(operation.forward(arrays, *inputs, *others)))
    for to in dtype:
        inputs, dy = [rounded(x, to) for x in inputs], rounded(dy, to)
        others = [rounded(x, torch.float32) if x.dtype == float else x for x in others]
    return inputs, others, dy, *dtype


def rounded(x, dtype):
    return torch.tensor(x).to(dtype).double().numpy()


def by_differences(operation, inputs, others, dy):
    """Output and gradients from the arrays' forward alone, at both sides of every number."""
    gradients = []
    for x in inputs:
        slopes = np.zeros_like(x)
        for place in np.ndindex(x.shape):
            kept, sides = x[place], []
            for x[place] in (kept + H, kept - H):
                sides.append(np.sum(operation.forward(arrays, *inputs, *others) * dy))
            x[place] = kept
            slopes[place] = (sides[0] - sides[1]) / (2 * H)
        gradients.append(slopes)
    return operation.forward(arrays, *inputs, *others), *gradients


def by_hand(operation, inputs, others, dy):
    """Output and gradients of the arrays."""
    gradients = operation.backward(dy, *inputs, *others)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return operation.forward(arrays, *inputs, *others), *gradients


def by_scalars(operation, inputs, others, dy):
    """Output and gradients of the scalars, as arrays."""
    lists = [scalars.wrap(x.tolist()) for x in inputs]
    y = operation.on_scalars(*lists, *others)
    flat = list(np.array(y, dtype=object).ravel())
    backward(total([a * float(slope) for a, slope in zip(flat, np.ravel(dy), strict=True)]))
    output = np.array([value.data for value in flat]).reshape(np.shape(dy))
    return output, *(np.array(scalars.gradients(x)) for x in lists)


def by_torch(medium, operation, inputs, others, dy, dtype=torch.float64):
    """Output and gradients from torch's own differentiation."""
    leaves = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in inputs]
    wide = torch.promote_types(dtype, torch.float32)
    rest = [torch.tensor(x, dtype=wide if x.dtype == float else None) for x in others]
    y = operation.forward(medium, *leaves, *rest)
    return y.detach(), *torch.autograd.grad(y, leaves, torch.tensor(dy, dtype=y.dtype))


def in_float64(operation, inputs, others, dy, dtype=None):
    """Output and gradients of the definition, whatever dtype the numbers were drawn in."""
    return by_torch(tensors, operation, inputs, others, dy)


def terms(operation, inputs, others, dy, dtype):
    """What the roundings of output and gradients are measured against: the sizes of their terms."""
    return tuple(map(norm, operation.terms(dy, *inputs, *others)))[: 1 + len(inputs)]


EVERY = OPERATIONS | MANUAL
# torch itself is the model's softmax and SiLU.
BY_TORCH = ["softmax", "silu"]


def rung(name, media, slow, fast, drawn=(SIZES, SEEDS), large=(LARGE, 0), **rest):
    """A rung of one operation, its functions told which."""
    operation = EVERY[name]
    rest |= {key: partial(rest[key], operation) for key in ("peer", "terms") if key in rest}
    return Rung(
        name,
        "arrays" if media[1] == "arrays" else "tensors",
        media,
        partial(slow, operation),
        partial(fast, operation),
        st.builds(partial(draw, operation), *drawn),
        lambda: draw(operation, *large),
        gradients=True,
        **rest,
    )


def to_arrays(name):
    """By-hand gradients against differences, which need no theory, and against scalars."""
    few = {"drawn": (FEW, SEEDS), "large": (SMALL, 0)}
    return [
        rung(
            name,
            ("differences", "arrays"),
            by_differences,
            by_hand,
            same=near(DIFFERENCES),
            cost=2,
            **few,
        ),
        rung(name, ("scalars", "arrays"), by_scalars, by_hand, same=near(FLOAT64), **few),
    ]


def to_tensors(name):
    """torch's own gradients against those by hand."""
    return rung(name, ("arrays", "tensors"), by_hand, in_float64, same=near(FLOAT64))


def to_the_model(name):
    """What the model calls, in the dtypes that it runs in, against plain torch."""
    medium = Parts if hasattr(Parts, name) else ops
    return rung(
        name,
        ("tensors", "layers" if medium is Parts else "ops"),
        in_float64,
        partial(by_torch, medium),
        drawn=(SIZES, SEEDS, st.sampled_from(DTYPES)),
        large=(LARGE, 0, torch.float32),
        peer=partial(by_torch, tensors),
        terms=terms,
    )


RUNGS = (
    *chain.from_iterable(map(to_arrays, OPERATIONS)),
    *map(to_tensors, OPERATIONS),
    *(to_the_model(name) for name in EVERY if name not in BY_TORCH),
)
