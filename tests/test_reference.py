"""The slow definitions of the operations: their dtypes, their edges, and scalars that derive."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rungs.media import draw
from tests.rungs.operations import OPERATIONS, Sizes
from tinylm.reference import arrays, scalars, tensors
from tinylm.reference.smallest import Value, backward, dot, total

# The step of central differences.
H = 1e-5


def assert_near(fast, slow, tolerance):
    assert np.shape(fast) == np.shape(slow)
    apart = np.linalg.norm(np.subtract(fast, slow))
    assert apart <= tolerance * (1 + np.linalg.norm(slow))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_tensors_keep_their_dtype_and_its_precision(name, dtype):
    operation = OPERATIONS[name]
    sizes = Sizes(batch=2, time=3, past=1, kv_heads=2, group=2, half=4, width=16, vocab=9)
    inputs, others, _ = draw(operation, sizes, 0)
    leaves = [torch.tensor(x, dtype=dtype) for x in inputs]
    y = operation.forward(tensors, *leaves, *(torch.tensor(x) for x in others))
    assert y.dtype == (torch.promote_types(dtype, torch.float32) if y.dim() == 0 else dtype)
    exact = operation.forward(arrays, *inputs, *others)
    assert_near(y.double().numpy(), exact, 4 * torch.finfo(dtype).eps)


ELEMENTARY = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
    "numbers on the right": lambda x, y: (x + 2.0) * (y * 3.0) - (x - 1.0) / 7.0 + y / 2.0,
    "powers": lambda x, y: x**3 + y**-0.5 + (x * -1.0) ** 2,
    "a value used twice": lambda x, y: (x * y) * (x * y) + x * x,
    "sums": lambda x, y: total([x, y, x]) + dot([x, y], [y, y]),
}
CURVES = {
    "exp": (lambda x: x.exp(), math.exp),
    "log": (lambda x: x.log(), math.log),
    "tanh": (lambda x: x.tanh(), math.tanh),
    "relu2": (lambda x: scalars.relu2(x - 1.5), lambda x: max(x - 1.5, 0.0) ** 2),
}


def sum_on_floats(x, y):
    return x + y + x + (x * y + y * y)


@pytest.mark.parametrize("name", ELEMENTARY)
@given(st.floats(0.5, 3), st.floats(0.5, 3))
@settings(deadline=None, max_examples=20)
def test_a_value_computes_as_a_float_and_knows_both_derivatives(name, x, y):
    function = ELEMENTARY[name]
    on_floats = sum_on_floats if name == "sums" else function
    a, b = Value(x), Value(y)
    result = function(a, b)
    backward(result)
    assert result.data == pytest.approx(on_floats(x, y))
    slope_x = (on_floats(x + H, y) - on_floats(x - H, y)) / (2 * H)
    slope_y = (on_floats(x, y + H) - on_floats(x, y - H)) / (2 * H)
    assert (a.gradient, b.gradient) == pytest.approx((slope_x, slope_y), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("x", [0.3, 1.2, 2.9])
def test_a_curve_has_the_derivative_of_central_differences(name, x):
    function, on_floats = CURVES[name]
    value = Value(x)
    result = function(value)
    backward(result)
    assert result.data == on_floats(x)
    assert value.gradient == pytest.approx((on_floats(x + H) - on_floats(x - H)) / (2 * H))


def test_a_chain_deeper_than_the_recursion_limit_is_differentiated():
    x = Value(1.0)
    y = x
    for _ in range(5000):
        y = y + x
    backward(y)
    assert (y.data, x.gradient) == (5001.0, 5001.0)


def test_rope_makes_products_depend_on_distance_alone():
    random = np.random.default_rng(0)
    q, k = random.normal(size=(2, 1, 1, 1, 8)).repeat(9, 3)
    angles = arrays.rotary_angles(9, 8, 50.0)
    products = arrays.rope(q, *angles) @ arrays.rope(k, *angles).swapaxes(-1, -2)
    for distance in range(9):
        diagonal = np.diagonal(products[0, 0], -distance)
        assert diagonal == pytest.approx(diagonal[0])


@pytest.mark.parametrize("medium", [arrays, tensors])
def test_the_last_query_stands_at_the_last_key(medium):
    mask = medium.causal_mask(2, 4)
    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize("medium", [arrays, tensors])
def test_huge_scores_and_logits_stay_finite(medium):
    convert = np.array if medium is arrays else torch.tensor
    assert medium.softmax(convert([[1e4, -1e4]])).tolist() == [[1.0, 0.0]]
    assert float(medium.cross_entropy(convert([[1e4, -1e4]]), convert([1]))) == 2e4
