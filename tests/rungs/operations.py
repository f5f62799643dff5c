"""The operations of a transformer, forward and backward: one table for all media."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from hypothesis import strategies as st

from tinylm.reference import arrays, scalars

EPS = 1e-3
THETA = 100.0


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


def head_terms(dy, x, w, targets):
    """A likely target's p - 1 cancels, and what two tokens of like weights give to dx.

    So does the loss of one: the log of the sum, less the target's logit.
    """
    z = arrays.linear(x, w)
    dz = np.abs(arrays.cross_entropy_backward(float(dy), z, targets))
    lse = np.log(np.sum(np.exp(z - z.max()), -1)) + z.max()
    picked = np.take_along_axis(z, np.maximum(targets, 0)[..., None], -1)[..., 0]
    loss = np.sum((np.abs(lse) + np.abs(picked)) * (targets >= 0)) / max(1, np.sum(targets >= 0))
    counted = (targets >= 0) / max(1, np.sum(targets >= 0)) * abs(float(dy))
    hot = np.arange(len(w)) == targets[..., None]
    # p + 1 in place of 1 - p.
    dz = np.where(hot, 2 * counted[..., None] - dz, dz)
    rows = dz.reshape(-1, len(w)), np.abs(x).reshape(-1, x.shape[-1])
    return loss, dz @ np.abs(w), rows[0].T @ rows[1]


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
        lambda x, w, b: each_row(lambda row: scalars.add(scalars.linear(row, w), b), x),
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
        head_terms,
    ),
}
# What the model has beside the one definition: attention spelled out.
MANUAL = {
    "manual_attention": attention("manual_attention"),
    "manual_attention with a mask": attention("manual_attention", others=any_mask),
}
