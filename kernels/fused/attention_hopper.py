"""Attention forward for Hopper (sm_90): loads, products and softmax run at the same time.

    y = softmax(scale q k^T) v        lse = log2 of the sum of 2^(scale log2(e) q.k), per query

Causal or full, any length, GQA, heads of up to 64 or 128, float16 and bfloat16. Its gradients are
those of `tinylm::attention_backward`. Defined by `reference.tensors.attention`, held to it by the
rung `attention_hopper`. Sources: Dao 2023 (FlashAttention-2, section 3); Shah et al. 2024
(FlashAttention-3, sections 3.1 and 3.2).

The idea. The warps of a program divide the work. A producer of one warp only loads. Each of two or
three consumers of four warps, a warpgroup, answers 64 queries of one head. The producer fills
`stages` slots with blocks of keys, and as many with values, by TMA and ahead of the consumers. A
consumer issues the product with the keys of block j + 1 before the product with the values of
block j, and takes the softmax of block j + 1 while the tensor cores are at the values of block j.
While one consumer is in its softmax, the tensor cores have the products of the others.

         keys  ->   [ full  ][ full  ][  edge   ]     shared memory       D = 128     D = 64
    queries 0..63   [ block ][ block ][  64 x   ]     q  tile, consumer   2 x 16 KiB  3 x 8 KiB
    queries 64..127 [   2   ][   1   ][ 128: 0  ]     k  block, stage     3 x 32 KiB  4 x 16 KiB
                        <-- order of work --          v  block, stage     3 x 32 KiB  4 x 16 KiB

Blocks are taken from the last to the first. So those that need a mask come first, and the loop
only asks whether it has passed them. Programs with the most blocks are launched first.

Barriers. Each slot has two: `full` completes with the bytes of one TMA load, and `empty` with the
arrival of every consumer that has read it. Block j is in slot j % stages, which it is the
(j // stages)-th to use; the lowest bit of that number is the phase of the slot's barriers. TMA
fills places past the end of a tensor with zeros and counts their bytes, so every load is whole.

Cost per head: 4 T S D FLOPs, half of them if causal. q is read once; k and v are read once per
tile of 128 or 192 queries, mostly from the L2 cache, which all heads of a group share; y and 4 T
bytes of lse are written once.

Tried with the offline compiler of triton 3.6.0 and 3.7.1. No speed has been measured.
- D = 128, two consumers: 240 registers each, 24 of the producer, no spills. With 2 stages 160 KiB
  of shared memory, with 3 224 KiB; one program fits a multiprocessor either way, so it takes 3.
- D = 64, two consumers of 240 registers, and three of 160 to 168: neither spills. The row takes
  three, as FlashAttention-3 does at this size: 192 queries per load of a block.
- Descriptors made on the device need scratch memory from a global allocator; those made on the
  host do not, and take any strides of [B, H, T, D].
- Loading the queries before the partitions begin could race with the initialisation of their
  barrier: triton 3.7.1 lets an elected thread initialise it and thread 0 arrive at it.
- Not tried: turns between the consumers (the ping-pong of FlashAttention-3), y stored by TMA, and
  programs that stay for several tiles.
"""

# Triton's language has no types, and torch's functions around devices few.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tinylm.kernels import config
from tinylm.kernels.config import Key, Table
from tinylm.kernels.library import LIBRARY, register

# Queries of a consumer: the rows of one warpgroup's product.
ROWS = 64
LOG2_E = math.log2(math.e)


class Launch(NamedTuple):
    """How to launch the kernel.

    Tiles have `width` columns, of which those past the head size are zero. A block has `keys`
    keys, and `stages` blocks of keys and of values are in shared memory.
    """

    consumers: int
    width: int
    keys: int
    stages: int


# One program fits a multiprocessor, whatever its shared memory: it takes all registers. So a row
# takes the slots that fit.
FORWARD: Table[Launch | None] = (
    # Later GPUs have no `wgmma` instruction.
    (Key(2, 128, (10, 0)), None),
    (Key(2, 64, (9, 0)), Launch(consumers=3, width=64, keys=128, stages=4)),
    (Key(2, 128, (9, 0)), Launch(consumers=2, width=128, keys=128, stages=3)),
)


@gluon.jit
def slot(block, STAGES: gl.constexpr):
    """The slot of a block."""
    return block % STAGES


@gluon.jit
def phase(block, STAGES: gl.constexpr):
    """The phase of the barriers of a block's slot: which of two uses the block is."""
    return (block // STAGES) & 1


@gluon.jit
def producer(tensors, place, slots, barriers, blocks):
    """Load the queries, then the blocks of keys and values, the last of the sequence first."""
    q, k, v = tensors
    batch, head, group, first_row = place
    q_tiles, k_slots, v_slots = slots
    q_full, k_full, k_empty, v_full, v_empty = barriers
    CONSUMERS: gl.constexpr = q_tiles.type.shape[0]
    ROWS: gl.constexpr = q_tiles.type.shape[3]
    WIDTH: gl.constexpr = q_tiles.type.shape[4]
    STAGES: gl.constexpr = k_slots.type.shape[0]
    KEYS: gl.constexpr = k_slots.type.shape[3]
    mbarrier.expect(q_full, CONSUMERS * ROWS * WIDTH * 2)
    for part in gl.static_range(CONSUMERS):
        row = first_row + part * ROWS
        tma.async_copy_global_to_shared(q, [batch, head, row, 0], q_full, q_tiles.index(part))
    kv_head = head // group
    for block in range(blocks):
        at = slot(block, STAGES)
        # The first use of a slot waits for the phase before the first, which counts as completed.
        free = phase(block, STAGES) ^ 1
        first = (blocks - 1 - block) * KEYS
        mbarrier.wait(k_empty.index(at), free)
        mbarrier.expect(k_full.index(at), KEYS * WIDTH * 2)
        tma.async_copy_global_to_shared(
            k, [batch, kv_head, first, 0], k_full.index(at), k_slots.index(at)
        )
        mbarrier.wait(v_empty.index(at), free)
        mbarrier.expect(v_full.index(at), KEYS * WIDTH * 2)
        tma.async_copy_global_to_shared(
            v, [batch, kv_head, first, 0], v_full.index(at), v_slots.index(at)
        )


@gluon.jit
def masked(scores, places, keys, length, CAUSAL: gl.constexpr):
    """Scores of one block, -inf where the query at a place must not see the key."""
    if CAUSAL:
        # No query that is stored stands past the last key, so this hides what is past it too.
        seen = keys[None, :] <= places[:, None]
        scores = gl.where(seen, scores, float("-inf"))
    else:
        inside = (keys < length)[None, :]
        scores = gl.where(inside, scores, float("-inf"))
    return scores


@gluon.jit
def softmax_step(scores, top, total, scale):
    """Weights of one block, the new top and total, and what older sums must be multiplied by.

    In powers of 2: `top` is the largest scaled score so far, and `total` the sum of the weights.
    """
    higher = gl.maximum(top, gl.max(scores, 1) * scale)
    # A query that has seen no key yet has top -inf: -inf - -inf would be NaN.
    pivot = gl.where(higher == float("-inf"), 0.0, higher)
    weights = gl.exp2(scores * scale - pivot[:, None])
    shrink = gl.exp2(top - pivot)
    return weights, higher, total * shrink + gl.sum(weights, 1), shrink


@gluon.jit
def consumer(work, slots, barriers, PART: gl.constexpr, CAUSAL: gl.constexpr, D: gl.constexpr):
    """Answer the queries of tile `PART`; the first `edges` blocks need a mask."""
    y, lse, y_stride, first_row, rows, length, blocks, edges, scale = work
    q_tiles, k_slots, v_slots = slots
    q_full, k_full, k_empty, v_full, v_empty = barriers
    ROWS: gl.constexpr = q_tiles.type.shape[3]
    WIDTH: gl.constexpr = q_tiles.type.shape[4]
    STAGES: gl.constexpr = k_slots.type.shape[0]
    KEYS: gl.constexpr = k_slots.type.shape[3]
    dtype: gl.constexpr = q_tiles.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, 2)
    place = first_row + PART * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    # The last query stands at the last key.
    places = place + (length - rows)
    key = gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
    top = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, SCORES))
    nothing = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    sums = gl.zeros([ROWS, WIDTH], gl.float32, OUTPUT)

    mbarrier.wait(q_full, 0)
    q = q_tiles.index(PART).reshape([ROWS, WIDTH])
    mbarrier.wait(k_full.index(0), 0)
    k = k_slots.index(0).reshape([KEYS, WIDTH]).permute((1, 0))
    scores = warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    mbarrier.arrive(k_empty.index(0), count=1)
    scores = masked(scores, places, key + (blocks - 1) * KEYS, length, CAUSAL)
    weights, top, total, shrink = softmax_step(scores, top, total, scale)
    narrow = gl.convert_layout(weights.to(dtype), WEIGHTS)

    for block in range(1, blocks):
        at = slot(block, STAGES)
        before = slot(block - 1, STAGES)
        mbarrier.wait(k_full.index(at), phase(block, STAGES))
        k = k_slots.index(at).reshape([KEYS, WIDTH]).permute((1, 0))
        scores = warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(before), phase(block - 1, STAGES))
        v = v_slots.index(before).reshape([KEYS, WIDTH])
        sums = warpgroup_mma(narrow, v, sums, is_async=True)
        # The older of the two products is done: the scores of this block.
        scores = warpgroup_mma_wait(1, deps=[scores])
        mbarrier.arrive(k_empty.index(at), count=1)
        if block < edges:
            scores = masked(scores, places, key + (blocks - 1 - block) * KEYS, length, CAUSAL)
        weights, top, total, shrink = softmax_step(scores, top, total, scale)
        # `narrow` is in the registers that the product reads until here.
        sums, narrow = warpgroup_mma_wait(0, deps=[sums, narrow])
        mbarrier.arrive(v_empty.index(before), count=1)
        sums = sums * gl.convert_layout(shrink, gl.SliceLayout(1, OUTPUT))[:, None]
        narrow = gl.convert_layout(weights.to(dtype), WEIGHTS)

    last = slot(blocks - 1, STAGES)
    mbarrier.wait(v_full.index(last), phase(blocks - 1, STAGES))
    v = v_slots.index(last).reshape([KEYS, WIDTH])
    sums = warpgroup_mma(narrow, v, sums, is_async=True)
    sums = warpgroup_mma_wait(0, deps=[sums])
    sums = sums / gl.convert_layout(total, gl.SliceLayout(1, OUTPUT))[:, None]
    row = first_row + PART * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, OUTPUT))
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, OUTPUT))
    gl.store(
        y + row.to(gl.int64)[:, None] * y_stride + column[None, :],
        sums.to(dtype),
        mask=(row < rows)[:, None] & (column < D)[None, :],
    )
    gl.store(lse + place, top + gl.log2(total), mask=place < rows)


# A length of 1 or a multiple of 16 needs no code of its own.
@gluon.jit(do_not_specialize=["heads", "group", "rows", "length", "tiles"])
def forward_kernel(
    q,
    k,
    v,
    y,
    lse,
    scale,
    heads,
    group,
    rows,
    length,
    tiles,
    CAUSAL: gl.constexpr,
    CONSUMERS: gl.constexpr,
    ROWS: gl.constexpr,
    KEYS: gl.constexpr,
    D: gl.constexpr,
    WIDTH: gl.constexpr,
    STAGES: gl.constexpr,
):
    """A tile of `ROWS` queries of one head per consumer.

    q [B, H, T, D], k and v [B, K, S, D] are descriptors; y [B, T, H, D] and lse [B, H, T] are
    contiguous.
    """
    program = gl.program_id(0)
    # Causal tiles with the most keys first: the short ones fill the gaps at the end.
    first_row = (tiles - 1 - program % tiles) * (CONSUMERS * ROWS)
    both = program // tiles
    batch = both // heads
    head = both % heads
    q_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, 1, 1, ROWS, WIDTH], q.layout)
    k_slots = gl.allocate_shared_memory(k.dtype, [STAGES, 1, 1, KEYS, WIDTH], k.layout)
    v_slots = gl.allocate_shared_memory(v.dtype, [STAGES, 1, 1, KEYS, WIDTH], v.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    # `expect` is the one arrival at a full barrier; all consumers arrive at an empty one. The
    # partitions begin with a barrier of the whole program, so none sees these before they are set.
    mbarrier.init(q_full, count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=CONSUMERS)
        mbarrier.init(v_empty.index(stage), count=CONSUMERS)
    # The place of the first query, and the place after the last.
    first_place = first_row + (length - rows)
    end = length
    seen_by_all = length
    if CAUSAL:
        end = gl.minimum(first_place + CONSUMERS * ROWS, length)
        seen_by_all = gl.minimum(first_place + 1, length)
    blocks = gl.cdiv(end, KEYS)
    edges = blocks - seen_by_all // KEYS
    y_head = y + (batch.to(gl.int64) * rows * heads + head) * D
    lse_head = lse + both.to(gl.int64) * rows
    slots = (q_tiles, k_slots, v_slots)
    barriers = (q_full, k_full, k_empty, v_full, v_empty)
    place = (batch, head, group, first_row)
    work = (y_head, lse_head, heads * D, first_row, rows, length, blocks, edges, scale)
    # The registers of a multiprocessor, shared out: what is left goes to the first consumer.
    if CONSUMERS == 3:
        gl.warp_specialize(
            [
                (consumer, (work, slots, barriers, 0, CAUSAL, D)),
                (consumer, (work, slots, barriers, 1, CAUSAL, D)),
                (consumer, (work, slots, barriers, 2, CAUSAL, D)),
                (producer, ((q, k, v), place, slots, barriers, blocks)),
            ],
            [4, 4, 1],
            [160, 160, 24],
        )
    else:
        gl.warp_specialize(
            [
                (consumer, (work, slots, barriers, 0, CAUSAL, D)),
                (consumer, (work, slots, barriers, 1, CAUSAL, D)),
                (producer, ((q, k, v), place, slots, barriers, blocks)),
            ],
            [4, 1],
            [240, 24],
        )


def _launch(q: Tensor) -> Launch:
    """Return the table's row for `q`; raise ValueError if no row covers it."""
    capability = config.device_of(q.device).capability
    launch = config.find(FORWARD, q.dtype, q.size(-1), capability)
    if launch is not None:
        return launch
    raise ValueError(
        f"attention_hopper: no kernel for {q.dtype} and heads of {q.size(-1)} on compute "
        f"capability {capability[0]}.{capability[1]}; it has one for float16 and bfloat16, heads "
        f"of up to {config.largest(FORWARD)}, on 9.0"
    )


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> None:
    """Refuse what the kernel would read past the end of, or misread."""
    if q.dim() != 4 or k.shape != v.shape or k.dim() != 4:
        raise ValueError(
            f"attention_hopper: q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} must be "
            "[B, H, T, D], [B, K, S, D] and [B, K, S, D]"
        )
    (batch, heads, rows, size), (groups, length) = q.shape, k.shape[1:3]
    if (batch, size) != (k.size(0), k.size(3)) or groups == 0 or heads % groups:
        raise ValueError(
            f"attention_hopper: k {list(k.shape)} does not fit q {list(q.shape)}; B and D must be "
            "equal, and K must divide H"
        )
    if 0 < length < rows:
        raise ValueError(
            f"attention_hopper: T={rows} queries stand at the last places of S={length} keys; "
            "T must be <= S"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"attention_hopper: q is {q.dtype}, k {k.dtype} and v {v.dtype}; they must be equal"
        )
    if not q.device == k.device == v.device:
        raise ValueError(
            f"attention_hopper: q is on {q.device}, k on {k.device} and v on {v.device}; move two"
        )
    if not 0 < scale < math.inf:
        # The largest score is found before it is scaled.
        raise ValueError(f"attention_hopper: scale={scale} must be a positive number")


def _descriptor(x: Tensor, rows: int, width: int) -> TensorDescriptor:
    """What TMA needs to know of x [B, H, T, D] to load tiles of `rows` by `width`."""
    sizes, strides = list(x.shape), list(x.stride())
    for axis in range(3):
        # Nothing steps along an axis of one, and torch may give it any stride.
        if sizes[axis] == 1:
            strides[axis] = sizes[3] + -sizes[3] % 8
    whole = all(stride > 0 and stride % 8 == 0 for stride in strides[:3])
    if not whole or strides[3] != 1 or x.data_ptr() % 16:
        # TMA takes strides and addresses of 16 bytes, and no axis that repeats one place.
        padded = torch.empty((*sizes[:3], sizes[3] + -sizes[3] % 8), dtype=x.dtype, device=x.device)
        x = padded[..., : sizes[3]].copy_(x)
        strides = list(x.stride())
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return TensorDescriptor(x, sizes, strides, [1, 1, rows, width], layout)


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """q [B, H, T, D], k and v [B, K, S, D], float16 or bfloat16, to y and lse.

    y [B, H, T, D] is a view of a contiguous [B, T, H, D], lse [B, H, T] float32. The last query
    stands at the last key. Raises ValueError for what the kernel cannot take.
    """
    _check(q, k, v, causal, scale)
    launch = _launch(q)
    batch, heads, rows, size = q.shape
    length = k.size(2)
    y = torch.empty((batch, rows, heads, size), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, rows), dtype=torch.float32, device=q.device)
    if q.numel() == 0 or length == 0:
        return y.zero_().transpose(1, 2), lse.fill_(-math.inf)
    tiles = triton.cdiv(rows, launch.consumers * ROWS)
    with torch.cuda.device_of(q):
        forward_kernel[(tiles * batch * heads,)](
            _descriptor(q, ROWS, launch.width),
            _descriptor(k, launch.keys, launch.width),
            _descriptor(v, launch.keys, launch.width),
            y,
            lse,
            scale * LOG2_E,
            heads,
            heads // k.size(1),
            rows,
            length,
            tiles,
            CAUSAL=causal,
            CONSUMERS=launch.consumers,
            ROWS=ROWS,
            KEYS=launch.keys,
            D=size,
            WIDTH=launch.width,
            STAGES=launch.stages,
            num_warps=4,
        )
    return y.transpose(1, 2), lse


def every_launch(
    capability: tuple[int, int],
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A title and a call for each row of the table, for the offline compiler."""
    cases = [
        (64, True, torch.bfloat16),
        (64, False, torch.float16),
        (96, True, torch.bfloat16),
        (128, True, torch.bfloat16),
        (128, False, torch.bfloat16),
        (128, True, torch.float16),
    ]
    for size, causal, dtype in cases:
        if config.find(FORWARD, dtype, size, capability) is None:
            continue
        q = torch.zeros(1, 256, 8, size, dtype=dtype).transpose(1, 2)
        k = torch.zeros(1, 256, 2, size, dtype=dtype).transpose(1, 2)

        def once(q: Tensor = q, k: Tensor = k, causal: bool = causal) -> None:
            forward(q, k, k, causal, 0.125)

        kind = "causal" if causal else "full"
        yield f"D={size} {kind} {str(dtype).removeprefix('torch.')}", once


def _fake(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, rows, size = q.shape
    y = q.new_empty((batch, rows, heads, size)).transpose(1, 2)
    return y, q.new_empty((batch, heads, rows), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    gradients = torch.ops.tinylm.attention_backward(
        dy, *ctx.saved_tensors, None, None, None, ctx.causal, None, ctx.scale, None
    )
    return *gradients, None, None


register(
    "attention_hopper(Tensor q, Tensor k, Tensor v, bool causal, float scale) -> (Tensor, Tensor)",
    forward,
    _fake,
)
torch.library.register_autograd(
    "tinylm::attention_hopper", _gradients, setup_context=_save, lib=LIBRARY
)
