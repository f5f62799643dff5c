"""The tensor operations against their formulas, written out in float64 NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tinylm import ops
from tinylm.mask import CAUSAL
from tinylm.ops import activations, choice, products, spelled

SEEDS = st.integers(0, 2**31)
SIZES = st.integers(1, 9)
FLOAT32 = torch.finfo(torch.float32).eps
FLOATS = (torch.float32, torch.float64)


def normal(seed, *shape, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def close(got, wanted, dtype=torch.float32):
    """Equal to the formula within the rounding of `dtype`, in 2-norm."""
    eps = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    error = np.linalg.norm(got.double().numpy() - wanted)
    assert error <= eps * (1 + np.linalg.norm(wanted)), error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, rows=SIZES, width=SIZES, scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_rms_norm_is_its_formula(dtype, seed, rows, width, scale):
    x, w = (
        torch.tensor(normal(seed + i, rows, width, scale=scale)[: rows ** (1 - i)]) for i in (0, 1)
    )
    w = w.flatten()[:width] / scale
    x, w = x.to(dtype), w.to(dtype)
    wide, gain = x.double().numpy(), w.double().numpy()
    wanted = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * gain
    close(ops.rms_norm(x, w, 1e-5), wanted, dtype)


@pytest.mark.parametrize("biased", [True, False])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, rows=SIZES, width=SIZES, shift=st.sampled_from([0.0, 10.0]))
def test_layer_norm_is_its_formula(biased, seed, rows, width, shift):
    x = normal(seed, rows, width) + shift
    w, b = normal(seed + 1, width), normal(seed + 2, width)
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    wanted = (x - mean) / np.sqrt(variance + 1e-5) * w + (b if biased else 0)
    tensors = [torch.tensor(a, dtype=torch.float64) for a in (x, w, b)]
    close(ops.layer_norm(tensors[0], tensors[1], tensors[2] if biased else None, 1e-5), wanted)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, length=SIZES, half=st.integers(1, 8), theta=st.sampled_from([10.0, 10000.0]))
def test_rope_is_a_complex_rotation(seed, length, half, theta):
    x = normal(seed, 2, 3, length, 2 * half)
    pairs = x[..., :half] + 1j * x[..., half:]
    frequency = theta ** (-np.arange(half) / half)
    turned = pairs * np.exp(1j * np.outer(np.arange(length), frequency))
    angles = ops.rotary_angles(length, 2 * half, theta)
    got = ops.rope(torch.tensor(x, dtype=torch.float32), *angles)
    close(got, np.concatenate((turned.real, turned.imag), -1))


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, one=st.integers(0, 50), two=st.integers(0, 50), shift=st.integers(0, 50))
def test_rope_makes_scores_depend_on_the_distance_alone(seed, one, two, shift):
    q, k = (torch.tensor(normal(seed + i, 8), dtype=torch.float32) for i in (0, 1))
    cos, sin = ops.rotary_angles(101, 8, 100.0)

    def turn(x, place):
        return ops.rope(x.view(1, 1, 1, 8), cos[place : place + 1], sin[place : place + 1])

    near = (turn(q, one) * turn(k, two)).sum()
    far = (turn(q, one + shift) * turn(k, two + shift)).sum()
    assert_close(near, far, rtol=1e-4, atol=1e-4)


def test_one_query_with_a_cache_sees_every_key():
    q, k, v = (
        torch.tensor(normal(i, 1, 1, n, 4), dtype=torch.float32) for i, n in enumerate((1, 5, 5))
    )
    wanted = torch.softmax(q @ k.mT / 2, -1) @ v
    assert_close(ops.attention(q, k, v), wanted)
    assert_close(ops.manual_attention(q, k, v), wanted)


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    vocab=st.integers(1, 9),
    targets=st.lists(st.booleans(), min_size=1, max_size=6),
    scale=st.sampled_from([1.0, 1000.0]),
)
def test_cross_entropy_is_the_mean_of_the_targets_that_count(seed, vocab, targets, scale):
    logits = normal(seed, len(targets), vocab, scale=scale)
    ids = np.random.default_rng(seed).integers(0, vocab, len(targets))
    targets[0] = True
    peak = logits.max(-1)
    total = peak + np.log(np.exp(logits - peak[:, None]).sum(-1))
    nats = [total[i] - logits[i, ids[i]] for i, counts in enumerate(targets) if counts]
    wanted = torch.tensor(np.where(targets, ids, ops.IGNORED))
    got = ops.cross_entropy(torch.tensor(logits, dtype=torch.float32), wanted)
    assert got.dtype == torch.float32
    close(got, np.mean(nats))


# Rows x [4, 64] in, a result that is rounded to the dtype of x at its end alone.
ROUNDED_ONCE = {
    "rms_norm": lambda x: ops.rms_norm(x, torch.ones(64), 1e-5),
    "layer_norm": lambda x: ops.layer_norm(x, torch.ones(64), torch.zeros(64), 1e-5),
    "rope": lambda x: ops.rope(x[None, None], *ops.rotary_angles(4, 64, 100.0)),
    "gelu": ops.gelu,
    "relu2": ops.relu2,
    "cross_entropy": lambda x: ops.cross_entropy(x, torch.arange(4)),
}


@pytest.mark.parametrize("name", ROUNDED_ONCE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_a_narrow_dtype_gives_the_results_and_slopes_of_float32_rounded_once(name, dtype, seed):
    results = []
    x, dy = (torch.tensor(normal(seed + i, 4, 64)).to(dtype) for i in (0, 1))
    for kind in (dtype, torch.float32):
        leaf = x.to(kind).requires_grad_()
        y = ROUNDED_ONCE[name](leaf)
        (dx,) = torch.autograd.grad(y, leaf, dy.view(-1)[: y.numel()].view(y.shape).to(y.dtype))
        # For its slopes, torch keeps a LayerNorm's statistics in the dtype of x, on the CPU.
        results.append((y.detach(),) if name == "layer_norm" else (y.detach(), dx))
    assert results[0][0].dtype == (torch.float32 if name == "cross_entropy" else dtype)
    for narrow, wide in zip(*results, strict=True):
        # A float32 result near the middle of two narrow ones may be rounded to the other.
        limit = (wide.to(narrow.dtype) - wide).norm() + 4 * FLOAT32 * wide.norm()
        assert (narrow - wide).norm() <= limit


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_the_shares_of_manual_attention_add_up_to_one_within_float32(dtype, seed):
    # Where all values are equal, scores change nothing: their slopes are what the shares miss of 1.
    q, k, dy = (torch.tensor(normal(seed + i, 1, 2, 8, 16)).to(dtype) for i in range(3))
    v = torch.tensor(normal(seed + 3, 1, 2, 1, 16)).to(dtype).expand(1, 2, 8, 16)
    leaves = [x.clone().requires_grad_() for x in (q, k)]
    y = ops.manual_attention(*leaves, v)
    limit = 4 * FLOAT32 * float(dy.double().norm() * v.double().norm())
    assert all(slope.double().norm() <= limit for slope in torch.autograd.grad(y, leaves, dy))


def test_cross_entropy_of_bfloat16_is_taken_in_float32():
    logits = torch.tensor(normal(0, 5, 7), dtype=torch.bfloat16)
    targets = torch.arange(5)
    assert torch.equal(
        ops.cross_entropy(logits, targets), ops.cross_entropy(logits.float(), targets)
    )


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "large"])
def test_gelu_and_its_gradient_on_a_cpu_are_those_of_its_formula(layout, monkeypatch):
    monkeypatch.setattr(activations, "TOGETHER", 2**18 if layout == "large" else 7)
    x = torch.tensor(normal(0, 12, 9, scale=4.0))
    x[0, :3] = torch.tensor([0.0, -40.0, 40.0])
    x = x.T if layout == "transposed" else x
    wide = x.detach().clone().requires_grad_()
    narrow = x.float().requires_grad_()
    dy = torch.tensor(normal(1, *x.shape))
    wanted = torch.nn.functional.gelu(wide, approximate="tanh")
    found = ops.gelu(narrow)
    assert type(found.grad_fn).__name__.startswith("_Gelu")
    close(found.detach(), wanted.detach().numpy())
    (slope,) = torch.autograd.grad(found, narrow, dy.float())
    close(slope, torch.autograd.grad(wanted, wide, dy)[0].numpy())


def test_gelu_of_values_that_are_not_finite_is_torchs():
    values = [float("nan"), float("inf"), 1e30]
    x = torch.tensor(values, requires_grad=True)
    assert_close(ops.gelu(x), torch.nn.functional.gelu(x, approximate="tanh"), equal_nan=True)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", ["rms_norm", "norm_rope", "rope"])
def test_gradients_by_hand_on_a_cpu_are_those_of_differences(name, weighted):
    # Heads side by side in memory, as a product leaves them.
    x = torch.tensor(normal(0, 2, 5, 3, 4)).transpose(1, 2).requires_grad_()
    weight = torch.tensor(normal(1, 4)).requires_grad_() if weighted else None
    cos, sin = (angle.double() for angle in ops.rotary_angles(5, 4, 100.0))

    def y(x, *weights):
        given = weights[0] if weights else None
        if name == "rms_norm":
            return ops.rms_norm(x, given, 1e-5)
        return ops.rope(x, cos, sin) if name == "rope" else ops.norm_rope(x, given, cos, sin, 1e-5)

    leaves = (x,) if name == "rope" or weight is None else (x, weight)
    assert type(y(*leaves).grad_fn).__name__ in {"_RMSNormBackward", "_NormRopeBackward"}
    assert torch.autograd.gradcheck(y, leaves)


@pytest.mark.parametrize("size", [1, 2**8])
def test_a_form_by_hand_is_for_gradients_and_for_many_numbers(size, monkeypatch):
    monkeypatch.setattr(choice, "LEAST_BY_HAND", 2**8)
    few, leaf = torch.ones(size), torch.ones(size, requires_grad=True)
    assert choice.by_hand(few) == (size == 2**8)
    assert choice.by_hand(few, None, leaf)
    with torch.no_grad():
        assert choice.by_hand(leaf) == (size == 2**8)


# torch imports decompositions for a forward derivative, which warn.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", ["rms_norm", "norm_rope"])
def test_transforms_of_torch_take_the_form_that_it_knows(name):
    x, weight = torch.tensor(normal(0, 1, 2, 5, 4)), torch.tensor(normal(1, 4))
    cos, sin = ops.rotary_angles(5, 4, 100.0)

    def total(x):
        if name == "rms_norm":
            return ops.rms_norm(x, weight, 1e-5).square().sum()
        return (ops.norm_rope(x, weight, cos, sin, 1e-5) * weight).sum()

    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(total(leaf), leaf)
    assert_close(torch.func.grad(total)(x), wanted)
    assert_close(torch.func.vmap(total)(x), total(x)[None])
    _, tangent = torch.func.jvp(total, (x,), (x,))
    assert_close(tangent, (wanted * x).sum())


def seconds(name):
    """An operation with a gradient by hand, as a function of x [2, 3, 5, 4] alone."""
    cos, sin = ops.rotary_angles(5, 4, 100.0)
    return {
        "gelu": ops.gelu,
        "rms_norm": lambda x: ops.rms_norm(x, None, 1e-5),
        "rope": lambda x: ops.rope(x, cos, sin),
        "norm_rope": lambda x: ops.norm_rope(x, None, cos, sin, 1e-5),
        "attention": lambda x: spelled.causal_attention(x, x, x, CAUSAL, 0.5),
    }[name]


@pytest.mark.parametrize("name", ["gelu", "rms_norm", "norm_rope", "attention"])
def test_a_gradient_by_hand_refuses_to_be_differentiated_again(name):
    # Also where the slope of the result is a constant: torch would take the gradient for one too.
    x = torch.tensor(normal(0, 2, 3, 5, 4)).float().requires_grad_()
    with pytest.raises(NotImplementedError, match=f"{name} has no second derivative; "):
        torch.autograd.grad(seconds(name)(x).sum(), x, create_graph=True)


def test_a_rotation_may_be_differentiated_again():
    x, dy = (torch.tensor(normal(i, 2, 3, 5, 4)).requires_grad_() for i in (0, 1))
    assert torch.autograd.gradgradcheck(seconds("rope"), x, dy)


# A CPU for which torch was built without oneDNN multiplies as always.
@pytest.mark.skipif(not products.ONEDNN, reason="torch was built without oneDNN")
@pytest.mark.parametrize("shape", [(3, 4, 6), (5, 6), (6,)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_by_onednn_is_torchs_with_its_gradients(shape, biased, monkeypatch):
    for least in ("LEAST_WEIGHTS", "LEAST_PRODUCTS"):
        monkeypatch.setattr(products, least, 1)
    x, weight, bias = (
        torch.tensor(normal(i, *size)) for i, size in enumerate((shape, (9, 6), (9, 2)))
    )
    # One column: numbers that are not side by side.
    bias = bias[:, 0]
    given = (x, weight, bias) if biased else (x, weight)
    narrow, wide = ([a.to(dtype).detach().requires_grad_() for a in given] for dtype in FLOATS)
    found, wanted = ops.linear(*narrow), torch.nn.functional.linear(*wide)
    assert "onednn_linear" in found.grad_fn.name()
    assert_close(found, wanted.float())
    dy = torch.tensor(normal(3, *wanted.shape))
    slopes = torch.autograd.grad(found, narrow, dy.float())
    for slope, exact in zip(slopes, torch.autograd.grad(wanted, wide, dy), strict=True):
        assert_close(slope, exact.float())


def test_a_model_that_is_exported_needs_no_operation_of_ours(monkeypatch):
    for least in ("LEAST_WEIGHTS", "LEAST_PRODUCTS"):
        monkeypatch.setattr(products, least, 1)
    product = module_of(lambda x: ops.linear(ops.rms_norm(x, None, 1e-5), torch.ones(9, 6)))
    nodes = torch.export.export(product, (torch.ones(5, 6),)).graph.nodes
    assert not [node.target for node in nodes if "tinylm" in str(node.target)]


def module_of(function):
    """A module whose forward pass is `function`."""
    made = torch.nn.Module()
    made.forward = function
    return made


def test_a_compiler_sees_torchs_forms_in_one_graph(monkeypatch):
    for least in ("LEAST_WEIGHTS", "LEAST_PRODUCTS"):
        monkeypatch.setattr(products, least, 1)
    x, weight = (torch.tensor(normal(i, *size)).float() for i, size in enumerate(((9, 8), (8, 8))))
    angles = ops.rotary_angles(9, 8, 100.0)

    def block(x, weight):
        y = ops.relu2(ops.gelu(ops.linear(ops.rms_norm(x, weight[0], 1e-5), weight)))
        turned = ops.norm_rope(y[None, None], weight[1], *angles, 1e-5)[0, 0]
        return ops.linear_cross_entropy(turned, weight, torch.arange(9) % 8, softcap=5.0)

    leaves = [a.requires_grad_() for a in (x, weight)]
    # fullgraph=True raises for what does not fit into one graph.
    compiled = torch.compile(block, backend="eager", fullgraph=True)(*leaves)
    assert_close(compiled, block(*leaves))
    slopes = (torch.autograd.grad(loss, leaves) for loss in (compiled, block(*leaves)))
    for ours, theirs in zip(*slopes, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
