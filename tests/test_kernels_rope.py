"""The kernels of RoPE and QK-norm: what the rungs leave open."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.library import opcheck

from tests.rungs.kernel_rope import (
    DTYPES,
    RUNGS,
    large,
    large_normed,
    norm_results,
    norm_terms,
    rope_results,
)
from tests.rungs.rung import check
from tests.support import fake_gpu, interpreter
from tests.support.interpreter import DEVICE
from tests.support.memory import laid_out
from tinylm import config, layers, ops
from tinylm.reference import tensors

if interpreter.missing():
    pytest.skip(interpreter.missing(), allow_module_level=True)

from tinylm import kernels

# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

rope, norm_rope = torch.ops.tinylm.rope, torch.ops.tinylm.norm_rope
norm_rope_backward = torch.ops.tinylm.norm_rope_backward


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreter.exact():
        yield


@pytest.mark.parametrize("size", [2, 256])
def test_every_head_size_is_as_exact_as_torch_where_programs_walk(size):
    sizes = {"batch": 2, "heads": 2, "time": 33, "size": size}
    check(RUNGS[1], large(torch.bfloat16, **sizes))
    check(RUNGS[2], large_normed(torch.bfloat16, **sizes))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 96, 128, 254])
@pytest.mark.parametrize("heads", [1, 12])
def test_realistic_sizes_are_as_exact_as_torch(dtype, size, heads):
    sizes = {"batch": 2, "heads": heads, "time": 70, "size": size}
    check(RUNGS[1], large(dtype, **sizes))
    check(RUNGS[2], large_normed(dtype, **sizes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_everything_between_loads_and_stores_is_float32(dtype):
    case = large_normed(dtype, batch=1, heads=4, time=40, size=16)
    wide = (part.double() if isinstance(part, torch.Tensor) else part for part in case)
    exact, ours = norm_results(tensors.norm_rope, *wide), norm_results(norm_rope, *case)
    for ideal, got, size in zip(exact, ours, norm_terms(*case), strict=True):
        rounded_once = (ideal.to(got.dtype) - ideal).norm()
        allowed = 4 * torch.finfo(torch.float32).eps * max(ideal.norm(), size)
        assert (got - ideal).norm() <= rounded_once + allowed


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["x", "weight", "cos", "dy"]),
            st.integers(0, 2 * 4 * 6 - 1),
            st.sampled_from([math.nan, math.inf, -math.inf]),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=15, deadline=None)
def test_nan_and_infinity_spread_as_in_torch(places):
    x, weight, cos, sin, eps, dy = large_normed(torch.float32, batch=1, heads=2, time=4, size=6)
    named = {"x": x.contiguous(), "weight": weight, "cos": cos, "dy": dy.contiguous()}
    for name, index, value in places:
        flat = named[name].view(-1)
        flat[index % flat.numel()] = value
    x, weight, cos, dy = named.values()
    pairs = [
        [rope_results(f, x, cos, sin, dy) for f in (rope, ops.rope)],
        [norm_results(f, x, weight, cos, sin, eps, dy) for f in (norm_rope, ops.norm_rope)],
    ]
    for fast, slow in pairs:
        for ours, theirs in zip(fast, slow, strict=True):
            assert torch.equal(ours.isnan(), theirs.isnan())
            assert torch.equal(ours.isinf(), theirs.isinf())


def test_repeats_to_the_bit():
    case = large_normed(torch.bfloat16, batch=2, heads=4, time=20, size=32)
    first, again = norm_results(norm_rope, *case), norm_results(norm_rope, *case)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_nothing_but_the_inputs_is_kept_for_the_backward_pass():
    kept = []
    x, weight, cos, sin, eps, _ = large_normed(torch.float32, batch=1, heads=2, time=3, size=4)
    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        rope(x, cos, sin)
        norm_rope(x, weight, cos, sin, eps)
    assert [x.data_ptr() for x in kept] == [x.data_ptr() for x in (cos, sin, x, weight, cos, sin)]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_reaches_past_two_billion_elements(axis):
    # Untouched pages of the 4.3 GB cost nothing.
    strides = [48, 16, 1]
    strides.insert(axis, 2**30)
    memory = torch.empty(2 * 2**30 + 160, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((3, 3, 3, 16), strides).copy_(torch.randn(3, 3, 3, 16))
    angles = [part.to(DEVICE) for part in ops.rotary_angles(3, 16, 10.0)]
    assert torch.equal(rope(x, *angles), rope(x.contiguous(), *angles))


class Recorder:
    """Stands for a kernel and keeps the tensors of its launches."""

    def __init__(self):
        self.tensors = []

    def __getitem__(self, grid):
        return lambda *values, **named: self.tensors.extend(values)


def test_what_a_projection_leaves_behind_is_read_in_place_and_written_in_its_layout(monkeypatch):
    x, cos, sin, _ = large(torch.bfloat16, batch=2, heads=4, time=6, size=16)
    assert rope(x, cos, sin).transpose(1, 2).is_contiguous()
    assert rope(x.contiguous(), cos, sin).transpose(1, 2).is_contiguous()
    recorder = Recorder()
    monkeypatch.setattr(kernels.rope, "rope_kernel", recorder)
    per_row = [part.expand(2, 1, 6, 8) for part in (cos, sin)]
    y = kernels.rope.rope(x, *per_row)
    launched = [part.data_ptr() for part in recorder.tensors if isinstance(part, torch.Tensor)]
    assert launched == [part.data_ptr() for part in (x, cos, sin, y)]


@pytest.mark.parametrize("shape", [(6,), (2, 6)])
def test_the_model_rotates_by_the_kernel_at_the_positions_of_all_rows_or_of_each(shape):
    settings = config.ModelConfig(
        d_model=32, n_heads=2, n_layers=1, context_length=16, vocab_size=8, architecture="llama3"
    )
    part = layers.Rope(settings).to(DEVICE)
    positions = torch.randint(16, shape, device=DEVICE)
    x = torch.randn(2, 2, 6, 16, device=DEVICE)
    with interpreter.chosen_by_ops() as taken:
        ours = part.rotation(positions)(x)
    assert taken == ["rope"]
    assert torch.allclose(ours, part.rotation(positions)(x), atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "layout", "weighted"),
    [
        (torch.float32, "padded rows", True),
        pytest.param(torch.bfloat16, "expanded", False, marks=pytest.mark.slow),
    ],
)
def test_they_are_well_formed_torch_operations(dtype, layout, weighted):
    x, cos, sin, _ = large(dtype, batch=2, heads=2, time=3, size=6)
    x = laid_out(x.transpose(1, 2), layout).transpose(1, 2)
    weight = torch.randn(6, device=DEVICE) if weighted else None
    opcheck(norm_rope_backward.default, (x, x, weight, cos, sin, 1e-5))
    leaf = x.detach().requires_grad_()
    if weighted:
        weight.requires_grad_()
    opcheck(norm_rope.default, (leaf, weight, cos, sin, 1e-5))
    opcheck(rope.default, (leaf, cos, sin), {"inverse": not weighted})


def test_a_frozen_weight_gets_no_gradient():
    x, weight, cos, sin, eps, dy = large_normed(torch.float32, batch=1, heads=2, time=3, size=8)
    leaf = x.detach().requires_grad_()
    (alone,) = torch.autograd.grad(norm_rope(leaf, weight, cos, sin, eps), leaf, dy)
    assert torch.equal(alone, norm_results(norm_rope, x, weight, cos, sin, eps, dy)[1])


def test_rope_turned_back_is_what_it_was_and_its_slope_has_a_slope():
    x, cos, sin, dy = large(torch.float32, batch=1, heads=2, time=5, size=8)
    assert torch.allclose(rope(rope(x, cos, sin), cos, sin, True), x, atol=1e-6)
    leaf, slope = x.detach().requires_grad_(), dy.detach().requires_grad_()
    (dx,) = torch.autograd.grad(rope(leaf, cos, sin), leaf, slope, create_graph=True)
    (again,) = torch.autograd.grad(dx, slope, x)
    assert torch.equal(again, rope(x, cos, sin))


def test_a_second_derivative_of_norm_rope_is_refused():
    x, weight, cos, sin, eps, _ = large_normed(torch.float32, batch=1, heads=1, time=2, size=4)
    leaf = x.detach().requires_grad_()
    y = norm_rope(leaf, weight, cos, sin, eps).sum()
    (dx,) = torch.autograd.grad(y, leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dx.sum().backward()


@pytest.mark.parametrize("normed", [True, False])
def test_angles_that_want_a_gradient_get_it_from_torch(normed):
    x, cos, sin, dy = large(torch.float32, batch=1, heads=1, time=2, size=4)
    cos.requires_grad_()
    slow, fast = ops.rope, rope
    if normed:
        slow, fast = (
            lambda *case, f=f: f(case[0], None, *case[1:], 1e-5) for f in (ops.norm_rope, norm_rope)
        )
    with interpreter.chosen_by_ops() as taken:
        (dcos,) = torch.autograd.grad(slow(x, cos, sin), cos, dy)
    assert taken == []
    assert dcos.norm() > 0
    with pytest.raises(NotImplementedError, match="no gradient for cos and sin"):
        fast(x, cos, sin)


def zeros(*shape):
    return torch.zeros(shape, device=DEVICE)


REFUSED = {
    "too large": (zeros(1, 1, 2, 258), zeros(2, 129), zeros(258), ["258", "256", "tinylm.ops"]),
    "odd": (zeros(1, 1, 2, 7), zeros(2, 3), zeros(7), ["[1, 1, 2, 7]", "even"]),
    "no heads": (zeros(1, 2, 8), zeros(2, 4), zeros(8), ["[1, 2, 8]", "[B, H, T, head]"]),
    "whole angles": (zeros(1, 1, 2, 8), zeros(2, 8), zeros(8), ["[2, 8]", "[1, 1, 2, 4]"]),
    "few angles": (zeros(1, 1, 3, 8), zeros(2, 4), zeros(8), ["[2, 4]", "[1, 1, 3, 4]"]),
    "float64": (zeros(1, 1, 2, 8).double(), zeros(2, 4), zeros(8), ["float64", "bfloat16"]),
    "exact angles": (zeros(1, 1, 2, 8), zeros(2, 4).double(), zeros(8), ["float64", "cos"]),
    "short weight": (zeros(1, 1, 2, 8), zeros(2, 4), zeros(7), ["[7]", "[1, 1, 2, 8]"]),
    "whole numbers": (zeros(1, 1, 2, 8), zeros(2, 4), zeros(8).long(), ["int64", "bfloat16"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_one_line_that_names_the_limit(case):
    x, angle, weight, words = REFUSED[case]
    calls = {"norm_rope": lambda: norm_rope(x, weight, angle, angle, 1e-5)}
    if "weight" not in case and "numbers" not in case:
        calls["rope"] = lambda: rope(x, angle, angle)
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{name}: ") as error:
            call()
        assert all(word in str(error.value) for word in words)
        assert "\n" not in str(error.value)


def test_ops_takes_the_kernels_for_cuda_tensors():
    with fake_gpu.fake_cuda() as zeros, fake_gpu.Called() as called:
        x, angle, weight = zeros(2, 4, 8, 64), zeros(8, 32), zeros(64)
        assert ops.rope(x, angle, angle).transpose(1, 2).is_contiguous()
        assert ops.norm_rope(x, weight, angle, angle, 1e-5).shape == x.shape
        assert ops.norm_rope(x, None, angle, angle, 1e-5).shape == x.shape
    assert [name for name in called.names if "tinylm" in name] == [
        "tinylm.rope.default",
        "tinylm.norm_rope.default",
        "tinylm.norm_rope.default",
    ]


@pytest.mark.parametrize(("size", "dtype"), [(258, torch.float32), (64, torch.float64)])
def test_ops_takes_torch_where_the_table_has_no_row(size, dtype):
    with fake_gpu.fake_cuda() as zeros, fake_gpu.Called() as called:
        x, angle = zeros(2, 4, 8, size, dtype=dtype), zeros(8, size // 2)
        assert ops.rope(x, angle, angle).shape == x.shape
        assert ops.norm_rope(x, None, angle, angle, 1e-5).dtype == dtype
    assert not any("tinylm" in name for name in called.names)


def test_torch_compile_sees_the_torch_forms_whole():
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    def both(x, weight, cos, sin):
        return ops.rope(x, cos, sin) + ops.norm_rope(x, weight, cos, sin, 1e-5)

    with fake_gpu.fake_cuda() as zeros:
        x, weight, angle = zeros(2, 4, 8, 64), zeros(64), zeros(8, 32)
        compiled = torch.compile(both, backend=backend, fullgraph=True)
        assert compiled(x, weight, angle, angle).shape == x.shape
    (targets,) = graphs
    assert any("rsqrt" in target for target in targets)
    assert not any("tinylm" in target for target in targets)
