"""Cross-entropy of rows of logits, which become their own gradient.

    loss = lse - s_t + z lse^2                          lse = log(sum over j of e^s_j)
    dl_j = (p_j (1 + 2 z lse) - [j = t]) (1 - (s_j / c)^2)    p_j = e^(s_j - lse)

Here s = c tanh(l / c) with a soft cap c (Gemma 2, 2024, section 2), else s = l; t is the target
and z the coefficient of the z-loss (PaLM, 2022, section 5). A program has one row and goes over it
twice in blocks. The first pass keeps the largest logit so far and the sum of powers relative to it
(Milakov and Gimelshein 2018, algorithm 3); the second writes each block's gradient over it.

    row of logits   | block 0 | block 1 | ... | the rest, masked |
    first pass      load, m = max(m, block), total = total e^(m_old - m) + sum of e^(s - m)
    second pass     load, store

Cost per logit: two loads and a store, 6 bytes in bfloat16 or 4 where the second load finds the row
in the L2 cache; two powers, four with a soft cap. So memory bounds it. Without a gradient one load
remains.

Tried, by offline compilation alone, because no GPU was at hand: speed is not measured. Registers
per thread of block and warps, without and with a soft cap: 2048 and 4: 162, 64; 4096 and 8: 169,
80; 8192 and 8: 195, 255; 8192 and 16 spills 16 bytes, 4096 and 4 spills 4, 16384 and 16 spills 424.
Only the last block is masked: a mask of any width keeps the compiler from loading 16 bytes at once,
unless V is a multiple of 16, and GPT-2's 50257 is not. The caller pads the rows' stride for that.
"""

# Triton's language has no types, and torch's functions around devices few.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.kernels import config
from tinylm.kernels.config import Key, Table
from tinylm.kernels.library import register
from tinylm.kernels.tanh import tanh


class Launch(NamedTuple):
    """`warps` share a row of which a `block` is in registers at once."""

    block: int
    warps: int


# 16 logits per thread. Rows of up to 1024 are one warp's, which waits for no other at a sum. For
# longer rows the compiler takes 4 blocks at once: 160 registers, three programs of 4 warps on a
# multiprocessor, 48 KiB on their way.
ROWS: Table[Launch] = (
    (Key(4, 1024, (8, 0)), Launch(block=512, warps=1)),
    (Key(4, 2**31 - 1, (8, 0)), Launch(block=2048, warps=4)),
)
# What torch and the loader write for a target that does not count.
IGNORED = tl.constexpr(-100)


@triton.jit
def _capped(logits, cap, CAPPED: tl.constexpr):
    """The logits in float32, with the soft cap if there is one."""
    s = logits.to(tl.float32)
    if CAPPED:
        s = cap * tanh(s / cap)
    return s


@triton.jit
def _add_powers(peak, total, s):
    """The running largest logit and sum of powers, with those of a block."""
    higher = tl.maximum(peak, tl.max(s, 0))
    # While all logits are -inf, relative to 0: -inf less -inf would be nan.
    pivot = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, total * tl.exp(peak - pivot) + tl.sum(tl.exp(s - pivot), 0)


@triton.jit
def _slope(s, hot, peak, scale, cap, CAPPED: tl.constexpr):
    """The gradient by logits: (e^(s - peak) scale - [target]) times that of the soft cap."""
    gradient = tl.exp(s - peak) * scale - tl.where(hot, 1.0, 0.0)
    if CAPPED:
        ratio = s / cap
        gradient *= 1.0 - ratio * ratio
    return gradient


@triton.jit
def row_kernel(
    logits,
    targets,
    losses,
    stride,
    V,
    z_loss,
    softcap,
    CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One row a program; logits [rows, V] with any stride between rows, losses [rows] float32."""
    # int64 from here on: rows times V passes 2^31 with 16k tokens and 128k logits each.
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    target = tl.load(targets + row)
    column = tl.arange(0, BLOCK_V)
    whole = V - V % BLOCK_V
    rest = whole + column
    if target == IGNORED:
        tl.store(losses + row, 0.0)
        if GRADIENT:
            nothing = tl.zeros((BLOCK_V,), logits.dtype.element_ty)
            for first in tl.range(0, whole, BLOCK_V):
                tl.store(start + first + column, nothing)
            tl.store(start + rest, nothing, mask=rest < V)
        return
    # Inductor hands a Python float over as float64.
    cap = tl.full((), softcap, tl.float32)
    z = tl.full((), z_loss, tl.float32)
    # A target outside the vocabulary must read nothing, and must show.
    known = (target >= 0) & (target < V)
    picked = _capped(tl.load(start + target, mask=known, other=0.0), cap, CAPPED)
    picked = tl.where(known, picked, float("nan"))
    peak = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for first in tl.range(0, whole, BLOCK_V):
        s = _capped(tl.load(start + first + column), cap, CAPPED)
        peak, total = _add_powers(peak, total, s)
    s = _capped(tl.load(start + rest, mask=rest < V, other=0.0), cap, CAPPED)
    peak, total = _add_powers(peak, total, tl.where(rest < V, s, float("-inf")))
    # Relative to the largest logit as long as can be: next to a large lse small digits are lost.
    lse = peak + tl.log(total)
    tl.store(losses + row, tl.log(total) - (picked - peak) + z * lse * lse)
    if GRADIENT:
        scale = (1.0 + 2.0 * z * lse) / total
        place = target.to(tl.int32)
        for first in tl.range(0, whole, BLOCK_V):
            here = start + first + column
            s = _capped(tl.load(here), cap, CAPPED)
            gradient = _slope(s, column == place - first, peak, scale, cap, CAPPED)
            tl.store(here, gradient.to(logits.dtype.element_ty))
        s = _capped(tl.load(start + rest, mask=rest < V, other=0.0), cap, CAPPED)
        gradient = _slope(s, rest == place, peak, scale, cap, CAPPED)
        tl.store(start + rest, gradient.to(logits.dtype.element_ty), mask=rest < V)


def _check(logits: Tensor, targets: Tensor) -> None:
    """Refuse what the kernel would misread."""
    if logits.dim() != 2 or targets.shape != logits.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"cross_entropy_: logits {list(logits.shape)} and {targets.dtype} targets "
            f"{list(targets.shape)} must be [rows, V] and int64 [rows]"
        )
    if logits.size(1) == 0 or (logits.size(1) > 1 and logits.stride(1) != 1):
        raise ValueError(
            f"cross_entropy_: logits of shape {list(logits.shape)} and strides "
            f"{list(logits.stride())} must have the values of a row side by side, one at least"
        )
    if logits.device != targets.device:
        raise ValueError(
            f"cross_entropy_: logits are on {logits.device} and targets on {targets.device}; "
            "move one of them"
        )


def forward(
    logits: Tensor, targets: Tensor, z_loss: float, softcap: float | None, gradient: bool
) -> Tensor:
    """The loss of each row, float32 [rows]; 0 where the target is -100, nan where it is no column.

    logits [rows, V], the values of a row side by side; targets [rows] int64. With `gradient` the
    logits become the gradient of the sum of the losses, else they stay.
    """
    _check(logits, targets)
    rows, width = logits.shape
    launch = config.find(ROWS, logits.dtype, width, config.device_of(logits.device).capability)
    if launch is None:
        raise ValueError(
            f"cross_entropy_: no kernel for {logits.dtype} on {logits.device}; "
            "float32, float16 and bfloat16 have one from compute capability 8.0"
        )
    losses = torch.empty((rows,), dtype=torch.float32, device=logits.device)
    if rows == 0:
        return losses
    with torch.cuda.device_of(logits):
        row_kernel[(rows,)](
            logits,
            targets.contiguous(),
            losses,
            logits.stride(0),
            width,
            z_loss,
            1.0 if softcap is None else softcap,
            CAPPED=softcap is not None,
            GRADIENT=gradient,
            BLOCK_V=launch.block,
            num_warps=launch.warps,
        )
    return losses


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each row of the table, for the offline compiler."""
    cases = [
        (1000, torch.bfloat16, 30.0, True),
        (50257, torch.bfloat16, None, True),
        (50257, torch.bfloat16, 30.0, True),
        (50257, torch.bfloat16, None, False),
        (131072, torch.bfloat16, None, True),
        (131072, torch.float32, 30.0, True),
    ]
    for width, dtype, softcap, gradient in cases:
        stride = -(-width // 64) * 64
        logits = torch.zeros(2, stride, dtype=dtype)[:, :width]
        targets = torch.zeros(2, dtype=torch.int64)
        name = str(dtype).removeprefix("torch.")
        title = f"V={width} {name}{' softcap' if softcap else ''}{'' if gradient else ' loss'}"

        def call(
            logits: Tensor = logits,
            targets: Tensor = targets,
            softcap: float | None = softcap,
            gradient: bool = gradient,
        ) -> Tensor:
            return forward(logits, targets, 1e-4, softcap, gradient)

        yield title, call


def _fake(
    logits: Tensor, targets: Tensor, z_loss: float, softcap: float | None, gradient: bool
) -> Tensor:
    _check(logits, targets)
    return logits.new_empty(logits.shape[:1], dtype=torch.float32)


register(
    "cross_entropy_(Tensor(a!) logits, Tensor targets, float z_loss, float? softcap, bool gradient)"
    " -> Tensor",
    forward,
    _fake,
)
