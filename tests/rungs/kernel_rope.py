"""RoPE and QK-norm against their definitions, and their kernels against `ops`.

The kernels run in Triton's interpreter or, where there is one, on the GPU.
"""

import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung
from tests.support.interpreter import DEVICE, guarded, torch_forms
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops
from tinylm.reference import tensors

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def rope_results(function, x, cos, sin, dy):
    """Output and dx of `function`; a view `x` stays the view it is."""
    x = x.detach().requires_grad_()
    y = function(x, cos, sin)
    return y.detach(), *torch.autograd.grad(y, x, dy)


def norm_results(function, x, weight, cos, sin, eps, dy):
    """Output, dx and, where there is a weight, dw of `function`."""
    leaves = [part.detach().requires_grad_() for part in (x, weight) if part is not None]
    y = function(*leaves, *[None] * (weight is None), cos, sin, eps)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def in_float64(results, function):
    """`results` of the definition `function`, every tensor in float64."""

    def exact(*case):
        wide = (part.double() if isinstance(part, torch.Tensor) else part for part in case)
        return results(function, *wide)

    return exact


def by_kernel(results, name):
    """`results` of the registered operation."""

    def fast(*case):
        import tinylm.kernels  # noqa: F401

        return results(getattr(torch.ops.tinylm, name), *case)

    return fast


def by_torch(results, function):
    """`results` of the form in `ops` without its kernel, on a GPU too."""

    def peer(*case):
        with torch_forms():
            return results(function, *case)

    return peer


def norm_terms(x, weight, cos, sin, eps, dy):
    """The sizes of the terms that output, dx and dw are sums of; dx is a difference."""
    x, dy = x.double(), dy.double()
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    slope = tensors.rope(dy, cos.double(), -sin.double())
    if weight is None:
        return 0.0, float((r * slope).norm())
    return 0.0, float((r * weight.double() * slope).norm()), float((slope * x * r).norm())


@st.composite
def rotations(draw, most=256):
    """x and dy [B, H, T, head] of any layout, and the angles of all rows or of each."""
    batch, heads, time = draw(st.integers(0, 2)), draw(st.integers(1, 8)), draw(st.integers(0, 24))
    half = min(draw(st.integers(1, 40) | st.sampled_from([1, 32, 48, 64, 128])), most // 2)
    generator = torch.Generator().manual_seed(draw(SEEDS))
    dtype = draw(st.sampled_from(DTYPES))
    scale = 10.0 ** draw(st.integers(-2, 2))

    def view():
        # Mostly heads beside each other in memory, as a projection leaves them behind.
        values = (torch.randn(batch, time, heads, 2 * half, generator=generator) * scale).to(dtype)
        values, layout = values.to(DEVICE), draw(st.sampled_from([*LAYOUTS, "by heads"]))
        if layout == "by heads":
            return values.transpose(1, 2).contiguous()
        return laid_out(values, layout).transpose(1, 2)

    of_rows = draw(st.sampled_from([(), (batch, 1), (1, 1), (batch, heads)]))
    angle = 100 * torch.rand(*of_rows, time, half, generator=generator)
    to = draw(st.sampled_from([torch.float32, torch.float32, dtype]))
    cos, sin = (
        laid_out(part.to(to).to(DEVICE), draw(st.sampled_from(LAYOUTS[:3])))
        for part in (angle.cos(), angle.sin())
    )
    return view(), cos, sin, view()


@st.composite
def normed_rotations(draw, most=256):
    """`rotations` with a weight [head] or None, and an eps."""
    x, cos, sin, dy = draw(rotations(most))
    weight = torch.randn(x.size(-1), generator=torch.Generator().manual_seed(draw(SEEDS)))
    to = draw(st.sampled_from([torch.float32, x.dtype]))
    weight = laid_out(weight.to(DEVICE, to), draw(st.sampled_from(LAYOUTS[:3])))
    weight = draw(st.sampled_from([weight, weight, None]))
    return x, weight, cos, sin, draw(st.sampled_from([1e-5, 1e-6, 0.0])), dy


def large(dtype=torch.bfloat16, batch=2, heads=8, time=2048 if DEVICE == "cuda" else 64, size=128):
    """Queries or keys as a projection leaves them behind, with the angles of a Llama."""
    generator = torch.Generator().manual_seed(size)
    x, dy = (torch.randn(batch, time, heads, size, generator=generator) for _ in range(2))
    cos, sin = ops.rotary_angles(time, size, 10_000.0)
    x, dy = (part.to(DEVICE, dtype).transpose(1, 2) for part in (x, dy))
    return x, cos.to(DEVICE), sin.to(DEVICE), dy


def large_normed(dtype=torch.bfloat16, **sizes):
    """`large` with a weight and an eps."""
    x, cos, sin, dy = large(dtype, **sizes)
    return x, torch.linspace(0.5, 2.0, x.size(-1), device=DEVICE), cos, sin, 1e-6, dy


RUNGS = (
    Rung(
        name="norm_rope",
        chapter="tensors",
        media=("tensors", "ops"),
        slow=in_float64(norm_results, tensors.norm_rope),
        fast=lambda *case: norm_results(ops.norm_rope, *case),
        peer=lambda *case: norm_results(tensors.norm_rope, *case),
        terms=norm_terms,
        inputs=normed_rotations(most=16),
        example=large_normed,
        gradients=True,
        cost=4,
    ),
    Rung(
        name="rope",
        chapter="metal",
        media=("ops", "kernels"),
        slow=in_float64(rope_results, ops.rope),
        fast=by_kernel(rope_results, "rope"),
        peer=by_torch(rope_results, ops.rope),
        terms=lambda *case: (0.0, 0.0),
        inputs=rotations(),
        example=large,
        gradients=True,
        covers=("rope",),
        cost=10,
        fuzz=2_000,
        around=guarded,
    ),
    Rung(
        name="norm_rope",
        chapter="metal",
        media=("ops", "kernels"),
        slow=in_float64(norm_results, ops.norm_rope),
        fast=by_kernel(norm_results, "norm_rope"),
        peer=by_torch(norm_results, ops.norm_rope),
        terms=norm_terms,
        inputs=normed_rotations(),
        example=large_normed,
        gradients=True,
        covers=("norm_rope", "norm_rope_backward"),
        cost=10,
        fuzz=2_000,
        around=guarded,
    ),
)
