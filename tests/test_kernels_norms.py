"""The fused norms against float64: in Triton's interpreter or, where there is one, on the GPU."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.library import opcheck

from tests.rungs.kernel_norms import (
    DTYPES,
    NORMS,
    RUNGS,
    added,
    by_kernel,
    by_torch,
    in_float64,
    results,
    terms,
    wide,
)
from tests.rungs.rung import check
from tests.support import fake_gpu, interpreter
from tests.support.interpreter import DEVICE
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops

if interpreter.missing():
    pytest.skip(interpreter.missing(), allow_module_level=True)

from tinylm import kernels  # noqa: F401

# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

ADDED = [name for name in NORMS if added(name)]
every_norm = pytest.mark.parametrize("name", NORMS)


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreter.exact():
        yield


def kernel(name):
    return getattr(torch.ops.tinylm, name)


def check_wide(name, width, dtype):
    rung = next(rung for rung in RUNGS if str(rung) == f"{name}-ops-kernels")
    check(rung, wide(name, width, dtype))


@pytest.mark.parametrize(
    ("name", "width", "dtype"),
    [
        ("rms_norm", 8193, torch.bfloat16),
        ("add_rms_norm", 4097, torch.float16),
        ("add_layer_norm", 8195, torch.bfloat16),
        pytest.param("layer_norm", 16384, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_wide_rows_and_their_gradients_are_as_exact_as_torch(name, width, dtype):
    check_wide(name, width, dtype)


@pytest.mark.slow
@every_norm
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [4097, 8192, 16384, 20000, 65536])
def test_rows_of_every_width_and_dtype_are_as_exact_as_torch(name, width, dtype):
    check_wide(name, width, dtype)


def assert_rounded_once(name, tensors, slopes, eps):
    case = tensors, slopes, eps
    for ideal, got, size in zip(
        in_float64(name, *case), by_kernel(name, *case), terms(name, *case), strict=True
    ):
        rounded_once = (ideal.to(got.dtype) - ideal).norm()
        allowed = 4 * torch.finfo(torch.float32).eps * max(ideal.norm(), size)
        assert (got - ideal).norm() <= rounded_once + allowed


@every_norm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_everything_between_loads_and_stores_is_float32(name, dtype):
    # Rows enough for every program to walk over several blocks and leave its own share of dw. The
    # stream of an add form is float32: a sum that is rounded before the norm is a store.
    assert_rounded_once(name, *wide(name, 130, dtype, 100))


@pytest.mark.slow
@every_norm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_everything_is_float32_whatever_dtype_the_weights_have(name, dtype, weight_dtype):
    (x, *rest), slopes, eps = wide(name, 300, dtype, 400)
    branch = [rest.pop(0)] if added(name) else []
    vectors = [vector.to(weight_dtype) for vector in rest]
    assert_rounded_once(name, [x, *branch, *vectors], slopes, eps)


@every_norm
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.integers(0, 3 * 40 - 1),
            st.sampled_from([math.nan, math.inf, -math.inf]),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=15, deadline=None)
def test_nan_and_infinity_spread_as_in_torch(name, places):
    tensors, slopes, eps = wide(name, 40, torch.float32)
    every = [*tensors, *slopes]
    for which, index, value in places:
        flat = every[which % len(every)].view(-1)
        flat[index % flat.numel()] = value
    fast, slow = by_kernel(name, tensors, slopes, eps), by_torch(name, tensors, slopes, eps)
    for place, (ours, theirs) in enumerate(zip(fast, slow, strict=True)):
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        # Two infinite means are taken off the gradient of a LayerNorm: which comes first decides
        # between infinity and NaN.
        if place <= added(name) or "rms" in name:
            assert torch.equal(ours.isnan(), theirs.isnan())


@every_norm
@pytest.mark.parametrize(
    "width", [300, pytest.param(20000, marks=pytest.mark.slow)], ids=["narrow", "wide"]
)
def test_a_norm_repeats_to_the_bit(name, width):
    case = wide(name, width, torch.bfloat16, 20)
    first = by_kernel(name, *case)
    for _ in range(2):
        again = by_kernel(name, *case)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("width", [64, 8200], ids=["narrow", "wide"])
def test_a_norm_reaches_past_two_billion_elements(width):
    # Untouched pages of the 4.3 GB cost nothing.
    stride = 2**30
    memory = torch.empty(2 * stride + width, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((3, width), (stride, 1)).copy_(torch.randn(3, width))
    ones = torch.ones(width, device=DEVICE)
    case = [x.clone(), x, ones], [x, x], 1e-5
    near = [x.clone(), x.clone(), ones], [x.clone(), x.clone()], 1e-5
    for ours, theirs in zip(
        by_kernel("add_rms_norm", *case), by_kernel("add_rms_norm", *near), strict=True
    ):
        assert torch.equal(ours, theirs)


# Dtypes and layouts of x.
FORMED = [
    ("rms_norm", torch.float32, "contiguous"),
    ("add_layer_norm", torch.bfloat16, "padded rows"),
    ("layer_norm", torch.float16, "transposed"),
    ("add_rms_norm", torch.bfloat16, "every other column"),
]
LONGER = [
    pytest.param(name, DTYPES[i % 3], layout, marks=pytest.mark.slow)
    for name in NORMS
    for i, layout in enumerate(LAYOUTS)
]


@pytest.mark.parametrize(("name", "dtype", "layout"), [*FORMED, *LONGER])
def test_a_norm_is_a_well_formed_torch_operation(name, dtype, layout):
    (x, *rest), (*above, dy), eps = wide(name, 20, dtype, 2)
    x = laid_out(x.to(dtype), layout)
    branch = [rest.pop(0)] if added(name) else []
    leaves = [leaf.detach().requires_grad_() for leaf in (x, *branch, *rest)]
    opcheck(kernel(name).default, (*leaves, eps))
    weight, *bias = rest
    dtypes = [x.dtype, branch[0].dtype] if branch else []
    dtypes += [vector.dtype for vector in bias]
    opcheck(kernel(f"{name}_backward").default, (*above, dy, x, weight, eps, *dtypes))


@every_norm
def test_a_frozen_weight_or_input_gets_no_gradient(name):
    tensors, slopes, eps = wide(name, 64, torch.float32)
    every = by_kernel(name, tensors, slopes, eps)[1 + added(name) :]
    for place in range(len(tensors)):
        leaves = [x.detach().requires_grad_(i == place) for i, x in enumerate(tensors)]
        (alone,) = torch.autograd.grad(kernel(name)(*leaves, eps), leaves[place], slopes)
        assert torch.equal(alone, every[place])


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("used", ["sum", "norm"])
def test_an_output_without_a_use_brings_no_gradient(name, used):
    tensors, (dtotal, dy), eps = wide(name, 40, torch.bfloat16)
    leaves = [x.detach().requires_grad_() for x in tensors]
    total, normed = kernel(name)(*leaves, eps)
    output, slope = (total, dtotal) if used == "sum" else (normed, dy)
    ours = torch.autograd.grad(output, leaves, slope, allow_unused=True)
    zeros = [dtotal, 0 * dy] if used == "sum" else [0 * dtotal, dy]
    theirs = by_kernel(name, tensors, zeros, eps)[2:]
    assert [dx is None for dx in ours] == [False, False, *[used == "sum"] * (len(leaves) - 2)]
    for dx, wanted in zip(ours, theirs, strict=True):
        assert dx is None or (dx.dtype == wanted.dtype and torch.equal(dx, wanted))


@every_norm
def test_a_second_derivative_is_refused(name):
    tensors, _, eps = wide(name, 8, torch.float32)
    leaves = [x.requires_grad_() for x in tensors]
    outputs = kernel(name)(*leaves, eps)
    y = outputs[1] if added(name) else outputs
    (dx,) = torch.autograd.grad(y.sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dx.sum().backward()


EIGHT, TWO = torch.zeros(8), torch.zeros(2, 8)
TOO_WIDE = torch.zeros(1, 65537)
REFUSED = {
    "too wide": ("rms_norm", (TOO_WIDE, TOO_WIDE[0]), ["65537", "65536", "tinylm.ops.rms_norm"]),
    "too wide a sum": (
        "add_layer_norm",
        (TOO_WIDE, TOO_WIDE, TOO_WIDE[0], None),
        ["65537", "65536", "tinylm.ops.add_layer_norm"],
    ),
    "short weight": ("rms_norm", (TWO, torch.zeros(7)), ["weight", "[7]", "[2, 8]"]),
    "short bias": ("layer_norm", (TWO, EIGHT, torch.zeros(7)), ["bias", "[7]", "[2, 8]"]),
    "scalar": ("rms_norm", (torch.zeros(()), torch.zeros(())), ["[]"]),
    "broadcast": ("add_rms_norm", (TWO, EIGHT, EIGHT), ["branch", "[8]", "[2, 8]"]),
    "float64": ("rms_norm", (TWO.double(), EIGHT), ["float64", "bfloat16"]),
    "float64 branch": ("add_rms_norm", (TWO, TWO.double(), EIGHT), ["branch", "float64"]),
    "whole numbers": ("rms_norm", (TWO, EIGHT.long()), ["weight", "int64", "bfloat16"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_norm_refuses_in_one_line_that_names_the_limit(case):
    name, tensors, words = REFUSED[case]
    given = [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]
    with pytest.raises(ValueError, match=f"^{name}: ") as error:
        kernel(name)(*given, 1e-5)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_a_gradient_of_another_shape_is_refused():
    x, weight, dy = (tensor.to(DEVICE) for tensor in (TWO, EIGHT, torch.zeros(3, 8)))
    said = r"^rms_norm: dy \[3, 8\] must have the shape of x \[2, 8\]"
    with pytest.raises(ValueError, match=said):
        torch.ops.tinylm.rms_norm_backward(dy, x, weight, 1e-5)


def called(name, zeros, *, x=(4, 64), branch=(4, 64), dtype=torch.float32):
    """The operations that `ops` calls for fake CUDA tensors of these shapes."""
    vectors = [zeros(x[-1], dtype=dtype) for _ in range(2 if "layer" in name else 1)]
    branches = [zeros(*branch, dtype=torch.bfloat16)] if added(name) else []
    inputs = (zeros(*x, dtype=dtype), *branches, *vectors)
    with fake_gpu.Called() as seen:
        outputs = getattr(ops, name)(*inputs, 1e-5)
    for y in outputs if added(name) else [outputs]:
        assert (y.shape, y.dtype) == (x, dtype)
    return seen.names


@every_norm
def test_ops_takes_the_kernel_where_it_can(name):
    with fake_gpu.fake_cuda() as zeros:
        assert called(name, zeros) == [f"tinylm.{name}.default"]
        for wrong in ({"dtype": torch.float64}, {"x": (1, 65537), "branch": (1, 65537)}):
            assert not any("tinylm" in seen for seen in called(name, zeros, **wrong))


@pytest.mark.parametrize("name", ADDED)
def test_a_branch_that_broadcasts_is_added_by_torch(name):
    with fake_gpu.fake_cuda() as zeros:
        names = called(name, zeros, branch=(64,))
    assert names[-1] == f"tinylm.{name.removeprefix('add_')}.default"
    assert f"tinylm.{name}.default" not in names


@every_norm
def test_torch_compile_sees_the_torch_form_of_a_norm(name):
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    with fake_gpu.fake_cuda() as zeros:
        tensors = [zeros(4, 64) for _ in range(1 + added(name))]
        vectors = [zeros(64) for _ in range(2 if "layer" in name else 1)]
        torch.compile(getattr(ops, name), backend=backend, fullgraph=True)(*tensors, *vectors, 1e-5)
    (targets,) = graphs
    assert not any("tinylm" in target for target in targets)


@pytest.mark.parametrize("name", ADDED)
def test_on_the_cpu_an_add_form_is_the_sum_and_its_norm_to_the_bit(name):
    (x, branch, *vectors), slopes, eps = wide(name, 96, torch.bfloat16, 40)

    def apart(x, branch, *vectors):
        total = x + branch
        return total, getattr(ops, name.removeprefix("add_"))(total, *vectors)

    case = [x, branch, *vectors], slopes, eps
    for ours, theirs in zip(by_torch(name, *case), results(apart, *case), strict=True):
        assert torch.equal(ours, theirs)
