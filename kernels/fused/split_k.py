"""The end of a product whose sum over K is shared by several programs.

    W [N, K]   +-----------+-----------+---      a row of blocks per program and split
               | split 0   | split 1   | ...
               +-----------+-----------+---
    partial    [splits, M, N] float32            the second kernel adds them in order

A product of few rows reads every weight once, and the blocks along N alone are too few to keep all
multiprocessors loading: N = 4096 in blocks of 64 has 64 programs for 132 of them. How often K is
split depends on the shape and the GPU only, and the parts are added in a fixed order, without
atomics: repeated calls agree to the bit. The parts are 4 M N bytes per split, against N K bytes of
weights in int8, and stay in the second-level cache.

Tried: a counter with which the last program of a block adds the parts, in one launch. It needs a
buffer of zeros, so a launch all the same. Speed is not measured.
"""

# Triton's language has no types.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.kernels import config

# Outputs per program of the second kernel.
BLOCK = 256
# Programs per multiprocessor that splitting aims at.
PROGRAMS = 4
# Fewer blocks of K per split than this would not fill the pipeline of loads.
LEAST_BLOCKS = 4


class Split(NamedTuple):
    """`parts` programs share a row of blocks along K; each takes `width` of K, whole blocks."""

    parts: int
    width: int


def split(device: torch.device, programs: int, width: int, block: int) -> Split:
    """Split K = `width`, in blocks of `block`, if `programs` are too few to fill the GPU."""
    blocks = triton.cdiv(width, block)
    wanted = triton.cdiv(PROGRAMS * config.device_of(device).processors, programs)
    each = max(triton.cdiv(blocks, wanted), min(LEAST_BLOCKS, blocks))
    return Split(triton.cdiv(blocks, each), each * block)


@triton.jit
def store_part(
    part, y, bias, row, column, M, N, stride, HAS_BIAS: tl.constexpr, SPLIT: tl.constexpr
):
    """Store a block of the product: the result or, if K is split, this program's part of it.

    y [M, N], or [splits, M, N] with `stride` = M N.
    """
    inside = (row < M)[:, None] & (column < N)[None, :]
    if SPLIT:
        y += tl.program_id(1).to(tl.int64) * stride
    elif HAS_BIAS:
        part += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    tl.store(y + row[:, None] * N + column[None, :], part.to(y.dtype.element_ty), mask=inside)


@triton.jit
def add_kernel(parts, bias, y, N, stride, splits, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Add parts [splits, M, N] in order, then the bias [N]; a program has `BLOCK_N` of a row."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < N
    at = row * N + column
    total = tl.zeros((BLOCK_N,), tl.float32)
    for _ in range(splits):
        total += tl.load(parts + at, mask=inside, other=0.0)
        at += stride
    if HAS_BIAS:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * N + column, total.to(y.dtype.element_ty), mask=inside)


def outputs(x: Tensor, rows: int, columns: int, parts: int) -> tuple[Tensor, Tensor]:
    """Return y [rows, columns] and what the first kernel fills: y, or parts in float32."""
    y = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if parts == 1:
        return y, y
    return y, torch.empty((parts, rows, columns), dtype=torch.float32, device=x.device)
