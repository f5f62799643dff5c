"""The fused cross-entropy against float64, and how the loss of the head calls it."""

import math
import subprocess
import sys

import pytest
import torch
from torch.library import opcheck

from tests.rungs.kernel_losses import DTYPES, RUNGS, large, limits
from tests.rungs.rung import check
from tests.support import fake_gpu, interpreter
from tests.support.interpreter import DEVICE
from tests.support.memory import laid_out
from tinylm import ops
from tinylm.ops import losses

if interpreter.missing():
    pytest.skip(interpreter.missing(), allow_module_level=True)

from tinylm import kernels  # noqa: F401

# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

cross_entropy_ = torch.ops.tinylm.cross_entropy_
(IN_KERNEL,) = (rung for rung in RUNGS if rung.media[1] == "kernels")


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreter.exact():
        yield


def drawn(rows=4, vocabulary=700, dtype=torch.float32):
    """Logits, and targets of which the second is ignored."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocabulary, generator=random).to(DEVICE, dtype)
    targets = torch.randint(vocabulary, (rows,), generator=random)
    targets[1] = ops.IGNORED
    return logits, targets.to(DEVICE)


def test_a_large_vocabulary_is_as_exact_as_torch():
    check(IN_KERNEL, large(50257, 3))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("vocabulary", [1, 31, 512, 2048, 2050, 32000, 50257, 131072])
def test_every_vocabulary_and_dtype_is_as_exact_as_torch(vocabulary, softcap, dtype):
    leaves, targets, dy, autocast, options, chunks = large(vocabulary, 24)
    leaves = [None if leaf is None else leaf.to(dtype) for leaf in leaves]
    targets[::5] = ops.IGNORED
    case = (leaves, targets, dy, autocast, options | {"softcap": softcap}, chunks)
    check(IN_KERNEL, case)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_everything_between_loads_and_stores_is_float32(dtype, softcap):
    logits, targets = drawn(dtype=dtype)
    exact = logits.double()
    wanted = losses._to_slopes_by_torch(exact, targets, 0.1, softcap, True)
    found = cross_entropy_(logits, targets, 0.1, softcap, True)
    assert found.dtype == torch.float32
    assert (found - wanted).norm() <= 1e-6 * wanted.norm()
    rounded_once = (exact.to(dtype) - exact).norm()
    assert (logits - exact).norm() <= rounded_once + 1e-6 * exact.norm()


def test_an_ignored_row_has_no_loss_and_no_gradient_whatever_it_holds():
    logits, targets = drawn()
    logits[1] = math.nan
    found = cross_entropy_(logits, targets, 0.1, None, True)
    assert found[1] == 0
    assert not logits[1].any()
    assert logits[0].any()


def test_without_a_gradient_the_logits_stay_and_the_losses_are_the_same():
    logits, targets = drawn()
    before = logits.clone()
    alone = cross_entropy_(logits, targets, 0.1, 2.0, False)
    assert torch.equal(logits, before)
    assert torch.equal(cross_entropy_(logits, targets, 0.1, 2.0, True), alone)


@pytest.mark.parametrize("target", [-1, -101, 700, 2**31 + 5, -(2**40)])
def test_a_target_outside_the_vocabulary_gives_nan_and_reads_nothing(target):
    logits, targets = drawn()
    targets[2] = target
    found = cross_entropy_(logits, targets, 0.0, None, True)
    assert found.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("place", [3, 650])
def test_infinity_and_nan_spread_as_torch_spreads_them(place):
    for value in (math.nan, math.inf, -math.inf):
        logits, targets = drawn()
        # The first block, or the last.
        logits[0, place] = value
        # Nothing but -inf in all blocks but the last.
        logits[2, :-50] = -math.inf
        targets[2] = 690
        logits[3] = -math.inf
        theirs = logits.clone()
        wanted = losses._to_slopes_by_torch(theirs, targets, 0.0, None, True)
        found = cross_entropy_(logits, targets, 0.0, None, True)
        assert torch.allclose(found, wanted, equal_nan=True)
        assert torch.allclose(logits, theirs, equal_nan=True, atol=1e-6)
        assert found[2].isfinite()


def test_rows_may_be_apart_and_nothing_between_them_is_touched():
    logits, targets = drawn()
    wide = laid_out(logits, "padded rows")
    found = cross_entropy_(wide, targets, 0.1, None, True)
    assert torch.equal(found, cross_entropy_(logits, targets, 0.1, None, True))
    assert torch.equal(wide, logits)
    between = wide.as_strided((3, 5), (705, 1), wide.storage_offset() + 700)
    assert between.isnan().all()


def test_rows_reach_past_two_billion_elements():
    # Untouched pages of the 4.3 GB cost nothing.
    memory = torch.empty(2 * 2**30 + 64, dtype=torch.float16, device=DEVICE)
    logits, targets = drawn(3, 64, torch.float16)
    far = memory.as_strided((3, 64), (2**30, 1)).copy_(logits)
    found = cross_entropy_(far, targets, 0.0, None, True)
    assert torch.equal(found, cross_entropy_(logits, targets, 0.0, None, True))
    assert torch.equal(far, logits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_call_gives_the_same_bits(dtype):
    first, targets = drawn(dtype=dtype)
    found = cross_entropy_(first, targets, 0.1, 2.0, True)
    for _ in range(2):
        again, _ = drawn(dtype=dtype)
        assert torch.equal(cross_entropy_(again, targets, 0.1, 2.0, True), found)
        assert torch.equal(again, first)


def test_no_rows_have_no_losses():
    logits, targets = drawn()
    assert cross_entropy_(logits[:0], targets[:0], 0.0, None, True).shape == (0,)


def test_the_cross_entropy_is_a_well_formed_torch_operation():
    logits, targets = drawn(2, 20)
    opcheck(cross_entropy_.default, (logits, targets, 0.1, 2.0, True))
    alone = (laid_out(logits, "padded rows"), targets, 0.0, None, False)
    opcheck(cross_entropy_.default, alone, test_utils=("test_schema", "test_faketensor"))


REFUSED = {
    "one axis": (torch.zeros(8), torch.zeros(8).long(), ["[8]", "[rows, V]"]),
    "narrow targets": (torch.zeros(2, 8), torch.zeros(2).int(), ["int32", "int64"]),
    "too few targets": (torch.zeros(2, 8), torch.zeros(1).long(), ["[2, 8]", "[1]"]),
    "no vocabulary": (torch.zeros(2, 0), torch.zeros(2).long(), ["[2, 0]", "one at least"]),
    "columns first": (torch.zeros(8, 2).T, torch.zeros(2).long(), ["[1, 2]", "side by side"]),
    "float64": (torch.zeros(2, 8).double(), torch.zeros(2).long(), ["float64", "bfloat16"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_kernel_would_misread_is_refused_in_one_line(case):
    logits, targets, words = REFUSED[case]
    with pytest.raises(ValueError, match=r"^cross_entropy_: ") as error:
        cross_entropy_(logits.to(DEVICE), targets.to(DEVICE), 0.0, None, True)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def on_a_gpu(dtype, product):
    """The operations of one loss with gradients on a GPU that is not there."""
    with fake_gpu.fake_cuda() as zeros, fake_gpu.Called() as called, limits():
        losses._chunked(
            *(zeros(16, 64, dtype=dtype), zeros(100, 64, dtype=dtype)),
            *(zeros(16, dtype=torch.int64), None, 0.0, 0.0, None, product, [True, True, False]),
        )
    # What makes the host wait for the GPU.
    waits = ("item", "_local_scalar_dense", "nonzero", "masked_select", "equal")
    assert not any(name.split(".")[1] in waits for name in called.names)
    return called.names


def test_a_gpu_takes_the_kernel_and_sums_the_weights_gradient_in_float32():
    names = on_a_gpu(torch.float32, torch.bfloat16)
    assert names.count("tinylm.cross_entropy_.default") == 8
    assert names.count("aten.addmm.dtype_out") == 8
    assert names.count("aten.mm.out") == 8


def test_a_gpu_takes_torch_for_float64():
    names = on_a_gpu(torch.float64, torch.float64)
    assert not any("tinylm" in name for name in names)
    assert names.count("aten._softmax.default") == names.count("aten.addmm_.default") == 8


def test_torch_compile_has_one_call_for_the_loss_on_a_gpu():
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    compiled = torch.compile(ops.linear_cross_entropy, backend=backend, fullgraph=True)
    with fake_gpu.fake_cuda() as zeros, limits():
        targets = zeros(16, dtype=torch.int64)
        assert compiled(zeros(16, 64), zeros(100, 64), targets, softcap=30.0).shape == ()
    (targets,) = graphs
    assert sum("tinylm.linear_cross_entropy" in target for target in targets) == 1


@pytest.mark.slow
@pytest.mark.parametrize("order", ["ops, kernels", "kernels, ops"])
def test_kernels_and_ops_share_the_namespace_in_either_order(order):
    code = (
        f"from tinylm import {order}\n"
        "import torch\n"
        "print(torch.ops.tinylm.linear_cross_entropy, torch.ops.tinylm.cross_entropy_)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "tinylm.linear_cross_entropy tinylm.cross_entropy_\n"
