"""Attention by Triton: what it skips, what it refuses, and that torch takes it for its own."""

import math

import pytest
import torch
from torch.library import opcheck

from tests.rungs.kernel_attention import DTYPES, RUNGS, example, kernel, with_gradients
from tests.rungs.rung import check
from tests.support import interpreter
from tests.support.interpreter import DEVICE, playing
from tests.support.memory import LAYOUTS, laid_out
from tinylm import ops
from tinylm.mask import Mask

if interpreter.missing():
    pytest.skip(interpreter.missing(), allow_module_level=True)

from tinylm import kernels

# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

(ATTENTION,) = RUNGS
GPUS = [(9, 0), (8, 0)]


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreter.exact():
        yield


def documents(*lengths):
    """Numbers of documents of these lengths, side by side in one row."""
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return numbers[None].to(DEVICE)


def row(*numbers):
    return torch.tensor(numbers, device=DEVICE)


def results(case):
    """lse, y and the gradients, by the kernels."""
    with playing(case.capability):
        return with_gradients(kernel(case), case)


@pytest.mark.parametrize("size", [1, 24, 40, 80, 96, 256])
def test_every_head_size_is_as_exact_as_torch(size):
    capability = GPUS[size % 3 == 0]
    case = example(size, queries=40, keys=70, mask=Mask(window=33), capability=capability)
    check(ATTENTION, (case,))


def test_the_first_keys_are_seen_from_behind_a_gap():
    # Attention sinks: a prefix far before the window, in tiles of their own.
    mask = Mask(window=10, prefix=row(5))
    lengths = {"heads": 1, "kv_heads": 1, "queries": 20, "keys": 200}
    check(ATTENTION, (example(256, mask=mask, capability=(8, 0), **lengths),))


# The tiles of float32 are small, so that the ladder has many of them.
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", ["causal", "window", "documents", "sinks", "prefix"])
def test_long_sequences_are_as_exact_as_torch(dtype, name):
    # Whole tiles and tiles on every edge, whatever the tiles are.
    mask = {
        "causal": Mask(),
        "window": Mask(False, window=150),
        "documents": Mask(documents=documents(200, 1, 99, 300)),
        "sinks": Mask(window=60, prefix=row(70)),
        "prefix": Mask(documents=documents(250, 350), prefix=row(320)),
    }[name]
    for size, capability in ((64, (9, 0)), (128, (8, 0))):
        lengths = {"queries": 500, "keys": 600, "heads": 2, "kv_heads": 1}
        case = example(size, dtype, mask=mask, capability=capability, **lengths)
        check(ATTENTION, (case,))


def same_bits(dtype, heads, kv_heads, tokens):
    mask, size = Mask(documents=documents(20, tokens - 20)), {"queries": tokens, "keys": tokens}
    case = example(16, dtype, heads=heads, kv_heads=kv_heads, mask=mask, **size)
    first = results(case)
    for _ in range(19):
        assert all(torch.equal(a, b) for a, b in zip(first, results(case), strict=True))


def test_the_same_call_gives_the_same_bits():
    same_bits(torch.bfloat16, 2, 1, 30)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_call_over_many_tiles_gives_the_same_bits(dtype):
    same_bits(dtype, 4, 2, 100)


SKIPPED = {
    # A mask of 512 tokens, and the keys and queries that share a block of 128 with nothing of the
    # other: what the kernels must not even read.
    "documents": (Mask(documents=documents(128, 128, 256)), slice(0, 128), slice(128, 512)),
    "window": (Mask(window=128), slice(0, 128), slice(256, 512)),
    "both sides": (Mask(False, window=128), slice(384, 512), slice(0, 256)),
    "future": (Mask(), slice(384, 512), slice(0, 384)),
    "after the prefix": (Mask(window=100, prefix=row(60)), slice(128, 256), slice(384, 512)),
}


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("window", GPUS[1]),
        ("both sides", GPUS[0]),
        *(pytest.param(n, GPUS[0], marks=pytest.mark.slow) for n in SKIPPED if n != "both sides"),
    ],
)
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_tiles_out_of_sight_are_skipped(name, capability):
    mask, hidden, blind = SKIPPED[name]
    case = example(32, heads=1, kv_heads=1, queries=512, keys=512, mask=mask, capability=capability)
    # 0 times NaN is NaN: a weight of 0 would show.
    case.k[:, :, hidden], case.v[:, :, hidden] = math.nan, math.nan
    lse, y, dq, _, _ = results(case)
    for x in (lse[..., None], y, dq):
        assert x[:, :, blind].isfinite().all()
    assert y[:, :, hidden].isnan().any()


@pytest.mark.parametrize("capability", GPUS)
def test_places_after_the_last_query_may_hold_anything(capability):
    past = torch.tensor([3, 40], device=DEVICE)
    case = example(32, batch=2, queries=5, keys=60, past=past, capability=capability)
    clean = results(case)
    for entry, length in enumerate((8, 45)):
        case.k[entry, :, length:], case.v[entry, :, length:] = math.nan, math.nan
    assert all(torch.equal(a, b) for a, b in zip(clean, results(case), strict=True))


def test_a_row_of_padding_has_finite_gradients():
    # Every token of the second row is a document of its own, as the loader pads.
    rows = torch.cat((documents(50), documents(*[1] * 50)))
    case = example(16, batch=2, queries=50, keys=50, mask=Mask(documents=rows))
    _, y, *gradients = results(case)
    assert all(x.isfinite().all() for x in gradients)
    # A token that sees itself alone takes its own value.
    assert torch.equal(y[1], case.v[1].repeat_interleave(2, 0))
    assert gradients[0][1].abs().max() < 1e-5


def test_a_window_over_all_keys_is_no_window():
    case = example(16, queries=20, keys=30, mask=Mask(window=30))
    wide = example(16, queries=20, keys=30)
    assert all(torch.equal(a, b) for a, b in zip(results(case), results(wide), strict=True))


def arguments(q, k, v, **named):
    """Arguments of the operation, all keys causal unless `named` says otherwise."""
    defaults = {"first": None, "end": None, "prefix": None, "past": None, "causal": True}
    defaults |= {"window": None, "scale": 0.2, "softcap": None}
    return (q, k, v, *(defaults | named).values())


CALLS = {
    "documents": dict(
        zip(("first", "end"), Mask(documents=documents(9, 11)).bounds(), strict=True)
    ),
    "prefix and cap": {"prefix": row(7), "softcap": 3.0, "causal": False, "window": 4},
}


@pytest.mark.parametrize(("layout", "call"), list(zip(LAYOUTS[2:4], CALLS, strict=True)))
def test_attention_is_a_well_formed_torch_operation(layout, call):
    case = example(24, torch.bfloat16, heads=2, kv_heads=1, queries=20, keys=20)
    q, k, v = (laid_out(x.contiguous(), layout) for x in (case.q, case.k, case.v))
    forward = arguments(q, k, v, **CALLS[call])
    y, lse = torch.ops.tinylm.attention(*forward)
    backward = (case.dy, q, k, v, y, lse, *forward[3:6], *forward[7:])
    opcheck(torch.ops.tinylm.attention_backward.default, backward)
    leaves = (x.detach().requires_grad_() for x in (q, k, v))
    opcheck(torch.ops.tinylm.attention.default, (*leaves, *forward[3:]))
    with_past = arguments(q, k, v, past=row(0))
    opcheck(torch.ops.tinylm.attention.default, with_past, test_utils="test_faketensor")


def test_torch_compile_takes_attention_and_its_gradients_whole():
    case = example(16, heads=2, kv_heads=1, queries=20, keys=20)
    leaves = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]

    def loss(q, k, v):
        y, _ = torch.ops.tinylm.attention(*arguments(q * 2, k, v))
        return (y * case.dy).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    ours = torch.autograd.grad(compiled(*leaves), leaves)
    theirs = torch.autograd.grad(loss(*leaves), leaves)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_has_no_gradient_says_so():
    case = example(16, torch.float32, queries=4, keys=8)
    leaves = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]
    with pytest.raises(NotImplementedError, match="no gradient with past"):
        torch.ops.tinylm.attention(*arguments(*leaves, past=row(2)))
    y, lse = torch.ops.tinylm.attention(*arguments(*leaves))
    assert not lse.requires_grad
    (dq,) = torch.autograd.grad(y.sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dq.sum().backward()


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device=DEVICE)


Q, K = zeros(2, 4, 5, 16), zeros(2, 2, 6, 16)
SPAN = zeros(2, 6, dtype=torch.int32)
REFUSED = {
    "three axes": (arguments(Q[0], K, K), ["[4, 5, 16]", "[B, H, T, D]"]),
    "two batches": (arguments(Q, K[:1], K[:1]), ["[2, 4, 5, 16]", "[1, 2, 6, 16]"]),
    "other values": (arguments(Q, K, K[:, :, 1:]), ["[2, 2, 5, 16]"]),
    "heads": (arguments(Q[:, :3], K, K), ["3", "2", "divisor"]),
    "too few keys": (arguments(Q, K[:, :, :4], K[:, :, :4]), ["T=5", "S=4", "<= S"]),
    "mixed": (arguments(Q, K.half(), K), ["float32", "float16", "cast"]),
    "float64": (arguments(Q.double(), K.double(), K.double()), ["float64", "bfloat16"]),
    "large heads": (arguments(zeros(1, 1, 1, 257), *[zeros(1, 1, 1, 257)] * 2), ["257", "256"]),
    "half of the bounds": (arguments(Q, K, K, first=SPAN), ["first", "end", "both"]),
    "short bounds": (arguments(Q, K, K, first=SPAN, end=SPAN[:, :5]), ["end [2, 5]", "[2, 6]"]),
    "wide bounds": (arguments(Q, K, K, first=SPAN, end=SPAN.long()), ["int64", "int32"]),
    "real prefix": (arguments(Q, K, K, prefix=zeros(2)), ["prefix", "float32", "integer"]),
    "long past": (arguments(Q, K, K, past=row(1, 1, 1)), ["past [3]", "[2]"]),
    "no window": (arguments(Q, K, K, window=0), ["window=0", "at least 1"]),
    "no cap": (arguments(Q, K, K, softcap=0.0), ["softcap=0.0", "over 0"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_attention_refuses_in_one_line_that_names_the_limit(case):
    values, words = REFUSED[case]
    with pytest.raises(ValueError, match=r"^attention: ") as error:
        torch.ops.tinylm.attention(*values)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "wrong", "words"),
    [
        (0, Q[:, :, 1:], ["dy", "[2, 4, 4, 16]"]),
        (4, Q.half(), ["y", "float16"]),
        (5, zeros(2, 4, 5).double(), ["lse", "float64", "float32"]),
    ],
)
def test_its_gradients_refuse_what_the_forward_pass_did_not_give(place, wrong, words):
    values = [Q, Q, K, K, Q, zeros(2, 4, 5), None, None, None, True, None, 0.2, None]
    values[place] = wrong
    with pytest.raises(ValueError, match=r"^attention_backward: ") as error:
        torch.ops.tinylm.attention_backward(*values)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_what_has_a_forward_kernel_has_a_backward_one(size):
    attention, backward = kernels.attention, kernels.attention_backward
    for dtype in DTYPES:
        for gpu in GPUS:
            forward = kernels.config.find(attention.FORWARD, dtype, size, gpu)
            for table in (backward.KEYS, backward.QUERIES):
                found = kernels.config.find(table, dtype, size, gpu)
                assert (found is None) == (forward is None)


@pytest.mark.skipif(DEVICE == "cuda", reason="plays a GPU that comes after the one there is")
def test_a_gpu_of_little_shared_memory_reads_through_pointers():
    case = example(128, queries=20, keys=20)
    with playing((12, 0)):
        assert not kernels.attention.find("attention", kernels.attention.FORWARD, case.q).tma
        assert torch.equal(kernel(case)(case.q, case.k, case.v)[0], results(case)[1])


def test_ops_takes_the_kernel_for_a_mask_of_fields():
    case = example(16, queries=20, keys=20, mask=Mask(window=4))
    with interpreter.chosen_by_ops() as taken:
        y = ops.attention(case.q, case.k, case.v, mask=case.mask, scale=case.scale)
    assert "attention" in taken
    assert torch.equal(y, results(case)[1])


def test_a_soft_cap_hides_no_nan():
    q = torch.randn(1, 1, 3, 16, device=DEVICE)
    k = q.clone()
    q[0, 0, 1, 0] = math.nan
    y = ops.attention(q, k, k, softcap=5.0)
    ours = torch.ops.tinylm.attention(q, k, k, None, None, None, None, True, None, 0.25, 5.0)[0]
    assert torch.equal(ours.isnan(), y.isnan())
