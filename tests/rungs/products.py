"""A product with a weight, from its definition in NumPy to oneDNN's."""

import numpy as np
import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung, near
from tinylm.ops import products
from tinylm.reference import arrays


def drawn(rows, inputs, outputs, seed):
    """x, weight, bias and the gradient of the result, of numbers that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def by_definition(*case):
    """The result and its gradients in float64."""
    x, weight, bias, dy = (part.double().numpy() for part in drawn(*case))
    return [arrays.linear(x, weight, bias), *arrays.linear_backward(dy, x, weight)]


def by_onednn(*case):
    """What `ops.linear` takes for large float32 products on a CPU, where torch has oneDNN."""
    *parts, dy = drawn(*case)
    leaves = [part.requires_grad_() for part in parts]
    product = torch.ops.tinylm.onednn_linear if products.ONEDNN else torch.nn.functional.linear
    y = product(*leaves)
    y.backward(dy)
    return [y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]


SIZES = st.integers(1, 40)

RUNGS = (
    Rung(
        "linear by oneDNN",
        "tensors",
        ("arrays", "ops"),
        by_definition,
        by_onednn,
        st.tuples(SIZES, SIZES, SIZES, SEEDS),
        lambda: (2048, 384, 1536, 0),
        # Sums of up to 40 products, which may cancel.
        same=near(64 * float(np.finfo(np.float32).eps)),
        covers=("onednn_linear",),
    ),
)
