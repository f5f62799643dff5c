"""The fused norms against `ops`, in Triton's interpreter or, where there is one, on the GPU."""

import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung
from tests.support.interpreter import DEVICE, guarded, torch_forms
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def results(function, x, weight, dy, eps):
    """Output, dx and dw of `function`; views of `x` and `weight` stay the views they are."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = function(x, weight, eps)
    return y.detach(), *torch.autograd.grad(y, (x, weight), dy)


def in_float64(x, weight, dy, eps):
    """Output, dx and dw of the formula."""

    def formula(x, weight, eps):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    return results(formula, x.double(), weight.double(), dy.double(), eps)


def torch_form(x, weight, eps):
    """`ops.rms_norm` without its kernel, on a GPU too."""
    with torch_forms():
        return ops.rms_norm(x, weight, eps)


def by_kernel(x, weight, dy, eps):
    import tinylm.kernels  # noqa: F401

    return results(torch.ops.tinylm.rms_norm, x, weight, dy, eps)


def terms(x, weight, dy, eps):
    """The sizes of the terms that output, dx and dw are sums of.

    dx and dw can cancel (dx does at D = 1, to the last digit).
    """
    x, weight, dy = x.double(), weight.double(), dy.double()
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return 0.0, float((r * weight * dy).norm()), float((dy * x * r).norm())


@st.composite
def inputs(draw):
    """x of any leading shape, number of rows and layout, a weight, a gradient and an eps."""
    leading = draw(
        st.lists(st.integers(0, 5), max_size=3).map(tuple)
        | st.tuples(st.integers(0, 150))
        | st.sampled_from([(0,), (1,), (2, 0)])
    )
    width = draw(st.integers(1, 300) | st.sampled_from([1, 2, 127, 128, 129, 512, 768, 1000]))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    dtype = draw(st.sampled_from(DTYPES))
    scale = 10.0 ** draw(st.integers(-2, 2))

    def normal(*shape, dtype=dtype, scale=1.0):
        return (torch.randn(shape, generator=generator) * scale).to(dtype).to(DEVICE)

    x, dy = normal(*leading, width, scale=scale), normal(*leading, width)
    weight = normal(width, dtype=draw(st.sampled_from([dtype, *DTYPES])))
    layouts = [draw(st.sampled_from(LAYOUTS)) for _ in range(2)]
    striped = laid_out(weight, draw(st.sampled_from(LAYOUTS[:3])))
    return (
        laid_out(x, layouts[0]),
        striped,
        laid_out(dy, layouts[1]),
        draw(st.sampled_from([1e-5, 1e-6, 0.0])),
    )


def wide(width, dtype, rows=3):
    """A few rows of any width."""
    generator = torch.Generator().manual_seed(width)
    x, dy, weight = (torch.randn(n, width, generator=generator) for n in (rows, rows, 1))
    return x.to(DEVICE, dtype), weight[0].to(DEVICE), dy.to(DEVICE, dtype), 1e-5


RUNGS = (
    Rung(
        name="rms_norm",
        chapter="metal",
        media=("ops", "kernels"),
        slow=in_float64,
        fast=by_kernel,
        peer=lambda *case: results(torch_form, *case),
        terms=terms,
        inputs=inputs(),
        example=lambda: wide(768, torch.bfloat16, 8192 if DEVICE == "cuda" else 64),
        gradients=True,
        covers=("rms_norm", "rms_norm_backward"),
        cost=10,
        fuzz=2_000,
        around=guarded,
    ),
)
