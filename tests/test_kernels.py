"""Which operations run as kernels, how kernels compile offline, and what holds the interpreter."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import tinylm
from tests.support import bfloat16, fake_gpu, interpreter
from tinylm import ops

if interpreter.missing():
    pytest.skip(interpreter.missing(), allow_module_level=True)

import triton
import triton.language as tl

from tinylm import kernels

# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreter.exact():
        yield


@pytest.fixture
def fake_cuda():
    with fake_gpu.fake_cuda() as zeros:
        yield zeros


def operations(x, weight):
    with fake_gpu.Called() as called:
        y = ops.rms_norm(x, weight, 1e-5)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    return called.names


def test_ops_takes_the_kernel_for_cuda_tensors(fake_cuda):
    assert operations(fake_cuda(4, 64), fake_cuda(64)) == ["tinylm.rms_norm.default"]


def test_ops_takes_torch_for_cpu_tensors():
    assert not any("tinylm" in name for name in operations(torch.randn(4, 64), torch.randn(64)))


@pytest.mark.parametrize(("width", "dtype"), [(65537, torch.float32), (64, torch.float64)])
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
        return ops.choice.kernel_for("rms_norm", 64, x, weight, compiled=True)(x, weight, 1e-5)

    compiled = torch.compile(operation, backend=backend, fullgraph=True)
    assert compiled(fake_cuda(4, 64), fake_cuda(64)).shape == (4, 64)
    (targets,) = graphs
    assert any("tinylm.rms_norm" in target for target in targets)


def test_ops_falls_back_to_torch_with_one_warning(fake_cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "tinylm.kernels", None)
    monkeypatch.delattr(tinylm, "kernels")
    ops.choice._kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="torch runs in place of the fused kernels") as said:
            first = operations(fake_cuda(4, 64), fake_cuda(64))
        assert said[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert operations(fake_cuda(4, 64), fake_cuda(64)) == first
        assert not any("tinylm" in name for name in first)
    finally:
        ops.choice._kernels.cache_clear()


def test_without_triton_the_import_names_it_and_ops_works():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from tinylm import ops\n"
        "y = ops.rms_norm(torch.ones(2, 8), torch.ones(8), 0.0)\n"
        "print(y.sum().item(), ops.choice._kernels())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "16.0 None\n"
    assert "UserWarning: torch runs in place of the fused kernels" in done.stderr
    assert "triton" in done.stderr


def offline(*arguments, limit=600):
    """What `tests.support.offline` prints; skips where triton brought no assembler."""
    try:
        assert triton.knobs.nvidia.ptxas.path
    except (RuntimeError, AttributeError):
        pytest.skip("triton has no ptxas here")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.offline", "--processes", "1", *arguments]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# `make kernels-offline` compiles all of them.
@pytest.mark.slow
def test_a_kernel_compiles_without_a_gpu_to_what_the_table_says():
    assert "swiglu_backward_kernel halves float32" in offline("--only", "swiglu halves float32")


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


@pytest.mark.skipif(not interpreter.interpreted(), reason="a GPU needs no mending")
def test_mended_bfloat16_multiplies_matrices_and_refuses_to_add():
    a, b = torch.randn(2, 16, 16).bfloat16()
    out = torch.empty_like(a)
    product_kernel[(1,)](a, b, out, SUM=False)
    assert torch.equal(out, (a.float() @ b.float()).bfloat16())
    with pytest.raises(triton.runtime.errors.InterpreterError, match="cast to float32 first"):
        product_kernel[(1,)](a, b, out, SUM=True)
