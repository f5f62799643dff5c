"""Attention by Triton against float64, in the interpreter or, where there is one, on the GPU."""

import math
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.rungs.rung import SEEDS, Rung
from tests.support.interpreter import DEVICE, guarded, playing
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops
from tinylm.mask import CAUSAL, Mask
from tinylm.reference import tensors

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# The head that the interpreter's time allows has this many pairs of a query and a key.
PAIRS = 100_000


@dataclass(frozen=True)
class Case:
    """One call of attention; `past` is inference's, so that a case with one has no gradients."""

    q: Tensor
    k: Tensor
    v: Tensor
    dy: Tensor
    mask: Mask = field(default=CAUSAL)
    past: Tensor | None = None
    scale: float = 0.125
    softcap: float | None = None
    # Of compute capability 9.0 the kernels read by TMA, of 8.0 through pointers.
    capability: tuple[int, int] = (9, 0)

    def dense(self):
        """The mask as a tensor of bools."""
        sizes = self.q.size(2), self.k.size(2)
        return self.mask.dense(*sizes, past=self.past, device=self.q.device)


def with_gradients(function, case, dtype=None):
    """lse and y of `function`, and unless the case has a past dq, dk and dv."""
    leaves = [x.detach().to(dtype or x.dtype) for x in (case.q, case.k, case.v)]
    if case.past is not None:
        y, lse = function(*leaves)
        return lse, y
    leaves = [x.requires_grad_() for x in leaves]
    y, lse = function(*leaves)
    dy = case.dy.to(y.dtype)
    return lse.detach(), y.detach(), *torch.autograd.grad(y, leaves, dy)


def scores_of(q, k, case):
    """The scores of a case, -inf where a query may not look."""
    scores = q @ k.repeat_interleave(q.size(1) // k.size(1), 1).mT * case.scale
    if case.softcap is not None:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    return scores.masked_fill(~case.dense(), -math.inf)


def levels(q, k, case):
    """Log to the base 2 of the sum of the exponentials of each query's scores."""
    return torch.logsumexp(scores_of(q, k, case), -1) / math.log(2)


def in_float64(case):
    """The definition."""

    def definition(q, k, v):
        named = {"mask": case.dense(), "scale": case.scale, "softcap": case.softcap}
        return tensors.attention(q, k, v, **named), levels(q, k, case)

    return with_gradients(definition, case, torch.float64)


def by_torch(case):
    """Attention spelled out, in the dtype of the case."""

    def spelled(q, k, v):
        named = {"scale": case.scale, "softcap": case.softcap, "past": case.past}
        y = ops.manual_attention(q, k, v, mask=case.mask, **named)
        return y, levels(q.float(), k.float(), case)

    return with_gradients(spelled, case)


def kernel(case):
    """The registered operation as a function of q, k and v."""
    import tinylm.kernels  # noqa: F401

    mask = case.mask
    first, end = (None, None) if mask.documents is None else mask.bounds()

    def operation(q, k, v):
        return torch.ops.tinylm.attention(
            q,
            k,
            v,
            first,
            end,
            mask.prefix,
            case.past,
            mask.causal,
            mask.window,
            case.scale,
            case.softcap,
        )

    return operation


def by_kernel(case):
    with playing(case.capability):
        return with_gradients(kernel(case), case)


def terms(case):
    """The sizes of what lse, y, dq, dk and dv are sums of.

    Of weights A, dZ = A (dA - sum of A dA) is 0 where a query sees one key.
    """
    q, k, v, dy = (x.detach().double() for x in (case.q, case.k, case.v, case.dy))
    group, weights = q.size(1) // k.size(1), torch.softmax(scores_of(q, k, case), -1)
    q, dy = q.abs(), dy.abs()
    k, v = (x.abs().repeat_interleave(group, 1) for x in (k, v))
    slopes = dy @ v.mT
    dscores = weights * (slopes + (weights * slopes).sum(-1, keepdim=True)) * abs(case.scale)
    sums = (dscores.mT @ q, weights.mT @ dy)
    level = (q @ k.mT * abs(case.scale)).amax(-1)
    of_keys = (x.unflatten(1, (x.size(1) // group, group)).sum(2) for x in sums)
    found = (level, weights @ v, dscores @ k, *of_keys)
    return tuple(float(x.norm()) for x in found[: 2 if case.past is not None else 5])


@st.composite
def masks(draw, batch, queries, keys):
    """A mask with any of its fields, and sometimes a past."""

    def chance(values):
        return draw(st.none() | st.none() | values)

    def per_row(values):
        return st.lists(values, min_size=batch, max_size=batch).map(
            lambda rows: torch.tensor(rows, dtype=torch.int64, device=DEVICE)
        )

    # A document ends where a number below 1 is drawn: seldom, often, or at every place.
    documents = st.sampled_from([0.02, 0.2, 1.0]).flatmap(
        lambda rate: SEEDS.map(
            lambda seed: (
                (torch.rand(batch, keys, generator=torch.Generator().manual_seed(seed)) < rate)
                .cumsum(1)
                .to(DEVICE)
            )
        )
    )
    mask = Mask(
        draw(st.booleans()),
        chance(st.integers(1, keys + 1)),
        chance(documents),
        chance(per_row(st.integers(0, keys))),
    )
    return mask, chance(per_row(st.integers(0, keys - queries)))


@st.composite
def cases(draw):
    """Heads of any size and layout over lengths from 1 to 300, behind any mask."""
    queries = draw(st.integers(1, 300) | st.sampled_from([1, 16, 17, 64, 128, 129]))
    keys = draw(st.just(queries) | st.integers(queries, 300))
    batch = draw(st.sampled_from([1, 1, 1, 2, 0]))
    most = max(1, PAIRS // (queries * keys * max(1, batch)))
    group = min(draw(st.sampled_from([1, 2, 3, 4, 8])), most)
    kv_heads = min(draw(st.integers(1, 2)), max(1, most // group))
    size = draw(st.sampled_from([16, 32, 64, 128]) | st.integers(1, 128))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    dtype = draw(st.sampled_from(DTYPES))

    def heads(number, tokens):
        flat = torch.randn(batch, tokens, number * size, generator=generator).to(DEVICE, dtype)
        layout = draw(st.sampled_from(["the model's", "the model's", *LAYOUTS]))
        if layout == "the model's":
            return flat.view(batch, tokens, number, size).transpose(1, 2)
        return laid_out(flat.view(batch, number, tokens, size), layout)

    mask, past = draw(masks(batch, queries, keys))
    case = Case(
        *(heads(kv_heads * group, queries), heads(kv_heads, keys), heads(kv_heads, keys)),
        heads(kv_heads * group, queries),
        mask,
        past,
        draw(st.sampled_from([1 / math.sqrt(size), 0.01, 1.0, -0.3, 0.0])),
        draw(st.none() | st.sampled_from([1.0, 30.0])),
        draw(st.sampled_from([(9, 0), (8, 0)])),
    )
    return (case,)


def example(
    size=128, dtype=torch.bfloat16, *, heads=4, kv_heads=2, queries=200, keys=200, batch=1, **rest
):
    """A case of the shapes of a model."""
    generator = torch.Generator().manual_seed(size)

    def normal(number, tokens):
        flat = torch.randn(batch, tokens, number, size, generator=generator)
        return flat.to(DEVICE, dtype).transpose(1, 2)

    q, dy = normal(heads, queries), normal(heads, queries)
    return Case(q, normal(kv_heads, keys), normal(kv_heads, keys), dy, **rest)


def large():
    """Heads of a large model where there is a GPU, of a small one where there is none."""
    if DEVICE == "cuda":
        # The definition has a dozen matrices of 1 GB at a time.
        return (example(heads=32, kv_heads=8, queries=2048, keys=2048),)
    return (example(),)


RUNGS = (
    Rung(
        name="attention",
        chapter="metal",
        media=("tensors", "kernels"),
        slow=in_float64,
        fast=by_kernel,
        peer=by_torch,
        terms=terms,
        inputs=cases(),
        example=large,
        gradients=True,
        covers=("attention", "attention_backward"),
        cost=8,
        fuzz=1_000,
        around=guarded,
    ),
)
