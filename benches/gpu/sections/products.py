"""Products of a few rows with a weight in 8 or 4 bits: the time is that of reading the weight.

A call multiplies by as many weights as make 256 MB, as the layers of a model do: one alone would
stay in the L2 cache. The calls are captured in a CUDA graph, as a decoding loop captures them.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benches.gpu.case import BF16, Case, Contest, Missing, Place
from tinylm.ops.quant import dequantise_int4, dequantise_int8

SHAPES = ((4096, 4096), (4096, 14336), (14336, 4096))
GROUP, TOTAL, MOST = 128, 256e6, 32


def cases(place: Place) -> Iterator[Case]:
    """1 to 8 rows; K inputs and N outputs as in models of 7 billion parameters."""
    for inputs, outputs in place.sized(SHAPES, ((256, 64),)):
        for rows in place.sized((1, 4, 8), (2,)):
            at = {"rows": rows, "inputs": inputs, "outputs": outputs}
            for name, build in (("W8", int8), ("W4", int4)):
                yield Case(
                    f"product {name}",
                    at,
                    lambda b=build, m=rows, k=inputs, n=outputs: b(place, m, k, n),
                )


def layers(place: Place, size: float) -> int:
    """How many weights of `size` bytes a call multiplies by."""
    return place.sized(min(MOST, math.ceil(TOTAL / size)), 2)


def over(weights: list, f: Callable[..., Tensor]) -> Callable[[], list[Tensor]]:
    """The product with every weight in turn."""
    return lambda: [f(*weight) for weight in weights]


def int8(place: Place, rows: int, inputs: int, outputs: int) -> Contest:
    """A byte per number and a scale per output."""
    x = place.randn(rows, inputs)
    count = layers(place, inputs * outputs)
    shape = (outputs, inputs)
    weights = []
    for _ in range(count):
        q = torch.randint(-127, 128, shape, dtype=torch.int8, device=place.device)
        weights.append((q, torch.rand(outputs, device=place.device) / 127))
    dense = [
        dequantise_int8(q, scale).to(BF16) for q, scale in weights[: count if place.dry else 8]
    ]
    # torch's kernels want the scales in the dtype of x.
    theirs = [(q, scale.to(BF16)) for q, scale in weights]
    return Contest(
        {
            "tinylm": over(weights, lambda q, s: torch.ops.tinylm.linear_int8(x, q, s, None)),
            "F.linear bfloat16": rotated(x, dense, count),
            "_weight_int8pack_mm": over(theirs, lambda q, s: torch._weight_int8pack_mm(x, q, s)),
        },
        lambda: [x.double() @ dequantise_int8(q, s.double()).T for q, s in weights[:2]],
        2e-2,
        pick=lambda found: found[:2],
        bytes=count * outputs * (inputs + 4),
        graph=True,
    )


def rotated(x: Tensor, dense: list[Tensor], count: int) -> Callable[[], list[Tensor]]:
    """`count` products with bfloat16 weights; the few there are come again in turn.

    Together they are larger than the L2 cache, like all of them.
    """
    return lambda: [F.linear(x, dense[i % len(dense)]) for i in range(count)]


def int4(place: Place, rows: int, inputs: int, outputs: int) -> Contest:
    """Half a byte per number and a scale in bfloat16 per group of 128."""
    x = place.randn(rows, inputs)
    count = layers(place, inputs * outputs / 2)
    device, groups = place.device, inputs // GROUP
    weights = []
    for _ in range(count):
        packed = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=device)
        scales = (torch.rand(outputs, groups, device=device) / 7).to(BF16)
        weights.append((packed, scales))
    few = weights[: count if place.dry else 8]
    dense = [dequantise_int4(packed, scales) for packed, scales in few]
    return Contest(
        {
            "tinylm": over(weights, lambda w, s: torch.ops.tinylm.linear_int4(x, w, s, None)),
            "F.linear bfloat16": rotated(x, dense, count),
            "_weight_int4pack_mm": by_tinygemm(place, x, few, count),
        },
        lambda: [x.double() @ dequantise_int4(w, s.double()).T for w, s in weights[:2]],
        2e-2,
        pick=lambda found: found[:2],
        bytes=count * outputs * (inputs / 2 + 2 * groups),
        graph=True,
    )


def by_tinygemm(
    place: Place, x: Tensor, few: list[tuple[Tensor, Tensor]], count: int
) -> Callable[[], list[Tensor]] | Missing:
    """torch's own product with 4 bits; its layout is made of the same numbers, outside the time."""
    if place.dry:
        return Missing("_weight_int4pack_mm has another layout on the CPU")
    made = []

    def call() -> list[Tensor]:
        for packed, scales in few if not made else ():
            # Whole numbers 0 to 15, two in a byte, the even one high; scale and zero per group.
            one = torch.ones_like(scales, dtype=torch.float32)
            whole = (dequantise_int4(packed, one) + 8).to(torch.uint8)
            pairs = whole[:, ::2] << 4 | whole[:, 1::2]
            zeros = torch.stack((scales, torch.zeros_like(scales)), -1).transpose(0, 1)
            made.append((torch._convert_weight_to_int4pack(pairs, 8), zeros.contiguous()))
        return [
            torch._weight_int4pack_mm(x, made[i % len(made)][0], GROUP, made[i % len(made)][1])
            for i in range(count)
        ]

    return call
