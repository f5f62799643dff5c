"""tanh for the kernels with a soft cap; libdevice's does not run in Triton's interpreter."""

# Triton's language has no types.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """tanh within 2 units in the last place of float32; NaN stays NaN."""
    # Of e^2x as it stands the digits cancel near 0. There its series, to x^15.
    square = x * x
    series = -929569.0 / 638512875.0
    series = series * square + 21844.0 / 6081075.0
    series = series * square - 1382.0 / 155925.0
    series = series * square + 62.0 / 2835.0
    series = series * square - 17.0 / 315.0
    series = series * square + 2.0 / 15.0
    series = series * square - 1.0 / 3.0
    near = x + x * (series * square)
    # 2 / log(2), for exp2.
    far = 1.0 - 2.0 / (tl.exp2(x * 2.8853900817779268) + 1.0)
    return tl.where(tl.abs(x) < 0.5, near, far)
