"""Attention for Hopper against float64: in `tests.support.gluon` or, if there is one, on a GPU."""

import contextlib
import math

import pytest
import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung
from tests.support.interpreter import DEVICE, guarded, torch_forms
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops
from tinylm.mask import Mask

DTYPES = [torch.float16, torch.bfloat16]


def lse(q, k, causal, scale):
    """log2 of the sum of the exponentials of each query's scores, in the dtype of q."""
    k = k.repeat_interleave(q.size(1) // k.size(1), 1)
    scores = q @ k.transpose(-2, -1) * scale
    seen = Mask(causal).dense(q.size(2), k.size(2), device=q.device)
    return torch.logsumexp(scores.masked_fill(~seen, -math.inf), -1) / math.log(2)


def in_float64(q, k, v, causal, scale, seed):
    """y and lse of the formula."""
    q, k, v = q.double(), k.double(), v.double()
    y = ops.manual_attention(q, k, v, mask=Mask(causal), scale=scale)
    return y, lse(q, k, causal, scale)


def torch_form(q, k, v, causal, scale, seed):
    """`ops.attention` without its kernels, and lse in float32."""
    with torch_forms():
        y = ops.attention(q, k, v, mask=Mask(causal), scale=scale)
    return y, lse(q.float(), k.float(), causal, scale)


def terms(q, k, v, causal, scale, seed):
    """The sizes of what y and lse are sums of: values, and the products of queries and keys."""
    q, k, v = q.double(), k.double(), v.double()
    sizes = lse(q.abs(), k.abs(), causal, scale)
    y = ops.manual_attention(q, k, v.abs(), mask=Mask(causal), scale=scale)
    return float(y.norm()), float(sizes.norm())


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


def by_kernel(q, k, v, causal, scale, seed):
    with running(seed):
        return torch.ops.tinylm.attention_hopper(q, k, v, causal, scale)


@st.composite
def inputs(draw):
    """Heads of any size and layout, over lengths around the edges of tiles and blocks."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 4, 8]))
    batch = draw(st.sampled_from([1, 1, 2, 0]))
    rows = draw(st.integers(1, 300) | st.sampled_from([1, 63, 64, 65, 127, 128, 129, 256, 257]))
    # The last query stands at the last key, and the first at a key too.
    length = rows + draw(st.just(0) | st.integers(0, 300))
    size = draw(st.sampled_from([64, 128]) | st.integers(1, 128))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    dtype = draw(st.sampled_from(DTYPES))

    def heads(number, tokens):
        flat = torch.randn(batch, tokens, number * size, generator=generator).to(DEVICE, dtype)
        layout = draw(st.sampled_from(["the model's", "the model's", *LAYOUTS]))
        if layout == "the model's":
            return flat.view(batch, tokens, number, size).transpose(1, 2)
        return laid_out(flat.view(batch, number, tokens, size), layout)

    q, k, v = heads(kv_heads * group, rows), heads(kv_heads, length), heads(kv_heads, length)
    scale = draw(st.sampled_from([1 / math.sqrt(size), 0.01, 1.0]))
    return q, k, v, draw(st.booleans()), scale, draw(SEEDS)


def example():
    """Heads of a small model, or on a GPU of a large one."""
    batch, heads, kv_heads, tokens = (4, 32, 8, 4096) if DEVICE == "cuda" else (1, 4, 2, 256)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(batch, tokens, n, 128, generator=generator)
        .to(DEVICE, torch.bfloat16)
        .transpose(1, 2)
        for n in (heads, kv_heads, kv_heads)
    )
    return q, k, v, True, 1 / math.sqrt(128), 0


RUNGS = (
    Rung(
        name="attention hopper",
        chapter="metal",
        media=("ops", "kernels"),
        slow=in_float64,
        fast=by_kernel,
        peer=torch_form,
        terms=terms,
        inputs=inputs(),
        example=example,
        covers=("attention_hopper",),
        cost=6,
        fuzz=1_000,
        around=guarded,
    ),
)
