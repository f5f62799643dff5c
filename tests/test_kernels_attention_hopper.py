"""Attention for Hopper: its barriers under any order of events, its edges, and what it refuses."""

import itertools
import math

import pytest
import torch
from torch.library import opcheck

from tests.rungs.kernel_attention import Case, in_float64
from tests.rungs.kernel_attention_hopper import running
from tests.rungs.rung import norm
from tests.support import interpreter
from tests.support.interpreter import DEVICE
from tinylm.mask import Mask

if interpreter.missing():
    pytest.skip(interpreter.missing(), allow_module_level=True)
if DEVICE == "cuda" and torch.cuda.get_device_capability()[0] != 9:
    pytest.skip("the kernel is for GPUs of compute capability 9", allow_module_level=True)

from tests.support.gluon import Deadlock, simulated
from tinylm import kernels

hopper = kernels.attention_hopper
attention_hopper = torch.ops.tinylm.attention_hopper

in_python = pytest.mark.skipif(DEVICE == "cuda", reason="needs launches in plain Python")
# A wrong barrier hangs a GPU for ever, which only a thread can end, with the process.
pytestmark = pytest.mark.timeout(60, method="thread" if DEVICE == "cuda" else "signal")


def heads(*shapes, dtype=torch.float16, seed=0):
    """A random tensor [B, heads, tokens, size] per shape, as the model's: a view of its tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(b, t, h, d, generator=generator).to(DEVICE, dtype).transpose(1, 2)
        for b, h, t, d in shapes
    ]


def close(found, q, k, v, causal, scale):
    """Whether y and lse are the formula's, within the rounding of y."""
    lse, y = in_float64(Case(q, k, v, q, Mask(causal), scale=scale))[:2]
    for got, exact in zip(found, (y, lse), strict=True):
        assert norm(got - exact) <= 4 * torch.finfo(q.dtype).eps * (1 + norm(exact))


@in_python
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_every_number_of_blocks_goes_through_every_number_of_slots(stages, monkeypatch):
    # Blocks of 16 keys and heads of 8: the arithmetic is small, the order of events all there is.
    table = ((kernels.config.Key(2, 128, (9, 0)), hopper.Launch(2, 64, 16, stages)),)
    monkeypatch.setattr(hopper, "FORWARD", table)
    for blocks in range(1, 13):
        q, k, v = heads((1, 1, 1, 8), *[(1, 1, 16 * blocks - blocks % 2, 8)] * 2, seed=blocks)
        with simulated(hopper, seed=blocks):
            close(attention_hopper(q, k, v, False, 0.5), q, k, v, False, 0.5)


@in_python
def test_causal_tiles_with_blocks_of_any_size_skip_what_no_query_sees(monkeypatch):
    for keys, rows, past in itertools.product((16, 64, 128), (1, 64, 129), (0, 1, 70)):
        table = ((kernels.config.Key(2, 128, (9, 0)), hopper.Launch(3, 64, keys, 2)),)
        monkeypatch.setattr(hopper, "FORWARD", table)
        q, k, v = heads((1, 1, rows, 8), *[(1, 1, rows + past, 8)] * 2, seed=keys)
        with simulated(hopper, seed=rows):
            close(attention_hopper(q, k, v, True, 0.5), q, k, v, True, 0.5)


@in_python
@pytest.mark.parametrize(
    ("name", "wrong"),
    [("phase", lambda block, stages: 0), ("slot", lambda block, stages: 0)],
)
def test_a_wrong_phase_or_slot_is_found(name, wrong, monkeypatch):
    # The test of the test: with three blocks in two slots neither is right for long.
    monkeypatch.setattr(hopper, name, wrong)
    q, k, v = heads(*[(1, 1, 600, 8)] * 3)
    found = 0
    for seed in range(8):
        with simulated(hopper, seed=seed):
            try:
                close(attention_hopper(q, k, v, False, 0.5), q, k, v, False, 0.5)
            except (AssertionError, Deadlock):
                found += 1
    assert found == 8


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [64, 128])
def test_lengths_of_1_to_700_are_the_formula(causal, dtype, size):
    for rows in (1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 383, 384, 500, 512, 640, 700):
        q, k, v = heads((1, 2, rows, size), *[(1, 1, rows, size)] * 2, dtype=dtype, seed=rows)
        with running(rows):
            found = attention_hopper(q, k, v, causal, 1 / math.sqrt(size))
        close(found, q, k, v, causal, 1 / math.sqrt(size))


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_twenty_launches_of_a_long_sequence_give_the_same_bits():
    q, k, v = heads((2, 32, 4096, 128), *[(2, 8, 4096, 128)] * 2, dtype=torch.bfloat16)
    with running(0):
        first = attention_hopper(q, k, v, True, 0.1)
        for _ in range(20):
            again = attention_hopper(q, k, v, True, 0.1)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("causal", [True, False])
def test_the_order_of_events_does_not_change_a_bit(causal):
    q, k, v = heads((1, 2, 200, 64), *[(1, 1, 300, 64)] * 2, dtype=torch.bfloat16)
    results = []
    for seed in range(3):
        with running(seed):
            results.append(attention_hopper(q, k, v, causal, 0.125))
    for y, lse in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(lse, results[0][1])


def test_the_output_is_a_view_of_tokens_before_heads():
    q, k, v = heads((2, 4, 10, 64), *[(2, 2, 10, 64)] * 2)
    with running(0):
        y, lse = attention_hopper(q, k, v, True, 0.125)
    assert y.transpose(1, 2).is_contiguous()
    assert (lse.dtype, lse.shape) == (torch.float32, (2, 4, 10))


def test_no_keys_give_zeros():
    q, k, v = heads((1, 2, 5, 64), *[(1, 2, 0, 64)] * 2)
    y, lse = attention_hopper(q, k, v, False, 0.125)
    assert not y.any()
    assert (lse == -math.inf).all()


def test_scores_far_apart_leave_one_key_and_no_nan():
    q, k, v = heads((1, 1, 3, 64), *[(1, 1, 300, 64)] * 2)
    k[:, :, 7] = 100 * q[:, :, 2]
    with running(0):
        y, lse = attention_hopper(q, k, v, False, 1.0)
    assert torch.equal(y[0, 0, 2], v[0, 0, 7])
    assert lse.isfinite().all()


@pytest.mark.parametrize("layout", ["contiguous", "one projection", "odd strides"])
def test_views_that_tma_can_load_are_not_copied(layout, monkeypatch):
    copied = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **b: copied.append(a) or empty(*a, **b))
    memory = torch.randn(2, 9, 3 * 2 * 64 + 1, dtype=torch.float32).to(DEVICE, torch.float16)
    views = {
        "contiguous": lambda: memory.flatten()[: 3 * 2 * 2 * 9 * 64].view(3, 2, 2, 9, 64),
        "one projection": lambda: (
            memory.flatten()[: 2 * 9 * 384].view(2, 9, 3, 2, 64).permute(2, 0, 3, 1, 4)
        ),
        "odd strides": lambda: memory[:, :, 1:].view(2, 9, 3, 2, 64).permute(2, 0, 3, 1, 4),
    }
    q, k, v = views[layout]()
    with running(0):
        close(attention_hopper(q, k, v, True, 0.125), q, k, v, True, 0.125)
    # y and lse, and three copies.
    assert len(copied) == (5 if layout == "odd strides" else 2)


SHAPES = [(2, 4, 6, 64), (2, 2, 6, 64), (2, 2, 6, 64)]
REFUSED = {
    "heads over the limit": ([(1, 1, 4, 136)] * 3, {}, ["136", "128"]),
    "float32": (SHAPES, {"dtype": torch.float32}, ["float32", "bfloat16"]),
    "more queries than keys": ([(1, 1, 9, 64), *[(1, 1, 8, 64)] * 2], {}, ["S=8", "T=9"]),
    "heads that do not divide": ([(1, 3, 4, 64), *[(1, 2, 4, 64)] * 2], {}, ["K must divide H"]),
    "another batch": ([(1, 2, 4, 64), *[(2, 2, 4, 64)] * 2], {}, ["B and D must be equal"]),
    "values of another shape": ([*SHAPES[:2], (2, 2, 7, 64)], {}, ["[2, 2, 7, 64]"]),
    "a negative scale": (SHAPES, {"scale": -1.0}, ["scale=-1.0"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses_in_one_line_that_names_the_limit(case):
    shapes, options, words = REFUSED[case]
    scale = options.pop("scale", 0.1)
    tensors = heads(*shapes, **options)
    with pytest.raises(ValueError, match=r"^attention_hopper: ") as error:
        attention_hopper(*tensors, True, scale)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_keys_of_another_dtype_are_refused():
    q, k, v = heads(*SHAPES)
    with pytest.raises(ValueError, match=r"q is torch\.float16, k torch\.bfloat16"):
        attention_hopper(q, k.bfloat16(), v, True, 0.1)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)])
def test_only_compute_capability_9_has_the_kernel(capability):
    assert list(hopper.every_launch(capability)) == []
    assert kernels.config.find(hopper.FORWARD, torch.bfloat16, 128, capability) is None
    assert list(hopper.every_launch((9, 0)))


def test_it_is_a_well_formed_torch_operation():
    tensors = heads((1, 2, 5, 64), *[(1, 1, 5, 64)] * 2, dtype=torch.bfloat16)
    leaves = [x.requires_grad_() for x in tensors]
    with interpreter.exact(), running(0):
        opcheck(attention_hopper.default, (*leaves, True, 0.125))
