"""bfloat16 in Triton's interpreter: exact where the kernels use it, an error everywhere else.

The interpreter keeps a bfloat16 as its bits in a uint16. A cast from float32 cuts the low bits off
where a GPU rounds to nearest even; a cast from an integer or a float64, arithmetic and `tl.dot`
take the bits for numbers. None of it raises, in triton 3.6, 3.7 or 3.9. `mend` puts exact casts
and an exact `tl.dot` in their place and makes arithmetic raise: our kernels compute in float32.
"""

import numpy as np


def to_float32(bits):
    """bfloat16 bits, uint16, to the same numbers in float32: exact."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def from_float32(numbers):
    """float32 to bfloat16 bits, uint16: nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(numbers), bits >> 16 | 0x40, rounded).astype(np.uint16)


def mend(patch):
    """Mend the interpreter for as long as the pytest MonkeyPatch `patch` lasts."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast, dot = builder.cast_impl, builder.create_dot

    def is_bfloat16(value):
        return getattr(value, "dtype", None) is not None and value.dtype.scalar == tl.bfloat16

    def widened(handle):
        return Handle(to_float32(handle.data), tl.float32) if is_bfloat16(handle) else handle

    def exact_cast(self, source, target):
        wide = widened(source)
        if target.scalar != tl.bfloat16:
            return wide if target.scalar == wide.dtype.scalar else cast(self, wide, target)
        return Handle(from_float32(wide.data.astype(np.float32)), tl.bfloat16)

    def exact_dot(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    def refusing(operation):
        def checked(self, *values):
            values_in = values[0] if isinstance(values[0], tuple) else values
            if any(is_bfloat16(value) for value in values_in):
                raise TypeError("arithmetic on bfloat16: cast to float32 first")
            return operation(self, *values)

        return checked

    patch.setattr(builder, "cast_impl", exact_cast)
    patch.setattr(builder, "create_dot", exact_dot)
    for name in ("binary_op", "unary_op", "create_fma", "create_rsqrt", "create_clampf"):
        patch.setattr(builder, name, refusing(getattr(builder, name)))
    reductions = interpreter.ReduceScanOpInterface
    patch.setattr(reductions, "apply", refusing(reductions.apply))
