"""The fused kernels against float64: in Triton's interpreter or, where there is one, on the GPU."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.library import opcheck

from tests.rungs.kernel_norms import DTYPES, RUNGS, in_float64, results, terms, wide
from tests.rungs.rung import check
from tests.support import interpreter
from tests.support.interpreter import DEVICE
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops

if interpreter.missing():
    pytest.skip(interpreter.missing(), allow_module_level=True)

from tinylm import kernels  # noqa: F401

# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

rms_norm = torch.ops.tinylm.rms_norm


RMS_NORM = next(rung for rung in RUNGS if rung.name == "rms_norm")


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreter.exact():
        yield


@pytest.mark.parametrize(
    ("width", "dtype"),
    [
        (4097, torch.bfloat16),
        (8192, torch.float16),
        (16384, torch.float32),
        (16384, torch.bfloat16),
    ],
)
def test_wide_rows_and_their_gradients_are_as_exact_as_torch(width, dtype):
    check(RMS_NORM, wide(width, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_everything_between_loads_and_stores_is_float32(dtype, weight_dtype):
    # Rows enough for every program to walk over several blocks and leave its own share of dw.
    x, weight, dy, eps = wide(300, dtype, 400)
    case = (x, weight.to(weight_dtype), dy, eps)
    exact, ours, sizes = in_float64(*case), results(rms_norm, *case), terms(*case)
    for ideal, got, size in zip(exact, ours, sizes, strict=True):
        rounded_once = (ideal.to(got.dtype) - ideal).norm()
        allowed = 4 * torch.finfo(torch.float32).eps * max(ideal.norm(), size)
        assert (got - ideal).norm() <= rounded_once + allowed


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["x", "weight", "dy"]),
            st.integers(0, 5 * 40 - 1),
            st.sampled_from([math.nan, math.inf, -math.inf]),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=40, deadline=None)
def test_rms_norm_spreads_nan_and_infinity_as_torch_does(places):
    generator = torch.Generator().manual_seed(0)
    x, weight, dy = (torch.randn(n, 40, generator=generator) for n in (5, 1, 5))
    for name, index, value in places:
        flat = {"x": x, "weight": weight, "dy": dy}[name].view(-1)
        flat[index % flat.numel()] = value
    x, weight, dy = x.to(DEVICE), weight[0].to(DEVICE), dy.to(DEVICE)
    fast, slow = (results(f, x, weight, dy, 1e-5) for f in (rms_norm, ops.rms_norm))
    for ours, theirs in zip(fast, slow, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_repeats_to_the_bit(dtype):
    x, weight, dy, eps = wide(300, dtype)
    x, dy = x.repeat(20, 1), dy.repeat(20, 1)
    first = results(rms_norm, x, weight, dy, eps)
    for _ in range(3):
        again = results(rms_norm, x, weight, dy, eps)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_rms_norm_reaches_past_two_billion_elements():
    # Untouched pages of the 4.3 GB cost nothing.
    stride = 2**30
    memory = torch.empty(2 * stride + 64, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((3, 64), (stride, 1)).copy_(torch.randn(3, 64))
    weight = torch.ones(64, device=DEVICE)
    assert torch.equal(rms_norm(x, weight, 1e-5), rms_norm(x.clone(), weight, 1e-5))


@pytest.mark.parametrize(
    ("dtype", "layout"), [*zip(DTYPES, LAYOUTS, strict=False), (torch.float32, "transposed")]
)
def test_rms_norm_is_a_well_formed_torch_operation(dtype, layout):
    x = laid_out(torch.randn(2, 3, 20).to(DEVICE, dtype), layout)
    weight = torch.randn(20, device=DEVICE)
    opcheck(torch.ops.tinylm.rms_norm_backward.default, (x, x, weight, 1e-5))
    leaves = (x.detach().requires_grad_(), weight.requires_grad_())
    opcheck(rms_norm.default, (*leaves, 1e-5))


def test_a_frozen_weight_or_input_gets_no_gradient():
    x, weight, dy, eps = wide(64, torch.float32)
    y = rms_norm(x, weight.requires_grad_(), eps)
    (alone,) = torch.autograd.grad(y, weight, dy)
    assert torch.equal(alone, results(rms_norm, x, weight, dy, eps)[2])


def test_a_second_derivative_is_refused():
    x = torch.randn(2, 8, device=DEVICE, requires_grad=True)
    weight = torch.randn(8, device=DEVICE, requires_grad=True)
    y = rms_norm(x, weight, 1e-5).sum()
    (dx,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dx.sum().backward()


REFUSED = {
    "too wide": (torch.zeros(1, 16385), torch.zeros(16385), ["16385", "16384", "tinylm.ops"]),
    "short weight": (torch.zeros(2, 8), torch.zeros(7), ["[7]", "[2, 8]"]),
    "scalar": (torch.zeros(()), torch.zeros(()), ["[]"]),
    "float64": (torch.zeros(2, 8).double(), torch.zeros(8), ["float64", "bfloat16"]),
    "whole numbers": (torch.zeros(2, 8), torch.zeros(8).long(), ["int64", "bfloat16"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rms_norm_refuses_in_one_line_that_names_the_limit(case):
    x, weight, words = REFUSED[case]
    with pytest.raises(ValueError, match=r"^rms_norm: ") as error:
        rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-5)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
