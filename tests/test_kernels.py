"""The fused kernels against float64: in Triton's interpreter or, where there is one, on the GPU."""

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from tests.rungs.kernels import DTYPES, RUNGS, in_float64, results, terms, wide
from tests.rungs.rung import check
from tests.support import bfloat16
from tests.support.memory import LAYOUTS, laid_out

# The variable counts only before the first import of triton.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton", reason="the fused kernels need triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if DEVICE == "cpu" and not INTERPRETED:
    pytest.skip(
        "triton came before TRITON_INTERPRET=1 and there is no GPU", allow_module_level=True
    )

import triton.language as tl  # noqa: E402

import tinylm  # noqa: E402
from tinylm import kernels, ops  # noqa: E402

# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

rms_norm = torch.ops.tinylm.rms_norm


RMS_NORM = next(rung for rung in RUNGS if rung.name == "rms_norm")


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    """Exact bfloat16, and NumPy as silent about NaN and infinity as a GPU."""
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        if INTERPRETED:
            bfloat16.mend(patch)
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


class Called(TorchDispatchMode):
    """Collects the names of the operations that run inside it."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names = [*getattr(self, "names", []), str(operation)]
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def fake_cuda(monkeypatch):
    """CUDA tensors on any machine: shapes without values, on a GPU of compute capability 9.0."""
    gpu = kernels.config.Device((9, 0), 132)
    monkeypatch.setattr(kernels.config, "device_of", lambda device: gpu)
    with FakeTensorMode():
        yield lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device="cuda")


def operations(x, weight):
    with Called() as called:
        y = ops.rms_norm(x, weight, 1e-5)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    return called.names


def test_ops_takes_the_kernel_for_cuda_tensors(fake_cuda):
    names = operations(fake_cuda(4, 64), fake_cuda(64))
    assert [name for name in names if "prim" not in name] == ["tinylm.rms_norm.default"]


def test_ops_takes_torch_for_cpu_tensors():
    assert not any("tinylm" in name for name in operations(torch.randn(4, 64), torch.randn(64)))


@pytest.mark.parametrize(("width", "dtype"), [(16385, torch.float32), (64, torch.float64)])
def test_ops_takes_torch_where_the_table_has_no_row(fake_cuda, width, dtype):
    x, weight = fake_cuda(4, width, dtype=dtype), fake_cuda(width, dtype=dtype)
    assert not any("tinylm" in name for name in operations(x, weight))


def test_ops_takes_torch_on_an_old_gpu(fake_cuda, monkeypatch):
    old = kernels.config.Device((7, 5), 40)
    monkeypatch.setattr(kernels.config, "device_of", lambda device: old)
    assert not any("tinylm" in name for name in operations(fake_cuda(4, 64), fake_cuda(64)))


def test_torch_compile_sees_the_torch_form_whole(fake_cuda):
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    compiled = torch.compile(ops.rms_norm, backend=backend, fullgraph=True)
    assert compiled(fake_cuda(4, 64), fake_cuda(64), 1e-5).shape == (4, 64)
    (targets,) = graphs
    assert any("rsqrt" in target for target in targets)
    assert not any("tinylm" in target for target in targets)


def test_a_compute_bound_kernel_stays_a_kernel_under_torch_compile(fake_cuda):
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    def operation(x, weight):
        return ops.kernel_for("rms_norm", 64, x, weight, compiled=True)(x, weight, 1e-5)

    compiled = torch.compile(operation, backend=backend, fullgraph=True)
    assert compiled(fake_cuda(4, 64), fake_cuda(64)).shape == (4, 64)
    (targets,) = graphs
    assert any("tinylm.rms_norm" in target for target in targets)


def test_ops_falls_back_to_torch_with_one_warning(fake_cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "tinylm.kernels", None)
    monkeypatch.delattr(tinylm, "kernels")
    ops._kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="torch runs in place of the fused kernels") as said:
            first = operations(fake_cuda(4, 64), fake_cuda(64))
        assert said[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert operations(fake_cuda(4, 64), fake_cuda(64)) == first
        assert not any("tinylm" in name for name in first)
    finally:
        ops._kernels.cache_clear()


def test_without_triton_the_import_names_it_and_ops_works():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from tinylm import ops\n"
        "print(ops.rms_norm(torch.ones(2, 8), torch.ones(8), 0.0).sum().item(), ops._kernels())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "16.0 None\n"
    assert "UserWarning: torch runs in place of the fused kernels" in done.stderr
    assert "triton" in done.stderr


def compile_offline(*sizes):
    """The reports of `tests.support.offline`; skips where triton brought no assembler."""
    try:
        assert triton.knobs.nvidia.ptxas.path
    except (RuntimeError, AttributeError):
        pytest.skip("triton has no ptxas here")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.offline", *map(str, sizes)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_kernels_compile_for_compute_capability_9_without_spilling():
    reports = compile_offline(768, 4096, 8192)
    assert len(reports) == 3 * 2 * 2
    for report in reports:
        assert report["spilled"] == 0, report
        # Inductor's float64 eps, and the width of an address.
        assert not report["float64"], report
        assert not report["narrow"], report
        # One multiprocessor: 65536 registers and 227 KB.
        assert report["registers"] * 32 * report["warps"] <= 65536, report
        assert report["shared"] <= 227 * 1024, report


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_size_of_the_table_compiles_and_only_the_widest_spill():
    sizes = {key.size for key, _ in kernels.rms_norm.FORWARD}
    for report in compile_offline(*sorted(sizes | {size - 1 for size in sizes})):
        # A row of an odd size is read element by element, with an address in a register for each.
        roomy = report["size"] <= 8192 and report["size"] != 8191
        assert report["spilled"] <= (0 if roomy else 1024), report


def test_mended_bfloat16_casts_are_torchs():
    bits = np.arange(65536, dtype=np.uint16)
    every = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    assert np.array_equal(bfloat16.to_float32(bits), every.float().numpy(), equal_nan=True)
    signalling = torch.tensor([0x7F800001, -1]).int().view(torch.float32)
    wide = torch.cat([every.float(), torch.randn(100_000), every.float() * 1.00390625, signalling])
    ours = torch.from_numpy(bfloat16.from_float32(wide.numpy()).view(np.int16))
    assert torch.equal(ours.view(torch.bfloat16).nan_to_num(7.0), wide.bfloat16().nan_to_num(7.0))


@triton.jit
def product_kernel(a, b, out, SUM: tl.constexpr):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    if SUM:
        tl.store(out + at, tl.load(a + at) + tl.load(b + at))
    else:
        tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)).to(tl.bfloat16))


@pytest.mark.skipif(not INTERPRETED, reason="a GPU needs no mending")
def test_mended_bfloat16_multiplies_matrices_and_refuses_to_add():
    a, b = torch.randn(2, 16, 16).bfloat16()
    out = torch.empty_like(a)
    product_kernel[(1,)](a, b, out, SUM=False)
    assert torch.equal(out, (a.float() @ b.float()).bfloat16())
    with pytest.raises(triton.runtime.errors.InterpreterError, match="cast to float32 first"):
        product_kernel[(1,)](a, b, out, SUM=True)
