"""Weights in 8 and 4 bits: their formats, and the fused products against float64.

The kernels run in Triton's interpreter or, where there is one, on the GPU.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from torch.library import opcheck

from tests.rungs.kernel_products import (
    DTYPES,
    GROUPS,
    RUNGS,
    by_kernel,
    case,
    in_float64,
    int4_weights,
    int8_weights,
    terms,
)
from tests.rungs.rung import check
from tests.support import interpreter
from tests.support.interpreter import DEVICE
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops

if interpreter.missing():
    pytest.skip(interpreter.missing(), allow_module_level=True)

from tests.support import fake_gpu
from tinylm import kernels

# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

NAMES = ["linear_int8", "linear_int4"]
OPS_RUNGS = {rung.name: rung for rung in RUNGS if rung.media[1] == "ops"}
KERNEL_RUNGS = {rung.name: rung for rung in RUNGS if rung.media[1] == "kernels"}


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreter.exact():
        yield


def near_half(x, back, scale):
    """Whether |x - back| <= scale / 2, up to the rounding of the quotient in float32."""
    return ((x.double() - back.double()).abs() <= scale.double() * (0.5 + 1e-5)).all()


@given(int8_weights())
@settings(max_examples=50)
def test_int8_is_off_by_half_a_scale_at_most(drawn):
    (x,) = drawn
    whole, scale = ops.quantise_int8(x)
    known = x.isfinite().all(-1)
    assert scale.dtype == torch.float32
    assert (scale[known] > 0).all()
    back = ops.dequantise_int8(whole, scale.double())
    assert near_half(x[known], back[known], scale[known][..., None])
    assert back[~known].isnan().all()


@given(int4_weights())
@settings(max_examples=50)
def test_int4_is_off_by_half_a_scale_at_most(drawn):
    x, group = drawn
    packed, scales = ops.quantise_int4(x, group)
    assert scales.dtype == x.dtype
    back = ops.dequantise_int4(packed, scales.double()).view(*scales.shape, group)
    x = x.reshape(back.shape)
    known = x.isfinite().all(-1)
    assert (scales[known] > 0).all()
    assert near_half(x[known], back[known], scales[known][..., None])
    assert back[~known].isnan().all()


def test_a_row_of_zeros_comes_back_as_zeros():
    zeros = torch.zeros(2, 64, dtype=torch.float16)
    assert not ops.dequantise_int8(*ops.quantise_int8(zeros)).any()
    assert not ops.dequantise_int4(*ops.quantise_int4(zeros)).any()


def test_int8_has_no_number_whose_negative_is_missing():
    x = torch.randn(50, 40)
    (whole, scale), (other, same) = ops.quantise_int8(x), ops.quantise_int8(-x)
    assert torch.equal(whole, -other)
    assert torch.equal(scale, same)


# Which elements of eight neighbours the low and high halves of four bytes hold.
PLACES = [(0, 2), (4, 6), (1, 3), (5, 7)]


@pytest.mark.parametrize("place", range(4))
def test_each_byte_holds_two_elements_and_any_pair_of_nibbles(place):
    packed = torch.full((256, 16), 0x88, dtype=torch.uint8)
    packed[:, 4 + place] = torch.arange(256)
    numbers = ops.dequantise_int4(packed, torch.ones(256, 1))
    low, high = PLACES[place]
    assert torch.equal(numbers[:, 8 + low], (torch.arange(256) % 16 - 8).float())
    assert torch.equal(numbers[:, 8 + high], (torch.arange(256) // 16 - 8).float())
    numbers[:, [8 + low, 8 + high]] = 0
    assert not numbers.any()


def test_packing_undoes_unpacking():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-7, 8, (64, 128), generator=generator).float()
    # With a 7 in each group its scale is 1.
    numbers[:, ::32] = 7
    packed, scales = ops.quantise_int4(numbers)
    assert torch.equal(scales, torch.ones(64, 4))
    assert torch.equal(ops.dequantise_int4(packed, scales), numbers)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_between_loads_and_stores_is_float32(name, dtype):
    drawn = case(name, 3, 40, 640, dtype)
    (exact,), (ours,), (size,) = (
        in_float64(name, *drawn),
        by_kernel(name, *drawn),
        terms(name, *drawn),
    )
    rounded_once = float((exact.to(dtype) - exact).norm())
    # The terms of int4 are up to 31 / 16 where their sum is up to 7 / 16.
    allowed = 16 * torch.finfo(torch.float32).eps * max(float(exact.norm()), size)
    assert float((ours - exact).norm()) <= rounded_once + allowed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_repeats_to_the_bit(name, dtype):
    drawn = case(name, 5, 20, 640, dtype, group=32)
    assert torch.equal(*(by_kernel(name, *drawn)[0] for _ in range(2)))


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_a_row_of_x_stays_in_its_row(name):
    x, numbers, scales, _, _ = case(name, 5, 20, 96, torch.float32, group=32)
    x[2, 70] = math.nan
    y = getattr(torch.ops.tinylm, name)(x, numbers, scales, None)
    assert torch.equal(y.isnan().any(1), torch.arange(5, device=DEVICE) == 2)
    assert y[2].isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rows", range(18))
def test_every_number_of_rows_is_as_exact_as_torch(name, dtype, group, rows):
    check(KERNEL_RUNGS[name], case(name, rows, 33, 384, dtype, group))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cpu_widens_a_weight_in_blocks(name, dtype, monkeypatch):
    monkeypatch.setattr(ops.products, "BLOCK", 1000)
    drawn = [None if value is None else value.cpu() for value in case(name, 20, 33, 256, dtype)]
    check(OPS_RUNGS[name], tuple(drawn))


def test_the_parts_of_a_split_cover_k_once():
    from tinylm.kernels import split_k

    device = torch.device(DEVICE)
    for programs in (1, 32, 64, 128, 1000):
        for width in (32, 160, 4096, 11008, 14336):
            for block in (32, 64, 128):
                parts, each = split_k.split(device, programs, width, block)
                assert each % block == 0
                assert (parts - 1) * each < width <= parts * each


def inputs(name, dtype=torch.float32, layout="contiguous"):
    """Small inputs of a product."""
    x, numbers, scales, bias, _ = case(name, 4, 10, 64, dtype, group=32)
    return laid_out(x.view(2, 2, 64), layout), numbers, scales, bias


EVERY = [(name, *of) for name in NAMES for of in zip(DTYPES, LAYOUTS[1:], strict=False)]
FEW = [("linear_int8", torch.float32, "contiguous"), ("linear_int4", torch.bfloat16, "padded rows")]


@pytest.mark.parametrize(
    ("name", "dtype", "layout"),
    [*FEW, *(pytest.param(*of, marks=pytest.mark.slow) for of in EVERY)],
)
def test_a_product_is_a_well_formed_torch_operation(name, dtype, layout):
    x, numbers, scales, bias = inputs(name, dtype, layout)
    operation = getattr(torch.ops.tinylm, name).default
    if layout == LAYOUTS[2]:
        bias = None
    leaves = [leaf.detach().requires_grad_() if leaf is not None else None for leaf in (x, bias)]
    opcheck(operation, (leaves[0], numbers, scales, leaves[1]))


@pytest.mark.parametrize("name", NAMES)
def test_scales_that_ask_for_a_gradient_are_refused(name):
    x, numbers, scales, _ = inputs(name)
    y = getattr(torch.ops.tinylm, name)(x, numbers, scales.requires_grad_(), None)
    with pytest.raises(ValueError, match="detach"):
        y.sum().backward()
    # ops takes them for constants.
    assert not getattr(ops, name)(x, numbers, scales).requires_grad


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


EIGHT, FOUR = zeros(4, 64, dtype=torch.int8), zeros(4, 32, dtype=torch.uint8)
# What is wrong with (x, numbers, scales, bias), and the words of the error, of the operation alone.
REFUSED = {
    "linear_int8": {
        "too many rows": ((zeros(65, 64), EIGHT, zeros(4), None), ["65", "64", "tinylm.ops"]),
        "float64": ((zeros(2, 64).double(), EIGHT, zeros(4), None), ["float64", "bfloat16"]),
        "bias": ((zeros(2, 64), EIGHT, zeros(4), zeros(5)), ["[5]", "[4]"]),
        "dtype of scale": ((zeros(2, 64), EIGHT, zeros(4).double(), None), ["scale", "float64"]),
    },
    "linear_int4": {
        "too many rows": ((zeros(65, 64), FOUR, zeros(4, 2), None), ["65", "64", "tinylm.ops"]),
        "float64": ((zeros(2, 64).double(), FOUR, zeros(4, 2), None), ["float64", "bfloat16"]),
        "bias": ((zeros(2, 64), FOUR, zeros(4, 2), zeros(5)), ["[5]", "[4]"]),
        "dtype of scale": ((zeros(2, 64), FOUR, zeros(4, 2).double(), None), ["scales", "float64"]),
    },
}
# Refused by `ops` and by the kernel.
REFUSED_BY_BOTH = {
    "linear_int8": {
        "width": ((zeros(2, 63), EIGHT, zeros(4)), ["[2, 63]", "64"]),
        "dtype": ((zeros(2, 64), EIGHT.float(), zeros(4)), ["float32", "int8"]),
        "scale": ((zeros(2, 64), EIGHT, zeros(3)), ["[4, 64]", "[3]"]),
        "scalar": ((zeros(), EIGHT, zeros(4)), ["[]"]),
    },
    "linear_int4": {
        "width": ((zeros(2, 63), FOUR, zeros(4, 2)), ["[2, 63]"]),
        "dtype": ((zeros(2, 64), FOUR.char(), zeros(4, 2)), ["int8", "uint8"]),
        "group": ((zeros(2, 64), FOUR, zeros(4, 4)), ["[4, 32]", "[4, 4]", "128"]),
        "rows of scales": ((zeros(2, 64), FOUR, zeros(3, 2)), ["[4, 32]", "[3, 2]"]),
        "no scales": ((zeros(2, 64), FOUR, zeros(4, 0)), ["[4, 0]"]),
    },
}


def refused(function, name, values, words):
    """`function` raises one line that begins with its name and has the words."""
    values = [None if value is None else value.to(DEVICE) for value in values]
    with pytest.raises(ValueError, match=f"^{name}: ") as error:
        function(*values)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "which"), [(n, w) for n in NAMES for w in REFUSED[n]])
def test_a_kernel_refuses_in_one_line_that_names_the_limit(name, which):
    refused(getattr(torch.ops.tinylm, name), name, *REFUSED[name][which])


@pytest.mark.parametrize(("name", "which"), [(n, w) for n in NAMES for w in REFUSED_BY_BOTH[n]])
def test_ops_and_kernel_refuse_in_one_line(name, which):
    values, words = REFUSED_BY_BOTH[name][which]
    refused(getattr(ops, name), name, values, words)
    refused(getattr(torch.ops.tinylm, name), name, (*values, None), words)


BAD = {
    "whole numbers": ("quantise_int8", (zeros(2, 8).long(),), ["int64"]),
    "scalar": ("quantise_int8", (zeros(),), ["[]"]),
    "no columns": ("quantise_int8", (zeros(2, 0),), ["[2, 0]"]),
    "group": ("quantise_int4", (zeros(2, 64), 16), ["16", "128"]),
    "width": ("quantise_int4", (zeros(2, 48), 32), ["48", "32", "quantise_int8"]),
    "no columns of int4": ("quantise_int4", (zeros(2, 0), 32), ["K=0"]),
    "shapes": ("dequantise_int8", (EIGHT, zeros(5)), ["[4, 64]", "[5]"]),
    "groups": ("dequantise_int4", (FOUR, zeros(4, 3)), ["[4, 32]", "[4, 3]"]),
}


@pytest.mark.parametrize("which", BAD)
def test_a_format_refuses_in_one_line(which):
    name, values, words = BAD[which]
    with pytest.raises(ValueError, match=f"^{name}: ") as error:
        getattr(ops, name)(*values)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def fake(zeros, name, rows, dtype=torch.bfloat16):
    """Inputs of a product on a GPU that is not there."""
    if name == "linear_int8":
        return zeros(rows, 64, dtype=dtype), zeros(4, 64, dtype=torch.int8), zeros(4)
    return zeros(rows, 64, dtype=dtype), zeros(4, 32, dtype=torch.uint8), zeros(4, 2)


@pytest.mark.parametrize("name", NAMES)
def test_ops_takes_the_kernel_for_few_rows_of_cuda_tensors(name):
    with fake_gpu.fake_cuda() as zeros:
        for rows, dtype, taken in (
            (64, torch.bfloat16, 1),
            (65, torch.bfloat16, 0),
            (1, torch.float64, 0),
        ):
            with fake_gpu.Called() as called:
                assert getattr(ops, name)(*fake(zeros, name, rows, dtype)).shape == (rows, 4)
            assert sum("tinylm" in operation for operation in called.names) == taken


@pytest.mark.parametrize("name", NAMES)
def test_ops_takes_torch_for_cpu_tensors(name):
    with fake_gpu.Called() as called:
        getattr(ops, name)(*(value.cpu() for value in inputs(name)))
    assert not any("tinylm" in operation for operation in called.names)


@pytest.mark.parametrize(("name", "dynamic"), [("linear_int8", False), ("linear_int4", True)])
def test_the_kernel_stays_a_kernel_under_torch_compile(name, dynamic):
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    with fake_gpu.fake_cuda() as zeros:
        compiled = torch.compile(
            getattr(ops, name), backend=backend, fullgraph=True, dynamic=dynamic
        )
        for rows in (3, 65, 70):
            assert compiled(*fake(zeros, name, rows)).shape == (rows, 4)
    # A new number of rows needs a new graph only where it decides for the other form.
    taken = [any(f"tinylm.{name}" in target for target in targets) for targets in graphs]
    assert taken == ([True, False] if dynamic else [True, False, False])


def test_tables_cover_the_same_numbers_of_rows():
    limits = {kernels.config.largest(kernels.TABLES[name]) for name in NAMES}
    assert limits == {ops.products.MOST_ROWS}
