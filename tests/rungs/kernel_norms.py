"""The norms, alone and of a sum: `ops` against the definition, and the fused kernels against both.

The kernels run in Triton's interpreter or, where there is one, on the GPU. A case is the
operation's tensors (x, the branch of an add form, weight, the bias of a LayerNorm or None), the
gradients of its outputs (of the sum first) and eps.
"""

from functools import partial

import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung
from tests.support.interpreter import DEVICE, guarded, torch_forms
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops
from tinylm.reference import tensors as reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NORMS = ["rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"]


def added(name):
    """Whether an operation norms a sum, which it returns too."""
    return name.startswith("add_")


def results(function, tensors, slopes, eps):
    """Outputs and gradients of `function`; views stay the views they are."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    outputs = function(*leaves, eps)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    with_gradient = [leaf for leaf in leaves if leaf is not None]
    gradients = torch.autograd.grad(outputs, with_gradient, slopes)
    return *(y.detach() for y in outputs), *gradients


def defined(name, *case):
    """Outputs and gradients of the definition, in the dtypes of the case."""
    return results(getattr(reference, name), *case)


def in_float64(name, tensors, slopes, eps):
    """Outputs and gradients of the definition, in float64."""
    wide = [None if x is None else x.double() for x in tensors]
    return defined(name, wide, [dy.double() for dy in slopes], eps)


def by_torch(name, *case):
    """Outputs and gradients of `ops` without its kernel, on a GPU too."""
    with torch_forms():
        return results(getattr(ops, name), *case)


def by_kernel(name, *case):
    import tinylm.kernels  # noqa: F401

    return results(getattr(torch.ops.tinylm, name), *case)


def over_rows(terms):
    """The size of sums over rows [..., D] whose terms cancel in nothing."""
    return float(terms.abs().sum(tuple(range(terms.dim() - 1))).norm())


def terms(name, tensors, slopes, eps):
    """The sizes of the terms that outputs and gradients are sums of.

    Gradients can cancel (dx does at D = 1, to the last digit), and what a LayerNorm leaves of a
    row is only as exact as the row was before the mean was taken off.
    """
    x, *rest = (None if tensor is None else tensor.double() for tensor in tensors)
    *above, dy = (slope.double() for slope in slopes)
    total = x + rest.pop(0) if added(name) else x
    weight, *bias = rest
    centred = total - total.mean(-1, keepdim=True) if bias else total
    r = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    lost = 1 + (total * r).abs() if bias else 1
    slope = float((dy * weight * r * lost).norm()) + sum(float(d.norm()) for d in above)
    gain = over_rows(dy * (lost if bias else total * r))
    out = float((total * r * weight).norm()) if bias else 0.0
    shift = [over_rows(dy)] if bias and bias[0] is not None else []
    pair = 2 if above else 1
    return *[0.0] * len(above), out, *[slope] * pair, gain, *shift


LEADING = (
    st.lists(st.integers(0, 5), max_size=3).map(tuple)
    | st.tuples(st.integers(0, 150))
    | st.sampled_from([(0,), (1,), (2, 0)])
)
# On the CPU torch sums the gradient of a narrow bias in its own dtype: few rows.
FEW = st.lists(st.integers(0, 3), max_size=2).map(tuple)


@st.composite
def inputs(draw, name, leading=LEADING, *, any_vector=True):
    """x of any leading shape, number of rows and layout, and all dtypes beside one another.

    Without `any_vector` weight and bias have the dtype of the output: torch rounds them to it.
    """
    leading = draw(leading)
    width = draw(st.integers(1, 300) | st.sampled_from([1, 2, 127, 128, 129, 512, 768, 1000]))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    dtype = draw(st.sampled_from(DTYPES))
    # Half of the other tensors have the dtype of x, as in a model without autocast.
    dtypes = st.sampled_from([dtype, dtype, dtype, *DTYPES])

    def normal(*shape, dtype=dtype, scale=1.0, layouts=LAYOUTS):
        values = (torch.randn(shape, generator=generator) * scale).to(dtype).to(DEVICE)
        return laid_out(values, draw(st.sampled_from(layouts)))

    x = normal(*leading, width, scale=10.0 ** draw(st.integers(-2, 2)))
    branch = [normal(*leading, width, dtype=draw(dtypes))] if added(name) else []
    common = torch.promote_types(dtype, branch[0].dtype) if branch else dtype

    def vector():
        return normal(width, dtype=draw(dtypes) if any_vector else common, layouts=LAYOUTS[:3])

    bias = [draw(st.none() | st.builds(vector))] if "layer" in name else []
    slopes = [normal(*leading, width, dtype=common) for _ in range(1 + added(name))]
    # Without an eps the variance of a row of one number would be divided by.
    eps = draw(st.sampled_from([1e-5, 1e-6, 1e-3 if bias else 0.0]))
    return [x, *branch, vector(), *bias], slopes, eps


def wide(name, width, dtype, rows=3):
    """A few rows of any width; float32 weights, and a branch of `dtype` on a float32 stream."""
    generator = torch.Generator().manual_seed(width)

    def normal(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    stream = torch.float32 if added(name) else dtype
    branch = [normal(rows, width, dtype=dtype)] if added(name) else []
    bias = [normal(width)] if "layer" in name else []
    slopes = [normal(rows, width, dtype=stream) for _ in range(1 + added(name))]
    return [normal(rows, width, dtype=stream), *branch, normal(width), *bias], slopes, 1e-5


def to_ops(name):
    """The add form that the model calls, against the definition."""
    return Rung(
        name=name,
        chapter="tensors",
        media=("tensors", "ops"),
        slow=partial(in_float64, name),
        fast=partial(by_torch, name),
        peer=partial(defined, name),
        terms=partial(terms, name),
        inputs=inputs(name, FEW, any_vector=False),
        example=lambda: wide(name, 768, torch.bfloat16, 1024),
        gradients=True,
        cost=4,
    )


def to_kernels(name):
    """The kernels against the definition, in guarded memory."""
    return Rung(
        name=name,
        chapter="metal",
        media=("ops", "kernels"),
        slow=partial(in_float64, name),
        fast=partial(by_kernel, name),
        peer=partial(by_torch, name),
        terms=partial(terms, name),
        inputs=inputs(name),
        example=lambda: wide(name, 768, torch.bfloat16, 8192 if DEVICE == "cuda" else 64),
        gradients=True,
        covers=(name, f"{name}_backward"),
        cost=10,
        fuzz=2_000,
        around=guarded,
    )


RUNGS = (*map(to_ops, filter(added, NORMS)), *map(to_kernels, NORMS))
