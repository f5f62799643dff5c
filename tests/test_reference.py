"""The slow definitions of the operations: each gradient against differences, autograd and `ops`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm import ops
from tinylm.reference import arrays, scalars, tensors
from tinylm.reference.autograd import Value, backward, dot, total

# Relative to 1 + the 2-norm. The same formula in another order of sums, all numbers near 1.
FLOAT64 = 1e-11
# Central differences at H: H^2 of the third derivative, 1e-16 / H of rounding, and H where the
# second derivative jumps (relu2 at 0).
H, DIFFERENCES = 1e-5, 3e-5
# 8 roundings of float32.
FLOAT32 = 1e-6
EPS = 1e-3


@dataclass(frozen=True)
class Sizes:
    """Axis lengths of one drawn example."""

    batch: int
    time: int
    past: int
    kv_heads: int
    group: int
    half: int
    width: int
    vocab: int


SIZES = st.builds(
    Sizes,
    batch=st.integers(1, 2),
    time=st.integers(1, 4),
    past=st.integers(0, 3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    half=st.integers(1, 3),
    width=st.integers(1, 6),
    vocab=st.integers(1, 7),
)


@dataclass(frozen=True)
class Operation:
    """Shapes of the inputs that have a gradient, the other inputs, and how both are passed on."""

    shapes: Callable[[Sizes], list[tuple[int, ...]]]
    forward: Callable
    backward: Callable
    others: Callable = lambda random, n: []


def rows(n):
    return (n.batch, n.time, n.width)


def queries_keys_values(n):
    keys = (n.batch, n.kv_heads, n.past + n.time, 2 * n.half)
    return [(n.batch, n.kv_heads * n.group, n.time, 2 * n.half), keys, keys]


def any_mask(random, n):
    """True in a third of the places, and once at least in each row."""
    mask = random.random((n.batch, 1, n.time, n.past + n.time)) < 0.3
    mask[..., 0] |= ~mask.any(-1)
    return [mask]


def some_ignored(random, n):
    targets = random.integers(0, n.vocab, (n.batch, n.time))
    targets[random.random(targets.shape) < 0.3] = -100
    targets[0, 0] = n.vocab - 1
    return [targets]


def elementwise(name, n_inputs=1):
    return Operation(
        lambda n: [rows(n)] * n_inputs,
        lambda medium, *inputs: getattr(medium, name)(*inputs),
        lambda dy, *inputs: getattr(arrays, f"{name}_backward")(dy, *inputs),
    )


OPERATIONS = {
    "linear": Operation(
        lambda n: [rows(n), (n.vocab, n.width), (n.vocab,)],
        lambda m, x, w, b: m.linear(x, w, b),
        lambda dy, x, w, b: arrays.linear_backward(dy, x, w),
    ),
    "embedding": Operation(
        lambda n: [(n.vocab, n.width)],
        lambda m, w, tokens: m.embedding(tokens, w),
        lambda dy, w, tokens: arrays.embedding_backward(dy, tokens, w),
        lambda random, n: [random.integers(0, n.vocab, (n.batch, n.time))],
    ),
    "softmax": elementwise("softmax"),
    "silu": elementwise("silu"),
    "gelu": elementwise("gelu"),
    "relu2": elementwise("relu2"),
    "swiglu": elementwise("swiglu", 2),
    "rms_norm": Operation(
        lambda n: [rows(n), (n.width,)],
        lambda m, x, w: m.rms_norm(x, w, EPS),
        lambda dy, x, w: arrays.rms_norm_backward(dy, x, w, EPS),
    ),
    "layer_norm": Operation(
        lambda n: [rows(n), (n.width,), (n.width,)],
        lambda m, x, w, b: m.layer_norm(x, w, b, EPS),
        lambda dy, x, w, b: arrays.layer_norm_backward(dy, x, w, EPS),
    ),
    "rope": Operation(
        lambda n: [(n.batch, n.group, n.time, 2 * n.half)],
        lambda m, x, cos, sin: m.rope(x, cos, sin),
        lambda dy, x, cos, sin: arrays.rope_backward(dy, cos, sin),
        lambda random, n: arrays.rotary_angles(n.time, 2 * n.half, 100.0),
    ),
    "attention": Operation(
        queries_keys_values,
        lambda m, q, k, v: m.attention(q, k, v),
        arrays.attention_backward,
    ),
    "attention with a mask": Operation(
        queries_keys_values,
        lambda m, q, k, v, mask: m.attention(q, k, v, mask=mask),
        lambda dy, q, k, v, mask: arrays.attention_backward(dy, q, k, v, mask=mask),
        any_mask,
    ),
    "cross_entropy": Operation(
        lambda n: [(n.batch, n.time, n.vocab)],
        lambda m, logits, targets: m.cross_entropy(logits, targets),
        lambda dy, logits, targets: arrays.cross_entropy_backward(float(dy), logits, targets),
        some_ignored,
    ),
}
IN_OPS = [name for name in OPERATIONS if name not in ("linear", "embedding", "softmax", "silu")]


def draw(operation, sizes, seed):
    """Inputs near 1, the other inputs, and a gradient dy of the result."""
    random = np.random.default_rng(seed)
    inputs = [random.normal(size=shape) for shape in operation.shapes(sizes)]
    others = list(operation.others(random, sizes))
    dy = random.normal(size=np.shape(operation.forward(arrays, *inputs, *others)))
    return inputs, others, dy


def by_hand(operation, inputs, others, dy):
    gradients = operation.backward(dy, *inputs, *others)
    return list(gradients) if isinstance(gradients, tuple) else [gradients]


def by_torch(medium, operation, inputs, others, dy, dtype):
    """The result and its gradients from torch's own differentiation, as float64 arrays."""
    leaves = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in inputs]
    rest = [torch.tensor(x) for x in others]
    rest = [x.to(dtype) if x.is_floating_point() else x for x in rest]
    y = operation.forward(medium, *leaves, *rest)
    gradients = torch.autograd.grad(y, leaves, torch.tensor(dy, dtype=y.dtype))
    return y.detach().double().numpy(), [gradient.double().numpy() for gradient in gradients]


def assert_near(fast, slow, tolerance):
    assert np.shape(fast) == np.shape(slow)
    apart = np.linalg.norm(np.subtract(fast, slow))
    assert apart <= tolerance * (1 + np.linalg.norm(slow))


@pytest.mark.parametrize("name", OPERATIONS)
@given(SIZES, st.integers(0, 2**32))
@settings(deadline=None, max_examples=15)
def test_a_gradient_by_hand_is_that_of_central_differences(name, sizes, seed):
    operation = OPERATIONS[name]
    inputs, others, dy = draw(operation, sizes, seed)
    for x, gradient in zip(inputs, by_hand(operation, inputs, others, dy), strict=True):
        slopes = np.zeros_like(x)
        for place in np.ndindex(x.shape):
            kept, sides = x[place], []
            for x[place] in (kept + H, kept - H):
                sides.append(np.sum(operation.forward(arrays, *inputs, *others) * dy))
            x[place] = kept
            slopes[place] = (sides[0] - sides[1]) / (2 * H)
        assert_near(gradient, slopes, DIFFERENCES)


@pytest.mark.parametrize("name", OPERATIONS)
@given(SIZES, st.integers(0, 2**32))
@settings(deadline=None, max_examples=25)
def test_arrays_and_tensors_agree_forward_and_backward(name, sizes, seed):
    operation = OPERATIONS[name]
    inputs, others, dy = draw(operation, sizes, seed)
    y, gradients = by_torch(tensors, operation, inputs, others, dy, torch.float64)
    assert_near(y, operation.forward(arrays, *inputs, *others), FLOAT64)
    for fast, slow in zip(gradients, by_hand(operation, inputs, others, dy), strict=True):
        assert_near(fast, slow, FLOAT64)


@pytest.mark.parametrize("name", IN_OPS)
@given(SIZES, st.integers(0, 2**32))
@settings(deadline=None, max_examples=25)
def test_tensors_and_ops_agree_forward_and_backward(name, sizes, seed):
    operation = OPERATIONS[name]
    inputs, others, dy = draw(operation, sizes, seed)
    slow, slopes = by_torch(tensors, operation, inputs, others, dy, torch.float64)
    fast, gradients = by_torch(ops, operation, inputs, others, dy, torch.float32)
    # A gradient can be a difference of large terms, 0 where a query sees one key: its rounding is
    # that of the terms, which grow with dy. A norm divides by as little as sqrt(EPS).
    scale = (1 + np.linalg.norm(dy)) / (math.sqrt(EPS) if "norm" in name else 1)
    assert_near(fast, slow, FLOAT32 * scale)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert_near(gradient, slope, FLOAT32 * scale)


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


@pytest.mark.parametrize(
    "name", ["rms_norm", "layer_norm", "softmax", "gelu", "silu", "relu2", "swiglu"]
)
def test_scalars_and_arrays_agree_forward_and_backward(name):
    operation = OPERATIONS[name]
    sizes = Sizes(batch=1, time=1, past=0, kv_heads=1, group=1, half=1, width=5, vocab=1)
    inputs, others, dy = draw(operation, sizes, 3)
    vectors = [[Value(a) for a in x.ravel()] for x in inputs]
    call = getattr(scalars, name)
    if name in ("gelu", "silu", "relu2"):
        y = [call(a) for a in vectors[0]]
    else:
        y = call(*vectors, *([EPS] if "norm" in name else []))
    backward(total(a * float(d) for a, d in zip(y, dy.ravel(), strict=True)))
    assert_near([a.data for a in y], operation.forward(arrays, *inputs).ravel(), FLOAT64)
    for vector, slow in zip(vectors, by_hand(operation, inputs, others, dy), strict=True):
        assert_near([a.gradient for a in vector], slow.ravel(), FLOAT64)


ELEMENTARY = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
    "numbers on the left": lambda x, y: (2.0 + x) * (3.0 * y) - (1.0 - x) / (1.0 / y),
    "numbers on the right": lambda x, y: (x + 2.0) * (y * 3.0) - (x - 1.0) / 7.0 + y / 2.0,
    "powers": lambda x, y: x**3 + y**-0.5 + (-x) ** 2,
    "a value used twice": lambda x, y: (x * y) * (x * y) + x * x,
    "sums": lambda x, y: total([x, y, x]) + dot([x, y], [y, y]),
}
CURVES = {
    "exp": (lambda x: x.exp(), math.exp),
    "log": (lambda x: x.log(), math.log),
    "tanh": (lambda x: x.tanh(), math.tanh),
    "relu": (lambda x: (x - 1.5).relu(), lambda x: max(x - 1.5, 0.0)),
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


@pytest.mark.parametrize("medium", [arrays, tensors, ops])
def test_the_last_query_stands_at_the_last_key(medium):
    where = (torch.device("cpu"),) if medium is ops else ()
    mask = medium.causal_mask(2, 4, *where)
    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize("medium", [arrays, tensors])
def test_huge_scores_and_logits_stay_finite(medium):
    convert = np.array if medium is arrays else torch.tensor
    assert medium.softmax(convert([[1e4, -1e4]])).tolist() == [[1.0, 0.0]]
    assert float(medium.cross_entropy(convert([[1e4, -1e4]]), convert([1]))) == 2e4


def test_every_operation_of_the_arrays_with_a_gradient_is_compared_here():
    gradients = {name for name in vars(arrays) if name.endswith("_backward")}
    assert gradients == {f"{name.split()[0]}_backward" for name in OPERATIONS}
