"""Attention for Hopper against float64: in `tests.support.gluon` or, if there is one, on a GPU."""

import contextlib
import math

import pytest
import torch
from hypothesis import strategies as st

from tests.rungs.kernel_attention import Case, by_torch, in_float64, terms, with_gradients
from tests.rungs.rung import SEEDS, Rung
from tests.support.interpreter import DEVICE, guarded
from tests.support.memory import LAYOUTS, laid_out
from tinylm.mask import Mask

DTYPES = [torch.float16, torch.bfloat16]
# Pairs of a query and a key, over all heads, that take the interpreter a fraction of a second.
PAIRS = 30_000


@contextlib.contextmanager
def running(seed):
    """Where the kernel runs: without a GPU in plain Python, its events ordered by `seed`."""
    from tinylm import kernels

    if DEVICE == "cuda":
        if torch.cuda.get_device_capability()[0] != 9:
            pytest.skip("the kernel is for GPUs of compute capability 9")
        yield
        return
    from tests.support.gluon import simulated

    with simulated(kernels.attention_hopper, seed=seed):
        yield


def by_kernel(case, seed):
    """lse, y, dq, dk and dv."""

    def operation(q, k, v):
        return torch.ops.tinylm.attention_hopper(q, k, v, case.mask.causal, case.scale)

    with running(seed):
        return with_gradients(operation, case)


@st.composite
def inputs(draw):
    """Heads of any size and layout, over lengths around the edges of tiles and blocks."""
    rows = draw(st.integers(1, 80) | st.sampled_from([63, 64, 65, 128, 129, 193]))
    # The last query stands at the last key, and the first at a key too.
    length = rows + draw(st.just(0) | st.integers(0, 200))
    batch = draw(st.sampled_from([1, 1, 2, 0]))
    # Gradients come from the kernel for all GPUs, which its own rung tests at more heads.
    most = max(1, PAIRS // (rows * length * max(1, batch)))
    kv_heads = min(most, draw(st.integers(1, 2)))
    group = min(most // kv_heads, draw(st.sampled_from([1, 2, 4])))
    size = draw(st.sampled_from([64, 128]) | st.integers(1, 128))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    dtype = draw(st.sampled_from(DTYPES))

    def heads(number, tokens):
        flat = torch.randn(batch, tokens, number * size, generator=generator).to(DEVICE, dtype)
        layout = draw(st.sampled_from(["the model's", "the model's", *LAYOUTS]))
        if layout == "the model's":
            return flat.view(batch, tokens, number, size).transpose(1, 2)
        return laid_out(flat.view(batch, number, tokens, size), layout)

    case = Case(
        *(heads(kv_heads * group, rows), heads(kv_heads, length), heads(kv_heads, length)),
        heads(kv_heads * group, rows),
        Mask(causal=draw(st.booleans())),
        scale=draw(st.sampled_from([1 / math.sqrt(size), 0.01, 1.0])),
    )
    return case, draw(SEEDS)


def example():
    """Heads of a small model, or on a GPU of a large one."""
    batch, heads, kv_heads, tokens = (1, 32, 8, 2048) if DEVICE == "cuda" else (1, 2, 1, 256)
    generator = torch.Generator().manual_seed(0)
    tensors = (
        torch.randn(batch, tokens, n, 128, generator=generator)
        .to(DEVICE, torch.bfloat16)
        .transpose(1, 2)
        for n in (heads, kv_heads, kv_heads, heads)
    )
    return Case(*tensors, scale=1 / math.sqrt(128)), 0


RUNGS = (
    Rung(
        name="attention hopper",
        chapter="metal",
        media=("tensors", "kernels"),
        slow=lambda case, seed: in_float64(case),
        fast=by_kernel,
        peer=lambda case, seed: by_torch(case),
        terms=lambda case, seed: terms(case),
        inputs=inputs(),
        example=example,
        gradients=True,
        covers=("attention_hopper",),
        cost=10,
        fuzz=1_000,
        around=guarded,
    ),
)
