"""The wrong lines of `make mutants` in the fused kernels and beside them."""

from tests.support.wrong_lines import Mutant

KERNELS = [
    Mutant(
        "kernels/fused/attention_hopper.py",
        "free = phase(block, STAGES) ^ 1",
        "free = phase(block, STAGES)",
        "attention_hopper",
    ),
    Mutant(
        "kernels/fused/attention_hopper.py",
        "mbarrier.init(v_empty.index(stage), count=CONSUMERS)",
        "mbarrier.init(v_empty.index(stage), count=CONSUMERS - 1)",
        "every_number_of_blocks",
        "tests/test_kernels_attention_hopper.py",
    ),
    Mutant(
        "kernels/fused/attention_hopper.py",
        "edges = blocks - seen_by_all // KEYS",
        "edges = blocks - (seen_by_all + KEYS) // KEYS",
        "skip_what_no_query_sees",
        "tests/test_kernels_attention_hopper.py",
    ),
    Mutant(
        "kernels/fused/decode_attention.py",
        "last = tile_0 + tiles * (split + 1) // splits",
        "last = tile_0 + tiles * split // splits + tiles // splits",
        "decode_attention-ops-kernels",
    ),
    Mutant(
        "kernels/fused/decode_attention.py",
        "(away > t[:, None] - window)",
        "(away >= t[:, None] - window)",
        "decode_attention-ops-kernels",
    ),
    Mutant(
        "kernels/fused/decode_attention.py",
        "inside = (place >= begin) & (place < end)",
        "inside = place < end",
        "decode_attention-ops-kernels",
    ),
    Mutant(
        "python/tinylm/ops/decoding.py",
        "seen = (behind >= 0) & (behind < window)",
        "seen = (behind >= 0) & (behind <= window)",
        "decode_attention-tensors-ops",
    ),
    Mutant(
        "kernels/fused/norm_rows.py",
        "gradient = (scaled - normed * shared) * r\n        if",
        "gradient = scaled * r\n        if",
        "rms_norm-ops-kernels",
    ),
    Mutant(
        "kernels/fused/norm_rows.py",
        "inside = (row < rows) & (column < D)\n    w",
        "inside = (row <= rows) & (column < D)\n    w",
        "rms_norm-ops-kernels",
    ),
    Mutant(
        "kernels/fused/norm_rows.py",
        "scaled -= tl.sum(scaled, 1, keep_dims=True) / D",
        "scaled -= tl.sum(scaled, 1, keep_dims=True)",
        "layer_norm-ops-kernels",
    ),
    Mutant(
        "kernels/fused/norm_rows.py",
        "old = inside & (row != program)",
        "old = inside & (row < program)",
        "wide_rows_and_their_gradients",
        "tests/test_kernels_norms.py",
    ),
    Mutant(
        "python/tinylm/ops/losses.py",
        "z.scatter_add_(1, place, -counted",
        "z.scatter_add_(1, place, counted",
        "chunks-tensors-ops",
    ),
    Mutant(
        "python/tinylm/ops/losses.py",
        "part = slice(first, first + rows)",
        "part = slice(first, first + rows - (first > rows))",
        "chunks-tensors-ops",
    ),
    Mutant(
        "kernels/fused/cross_entropy.py",
        "scale = (1.0 + 2.0 * z * lse) / total",
        "scale = (1.0 + z * lse) / total",
        "linear_cross_entropy-tensors-kernels",
    ),
    Mutant(
        "kernels/fused/cross_entropy.py",
        "tl.store(start + rest, gradient.to(logits.dtype.element_ty), mask=rest < V)",
        "tl.store(start + rest, gradient.to(logits.dtype.element_ty), mask=rest + 1 < V)",
        "linear_cross_entropy-tensors-kernels",
    ),
    Mutant(
        "kernels/fused/norm_rope.py",
        "valid = tl.where(token < length, r, 0.0)",
        "valid = r",
        "norm_rope-ops-kernels",
    ),
    Mutant(
        "kernels/fused/norm_rope.py",
        "dx_second = (slope_second - second * shared) * r",
        "dx_second = slope_second * r",
        "norm_rope-ops-kernels",
    ),
    Mutant(
        "kernels/fused/rope.py",
        "    if INVERSE:\n",
        "    if not INVERSE:\n",
        "rope-ops-kernels",
    ),
    Mutant(
        "kernels/fused/swiglu.py",
        "of_gate = slope * u * s * (1.0 + g * (1.0 - s))",
        "of_gate = slope * u * s * (1.0 + g - s)",
        "swiglu-ops-kernels",
    ),
    Mutant(
        "kernels/fused/swiglu.py",
        "(program // across).to(tl.int64) * ROWS",
        "(program // across).to(tl.int64)",
        "swiglu-ops-kernels or relu2-ops-kernels",
    ),
    Mutant(
        "kernels/fused/swiglu.py",
        "value = tl.where(wide <= 0.0, 0.0, 2.0 * slope * wide)",
        "value = 2.0 * slope * wide",
        "relu2-ops-kernels",
    ),
    Mutant(
        "kernels/fused/matmul_w8.py",
        "last = tl.minimum(first + width, K)",
        "last = K.to(tl.int64)",
        "linear_int8-ops-kernels",
    ),
    Mutant(
        "kernels/fused/matmul_w4.py",
        "pair2 = (word >> 8 - SHIFT)",
        "pair2 = (word >> 4 - SHIFT)",
        "linear_int4-ops-kernels",
    ),
    Mutant(
        "kernels/fused/matmul_w4.py",
        "own = (k // GROUP)[None, :] == group[:, None]",
        "own = (k // GROUP)[None, :] >= group[:, None]",
        "linear_int4-ops-kernels",
    ),
    Mutant(
        "kernels/fused/split_k.py",
        "    for _ in range(splits):",
        "    for _ in range(splits - 1):",
        "linear_int8-ops-kernels",
    ),
]
