"""Weights in 8 and 4 bits: `reference.quant` against `ops`, and `ops` against the kernels."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung
from tests.support.interpreter import DEVICE, guarded, torch_forms
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops
from tinylm.reference import quant

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
GROUPS = [32, 64, 128]


def same(slow, fast):
    """Whether two tensors, or tuples of them, have equal bits; nan equals nan."""
    if isinstance(slow, tuple):
        return len(slow) == len(fast) and all(map(same, slow, fast))
    equal = slow.dtype == fast.dtype and slow.shape == fast.shape
    return (
        equal
        and torch.equal(slow.isnan(), fast.isnan())
        and bool(((slow == fast) | slow.isnan()).all())
    )


@st.composite
def weights(draw, multiple):
    """A weight of any leading shape and layout, with rows of zeros and now and then nan or inf."""
    leading = draw(st.lists(st.integers(0, 5), max_size=3))
    width = multiple * draw(st.integers(1, max(4, 300 // multiple)))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    weight = torch.randn(*leading, width, generator=generator)
    # Down to the subnormal numbers of float16, up to its largest.
    weight *= 10.0 ** draw(st.integers(-8, 4))
    weight = weight.to(draw(st.sampled_from([*DTYPES, torch.float64])))
    weight[..., : draw(st.integers(0, width))] *= draw(st.sampled_from([0, 1, 1]))
    if weight.numel() and draw(st.booleans()):
        place = draw(st.integers(0, weight.numel() - 1))
        weight.view(-1)[place] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    return laid_out(weight, draw(st.sampled_from(LAYOUTS)))


@st.composite
def int8_weights(draw):
    return (draw(weights(draw(st.sampled_from([1, 32])))),)


@st.composite
def int4_weights(draw):
    group = draw(st.sampled_from(GROUPS))
    return draw(weights(group)), group


def quantised(name, weight, group):
    """The numbers and scales of a weight for the product `name`."""
    if name == "linear_int8":
        return quant.quantise_int8(weight)
    return quant.quantise_int4(weight, group)


@st.composite
def products(draw, name, most):
    """x with up to `most` rows, a quantised weight, a bias or None, and a gradient or None."""
    leading = draw(
        st.tuples(st.integers(0, min(most, 17)))
        | st.sampled_from([(), (2, 3), (3, 0), (1, 1, 4)])
        | st.tuples(st.sampled_from([1, 16, 17, most]))
    )
    outputs = draw(st.integers(1, 40) | st.sampled_from([1, 31, 64, 129]))
    group = draw(st.sampled_from(GROUPS))
    # The long ones are split along K.
    width = group * draw(st.integers(1, 256 // group) | st.just(640 // group))
    if name == "linear_int8":
        width = draw(st.integers(1, 300) | st.just(width))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    dtype = draw(st.sampled_from(DTYPES))
    other = draw(st.sampled_from([dtype, dtype, *DTYPES]))

    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)

    tensors = normal(*leading, width), *quantised(name, normal(outputs, width, dtype=other), group)
    layouts = [draw(st.sampled_from(which)) for which in (LAYOUTS, LAYOUTS[:3], LAYOUTS[:3])]
    bias = draw(st.sampled_from([None, normal(outputs, dtype=other)]))
    dy = draw(st.sampled_from([None, normal(*leading, outputs)]))
    return *map(laid_out, tensors, layouts), bias, dy


def case(name, rows, outputs, width, dtype, group=128):
    """One product of these sizes, without a gradient."""
    generator = torch.Generator().manual_seed(rows + outputs + width)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(DEVICE, dtype)
        for shape in ((rows, width), (outputs, width), (outputs,))
    )
    return x, *quantised(name, weight, group), bias, None


def results(function, x, numbers, scales, bias, dy):
    """Output and, if there is a dy, dx and, if there is a bias, its gradient.

    Without a dy torch may take a form that has no gradient.
    """
    if dy is None:
        return (function(x, numbers, scales, bias),)
    leaves = [leaf.detach().requires_grad_() for leaf in (x, bias) if leaf is not None]
    y = function(leaves[0], numbers, scales, *(leaves[1:] or [None]))
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def dequantised(name, numbers, scales):
    """The weight [N, K] in the dtype of the scales."""
    return getattr(quant, name.replace("linear", "dequantise"))(numbers, scales)


def in_float64(name, x, numbers, scales, bias, dy):
    """The definition."""
    bias, dy = (None if value is None else value.double() for value in (bias, dy))
    return results(getattr(quant, name), x.double(), numbers, scales.double(), bias, dy)


def in_torch(name, *inputs):
    """torch's product with the weight widened and rounded to the dtype of x."""

    def widened(x, numbers, scales, bias):
        weight = dequantised(name, numbers, scales.float()).to(x.dtype)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

    return results(widened, *inputs)


def by_ops(name, *inputs):
    """The form of `ops` without a kernel, on a GPU too."""
    with torch_forms():
        return results(getattr(ops, name), *inputs)


def by_kernel(name, *inputs):
    import tinylm.kernels  # noqa: F401

    return results(getattr(torch.ops.tinylm, name), *inputs)


def terms(name, x, numbers, scales, bias, dy):
    """2-norms of the terms that each result is a sum of, which can cancel."""
    weight = dequantised(name, numbers, scales.double()).square()
    sizes = [x.double().square() @ weight.T]
    if dy is not None:
        squares = dy.double().square()
        sizes += [squares @ weight, squares]
    return tuple(float(size.sum().sqrt()) for size in sizes[: 3 if bias is not None else 2])


def exact_rung(name, inputs, slow, fast, example):
    """A rung of a format: `ops` has every bit of the definition."""
    return Rung(
        name, "tensors", ("tensors", "ops"), slow, fast, inputs, example, same=same, gradients=False
    )


def product_rungs(name):
    """From the definition to `ops`, and on to the kernel."""
    rest = {
        "slow": partial(in_float64, name),
        "peer": partial(in_torch, name),
        "terms": partial(terms, name),
    }
    return (
        Rung(
            name=name,
            chapter="tensors",
            media=("tensors", "ops"),
            fast=partial(by_ops, name),
            inputs=products(name, 70),
            cost=2,
            example=lambda: case(name, 1, 1024, 1024, torch.bfloat16),
            **rest,
        ),
        Rung(
            name=name,
            chapter="metal",
            media=("ops", "kernels"),
            fast=partial(by_kernel, name),
            inputs=products(name, 64),
            # Nearly all of an interpreter's time goes by blocks, so the example is small there.
            example=lambda: case(name, 1, *[4096 if DEVICE == "cuda" else 256] * 2, torch.bfloat16),
            covers=(name, name.replace("linear_int", "matmul_w")),
            cost=8,
            fuzz=2_000,
            around=guarded,
            **rest,
        ),
    )


def large(columns=1024):
    """A square weight."""
    return torch.randn(columns, columns, generator=torch.Generator().manual_seed(0))


RUNGS = (
    exact_rung(
        "quantise_int8",
        int8_weights(),
        quant.quantise_int8,
        ops.quantise_int8,
        lambda: (large(),),
    ),
    exact_rung(
        "quantise_int4",
        int4_weights(),
        quant.quantise_int4,
        ops.quantise_int4,
        lambda: (large(), 128),
    ),
    exact_rung(
        "dequantise_int8",
        int8_weights().map(lambda drawn: quant.quantise_int8(*drawn)),
        quant.dequantise_int8,
        ops.dequantise_int8,
        lambda: quant.quantise_int8(large()),
    ),
    exact_rung(
        "dequantise_int4",
        int4_weights().map(lambda drawn: quant.quantise_int4(*drawn)),
        quant.dequantise_int4,
        ops.dequantise_int4,
        lambda: quant.quantise_int4(large(), 128),
    ),
    *product_rungs("linear_int8"),
    *product_rungs("linear_int4"),
)
