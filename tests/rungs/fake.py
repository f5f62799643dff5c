"""Training with fewer bits: the numbers of the packed formats, and straight-through gradients."""

from functools import partial

import numpy as np
import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung, near
from tinylm import ops
from tinylm.reference import fake

BITS = ("int8", "int4", "ternary")


def drawn(rows, outputs, groups, group, seed, *, ties=True):
    """x, weight, bias and dy in float32.

    Multiples of 1/64 below 8: sums of their magnitudes are exact in any order, and so is ternary's
    scale but for one rounding. Without `ties` the weights are none: where two scales of int4 cost
    the same, rounding decides between them.
    """
    random = np.random.default_rng(seed)
    shapes = ((rows, groups * group), (outputs, groups * group), (outputs,), (rows, outputs))
    spread = 2.0 ** random.integers(-2, 2)
    found = [
        (np.clip(np.round(64 * spread * random.standard_normal(shape)), -512, 512) / 64).astype(
            np.float32
        )
        for shape in shapes
    ]
    if not ties:
        found[1] += random.random(shapes[1], np.float32) / 64
    return found


def by_definition(rows, outputs, groups, group, bits, share, seed):
    """The weight whose share is 1, that of `share`, the product with it, gradients by hand."""
    x, weight, bias, dy = drawn(rows, outputs, groups, group, seed, ties=bits != "int4")
    given = (bits, group, share)
    return [
        fake.fake_weight(weight, bits, group, 1.0),
        fake.fake_weight(weight, *given),
        fake.fake_linear(x, weight, bias, *given),
        *fake.fake_linear_backward(dy, x, weight, *given),
    ]


def by_ops(rows, outputs, groups, group, bits, share, seed):
    """The same by what `layers.fake` calls."""
    numbers = drawn(rows, outputs, groups, group, seed, ties=bits != "int4")
    x, weight, bias, dy = map(torch.from_numpy, numbers)
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    part = torch.tensor(share)
    whole = ops.fake_weight(weight, part, bits, group)
    read = ops.fake_rows(x, part) if bits == "ternary" else x
    y = ops.linear(read, whole, bias)
    y.backward(dy)
    found = ops.fake_weight(weight, torch.tensor(1.0), bits, group), whole, y
    return [part.detach().numpy() for part in (*found, x.grad, weight.grad, bias.grad)]


def exactly_then_near(slow, fast):
    """The quantised weights bit for bit; the rest within the rounding of sums of 400 terms."""
    return np.array_equal(slow[0], fast[0]) and near(1e-5)(slow[1:], fast[1:])


def by_packing(function, outputs, groups, seed):
    """The ternary numbers of a weight, packed and unpacked, as lists."""
    _, weight, _, _ = drawn(1, outputs, groups, 4, seed)
    return function(weight)


def packed_by_definition(weight):
    numbers, scale = fake.ternary(weight)
    packed = fake.pack_ternary(numbers)
    return packed.tolist(), float(scale), fake.unpack_ternary(packed).tolist()


def packed_by_ops(weight):
    packed, scale = ops.quantise_ternary(torch.from_numpy(weight))
    return packed.tolist(), float(scale), ops.unpack_ternary(packed).tolist()


def by_rounding(function, rows, outputs, width, peak, seed):
    """A product of 8 bits with 8 bits; some inputs are beyond 127 steps."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, width)).astype(np.float32)
    q = random.integers(-127, 128, (outputs, width)).astype(np.int8)
    scale, bias = random.random((2, outputs)).astype(np.float32)
    return [function(x, np.float32(peak / 127), q, scale, bias)]


def static_by_ops(*parts):
    return ops.linear_static(*(torch.from_numpy(np.asarray(part)) for part in parts)).numpy()


def ternary_product(outputs, groups, seed):
    """A product with packed ternary weights is that with fake ones, by its definition."""
    x, weight, bias, _ = drawn(3, outputs, groups, 4, seed)
    return x, weight, bias


def product_by_definition(outputs, groups, seed):
    x, weight, bias = ternary_product(outputs, groups, seed)
    return [fake.fake_linear(x, weight, bias, "ternary", 0, 1.0)]


def product_by_ops(outputs, groups, seed):
    x, weight, bias = map(torch.from_numpy, ternary_product(outputs, groups, seed))
    return [ops.linear_ternary(x, *ops.quantise_ternary(weight), bias).numpy()]


SIZES = st.integers(1, 5)

RUNGS = (
    Rung(
        "linear with fake bits",
        "tensors",
        ("arrays", "ops"),
        by_definition,
        by_ops,
        st.tuples(
            SIZES,
            SIZES,
            st.integers(1, 3),
            st.sampled_from(ops.GROUPS),
            st.sampled_from(BITS),
            st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
            SEEDS,
        ),
        lambda: (512, 192, 6, 32, "int4", 1.0, 0),
        same=exactly_then_near,
    ),
    Rung(
        "ternary packing",
        "tensors",
        ("arrays", "ops"),
        partial(by_packing, packed_by_definition),
        partial(by_packing, packed_by_ops),
        st.tuples(SIZES, st.integers(1, 9), SEEDS),
        lambda: (192, 48, 0),
    ),
    Rung(
        "linear of ternary weights",
        "tensors",
        ("arrays", "ops"),
        product_by_definition,
        product_by_ops,
        st.tuples(SIZES, st.integers(1, 9), SEEDS),
        lambda: (192, 48, 0),
        same=near(1e-5),
    ),
    Rung(
        "linear of 8 bits with 8 bits",
        "tensors",
        ("arrays", "ops"),
        partial(by_rounding, fake.linear_static),
        partial(by_rounding, static_by_ops),
        st.tuples(SIZES, SIZES, st.integers(1, 40), st.sampled_from([1.0, 2.0, 5.0]), SEEDS),
        lambda: (2048, 512, 192, 4.0, 0),
        same=near(1e-6),
    ),
)
