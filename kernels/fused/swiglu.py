"""The activations of a feedforward layer, SwiGLU and ReLU^2: one pass each way.

    swiglu: y = g s u        dg = dy u s (1 + g (1 - s))    du = dy g s      s = 1 / (1 + e^-g)
    relu2:  y = max(x, 0)^2  dx = 2 dy max(x, 0)

Sources: Shazeer 2020, equation 6; So et al. 2021, section 3.2. Everything between the loads and
the stores is float32. Defined by `tinylm.ops.swiglu` and `tinylm.ops.relu2`, held to them by the
rungs of the same names.

Tiles. The kernels take matrices whose rows have any distance, so the halves of one packed
projection [..., 2 F] are read where they are, without a copy:

      gate, F columns      up, F columns                    y, F columns
    +-------+-------+    +-------+-------+                +-------+-------+
    | tile 0| tile 1|    | tile 0| tile 1|  program 0 --> | tile 0| tile 1|
    +-------+-------+    +-------+-------+                +-------+-------+
    | tile 2| tile 3|    | tile 2| tile 3|                | tile 2| tile 3|
    +-------+-------+    +-------+-------+                +-------+-------+
       row stride of gate   row stride of up                contiguous

Tensors that are all contiguous count as one row, which no tile but the last leaves partly empty.

Cost, of n elements in bfloat16: swiglu 6 n bytes forward and 10 n backward, relu2 4 n and 6 n; less
than 20 operations per element: bound by memory. torch takes 10 n and 18 n for swiglu and keeps
silu(gate) for the backward pass; here the backward pass computes it again, and only the inputs are
kept. Under torch.compile `ops` leaves both to the compiler, which fuses them as well.

Tried: compiled offline for sm_90 and sm_80 without spills (tests/golden/kernels.json), every load
and store of sm_90 has 16 bytes; speed is not measured. Tiles as wide as 2048 columns would leave a
third of the threads without work at F = 1408, 256 columns leave 8 percent. GELU has no kernel:
torch's own is one pass each way already. Backward, dgate and dup are two tensors, and the gradient
of `chunk` copies them together (8 n bytes): nothing in tinylm packs a projection, so there is no
operation that takes one whole.
"""

# Triton's language has no types, and torch's functions around devices few.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.kernels import config
from tinylm.kernels.config import Key, Table
from tinylm.kernels.library import LIBRARY, register


class Launch(NamedTuple):
    """A program has a tile of `elements`, at most `columns` of a row, which `warps` share."""

    elements: int
    columns: int
    warps: int


# Any size: wide rows are cut into tiles. A thread has 16 elements of each tensor, two loads of 16
# bytes in bfloat16, and a warp 256 columns with each: wider tiles would end in more empty columns.
TABLE: Table[Launch] = ((Key(4, sys.maxsize, (8, 0)), Launch(elements=2048, columns=256, warps=4)),)


@triton.jit
def tile(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows, columns and mask of this program's tile; both are int64."""
    across = tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0)
    # Divided in the width of `columns`, and multiplied in 64 bits: rows times columns pass 2^31.
    row = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (program % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, column, (row < rows) & (column < columns)


@triton.jit
def swiglu_kernel(
    gate,
    up,
    y,
    gate_stride,
    up_stride,
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """gate and up [rows, columns] with any stride between rows, y contiguous."""
    row, column, inside = tile(rows, columns, ROWS, COLUMNS)
    g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    value = g / (1.0 + tl.exp(-g)) * u
    tl.store(y + row * columns + column, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(
    dy,
    gate,
    up,
    dgate,
    dup,
    dy_stride,
    gate_stride,
    up_stride,
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dy, gate and up [rows, columns] with any stride between rows, dgate and dup contiguous."""
    row, column, inside = tile(rows, columns, ROWS, COLUMNS)
    slope = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-g))
    of_gate = slope * u * s * (1.0 + g * (1.0 - s))
    at = row * columns + column
    tl.store(dgate + at, of_gate.to(dgate.dtype.element_ty), mask=inside)
    tl.store(dup + at, (slope * g * s).to(dup.dtype.element_ty), mask=inside)


@triton.jit
def relu2_kernel(x, y, x_stride, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """x [rows, columns] with any stride between rows, y contiguous."""
    row, column, inside = tile(rows, columns, ROWS, COLUMNS)
    wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    # Not `maximum`, which turns NaN into 0.
    positive = tl.where(wide < 0.0, 0.0, wide)
    value = positive * positive
    tl.store(y + row * columns + column, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def relu2_backward_kernel(
    dy, x, dx, dy_stride, x_stride, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """dy and x [rows, columns] with any stride between rows, dx contiguous."""
    row, column, inside = tile(rows, columns, ROWS, COLUMNS)
    slope = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
    wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    # The slope of what was cut off is 0 even if dy is NaN there, as in torch.
    value = tl.where(wide <= 0.0, 0.0, 2.0 * slope * wide)
    tl.store(dx + row * columns + column, value.to(dx.dtype.element_ty), mask=inside)


def _check(name: str, first: Tensor, *others: Tensor) -> None:
    """Refuse tensors that the kernel would read past the end of, or misread."""
    for other in others:
        if (first.shape, first.dtype) != (other.shape, other.dtype):
            raise ValueError(
                f"{name}: {list(first.shape)} {first.dtype} and {list(other.shape)} {other.dtype} "
                "must have one shape and one dtype"
            )
        if other.device != first.device:
            raise ValueError(
                f"{name}: tensors are on {first.device} and {other.device}; move one of them"
            )


def _launch(name: str, x: Tensor) -> Launch:
    """Return the table's row for `x`; raise ValueError if no row covers it."""
    launch = config.find(TABLE, x.dtype, 1, config.device_of(x.device).capability)
    if launch is None:
        raise ValueError(
            f"{name}: no kernel for {x.dtype} on {x.device}; "
            "float32, float16 and bfloat16 have one from compute capability 8.0"
        )
    return launch


def _matrices(*tensors: Tensor) -> list[Tensor]:
    """Tensors of one shape [..., F] as matrices whose rows are contiguous, copied if need be.

    [rows, F], or one row of everything where all tensors are contiguous.
    """
    whole = all(tensor.is_contiguous() for tensor in tensors)
    *leading, width = (1, *tensors[0].shape)
    shape = (1, math.prod(leading) * width) if whole else (math.prod(leading), width)
    flat = [tensor.reshape(shape) for tensor in tensors]
    return [each if each.stride(-1) == 1 else each.contiguous() for each in flat]


def _run(kernel: Any, launch: Launch, inputs: list[Tensor], *outputs: Tensor) -> None:
    """Launch `kernel` on the matrices `inputs` and the contiguous `outputs`."""
    rows, columns = inputs[0].shape
    most = launch.elements if rows == 1 else launch.columns
    across = min(triton.next_power_of_2(columns), most)
    down = 1 if rows == 1 else launch.elements // across
    with torch.cuda.device_of(inputs[0]):
        kernel[(triton.cdiv(rows, down) * triton.cdiv(columns, across),)](
            *inputs,
            *outputs,
            *(matrix.stride(0) for matrix in inputs),
            rows,
            columns,
            ROWS=down,
            COLUMNS=across,
            num_warps=launch.warps,
        )


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate and up, of one shape and dtype, to y as both, contiguous."""
    _check("swiglu", gate, up)
    launch = _launch("swiglu", gate)
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if gate.numel():
        _run(swiglu_kernel, launch, _matrices(gate, up), y)
    return y


def swiglu_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """dy, gate and up, of one shape and dtype, to dgate and dup, contiguous."""
    _check("swiglu", gate, up, dy)
    launch = _launch("swiglu", gate)
    dgate, dup = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (gate, up))
    if gate.numel():
        _run(swiglu_backward_kernel, launch, _matrices(dy, gate, up), dgate, dup)
    return dgate, dup


def relu2(x: Tensor) -> Tensor:
    """x of any shape to y as x, contiguous."""
    _check("relu2", x)
    launch = _launch("relu2", x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        _run(relu2_kernel, launch, _matrices(x), y)
    return y


def relu2_backward(dy: Tensor, x: Tensor) -> Tensor:
    """dy and x, of one shape and dtype, to dx, contiguous."""
    _check("relu2", x, dy)
    launch = _launch("relu2", x)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        _run(relu2_backward_kernel, launch, _matrices(dy, x), dx)
    return dx


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each row of the table, for the offline compiler."""
    for title, width, dtype in (
        ("apart bfloat16", 1024, torch.bfloat16),
        ("halves bfloat16", 2048, torch.bfloat16),
        ("halves float32", 2048, torch.float32),
    ):
        gate, up = (torch.zeros(64, width, dtype=dtype)[:, :1024] for _ in range(2))

        def each(gate: Tensor = gate, up: Tensor = up) -> None:
            swiglu(gate, up)
            swiglu_backward(gate, gate, up)
            relu2(gate)
            relu2_backward(gate, gate)

        yield title, each


def _swiglu_fake(gate: Tensor, up: Tensor) -> Tensor:
    _check("swiglu", gate, up)
    return gate.new_empty(gate.shape)


def _swiglu_backward_fake(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _relu2_fake(x: Tensor) -> Tensor:
    _check("relu2", x)
    return x.new_empty(x.shape)


def _relu2_backward_fake(dy: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.tinylm.swiglu_backward(dy, *ctx.saved_tensors)  # type: ignore[no-any-return]


def _relu2_gradients(ctx: Any, dy: Tensor) -> Tensor:
    return torch.ops.tinylm.relu2_backward(dy, *ctx.saved_tensors)  # type: ignore[no-any-return]


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> NoReturn:
    raise NotImplementedError(
        "the kernels of swiglu and relu2 have no second derivative; write the activation in torch "
        "for create_graph=True"
    )


register("swiglu(Tensor gate, Tensor up) -> Tensor", swiglu, _swiglu_fake)
register(
    "swiglu_backward(Tensor dy, Tensor gate, Tensor up) -> (Tensor, Tensor)",
    swiglu_backward,
    _swiglu_backward_fake,
)
register("relu2(Tensor x) -> Tensor", relu2, _relu2_fake)
register("relu2_backward(Tensor dy, Tensor x) -> Tensor", relu2_backward, _relu2_backward_fake)
for name, gradients in (("swiglu", _swiglu_gradients), ("relu2", _relu2_gradients)):
    torch.library.register_autograd(f"tinylm::{name}", gradients, setup_context=_save, lib=LIBRARY)
    torch.library.register_autograd(f"tinylm::{name}_backward", _no_second_derivative, lib=LIBRARY)
