"""The loss of the head in chunks, by torch and by the fused kernel, against its definition."""

import contextlib

import pytest
import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung, norm
from tests.support.interpreter import DEVICE, chosen_by_ops, guarded
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops
from tinylm.ops import losses
from tinylm.reference import tensors

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@contextlib.contextmanager
def limits(chunks=8, least=1, cached=2**18, whole=0):
    """Chunks of a few rows for a few logits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "WHOLE", whole)
        patch.setattr(losses, "WHOLE_CPU", whole)
        patch.setattr(losses, "CHUNKS", chunks)
        patch.setattr(losses, "LEAST_ROWS", least)
        patch.setattr(losses, "LEAST_ROWS_GPU", least)
        patch.setattr(losses, "LEAST_LOGITS", 1)
        patch.setattr(losses, "CACHED", cached)
        yield


def results(function, leaves, targets, dy, autocast, **options):
    """The loss and its gradients by x, the weight and, if there is one, the norm's weight."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves if leaf is not None]
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        loss = function(*leaves[:2], targets, *leaves[2:], **options)
    return loss.detach(), *torch.autograd.grad(loss, leaves, dy.to(loss.dtype))


def definition(x, weight, targets, norm_weight=None, *, eps, **options):
    if norm_weight is not None:
        x = tensors.rms_norm(x, norm_weight, eps)
    return tensors.linear_cross_entropy(x, weight, targets, **options)


def by_ops(x, weight, targets, norm_weight=None, **options):
    return ops.linear_cross_entropy(x, weight, targets, norm_weight=norm_weight, **options)


def in_float64(leaves, targets, dy, autocast, options, chunks):
    leaves = [None if leaf is None else leaf.double() for leaf in leaves]
    return results(definition, leaves, targets, dy.double(), False, **options)


def by_plain_torch(leaves, targets, dy, autocast, options, chunks):
    return results(definition, leaves, targets, dy, autocast, **options)


def in_chunks(leaves, targets, dy, autocast, options, chunks):
    with limits(**chunks):
        return results(by_ops, leaves, targets, dy, autocast, **options)


def by_kernel(*case):
    with chosen_by_ops() as taken:
        found = in_chunks(*case)
    assert "cross_entropy_" in taken
    return found


def terms(leaves, targets, dy, autocast, options, chunks):
    """The sizes of the terms that the loss and its gradients are sums of, in float64.

    A likely target's p - 1 cancels, and so does what tokens of like weights give to dx.
    """
    x, weight, gain = (None if leaf is None else leaf.double() for leaf in leaves)
    x, ids = x.reshape(-1, x.size(-1)), targets.reshape(-1)
    r = n = 1.0
    if gain is not None:
        r = torch.rsqrt(x.square().mean(-1, keepdim=True) + options["eps"])
        n = x * r
    h = x if gain is None else n * gain
    z, cap = h @ weight.T, options["softcap"]
    if cap is not None:
        z = cap * torch.tanh(z / cap)
    lse, z_loss, counted = z.logsumexp(-1), options["z_loss"], ids != ops.IGNORED
    share = dy.double().abs() * counted / counted.sum()
    picked = z.gather(1, ids.where(counted, 0)[:, None])[:, 0]
    loss = ((lse.abs() + picked.abs() + z_loss * lse.square()) * counted).sum() / counted.sum()
    slope = (z - lse[:, None]).exp() * (1 + 2 * z_loss * lse).abs()[:, None]
    slope.scatter_add_(1, ids.where(counted, 0)[:, None], counted.double()[:, None])
    if cap is not None:
        # 1 - (z / cap)^2 cancels where the cap binds.
        slope *= 1 + (z / cap).square()
    slope *= share[:, None]
    dh = slope @ weight.abs()
    sizes = [norm(loss), norm(dh), norm(slope.T @ h.abs())]
    if gain is not None:
        scaled = dh * gain.abs()
        sizes[1] = norm(r * (scaled + n.abs() * (scaled * n.abs()).mean(-1, keepdim=True)))
        sizes.append(norm((dh * n.abs()).sum(0)))
    # Products under autocast round to bfloat16 numbers that become float32 again: its rounding
    # once, 2^-8, in place of 4 eps of float32.
    return tuple(2.0**13 * size if autocast else size for size in sizes)


@st.composite
def inputs(draw, vocabularies, widths, most, whole=0):
    """x and a weight of any layout, targets some of which are ignored, options, limits.

    Up to `whole` logits may be made at once.
    """
    leading = draw(st.tuples(st.integers(1, most)) | st.tuples(st.integers(1, 3), st.just(most)))
    width, vocabulary = draw(widths), draw(vocabularies)
    random = torch.Generator().manual_seed(draw(SEEDS))
    dtype = draw(st.sampled_from(DTYPES))
    autocast = dtype == torch.float32 and draw(st.booleans())

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=random)).to(dtype).to(DEVICE)

    x = normal(*leading, width)
    # From even shares to one logit far above the others.
    weight = normal(vocabulary, width, scale=draw(st.sampled_from([0.1, 1.0, 8.0])) / width**0.5)
    gain = 1 + normal(width, scale=0.1) if draw(st.booleans()) else None
    targets = torch.randint(vocabulary, leading, generator=random)
    targets[torch.rand(leading, generator=random) < 0.3] = ops.IGNORED
    targets.view(-1)[0] = vocabulary - 1
    options = {
        "z_loss": draw(st.sampled_from([0.0, 1e-4, 0.1])),
        "softcap": draw(st.sampled_from([None, 1.0, 30.0])),
        "eps": 1e-5,
    }
    chunks = {
        "chunks": draw(st.integers(1, 8)),
        "least": draw(st.integers(1, 5)),
        "cached": draw(st.sampled_from([1, 64, 2**18])),
        "whole": draw(st.sampled_from([0, whole])),
    }
    leaves = [laid_out(leaf, draw(st.sampled_from(LAYOUTS[:4]))) for leaf in (x, weight)]
    dy = torch.randn((), generator=random)
    return [*leaves, gain], targets.to(DEVICE), dy.to(DEVICE), autocast, options, chunks


def large(vocabulary=50257, rows=64):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 64, generator=random)
    weight = torch.randn(vocabulary, 64, generator=random) / 8
    targets = torch.randint(vocabulary, (rows,), generator=random)
    options = {"z_loss": 1e-4, "softcap": None, "eps": 1e-5}
    leaves = [x.to(DEVICE), weight.to(DEVICE), None]
    # A chunk of one row would be a product with a vector, whose sums over V torch takes otherwise.
    chunks = {"chunks": 1}
    return leaves, targets.to(DEVICE), torch.ones((), device=DEVICE), False, options, chunks


SMALL = st.integers(1, 40)
AROUND_BLOCKS = st.integers(1, 600) | st.sampled_from([511, 512, 513, 1024, 1025, 2048, 2049, 4999])
RUNGS = (
    Rung(
        name="linear_cross_entropy in chunks",
        chapter="tensors",
        media=("tensors", "ops"),
        slow=in_float64,
        fast=in_chunks,
        peer=by_plain_torch,
        terms=terms,
        inputs=inputs(SMALL, st.integers(1, 12), 8, whole=150),
        example=large,
        gradients=True,
        cost=8,
        around=guarded,
    ),
    Rung(
        name="linear_cross_entropy",
        chapter="metal",
        media=("tensors", "kernels"),
        slow=in_float64,
        fast=by_kernel,
        peer=by_plain_torch,
        terms=terms,
        inputs=inputs(AROUND_BLOCKS, st.integers(1, 9), 4),
        example=large,
        gradients=True,
        covers=("cross_entropy", "cross_entropy_", "linear_cross_entropy"),
        cost=10,
        fuzz=2_000,
        around=guarded,
    ),
)
