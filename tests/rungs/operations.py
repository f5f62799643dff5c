"""The operations of a transformer, forward and backward, from lists to the model's own."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung, near, norm
from tinylm import layers, ops
from tinylm.reference import arrays, scalars, tensors
from tinylm.reference.autograd import backward, total

# Relative to 1 + the 2-norm. The same formula in another order of sums, all numbers near 1.
FLOAT64 = 1e-11
# Central differences at H: H^2 of the third derivative, 1e-16 / H of rounding, and H where the
# second derivative jumps (relu2 at 0).
H, DIFFERENCES = 1e-5, 3e-5
EPS = 1e-3
THETA = 100.0
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Sizes:
    """Axis lengths of one drawn example."""

    batch: int
    time: int
    past: int
    kv_heads: int
    group: int
    half: int
    width: int
    vocab: int


def sizes(**most):
    """Axes of 1 to a few, at most `most`; no past is possible."""
    limits = {"batch": 2, "time": 4, "past": 3, "kv_heads": 2, "group": 3, "half": 3}
    limits |= {"width": 6, "vocab": 7, **most}
    return st.builds(
        Sizes, **{name: st.integers(name != "past", limit) for name, limit in limits.items()}
    )


SIZES = sizes()
# A scalar is a Python object: fewer of them.
FEW = sizes(time=3, past=2, group=2, half=2, width=5, vocab=5)
LARGE = Sizes(batch=4, time=256, past=0, kv_heads=2, group=2, half=32, width=256, vocab=512)
SMALL = Sizes(batch=2, time=8, past=0, kv_heads=1, group=2, half=4, width=16, vocab=32)


@dataclass(frozen=True)
class Operation:
    """Shapes of the inputs that have a gradient, the other inputs, and how both are passed on."""

    shapes: Callable[[Sizes], list[tuple[int, ...]]]
    forward: Callable
    backward: Callable
    on_scalars: Callable
    others: Callable = lambda random, n: []
    # From dy and all inputs, the absolute values of the terms that output and gradients are sums
    # of; 0 for what torch in the same dtype loses too where it cancels.
    terms: Callable = lambda dy, *inputs: [0.0] * 4


def rows(n):
    return (n.batch, n.time, n.width)


def queries_keys_values(n):
    keys = (n.batch, n.kv_heads, n.past + n.time, 2 * n.half)
    return [(n.batch, n.kv_heads * n.group, n.time, 2 * n.half), keys, keys]


def any_mask(random, n):
    """True in a third of the places, and once at least in each row."""
    mask = random.random((n.batch, 1, n.time, n.past + n.time)) < 0.3
    mask[..., 0] |= ~mask.any(-1)
    return [mask]


def some_ignored(random, n):
    targets = random.integers(0, n.vocab, (n.batch, n.time))
    targets[random.random(targets.shape) < 0.3] = -100
    targets[0, 0] = n.vocab - 1
    return [targets]


def each_row(function, x, *rest):
    """`function` of every innermost list of `x`, with that of each of `rest` beside it."""
    if not isinstance(x[0], list):
        return function(x, *rest)
    return [each_row(function, *row) for row in zip(x, *rest, strict=True)]


def attend(q, k, v, mask=None):
    """Each query of `scalars.attention` with the keys that it may see."""
    group, past = len(q[0]) // len(k[0]), len(k[0][0]) - len(q[0][0])

    def one(b, h, t):
        sees = range(past + t + 1)
        if mask is not None:
            sees = np.flatnonzero(mask[b, 0, t])
        keys, values = ([x[b][h // group][s] for s in sees] for x in (k, v))
        return scalars.attention(q[b][h][t], keys, values)

    return [
        [[one(b, h, t) for t in range(len(head))] for h, head in enumerate(heads)]
        for b, heads in enumerate(q)
    ]


def turn(x, cos, sin):
    return [
        [[scalars.rope(row, t, THETA) for t, row in enumerate(head)] for head in heads]
        for heads in x
    ]


def norm_terms(dy, x, w, *bias):
    """dx is a difference; a LayerNorm takes the mean off x, and what is left is as exact as x."""
    centred = x - arrays.mean(x) if bias else x
    r = 1 / np.sqrt(arrays.mean(centred * centred) + EPS)
    slope = np.abs(dy * w * r)
    if not bias:
        return 0.0, slope, arrays.over_rows(np.abs(dy * x * r))
    lost = 1 + np.abs(x * r)
    sums = (arrays.over_rows(np.abs(dy) * factor) for factor in (lost, 1))
    return 0 * x + bias[0], slope * lost, *sums


def attention_terms(dy, q, k, v, mask=None):
    """Of shares A and scores Z; dZ = A (dA - sum of A dA) is 0 where a query sees one key."""
    dy, group, keys = np.abs(dy), q.shape[1] // k.shape[1], k.shape[2]
    shares = arrays.attention(q, k, np.tile(np.eye(keys), (*k.shape[:2], 1, 1)), mask=mask)
    q, k, v = np.abs(q), np.abs(k).repeat(group, 1), np.abs(v).repeat(group, 1)
    slopes = dy @ v.swapaxes(-1, -2)
    dscores = shares * (slopes + arrays.total(shares * slopes)) / math.sqrt(q.shape[-1])
    sums = (a.swapaxes(-1, -2) @ b for a, b in ((dscores, q), (shares, dy)))
    dk, dv = (each.reshape(len(k), -1, group, *k.shape[2:]).sum(2) for each in sums)
    return shares @ v, dscores @ k, dk, dv


def elementwise(name, n_inputs=1, *, by_row=False, **terms):
    function = getattr(scalars, name)
    each = function if by_row else lambda row: [function(x) for x in row]
    return Operation(
        lambda n: [rows(n)] * n_inputs,
        lambda medium, *inputs: getattr(medium, name)(*inputs),
        lambda dy, *inputs: getattr(arrays, f"{name}_backward")(dy, *inputs),
        lambda *inputs: each_row(each, *inputs),
        **terms,
    )


def attention(name="attention", **masked):
    # Its definition is `attention`, whatever `ops` calls it.
    return Operation(
        queries_keys_values,
        lambda m, q, k, v, *mask: getattr(m, name, m.attention)(
            q, k, v, **({"mask": mask[0]} if mask else {})
        ),
        lambda dy, q, k, v, *mask: arrays.attention_backward(
            dy, q, k, v, mask=mask[0] if mask else None
        ),
        attend,
        terms=attention_terms,
        **masked,
    )


OPERATIONS = {
    "linear": Operation(
        lambda n: [rows(n), (n.vocab, n.width), (n.vocab,)],
        lambda m, x, w, b: m.linear(x, w, b),
        lambda dy, x, w, b: arrays.linear_backward(dy, x, w),
        lambda x, w, b: each_row(lambda row: scalars.linear(row, w, b), x),
    ),
    "embedding": Operation(
        lambda n: [(n.vocab, n.width)],
        lambda m, w, tokens: m.embedding(tokens, w),
        lambda dy, w, tokens: arrays.embedding_backward(dy, tokens, w),
        lambda w, tokens: [[w[token] for token in text] for text in tokens],
        lambda random, n: [random.integers(0, n.vocab, (n.batch, n.time))],
    ),
    "softmax": elementwise("softmax", by_row=True),
    "silu": elementwise("silu"),
    # Their slopes cross 0 where the curves turn.
    "gelu": elementwise("gelu", terms=lambda dy, x: (0.0, dy)),
    "relu2": elementwise("relu2"),
    "swiglu": elementwise("swiglu", 2, by_row=True, terms=lambda dy, gate, up: (0.0, dy * up, 0.0)),
    "rms_norm": Operation(
        lambda n: [rows(n), (n.width,)],
        lambda m, x, w: m.rms_norm(x, w, EPS),
        lambda dy, x, w: arrays.rms_norm_backward(dy, x, w, EPS),
        lambda x, w: each_row(lambda row: scalars.rms_norm(row, w, EPS), x),
        terms=norm_terms,
    ),
    "layer_norm": Operation(
        lambda n: [rows(n), (n.width,), (n.width,)],
        lambda m, x, w, b: m.layer_norm(x, w, b, EPS),
        lambda dy, x, w, b: arrays.layer_norm_backward(dy, x, w, EPS),
        lambda x, w, b: each_row(lambda row: scalars.layer_norm(row, w, b, EPS), x),
        terms=norm_terms,
    ),
    "rope": Operation(
        lambda n: [(n.batch, n.group, n.time, 2 * n.half)],
        lambda m, x, cos, sin: m.rope(x, cos, sin),
        lambda dy, x, cos, sin: arrays.rope_backward(dy, cos, sin),
        turn,
        lambda random, n: list(arrays.rotary_angles(n.time, 2 * n.half, THETA)),
    ),
    "attention": attention(),
    "attention with a mask": attention(others=any_mask),
    "cross_entropy": Operation(
        lambda n: [(n.batch, n.time, n.vocab)],
        lambda m, logits, targets: m.cross_entropy(logits, targets),
        lambda dy, logits, targets: arrays.cross_entropy_backward(float(dy), logits, targets),
        lambda logits, targets: scalars.cross_entropy([*chain(*logits)], targets.ravel().tolist()),
        some_ignored,
    ),
    "linear_cross_entropy": Operation(
        lambda n: [rows(n), (n.vocab, n.width)],
        lambda m, x, w, targets: m.linear_cross_entropy(x, w, targets),
        lambda dy, x, w, targets: arrays.linear_cross_entropy_backward(float(dy), x, w, targets),
        lambda x, w, targets: scalars.cross_entropy(
            each_row(lambda row: scalars.linear(row, w), [*chain(*x)]), targets.ravel().tolist()
        ),
        some_ignored,
    ),
}
# What the model has beside the one definition: attention spelled out.
MANUAL = {
    "manual_attention": attention("manual_attention"),
    "manual_attention with a mask": attention("manual_attention", others=any_mask),
}


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
    backward(total(value * float(slope) for value, slope in zip(flat, np.ravel(dy), strict=True)))
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
