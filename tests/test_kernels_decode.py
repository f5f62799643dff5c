"""Decode attention: splits, pages, 8 bits, what is refused, and the model that decodes with it."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.testing import assert_close

from tests.rungs.kernel_decode import DTYPES, LONG, by_kernel, case, shapes
from tests.rungs.rung import SEEDS
from tests.support import fake_gpu, interpreter
from tests.support.interpreter import DEVICE
from tests.support.models import build, tokens
from tests.support.paged import Pages
from tinylm import cache, model, ops
from tinylm.config import ModelConfig

if interpreter.missing():
    pytest.skip(interpreter.missing(), allow_module_level=True)

from tinylm.kernels.decode_attention import FORWARD, MOST_SPLITS, split_count

# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

decode_attention = torch.ops.tinylm.decode_attention


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreter.exact():
        yield


def of(**changes):
    """A small shape whose kernel splits the keys of each row on a GPU of 8 processors."""
    small = {"rows": 2, "kv_heads": 1, "group": 2, "size": 16, "capacity": 256, "page": 0}
    return dataclasses.replace(LONG, **small | changes)


@settings(max_examples=6, deadline=None)
@given(shape=shapes(most=128), seed=SEEDS, page=st.sampled_from([16, 32, 64, 128]))
def test_a_paged_cache_gives_the_bits_of_a_contiguous_one(shape, seed, page):
    capacity = -(-shape.capacity // 128) * 128
    shape = dataclasses.replace(shape, capacity=capacity, page=0, equal=False)
    (contiguous,) = by_kernel(*case(shape, seed), 8)
    (paged,) = by_kernel(*case(dataclasses.replace(shape, page=page), seed), 8)
    assert torch.equal(paged, contiguous)


@pytest.mark.parametrize(("dtype", "int8"), [*zip(DTYPES, [True, False, True], strict=True)])
def test_decode_attention_repeats_to_the_bit(dtype, int8):
    inputs = case(of(dtype=dtype, int8=int8, queries=3, page=16), 0)
    (first,) = by_kernel(*inputs, 8)
    for _ in range(2):
        assert torch.equal(by_kernel(*inputs, 8)[0], first)


def test_more_splits_change_the_rounding_alone():
    inputs = case(of(dtype=torch.float32, rows=3, capacity=600), 3)
    (one,), *more = (by_kernel(*inputs, processors) for processors in (1, 8, 132))
    for (other,) in more:
        assert_close(other, one, rtol=1e-5, atol=1e-6)
        assert not torch.equal(other, one)


def test_a_row_of_one_token_leaves_most_splits_empty_and_gives_its_value():
    q, k, v, past, named = case(of(dtype=torch.float32, rows=1, capacity=600), 0)
    past.zero_()
    k[:, :, 0], v[:, :, 0] = 1.0, torch.arange(16.0)
    assert split_count(1, 19, 24) == 9
    (y,) = by_kernel(q, k, v, past, named, 8)
    assert torch.equal(y, v[:, :, :1].expand_as(y))


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("processors", [108, 132])
def test_one_long_row_fills_the_processors(kv_heads, processors):
    for key, launch in FORWARD:
        tiles = 32768 // launch.block
        programs = kv_heads * split_count(kv_heads, tiles, launch.programs * processors)
        assert programs >= processors, key
        # And no part is so short that the combination outweighs it.
        assert tiles * kv_heads // programs >= 2, key


@given(programs=st.integers(0, 10**6), tiles=st.integers(0, 10**6), slots=st.integers(1, 600))
def test_splits_are_few_and_never_leave_more_slots_idle_than_none_would(programs, tiles, slots):
    def idle(splits):
        running = programs * splits
        return -running % slots / max(running + -running % slots, 1)

    splits = split_count(programs, tiles, slots)
    assert 1 <= splits <= max(1, min(MOST_SPLITS, tiles // 2))
    assert idle(splits) <= idle(1) + 1e-9


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.parametrize("int8", [False, True])
def test_a_key_that_is_no_number_shows_in_its_own_row(int8):
    shape = of(dtype=torch.bfloat16, int8=int8, rows=3, capacity=101, equal=True)
    q, k, v, past, named = case(shape, 0)
    (before,) = by_kernel(q, k, v, past, named, 8)
    (named["k_scale"] if int8 else k)[0, :, 100] = math.nan
    (after,) = by_kernel(q, k, v, past, named, 8)
    assert after[0].isnan().all()
    assert torch.equal(after[1:], before[1:])


def test_decode_attention_reaches_past_two_billion_numbers():
    # Untouched pages of the 4.3 GB cost nothing.
    stride = 2**30
    memory = torch.empty(2 * stride + 4 * 16, dtype=torch.float16, device=DEVICE)
    k = memory.as_strided((3, 1, 4, 16), (stride, 64, 16, 1)).copy_(torch.randn(3, 1, 4, 16))
    q, past = torch.ones(3, 1, 1, 16).to(k), torch.tensor([3, 2, 1], device=DEVICE)
    rest = (None, None, None, None, 1.0, None)
    far = decode_attention(q, k, k, past, *rest)
    assert torch.equal(far, decode_attention(q, k.clone(), k.clone(), past, *rest))
    table = torch.tensor([[2], [0], [1]], dtype=torch.int32, device=DEVICE)
    paged = decode_attention(q, k, k, past, table, *rest[1:])
    assert torch.equal(paged, decode_attention(q, k[[2, 0, 1]], k[[2, 0, 1]], past, *rest))


@pytest.mark.parametrize("changes", [{}, {"page": 16, "int8": True, "queries": 3}])
def test_decode_attention_is_a_well_formed_torch_operation(changes):
    q, k, v, past, named = case(of(softcap=30.0, window=9, **changes), 0)
    tables = (named["table"], named["k_scale"], named["v_scale"])
    opcheck(decode_attention.default, (q, k, v, past, *tables, 9, 0.5, 30.0))


def test_a_gradient_is_refused_and_ops_has_one():
    q, k, v, past, named = case(of(dtype=torch.float32, capacity=8), 0)
    # Torch's form hides what no query sees, and its gradient must not be NaN either.
    q.requires_grad_()
    with pytest.raises(NotImplementedError, match=r"^decode_attention's kernel has no gradient"):
        by_kernel(q, k, v, past, named)[0].sum().backward()
    with interpreter.chosen_by_ops() as taken:
        y = ops.decode_attention(q, k, v, past, **named)
        (slope,) = torch.autograd.grad(y.sum(), q)
        assert taken == []
        with torch.no_grad():
            ops.decode_attention(q, k, v, past, **named)
        assert taken == ["decode_attention"]
    assert slope.isfinite().all()


def refused(k=(2, 1, 8, 16), dtype=torch.float32, **changes):
    """The arguments of a call over a small cache, some of them wrong."""
    named = {"past": torch.tensor([1, 2]), "table": None, "k_scale": None, "v_scale": None}
    named |= {"window": None, "scale": 1.0, "softcap": None, "q": torch.zeros(2, 2, 1, 16)}
    return {"k": torch.zeros(k, dtype=dtype), "v": torch.zeros(k, dtype=dtype), **named, **changes}


TABLE = torch.zeros(2, 3, dtype=torch.int32)
REFUSED = {
    "wide heads": (
        refused(k=(2, 1, 8, 257), q=torch.zeros(2, 2, 1, 257)),
        ["257", "256", "tinylm.ops.attention"],
    ),
    "float64": (
        refused(dtype=torch.float64, q=torch.zeros(2, 2, 1, 16).double()),
        ["float64", "bfloat16"],
    ),
    "head sizes": (refused(k=(2, 1, 8, 15)), ["[2, 2, 1, 16]", "[2, 1, 8, 15]"]),
    "groups": (refused(k=(2, 3, 8, 16)), ["2 query heads", "3 key heads"]),
    "no token": (refused(q=torch.zeros(2, 2, 0, 16)), ["0 new tokens"]),
    "rows": (refused(k=(3, 1, 8, 16)), ["[3, 1, 8, 16]", "table"]),
    "too few keys": (refused(q=torch.zeros(2, 2, 9, 16)), ["[2, 1, 8, 16]", "new tokens"]),
    "table of int64": (refused(table=TABLE.long()), ["[2, 3]", "int64", "int32"]),
    "table without past": (refused(table=TABLE, past=None), ["past"]),
    "page": (refused(k=(2, 1, 12, 16), table=TABLE), ["12", "power of two"]),
    "past": (refused(past=torch.zeros(3, dtype=torch.int64)), ["past [3]", "[2]"]),
    "past of floats": (refused(past=torch.zeros(2)), ["float32", "int64"]),
    "window": (refused(window=0), ["window=0", "at least 1"]),
    "int8 without scale": (refused(dtype=torch.int8), ["k is torch.int8", "scale"]),
    "another dtype": (refused(dtype=torch.float16), ["torch.float16", "torch.float32"]),
    "scale of float32": (refused(k_scale=torch.zeros(2, 1, 8)), ["torch.float32 with a scale"]),
    "shape of the scale": (
        refused(dtype=torch.int8, k_scale=torch.zeros(2, 1, 7), v_scale=torch.zeros(2, 1, 8)),
        ["k_scale [2, 1, 7]", "[2, 1, 8]"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_decode_attention_refuses_in_one_line_that_names_the_limit(case):
    arguments, words = REFUSED[case]
    with pytest.raises(ValueError, match=r"^decode_attention: ") as error:
        decode_attention(
            **{k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        )
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_ops_takes_the_kernel_on_a_gpu_and_keeps_it_in_a_compiled_graph():
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    def decode(q, n, scale, past, table):
        return ops.decode_attention(q, n, n, past, table=table, k_scale=scale, v_scale=scale)

    with fake_gpu.fake_cuda() as zeros:
        q, n, scale = zeros(2, 4, 1, 64), zeros(9, 2, 16, 64, dtype=torch.int8), zeros(9, 2, 16)
        past, table = zeros(2, dtype=torch.int64), zeros(2, 4, dtype=torch.int32)
        with fake_gpu.Called() as called:
            y = decode(q, n, scale, past, table)
        compiled = torch.compile(decode, backend=backend, fullgraph=True)
        assert compiled(q, n, scale, past, table).stride() == y.stride()
    assert called.names == ["tinylm.decode_attention.default"]
    (targets,) = graphs
    assert any("tinylm.decode_attention" in target for target in targets)


CONFIG = ModelConfig(vocab_size=11, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2)


@pytest.fixture
def chosen(monkeypatch):
    """`ops` takes kernels on the CPU too, and over few keys; the names of those it took."""
    monkeypatch.setattr(ops.attentions, "DECODE_KEYS", 1)
    with interpreter.chosen_by_ops() as taken:
        yield taken


def logits(made, held, ids):
    """Of a prompt of 6 tokens, of drafts of 3 and of a lone token."""
    with model.inference(made):
        return torch.cat([made(part, cache=held) for part in ids.split([6, 3, 1], 1)], 1)


def test_a_model_decodes_from_pages_to_the_bit_as_from_one_buffer(chosen):
    made = build(CONFIG, dtype=torch.float32).to(DEVICE)
    ids = tokens(CONFIG, 2, 10).to(DEVICE)
    whole = made(ids)
    one_buffer = logits(made, cache.build(made, 2, 64, fixed=True), ids)
    # Three parts in two layers.
    assert chosen.count("decode_attention") == 6
    assert_close(one_buffer, whole, rtol=0, atol=1e-4)
    assert torch.equal(logits(made, cache.build(made, 2, 64, "paged"), ids), one_buffer)
    # The cache asks whether there is a kernel before it leaves the blocks where they are.
    assert chosen.count("decode_attention") == 18
    eight = logits(made, Pages(made, 2, 64, 16), ids)
    assert 0 < (eight - whole).norm() < 0.05 * whole.norm()


def test_a_compiled_step_over_a_fixed_cache_is_one_graph_with_the_kernel(monkeypatch):
    made = build(CONFIG, dtype=torch.float32).to(DEVICE)
    graphs = []

    def kernel_for(operation, *rest, **named):
        return decode_attention if operation == "decode_attention" else None

    monkeypatch.setattr(ops.attentions, "DECODE_KEYS", 1)
    monkeypatch.setattr(ops.choice, "kernel_for", kernel_for)

    def backend(graph, inputs):
        graphs.append(sum("tinylm.decode" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    def step(ids, context):
        return made.head(made.hidden(made.embed(ids), context))

    compiled = torch.compile(step, backend=backend, dynamic=False)
    with model.inference(made):
        held, plain = cache.build(made, 2, 16, fixed=True), cache.build(made, 2, 16)
        for ids in tokens(CONFIG, 2, 5).to(DEVICE).split(1, 1):
            stepped = compiled(ids, made.context(1, cache=held))
            held.advance(1)
            assert_close(stepped, made(ids, cache=plain))
    assert graphs == [2]
