"""Memory that betrays a kernel: guards around what it writes, NaN around what it reads."""

import contextlib
import math

import pytest
import torch

GUARD = 64
CANARY = -7.0
LAYOUTS = ["contiguous", "padded rows", "every other column", "transposed", "expanded"]


@contextlib.contextmanager
def guarded_memory():
    """`torch.empty` gives NaN between two guards, which stand untouched at the end.

    A value that a kernel read but nobody wrote shows as NaN, a write past the end as a dead
    canary.
    """
    fresh, buffers = torch.empty, []

    def empty(shape, **options):
        buffers.append(fresh(math.prod(shape) + 2 * GUARD, **options).fill_(CANARY))
        return buffers[-1][GUARD:-GUARD].fill_(math.nan).view(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        yield
    for buffer in buffers:
        assert (buffer[:GUARD] == CANARY).all()
        assert (buffer[-GUARD:] == CANARY).all()


def laid_out(values, layout):
    """`values` as a view of the given layout into memory that is NaN wherever they are not.

    Around whole numbers the memory is 85, which is 5 and 5 in halves.
    """
    *leading, width = values.shape
    if layout == "expanded":
        return values[..., :1, :].expand(*leading, width) if leading else values
    sizes = {
        "contiguous": (*leading, width),
        "padded rows": (*leading, width + 5),
        "every other column": (*leading, 2 * width),
        "transposed": (width, *leading),
    }[layout]
    around = math.nan if values.is_floating_point() else 85
    memory = torch.full((math.prod(sizes) + 2 * GUARD,), around, dtype=values.dtype)
    inside = memory.to(values.device)[GUARD:-GUARD].view(sizes)
    view = {
        "contiguous": lambda: inside,
        "padded rows": lambda: inside[..., :width],
        "every other column": lambda: inside[..., ::2],
        "transposed": lambda: inside.movedim(0, -1),
    }[layout]()
    return view.copy_(values)
