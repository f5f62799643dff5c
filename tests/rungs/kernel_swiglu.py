"""The kernels of the activations against `ops`, in Triton's interpreter or on a GPU."""

import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung
from tests.support.interpreter import DEVICE, guarded, torch_forms
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def results(function, *case):
    """Output and gradients of `function`; views stay the views they are."""
    *inputs, dy = case
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def swiglu_terms(gate, up, dy):
    """dgate crosses 0 where silu turns."""
    return 0.0, float((dy.double() * up.double()).norm()), 0.0


def numbers(draw, shape, dtype):
    """Normal numbers of `dtype`, some of them exactly 0."""
    generator = torch.Generator().manual_seed(draw(SEEDS))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    values = scale * torch.randn(shape, generator=generator)
    values[torch.rand(shape, generator=generator) < 0.1] = 0.0
    return values.to(DEVICE, dtype)


SHAPES = st.tuples(
    st.lists(st.integers(0, 5), max_size=2).map(tuple) | st.sampled_from([(), (90,)]),
    st.integers(1, 300) | st.sampled_from([1, 128, 352, 2049]),
)


@st.composite
def gated(draw):
    """gate, up and dy: apart in any layouts, or gate and up the halves of one packed tensor."""
    leading, width = draw(SHAPES)
    dtype = draw(st.sampled_from(DTYPES))
    dy = laid_out(numbers(draw, (*leading, width), dtype), draw(st.sampled_from(LAYOUTS)))
    if draw(st.booleans()):
        packed = numbers(draw, (*leading, 2 * width), dtype)
        return *laid_out(packed, draw(st.sampled_from(LAYOUTS))).chunk(2, -1), dy
    gate, up = (
        laid_out(numbers(draw, (*leading, width), dtype), draw(st.sampled_from(LAYOUTS)))
        for _ in range(2)
    )
    return gate, up, dy


@st.composite
def ungated(draw):
    """x and dy in any layouts."""
    gate, _, dy = draw(gated())
    return gate, dy


def large(*factors, rows=8192 if DEVICE == "cuda" else 64):
    """A realistic example: as many inputs of [rows, factor * 1408] as there are factors."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(rows, factor * 1408, generator=generator).to(DEVICE, torch.bfloat16)
        for factor in factors
    )


def halves(rows=8192 if DEVICE == "cuda" else 64):
    """The halves of one packed projection, and dy."""
    packed, dy = large(2, 1, rows=rows)
    return *packed.chunk(2, -1), dy


def rung(name, inputs, example, terms):
    """The rung from `ops` to the kernel of an activation."""
    operation = getattr(ops, name)

    def exact(*case):
        return results(operation, *(x.double() for x in case))

    def fast(*case):
        import tinylm.kernels  # noqa: F401

        return results(getattr(torch.ops.tinylm, name), *case)

    def peer(*case):
        with torch_forms():
            return results(operation, *case)

    return Rung(
        name=name,
        chapter="metal",
        media=("ops", "kernels"),
        slow=exact,
        fast=fast,
        peer=peer,
        terms=terms,
        inputs=inputs,
        example=example,
        gradients=True,
        covers=(name, f"{name}_backward"),
        cost=5,
        fuzz=2_000,
        around=guarded,
    )


RUNGS = (
    rung("swiglu", gated(), halves, swiglu_terms),
    rung("relu2", ungated(), lambda: large(1, 1), lambda x, dy: (0.0, 0.0)),
)
