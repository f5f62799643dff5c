"""The kernels of the activations: what the rungs leave open."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.library import opcheck

from tests.rungs.kernel_swiglu import DTYPES, RUNGS, halves, large, results
from tests.rungs.rung import check
from tests.support import fake_gpu, interpreter
from tests.support.interpreter import DEVICE
from tests.support.memory import laid_out
from tinylm import config, layers, ops
from tinylm.context import Context

if interpreter.missing():
    pytest.skip(interpreter.missing(), allow_module_level=True)

from tinylm import kernels

# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

swiglu, relu2 = torch.ops.tinylm.swiglu, torch.ops.tinylm.relu2
SWIGLU, RELU2 = RUNGS


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreter.exact():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 16, 1023, 2048, 2049, 5000])
@pytest.mark.parametrize("rows", [1, 70])
def test_realistic_sizes_are_as_exact_as_torch(dtype, width, rows):
    packed, dy = torch.randn(rows, 2 * width, device=DEVICE), torch.randn(rows, width).to(DEVICE)
    gate, up = packed.to(dtype).chunk(2, -1)
    check(SWIGLU, (gate, up, dy.to(dtype)))
    check(SWIGLU, (gate.contiguous(), up.contiguous(), dy.to(dtype)))
    check(RELU2, (gate, dy.to(dtype)))


class Recorder:
    """Stands for a kernel and keeps the values of its launches."""

    def __init__(self):
        self.values = []

    def __getitem__(self, grid):
        return lambda *values, **named: self.values.extend(values)


def test_the_halves_of_a_packed_projection_are_read_in_place(monkeypatch):
    names = ("swiglu_kernel", "swiglu_backward_kernel", "relu2_kernel", "relu2_backward_kernel")
    recorders = {name: Recorder() for name in names}
    for name, recorder in recorders.items():
        monkeypatch.setattr(kernels.swiglu, name, recorder)
    packed = torch.zeros(2, 3, 10, dtype=torch.bfloat16, device=DEVICE)
    gate, up = packed.chunk(2, -1)
    kernels.swiglu.swiglu(gate, up)
    kernels.swiglu.swiglu_backward(up, gate, up)
    kernels.swiglu.relu2(up)
    kernels.swiglu.relu2_backward(gate, up)
    where = {gate.data_ptr(): "gate", up.data_ptr(): "up"}
    read = []
    for recorder in recorders.values():
        tensors = [value for value in recorder.values if isinstance(value, torch.Tensor)]
        read.append([where[each.data_ptr()] for each in tensors if each.data_ptr() in where])
        assert recorder.values[-2:] == [6, 5]
    assert read == [["gate", "up"], ["up", "gate", "up"], ["up"], ["gate", "up"]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["swiglu", "relu2"])
def test_everything_between_loads_and_stores_is_float32(name, dtype):
    case = [part[:2, :300].to(dtype) for part in (halves() if name == "swiglu" else large(1, 1))]
    exact = results(getattr(ops, name), *(part.double() for part in case))
    ours = results(getattr(torch.ops.tinylm, name), *case)
    for ideal, got in zip(exact, ours, strict=True):
        rounded_once = (ideal.to(dtype) - ideal).norm()
        assert (got - ideal).norm() <= rounded_once + 1e-6 * ideal.norm()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 29),
            st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -200.0, 200.0]),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=15, deadline=None)
def test_nan_and_infinity_spread_as_in_torch(places):
    parts = list(torch.randn(3, 30, generator=torch.Generator().manual_seed(0)))
    for part, index, value in places:
        parts[part][index] = value
    gate, up, dy = (part.to(DEVICE) for part in parts)
    pairs = [
        [results(f, gate, up, dy) for f in (swiglu, ops.swiglu)],
        [results(f, gate, dy) for f in (relu2, ops.relu2)],
    ]
    for fast, slow in pairs:
        for ours, theirs in zip(fast, slow, strict=True):
            assert torch.equal(ours.isnan(), theirs.isnan())
            assert torch.equal(ours.isinf(), theirs.isinf())


def test_repeats_to_the_bit():
    gate, up, dy = (part[:4] for part in halves())
    for function, case in ((swiglu, (gate, up, dy)), (relu2, (gate, dy))):
        first, again = results(function, *case), results(function, *case)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_nothing_but_the_inputs_is_kept_for_the_backward_pass():
    kept = []
    gate, up = (torch.randn(2, 8, device=DEVICE, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        swiglu(gate, up)
        relu2(gate)
    assert [x.data_ptr() for x in kept] == [x.data_ptr() for x in (gate, up, gate)]


def test_reaches_past_two_billion_elements():
    # Untouched pages of the 4.3 GB cost nothing.
    memory = torch.empty(2 * 2**30 + 64, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((3, 64), (2**30, 1)).copy_(torch.randn(3, 64))
    gate, up = x.chunk(2, -1)
    assert torch.equal(swiglu(gate, up), swiglu(gate.contiguous(), up.contiguous()))
    assert torch.equal(relu2(x), relu2(x.contiguous()))


def test_they_are_well_formed_torch_operations():
    gate = laid_out(torch.randn(2, 3, 5).to(DEVICE, torch.bfloat16), "transposed")
    up = laid_out(torch.randn(2, 3, 5).to(DEVICE, torch.bfloat16), "padded rows")
    opcheck(torch.ops.tinylm.swiglu_backward.default, (gate, gate, up))
    opcheck(torch.ops.tinylm.relu2_backward.default, (up, gate))
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    opcheck(swiglu.default, (gate, up))
    opcheck(relu2.default, (gate,))


@pytest.mark.parametrize("function", [lambda x: swiglu(x, x), relu2], ids=["swiglu", "relu2"])
def test_a_second_derivative_is_refused(function):
    x = torch.randn(2, 8, device=DEVICE, requires_grad=True)
    (dx,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dx.sum().backward()


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device=DEVICE)


REFUSED = {
    "shapes": (lambda: swiglu(zeros(2, 8), zeros(8)), ["[2, 8]", "[8]"]),
    "dtypes": (lambda: swiglu(zeros(8), zeros(8, dtype=torch.float16)), ["float32", "float16"]),
    "float64": (lambda: swiglu(zeros(8).double(), zeros(8).double()), ["float64", "bfloat16"]),
    "relu2 of numbers": (lambda: relu2(zeros(8).long()), ["int64", "bfloat16"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_one_line_that_names_the_limit(case):
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match=r"^(swiglu|relu2): ") as error:
        call()
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["swiglu", "relu2"])
def test_a_feedforward_layer_runs_on_the_kernel_as_on_torch(name):
    settings = config.ModelConfig(
        d_model=12, n_heads=2, n_layers=1, d_ff=20, vocab_size=8, architecture="llama3"
    )
    part = layers.FEEDFORWARDS[name](settings, bias=False).to(DEVICE)
    with torch.no_grad():
        for weight in part.parameters():
            weight.normal_()
    x = torch.randn(2, 3, 12, device=DEVICE)
    context = Context(torch.arange(3), None)

    def gradients():
        part.zero_grad()
        y = part(x, context)
        y.square().sum().backward()
        return [y.detach(), *(weight.grad for weight in part.parameters())]

    with interpreter.chosen_by_ops() as taken:
        ours = gradients()
    assert taken == [name]
    for a, b in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_ops_takes_the_kernels_for_cuda_tensors_that_they_cover():
    with fake_gpu.fake_cuda() as zeros, fake_gpu.Called() as called:
        gate, up = zeros(4, 128).chunk(2, -1)
        assert ops.swiglu(gate, up).shape == ops.relu2(gate).shape == (4, 64)
        assert ops.swiglu(gate, up[:1]).shape == ops.swiglu(gate, up.half()).shape == (4, 64)
        assert ops.relu2(gate.double()).dtype == torch.float64
    ours = [name for name in called.names if "tinylm" in name]
    assert ours == ["tinylm.swiglu.default", "tinylm.relu2.default"]


def test_torch_compile_sees_the_torch_forms_whole():
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    compiled = torch.compile(
        lambda gate, up: ops.relu2(ops.swiglu(gate, up)), backend=backend, fullgraph=True
    )
    with fake_gpu.fake_cuda() as zeros:
        assert compiled(zeros(4, 64), zeros(4, 64)).shape == (4, 64)
    (targets,) = graphs
    assert any("silu" in target for target in targets)
    assert not any("tinylm" in target for target in targets)
