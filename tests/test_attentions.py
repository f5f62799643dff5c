"""Which kernel computes attention: the choice for every setting, on GPUs that need not be there."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from tests.support import fake_gpu, interpreter
from tests.support.allocated import peak
from tinylm import config, layers, model, ops
from tinylm.config import ModelConfig
from tinylm.mask import CAUSAL, Mask
from tinylm.ops import spelled
from tinylm.ops.attentions import DECODE_KEYS, DECODE_QUERIES, kernels_to_try

BACKENDS = ["auto", "triton", "hopper", "sdpa"]
DECODE, HOPPER, TRITON = "decode_attention", "attention_hopper", "attention"
LONG = DECODE_KEYS
DOCUMENTS = torch.zeros(1, 64, dtype=torch.int64)

# Mask, queries, keys, whether rows have a past and scores a cap; then the kernels to try for auto,
# triton and hopper. torch comes last of all, and alone for sdpa.
CHOICES = {
    "causal": ((Mask(), 64, 64, False, None), [], [TRITON], [HOPPER, TRITON]),
    "full": ((Mask(causal=False), 64, 64, False, None), [], [TRITON], [HOPPER, TRITON]),
    "a window as long as the row": (
        (Mask(window=64), 64, 64, False, None),
        *([], [TRITON], [HOPPER, TRITON]),
    ),
    "a cap": ((Mask(), 64, 64, False, 30.0), [TRITON], [TRITON], [TRITON]),
    "a window": ((Mask(window=16), 64, 64, False, None), [TRITON], [TRITON], [TRITON]),
    "documents": ((Mask(documents=DOCUMENTS), 64, 64, False, None), *[[TRITON]] * 3),
    "a prefix": ((Mask(prefix=DOCUMENTS[:, 0]), 64, 64, False, None), *[[TRITON]] * 3),
    "a chunk after a cache": (
        (Mask(), 32, 64, False, None),
        *([TRITON], [TRITON], [HOPPER, TRITON]),
    ),
    "a past of each row": ((Mask(), 32, 64, True, None), [TRITON], [TRITON], [TRITON]),
    "one query, few keys": ((Mask(), 1, 64, False, None), [], [TRITON], [HOPPER, TRITON]),
    "one query, a window": ((Mask(window=16), 1, 64, False, None), [], [TRITON], [TRITON]),
    "one query, many keys": (
        (Mask(), 1, LONG, False, None),
        *([DECODE], [DECODE, TRITON], [DECODE, HOPPER, TRITON]),
    ),
    "drafts, many keys": (
        (Mask(window=16), DECODE_QUERIES, LONG, True, 30.0),
        *[[DECODE, TRITON]] * 3,
    ),
    "more queries than keys": ((Mask(causal=False), 64, 32, False, None), *[[]] * 3),
    "more queries than drafts": (
        (Mask(), DECODE_QUERIES + 1, LONG, True, None),
        *[[TRITON]] * 3,
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_kernels_to_try_are_those_of_the_table(case):
    (mask, queries, keys, past, softcap), *wanted = CHOICES[case]
    for backend, kernels in zip(BACKENDS, [*wanted, []], strict=True):
        found = kernels_to_try(
            backend, mask, queries, keys, softcap=softcap, past=past, gradients=False
        )
        assert found == kernels, backend


@pytest.mark.parametrize("case", CHOICES)
def test_what_has_no_backward_pass_is_not_tried_for_gradients(case):
    (mask, queries, keys, past, softcap), *wanted = CHOICES[case]
    for backend, kernels in zip(BACKENDS, [*wanted, []], strict=True):
        found = kernels_to_try(
            backend, mask, queries, keys, softcap=softcap, past=past, gradients=True
        )
        assert DECODE not in found
        assert found == ([] if past else [name for name in kernels if name != DECODE])


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_needs_no_tensor_of_bools_where_auto_takes_no_kernel(backend, monkeypatch):
    monkeypatch.setattr(Mask, "dense", None)
    q = torch.randn(2, 2, 64, 8)
    for mask, queries, keys, past, softcap in (case[0] for case in CHOICES.values()):
        tried = kernels_to_try(
            "auto", mask, queries, keys, softcap=softcap, past=past, gradients=True
        )
        if not tried and not past:
            k = torch.randn(2, 2, keys, 8)
            assert (
                ops.attention(q[:, :, :queries], k, k, mask=mask, backend=backend).isfinite().all()
            )


@pytest.mark.parametrize("mask", [Mask(), Mask(window=3), Mask(causal=False)])
@pytest.mark.parametrize(("scale", "softcap"), [(None, 2.0), (0.7, None), (-0.7, 0.5)])
def test_scale_and_cap_are_the_formula(mask, scale, softcap):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 7, 6, generator=generator).double() for _ in range(3))
    scores = q @ k.mT * (6**-0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    seen = mask.dense(7, 7, device=q.device)
    wanted = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    for form in (ops.attention, ops.manual_attention):
        assert_close(form(q, k, v, mask=mask, scale=scale, softcap=softcap), wanted)


@pytest.mark.parametrize("window", [1, 3, 8, 20])
def test_a_lone_query_sees_the_last_keys_of_its_window(window):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 4, generator=generator).double() for n in (1, 8, 8))
    wanted = (q @ k[:, :, -window:].mT / 2).softmax(-1) @ v[:, :, -window:]
    assert_close(ops.attention(q, k, v, mask=Mask(window=window)), wanted)


kernels_only = pytest.mark.skipif(bool(interpreter.missing()), reason=interpreter.missing())


def taken(call):
    """The attention kernels that run in `call`, and whether torch's own attention does."""
    with fake_gpu.Called() as called:
        y = call()
    names = [name.split(".")[1] for name in called.names if name.startswith("tinylm.")]
    # Where there is no GPU, torch writes its attention out.
    if any("scaled_dot_product" in name or "softmax" in name for name in called.names):
        names.append("torch")
    return y, names


@kernels_only
@pytest.mark.parametrize(
    ("case", "capability"), [*[(case, (9, 0)) for case in CHOICES], ("causal", (8, 0))]
)
def test_the_first_kernel_that_covers_the_tensors_runs(case, capability):
    (mask, queries, keys, past, softcap), *wanted = CHOICES[case]
    for backend, kernels in zip(BACKENDS, [*wanted, []], strict=True):
        with fake_gpu.fake_cuda(capability) as zeros:
            fields = {
                name: None if value is None else zeros(*value.shape, dtype=value.dtype)
                for name, value in (("documents", mask.documents), ("prefix", mask.prefix))
            }
            own = Mask(mask.causal, mask.window, **fields)
            q = zeros(1, 4, queries, 64, dtype=torch.bfloat16)
            k = zeros(1, 2, keys, 64, dtype=torch.bfloat16)
            pasts = zeros(1, dtype=torch.int64) if past else None
            y, names = taken(
                lambda q=q, k=k, own=own, pasts=pasts, backend=backend: ops.attention(
                    q, k, k, mask=own, softcap=softcap, past=pasts, backend=backend
                )
            )
        able = [name for name in kernels if capability[0] == 9 or name != HOPPER]
        assert names == (able[:1] or ["torch"]), backend
        assert (y.shape, y.dtype) == (q.shape, q.dtype)


@kernels_only
@pytest.mark.parametrize(
    ("size", "dtype"), [(300, torch.bfloat16), (64, torch.float64)], ids=["size", "dtype"]
)
def test_torch_runs_where_no_table_has_a_row(size, dtype):
    with fake_gpu.fake_cuda() as zeros:
        q = zeros(1, 4, 32, size, dtype=dtype)
        for backend in BACKENDS:
            _, names = taken(
                lambda q=q, backend=backend: ops.attention(
                    q, q, q, mask=Mask(window=8), backend=backend
                )
            )
            assert names == ["torch"], backend


@kernels_only
def test_dropout_and_a_mask_that_is_a_tensor_are_torchs():
    with fake_gpu.fake_cuda() as zeros:
        q = zeros(1, 4, 32, 64, dtype=torch.bfloat16)
        seen = zeros(32, 32, dtype=torch.bool)
        assert taken(lambda: ops.attention(q, q, q, mask=seen, backend="triton"))[1] == ["torch"]
        assert taken(lambda: ops.attention(q, q, q, dropout=0.5, backend="triton"))[1] == ["torch"]


CONFIG = ModelConfig(vocab_size=32, d_model=128, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=32)


def fake_model(sizes):
    """A model in bfloat16 on a fake GPU: it cannot be moved there."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return model.Model(sizes)
    finally:
        torch.set_default_dtype(torch.float32)


def graphs_of(function, *values, **named):
    """The targets of each graph that torch.compile makes of a call on fake tensors."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    torch.compile(function, backend=backend, fullgraph=True)(*values, **named)
    return graphs


@kernels_only
@pytest.mark.parametrize(
    ("name", "documents", "kernel"),
    [("auto", True, TRITON), ("hopper", False, HOPPER)],
)
def test_a_compiled_model_is_one_graph_with_the_kernel_in_it(name, documents, kernel):
    with fake_gpu.fake_cuda() as zeros, torch.no_grad():
        made = fake_model(dataclasses.replace(CONFIG, attention=name))
        tokens = zeros(2, 16, dtype=torch.int64)
        (targets,) = graphs_of(made, tokens, **({"documents": tokens} if documents else {}))
    assert targets.count(f"tinylm.{kernel}") == CONFIG.n_layers
    assert not any("scaled_dot_product" in target for target in targets)
    # The bounds of documents are computed once for all layers.
    assert sum("cummax" in target for target in targets) == documents


@kernels_only
@pytest.mark.parametrize(
    ("backend", "mask", "kernel"),
    [
        ("auto", Mask(window=8), TRITON),
        ("triton", Mask(window=8), TRITON),
        ("triton", Mask(), TRITON),
        ("auto", Mask(), None),
        ("sdpa", Mask(), None),
    ],
)
def test_compiled_attention_keeps_its_kernel(backend, mask, kernel):
    def attend(q):
        return ops.attention(q, q, q, mask=mask, backend=backend)

    with fake_gpu.fake_cuda() as zeros:
        (targets,) = graphs_of(attend, zeros(1, 2, 32, 64, dtype=torch.bfloat16))
    found = [target for target in targets if "tinylm." in target]
    assert found == ([] if kernel is None else [f"tinylm.{kernel}"])
    assert any("scaled_dot_product" in target for target in targets) == (kernel is None)


def test_a_run_that_was_saved_with_sdpa_keeps_torchs_attention(tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text("model: {attention: sdpa}\n")
    made = model.Model(dataclasses.replace(config.load(saved).model, vocab_size=32))
    assert [block.attention.attend.keywords for block in made.blocks] == [{"backend": "sdpa"}] * 3
    assert config.load().model.attention == "auto"


def test_every_name_of_the_setting_is_a_form_of_attention():
    assert sorted(layers.ATTENTIONS) == sorted([*BACKENDS, "manual"])


def test_no_queries_give_no_answers_by_torch_and_with_kernels():
    q, k = torch.randn(1, 2, 0, 16), torch.randn(1, 2, 1024, 16)
    mask = Mask(window=5)
    assert ops.attention(q, k, k, mask=mask).shape == q.shape
    with interpreter.chosen_by_ops():
        assert ops.attention(q, k, k, mask=mask).shape == q.shape


def test_a_kernel_follows_autocast_as_torch_does():
    q, k = torch.randn(2, 1, 2, 6, 16)
    mask = Mask(window=3)
    with interpreter.chosen_by_ops() as taken, torch.autocast("cpu", torch.bfloat16):
        y = ops.attention(q, k, k.bfloat16(), mask=mask)
    assert taken == ["attention"]
    assert y.dtype == torch.bfloat16
    wanted = ops.attention(q, k, k, mask=mask, backend="sdpa")
    torch.testing.assert_close(y.float(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_takes_products_where_they_are_faster(dtype, monkeypatch):
    calls = []
    real = spelled.causal_attention
    monkeypatch.setattr(spelled, "causal_attention", lambda *a: calls.append(1) or real(*a))

    def taken(tokens, **named):
        q, k, v = (torch.randn(1, 2, tokens, 8, dtype=dtype, requires_grad=True) for _ in "qkv")
        calls.clear()
        ops.attention(q, k, v, **named)
        return bool(calls)

    least = spelled.LEAST_TOKENS[dtype]
    assert taken(least)
    assert taken(least, mask=Mask(window=5))
    assert not taken(least - 1)
    for other in ({"backend": "sdpa"}, {"dropout": 0.1}, {"softcap": 5.0}):
        assert not taken(least, **other)
    assert not taken(least, mask=Mask(causal=False))
    with torch.no_grad():
        assert taken(least) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("rows", [1, 2])
def test_attention_by_products_over_long_rows_needs_the_memory_of_a_chunk(rows):
    q, k, v = (torch.randn(rows, 1, 8192, 2, requires_grad=True) for _ in "qkv")
    chunk = 4 * spelled.CHUNK * 8192
    assert peak(lambda: spelled.causal_attention(q, k, v, CAUSAL, 0.5).sum().backward()) < 8 * chunk


def test_attention_by_products_compiles_to_one_operation():
    arguments = [torch.randn(2, 4, 64, 16, requires_grad=True) for _ in "qkv"]
    torch.library.opcheck(
        torch.ops.tinylm.causal_attention.default, (*arguments, None, 9, 0.25, True)
    )
