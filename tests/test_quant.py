"""Quantisation after training: methods against their definitions, folders, and what is refused."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.fakes import ListDataset
from tests.support.models import build, tokens
from tinylm import checkpoint, ops
from tinylm.config import ConfigError, ModelConfig
from tinylm.layers import PackedEmbedding, PackedHead, PackedLinear
from tinylm.layers.lora import adapt, matrices
from tinylm.ops.rounding import absmax, on_grid, searched
from tinylm.quant import Settings, quantise
from tinylm.quant import settings as reading
from tinylm.quant.__main__ import main
from tinylm.quant.awq import enlarge, factors, folds
from tinylm.quant.calibration import Walk, check_enough, rows
from tinylm.quant.gptq import gptq
from tinylm.quant.sensitivity import kept, sensitivities
from tinylm.quant.turning import orthogonal, turn_values
from tinylm.reference import quant as reference

SMALL = ModelConfig(vocab_size=29, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_size=32,
                    context_length=16, d_ff=96)  # fmt: skip
OTHERS = [("int8", False), ("int4", True), *product(("gptq", "awq"), (True, False))]


def made(seed=0, **changes):
    """A small float model whose weights all matter."""
    return build(replace(SMALL, **changes), seed=seed, dtype=torch.float32).eval()


def text(seed=0):
    """Rows to calibrate on [12, 16]."""
    return tokens(SMALL, 12, 16, seed=seed)


def logits(net, ids):
    """What a model says, without the forms that have a gradient."""
    with torch.no_grad():
        return net(ids)


def drawn(rows, width, seed=0):
    """A matrix [rows, width] and the moments [width, width] of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    x = torch.randn(4 * width, width, generator=generator, dtype=torch.float64) @ mixing
    return weight, x.T @ x


@pytest.mark.parametrize("group", [32, 64])
def test_searched_scales_are_those_of_the_definition(group):
    weight, moments = drawn(3, 64)
    weight[0, 1] = 9.0  # One that stands out, and a group of zeros.
    weight[1, :group] = 0.0
    for importance in (None, moments.diagonal()):
        found = searched(weight, group, importance)
        for n in range(3):
            for g in range(64 // group):
                part = slice(g * group, (g + 1) * group)
                own = None if importance is None else importance[part]
                assert float(found[n, g]) == reference.search_scale(weight[n, part], own)
    plain, best = absmax(weight, group), searched(weight, group)
    error = lambda s: (on_grid(weight, s) - weight).square().sum()  # noqa: E731
    assert error(best) < 0.9 * error(plain)


def test_gptq_is_its_definition_and_costs_the_outputs_less_than_rounding():
    weight, moments = drawn(3, 64)
    done, scales = gptq(weight, moments, 32)
    wanted, wanted_scales = reference.gptq(weight, reference.damped(moments), 32)
    torch.testing.assert_close(done, wanted, rtol=0, atol=1e-9)
    assert torch.equal(scales.double(), wanted_scales)
    rounded = on_grid(weight, searched(weight, 32))
    lost = reference.output_error(done - weight, moments)
    assert lost < 0.8 * reference.output_error(rounded - weight, moments)


def test_gptq_takes_inputs_that_are_always_zero_and_blocks_of_columns():
    weight, moments = drawn(1, 192, seed=1)
    dead = torch.zeros(192, dtype=torch.bool)
    dead[[0, 5, 150]] = True
    moments[dead] = moments[:, dead] = 0.0
    done = gptq(weight, moments, 64)[0]
    # 192 columns are two blocks: what the first leaves over must reach the second.
    wanted, _ = reference.gptq(weight, reference.damped(moments), 64)
    torch.testing.assert_close(done, wanted, rtol=0, atol=1e-9)
    rounded = on_grid(weight, searched(weight, 64))
    assert torch.equal(gptq(weight, torch.zeros(192, 192), 64)[0], rounded)


def test_awq_factors_are_those_of_the_definition_and_cost_the_outputs_less():
    weight, moments = drawn(4, 64, seed=2)
    loud = torch.ones(64, dtype=torch.float64)
    loud[3] = loud[40] = 30.0
    moments = moments * loud * loud[:, None]
    halves = [weight[:2], weight[2:]]
    found = factors(halves, moments, 32)
    torch.testing.assert_close(found, reference.awq_factors(halves, moments, 32))
    enlarged = weight * found
    change = on_grid(enlarged, searched(enlarged, 32)) / found - weight
    plain = on_grid(weight, searched(weight, 32)) - weight
    assert reference.output_error(change, moments) < 0.8 * reference.output_error(plain, moments)


MIXES = [
    {},
    {"n_kv_heads": 4, "head_size": 24},
    pytest.param(
        {"architecture": "gpt2", "n_kv_heads": None, "head_size": None}, marks=pytest.mark.slow
    ),
    pytest.param({"architecture": "qwen3", "n_kv_heads": 4}, marks=pytest.mark.slow),
    pytest.param({"architecture": "speedrun", "n_kv_heads": 4}, marks=pytest.mark.slow),
    pytest.param(
        {"parallel": True, "token_shift": True, "key_mix": True, "n_kv_heads": 4},
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"value_residual": True, "value_embeddings": 2, "n_kv_heads": 4}, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_turns_and_folds_leave_what_the_model_computes(mix):
    net, ids = made(**mix), text()
    before = logits(net, ids)
    old = {name: p.clone() for name, p in net.named_parameters()}
    moments = [(block, found) for _, block, found in Walk(net, ids)]
    for block, found in moments:
        turn_values(block)
        enlarge(block, found, 32)
    torch.testing.assert_close(logits(net, ids), before, rtol=2e-4, atol=2e-4)
    moved = {n for n, p in net.named_parameters() if not torch.allclose(p, old[n], atol=1e-4)}
    assert "blocks.1.attention.v.weight" in moved


def test_a_fold_needs_a_part_that_can_be_divided():
    gpt2 = made(architecture="gpt2", n_kv_heads=None, head_size=None).blocks[0]
    assert folds(gpt2).keys() == {"attention_norm", "feedforward_norm", "attention.v"}
    assert folds(made().blocks[0]).keys() == {
        "attention_norm", "feedforward_norm", "feedforward.up"}  # fmt: skip
    plain = made(norm="plain_rmsnorm", n_kv_heads=4).blocks[0]
    assert folds(plain).keys() == {"attention.v", "feedforward.up"}


@pytest.mark.parametrize("size", [1, 6, 8, 64])
def test_a_turn_is_orthogonal_and_spreads_one_number_over_all(size):
    turn = orthogonal(size)
    torch.testing.assert_close(turn @ turn.T, torch.eye(size, dtype=torch.float64))
    if size in (8, 64):
        assert turn.abs().max() == pytest.approx(size**-0.5)


def test_moments_are_those_of_the_inputs_after_the_blocks_before_were_changed():
    net, ids = made(), text()
    walk = iter(Walk(net, ids))
    _, block, _ = next(walk)
    with torch.no_grad():
        block.feedforward.down.weight.zero_()
    _, block, found = next(walk)
    seen = {}
    handle = block.attention.q.register_forward_pre_hook(lambda m, x: seen.update(x=x[0]))
    logits(net, ids)
    handle.remove()
    x = seen["x"].double().flatten(0, 1)
    torch.testing.assert_close(found["attention.q"], x.T @ x, rtol=1e-5, atol=1e-3)
    assert found.keys() == dict(matrices(block)).keys()


def test_the_most_sensitive_matrices_are_kept_within_the_share():
    net, ids = made(), text()
    with torch.no_grad():
        # No head reads it: rounding it changes nothing.
        net.blocks[0].attention.o.weight.zero_()
    found = sensitivities(net, ids, 32)
    assert found["blocks.0.attention.v"] == found["blocks.0.attention.q"] == 0.0
    assert min(v for n, v in found.items() if n.startswith("blocks.1")) > 0.0
    sizes = {name: part.weight.numel() for name, part in matrices(net)}
    chosen = kept(net, ids, 32, 0.3)
    assert 0 < sum(sizes[name] for name in chosen) <= 0.3 * sum(sizes.values())
    each = {name: found[name] / sizes[name] for name in found}
    assert chosen[0] == max(each, key=each.get)
    assert kept(net, ids, 32, 0.0) == []


@pytest.mark.parametrize(
    ("method", "tied"),
    [
        ("int8", True),
        ("int4", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS),
    ],
)
def test_a_folder_holds_the_model_that_was_quantised(tmp_path, method, tied):
    net, ids = made(tied=tied), text()
    before = logits(net, ids)
    quantise(net, Settings(method), ids)
    after = logits(net, ids)
    error = (after - before).norm() / before.norm()
    assert 0 < error < (0.1 if method == "int8" else 0.5)
    assert isinstance(net.embedding, PackedEmbedding)
    assert tied or isinstance(net.head, PackedHead)
    checkpoint.save(tmp_path / "q", net, None)
    checkpoint.verify(tmp_path / "q")
    again, _ = checkpoint.load(tmp_path / "q")
    assert torch.equal(logits(again, ids), after)
    assert again.quantisation == net.quantisation
    assert all(torch.equal(a, b) for a, b in zip(
        again.state_dict().values(), net.state_dict().values(), strict=True))  # fmt: skip
    assert again.blocks[0].attention.q.scales.dtype == net.blocks[0].attention.q.scales.dtype
    # Saved again, the same bytes; and decoding with a cache computes the same.
    checkpoint.save(tmp_path / "twice", again, None)
    assert (tmp_path / "twice/model.safetensors").read_bytes() == (
        tmp_path / "q/model.safetensors").read_bytes()  # fmt: skip
    assert again.loss(ids, ids).isfinite()


def test_the_float_of_a_packed_model_computes_the_same():
    net, ids = made(), text()
    quantise(net, Settings("int4", keep=0.3), ids)
    parts = [p for p in net.modules() if isinstance(p, PackedLinear)]
    assert {part.form for part in parts} == {"int8", "int4"}
    plain = made()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            module, _, leaf = name.rpartition(".")
            parameter.copy_(getattr(net.get_submodule(module), leaf))
    torch.testing.assert_close(logits(net, ids), logits(plain, ids), rtol=1e-4, atol=1e-4)
    assert plain.blocks[0].attention.q.weight.std() > 0


def test_sizes_on_the_matrices():
    net = made(d_model=192, d_ff=512)
    wide = sum(4 * part.weight.numel() for _, part in matrices(net))
    for method, least in (("int8", 3.8), ("int4", 6.4)):
        small = made(d_model=192, d_ff=512)
        quantise(small, Settings(method), tokens(SMALL, 40, 16))
        parts = [p for p in small.modules() if type(p) is PackedLinear]
        packed = sum(t.numel() * t.itemsize for p in parts for t in (p.packed, p.scales))
        assert wide / packed >= least


@pytest.mark.slow
def test_transformers_refuses_the_folder(tmp_path):
    net = made()
    quantise(net, Settings("int8"))
    checkpoint.save(tmp_path / "q", net, None)
    with pytest.raises(ValueError, match="tinylm"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    with pytest.raises(ValueError, match="quant_method"):
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "q")


def test_models_that_cannot_be_quantised_are_left_as_they_were():
    quantised = made()
    quantise(quantised, Settings("int8"))
    adapted = made()
    adapt(adapted, rank=2, alpha=1, dropout=0)
    spoilt = made()
    with torch.no_grad():
        spoilt.blocks[1].feedforward.up.weight[0, 0] = torch.nan
    cases = [
        (quantised, Settings("int4"), r"quantised already \(method=int8\)"),
        (adapted, Settings("int8"), "has adapters: merge them first"),
        (spoilt, Settings("int8"), "blocks.1.feedforward.up.weight has numbers that are not"),
        (made(), Settings("int4", group=64), "group=64 does not divide the 96 inputs of "
                                             "blocks.0.feedforward.down: group=32 does"),
        (made(), Settings("gptq"), "method=gptq needs calibration"),
    ]  # fmt: skip
    for net, settings, problem in cases:
        before = {name: t.clone() for name, t in net.state_dict().items()}
        with pytest.raises(ValueError, match=problem):
            quantise(net, settings)
        after = net.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[n], after[n]) for n in before if "up.weight" not in n)


def test_too_little_calibration_is_refused_and_rows_are_drawn_by_the_seed():
    with pytest.raises(ValueError, match=r"too little calibration: 80 tokens, .* has 128 inputs"):
        check_enough(made(), text()[:5])
    data = ListDataset([*range(100)])
    object.__setattr__(data, "folder", Path("shards"))
    with pytest.raises(ValueError, match="rows=11: shards has 10 rows of 10 tokens"):
        rows(data, 11, 10, 0)
    one, other = rows(data, 4, 10, 0), rows(data, 4, 10, 1)
    assert torch.equal(one, rows(data, 4, 10, 0))
    assert not torch.equal(one, other)
    assert all(torch.equal(row, torch.arange(row[0], row[0] + 10)) for row in one)
    assert len({int(row[0]) for row in one}) == 4


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"matrices": "int3"}, "matrices='int3': this TinyLM knows int8, int4"),
        ({"group": 48}, "group=48"),
        ({"group": None}, "group=null"),
        ({"version": 9}, "version=9"),
        ({"kept": None}, "kept=None"),
        ({"group": 64}, "group=64 does not divide the 96 inputs"),
        ({"embedding": "float"}, "the weights do not fit"),
        ({"format": "another"}, "quantization_config"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused_by_name(tmp_path, change, problem):
    net = made()
    quantise(net, Settings("int4", keep=0.0))
    checkpoint.save(tmp_path / "q", net, None)
    path = tmp_path / "q/config.json"
    content = json.loads(path.read_text())
    content["quantization_config"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=problem):
        checkpoint.load(tmp_path / "q", verify=False)


def test_numbers_of_another_dtype_are_refused(tmp_path):
    net = made()
    quantise(net, Settings("int8"))
    checkpoint.save(tmp_path / "q", net, None)
    path = tmp_path / "q/model.safetensors"
    found = dict(load_file(path))
    save_file(found | {"embedding.packed": found["embedding.packed"].view(torch.uint8)}, path)
    with pytest.raises(ValueError, match=r"embedding.packed has dtype torch.uint8, expected torch"):
        checkpoint.load(tmp_path / "q", verify=False)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "which run"),
        (["RUN", "method=int3"], "method=int3: choose int8, static, trained, int4, gptq, awq"),
        (["RUN", "method=int4"], "out= is missing"),
        (["RUN", "method=int8", "group=32", "out=x"], "group=32: has no effect with method=int8"),
        (["RUN", "method=gptq", "clip=false", "out=x"], "clip=false: has no effect"),
        (["RUN", "method=int4", "keep=0", "rows=3", "out=x"], "rows=3: has no effect"),
        (["RUN", "method=int4", "group=48", "out=x"], "group=48: choose 32, 64, 128"),
        (["RUN", "method=int4", "keep=1", "out=x"], "keep=1: expected a share"),
        (["RUN", "method=int4", "seeds=1", "out=x"], "unknown key 'seeds'"),
        (
            ["RUN", "method=int4", "method=int8", "out=x"],
            "method: given twice, as int4 and as int8",
        ),
        (["RUN", "method=int4", "embedding=int4", "out=x"], "embedding=int4: choose int8 or float"),
    ],
)
def test_settings_are_refused_in_one_line(words, problem):
    with pytest.raises(ConfigError, match=problem):
        main(words)


def test_the_command_writes_a_folder_and_refuses_one_that_is_there(tmp_path, capsys):
    net = made()
    checkpoint.save(tmp_path / "run", net, None)
    words = [str(tmp_path / "run"), "method=int4", "keep=0", f"out={tmp_path / 'q'}"]
    assert main(words) == 0
    assert "int4 in" in capsys.readouterr().out
    again, _ = checkpoint.load(tmp_path / "q")
    quantise(net, reading.read({"method": "int4", "keep": "0"}))
    assert torch.equal(logits(again, text()), logits(net, text()))
    with pytest.raises(ConfigError, match="exists already"):
        main(words)
    with pytest.raises(ConfigError, match="which shards it was trained on is not known"):
        main([str(tmp_path / "run"), "method=gptq", f"out={tmp_path / 'g'}"])
    assert not (tmp_path / "g").exists()


def test_numbers_on_a_given_grid_are_kept_exactly():
    weight, _ = drawn(3, 64)
    scales = -searched(weight, 32).abs()
    grid = on_grid(weight, scales)
    packed, same = ops.quantise_int4(grid, 32, scales)
    assert torch.equal(ops.dequantise_int4(packed, same.double()), grid)
    assert torch.equal(packed, reference.quantise_int4(grid, 32, scales)[0])
    q, scale = ops.quantise_int8(weight, torch.full((3,), 0.01))
    assert torch.equal(q, reference.quantise_int8(weight, scale)[0])
    assert int(q.max()) == 127
