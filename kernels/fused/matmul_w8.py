"""Products of few rows with a weight in 8 bits, which is widened between memory and the product.

    y[m, n] = scale[n] (sum over k of x[m, k] q[n, k]) + bias[n]

A block of q is read as it lies, K side by side, 128 bytes per row and 16 per thread; the tensor
cores multiply it in the dtype of x, in which whole numbers up to 127 are exact; the scale, one per
row of q, multiplies the finished sum in float32. Defined by `tinylm.ops.linear_int8`, held to it by
the rung `linear_int8`.

           K: one split         N
         +--------------+    +------+
    x  M | BM x BK  ->  |    | BN x |  q    a program: BM rows of x, BN rows of q, and its
         +--------------+    |  BK  |       part of K in steps of BK, loaded ahead
                             |  ->  |
                             +------+

Cost: N K bytes of q, against 2 M N K FLOPs: bound by the bytes up to about 100 rows. The layout
[N, K] is that of a checkpoint and of torch's own products, and needs no copy. With K side by side a
warp loads whole lines of 128 bytes, and the tensor cores want neighbours along K in one register;
stored as [K, N] each byte would have to be moved alone. Blocks along N are few, so K is split
(`split_k`).

Tried, compiled for 9.0, in instructions per weight in the loop (an H100 can issue 8.8 while it
loads a byte): blocks of 64 x 128 take 4.2; 128 x 128 take 3.7, with half as many again registers;
q as the left operand 5.5 to 6.5. One row by multiplying and adding in float32, without tensor
cores, takes 3.8 to 5.1, so one path does for all M. Speed is not measured.
"""

# Triton's language has no types, and torch's functions around devices few.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.kernels import config
from tinylm.kernels.config import Key, Table
from tinylm.kernels.library import LIBRARY, register
from tinylm.kernels.split_k import BLOCK, add_kernel, outputs, split, store_part


class Launch(NamedTuple):
    """How to launch the kernel: a block of x is [rows, width], one of q [columns, width]."""

    rows: int
    columns: int
    width: int
    warps: int
    stages: int


# The size of a key is the number of rows of x.
FORWARD: Table[Launch] = (
    (Key(2, 16, (8, 0)), Launch(rows=16, columns=64, width=128, warps=4, stages=4)),
    (Key(2, 32, (8, 0)), Launch(rows=32, columns=64, width=128, warps=4, stages=4)),
    (Key(2, 64, (8, 0)), Launch(rows=64, columns=64, width=128, warps=4, stages=3)),
    # float32 multiplies without tensor cores, which would round x to 11 bits.
    (Key(4, 64, (8, 0)), Launch(rows=16, columns=32, width=64, warps=4, stages=3)),
)


@triton.jit
def linear_int8_kernel(
    x,
    q,
    scale,
    bias,
    y,
    x_stride,
    q_stride,
    M,
    N,
    K,
    width,
    stride,
    HAS_BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """x [M, K] and q [N, K] with any stride between rows; program (n, split, m) has one block.

    Its part of K is `width` long and, if WHOLE, only whole blocks.
    """
    row = tl.program_id(2).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Past the last row of q its last row is read again: cheaper than a mask at every load.
    q += tl.minimum(column, N - 1)[:, None] * q_stride
    x += row[:, None] * x_stride
    first = tl.program_id(1).to(tl.int64) * width
    last = tl.minimum(first + width, K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # Rows past M load nothing: most of a block, when one token is decoded.
    inside = (row < M)[:, None]
    for start in tl.range(first, last, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)[None, :]
        if WHOLE:
            whole = tl.load(q + k)
            vectors = tl.load(x + k, mask=inside, other=0.0)
        else:
            whole = tl.load(q + k, mask=k < K, other=0)
            vectors = tl.load(x + k, mask=inside & (k < K), other=0.0)
        total = tl.dot(vectors, whole.to(vectors.dtype).T, total, input_precision="ieee")
    scales = tl.load(scale + column, mask=column < N, other=0.0).to(tl.float32)
    total *= scales[None, :]
    store_part(total, y, bias, row, column, M, N, stride, HAS_BIAS, SPLIT)


def _launch(x: Tensor, rows: int) -> Launch:
    """Return the table's row for `rows` of `x`; raise ValueError if no row covers it."""
    launch = config.find(FORWARD, x.dtype, rows, config.device_of(x.device).capability)
    if launch is not None:
        return launch
    limit = config.largest(FORWARD)
    if x.dtype in config.DTYPES and rows > limit:
        raise ValueError(
            f"linear_int8: {rows} rows of x are over the kernel's limit of {limit}; "
            "tinylm.ops.linear_int8 takes any number"
        )
    raise ValueError(
        f"linear_int8: no kernel for {x.dtype} on {x.device}; "
        "float32, float16 and bfloat16 have one from compute capability 8.0"
    )


def _check(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    """Refuse what the kernel would read past the end of, or misread."""
    if q.dtype != torch.int8 or q.dim() != 2 or scale.shape != q.shape[:1] or q.size(1) == 0:
        raise ValueError(
            f"linear_int8: q {list(q.shape)} {q.dtype} and scale {list(scale.shape)} must be "
            "[N, K] int8 and [N]"
        )
    if x.dim() == 0 or x.size(-1) != q.size(1):
        raise ValueError(
            f"linear_int8: x {list(x.shape)} does not match q {list(q.shape)}; it must be [..., K]"
        )
    if bias is not None and bias.shape != scale.shape:
        raise ValueError(
            f"linear_int8: bias {list(bias.shape)} must be [N], as {list(scale.shape)}"
        )
    for name, numbers in (("scale", scale), ("bias", bias)):
        if numbers is not None and numbers.dtype not in config.DTYPES:
            raise ValueError(
                f"linear_int8: {name} is {numbers.dtype}; it must be float32, float16 or bfloat16"
            )
    for name, other in (("q", q), ("scale", scale), ("bias", bias)):
        if other is not None and other.device != x.device:
            raise ValueError(
                f"linear_int8: x is on {x.device} and {name} on {other.device}; move one of them"
            )


def _rows(x: Tensor) -> Tensor:
    """x [..., K] as [rows, K] with the values of a row side by side, copied only if need be."""
    flat = x.reshape(math.prod(x.shape[:-1]), x.size(-1))
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def forward(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K], q [N, K], scale [N] and bias [N] to y [..., N], contiguous, in the dtype of x."""
    _check(x, q, scale, bias)
    flat, q = _rows(x), _rows(q)
    rows, columns, width = flat.size(0), *q.shape
    launch = _launch(x, rows)
    shape = (*x.shape[:-1], columns)
    if rows == 0 or columns == 0:
        return x.new_empty(shape)
    blocks = triton.cdiv(columns, launch.columns), triton.cdiv(rows, launch.rows)
    k_split = split(x.device, math.prod(blocks), width, launch.width)
    y, target = outputs(x, rows, columns, k_split.parts)
    scale = scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        linear_int8_kernel[(blocks[0], k_split.parts, blocks[1])](
            flat,
            q,
            scale,
            scale if bias is None else bias,
            target,
            flat.stride(0),
            q.stride(0),
            rows,
            columns,
            width,
            k_split.width,
            rows * columns,
            HAS_BIAS=bias is not None,
            SPLIT=k_split.parts > 1,
            WHOLE=width % launch.width == 0,
            BLOCK_M=launch.rows,
            BLOCK_N=launch.columns,
            BLOCK_K=launch.width,
            STAGES=launch.stages,
            num_warps=launch.warps,
        )
        if k_split.parts > 1:
            add_kernel[(triton.cdiv(columns, BLOCK), rows)](
                target,
                scale if bias is None else bias,
                y,
                columns,
                rows * columns,
                k_split.parts,
                HAS_BIAS=bias is not None,
                BLOCK_N=BLOCK,
                num_warps=4,
            )
    return y.view(shape)


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each row of the table, for the offline compiler."""
    for key, launch in FORWARD:
        dtypes = (torch.bfloat16, torch.float16) if launch.rows == 16 else (torch.bfloat16,)
        for dtype in dtypes if key.itemsize == 2 else (torch.float32,):
            x = torch.zeros(launch.rows, 4096, dtype=dtype)
            q, scale = torch.zeros(4096, 4096, dtype=torch.int8), torch.ones(4096)

            def call(x: Tensor = x, q: Tensor = q, scale: Tensor = scale) -> None:
                forward(x, q, scale, None)

            yield f"M={launch.rows} {str(dtype).removeprefix('torch.')}", call
    # One row is a constant to the compiler; with a bias, and inputs that end inside a block.
    x, bias = torch.zeros(1, 4128, dtype=torch.bfloat16), torch.zeros(4096)
    yield (
        "M=1 K=4128 bias bfloat16",
        partial(forward, x, torch.zeros(4096, 4128, dtype=torch.int8), bias + 1, bias),
    )


def _fake(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    _check(x, q, scale, bias)
    return x.new_empty((*x.shape[:-1], q.size(0)))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    _, q, scale, bias = inputs
    ctx.save_for_backward(q, scale)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
    """Return dx = dy W, in torch, and db, the sum of dy over the rows."""
    q, scale = ctx.saved_tensors
    if ctx.needs_input_grad[2]:
        raise ValueError("linear_int8: scale has no gradient; detach it")
    dx = db = None
    if ctx.needs_input_grad[0]:
        dx = dy @ (q * scale.float()[:, None]).to(dy.dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[3]:
        db = dy.reshape(-1, dy.size(-1)).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return dx, None, None, db


register("linear_int8(Tensor x, Tensor q, Tensor scale, Tensor? bias) -> Tensor", forward, _fake)
torch.library.register_autograd("tinylm::linear_int8", _gradients, setup_context=_save, lib=LIBRARY)
