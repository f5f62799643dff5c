"""Quantisation-aware training: what is computed, kept, scored and refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.support.models import build, tokens
from tests.support.ranks import finished
from tinylm import checkpoint, config, ops, quant, track
from tinylm.config import ConfigError, ModelConfig, TrainConfig
from tinylm.evaluate.__main__ import main as evaluate_main
from tinylm.layers import fake
from tinylm.layers.lora import matrices
from tinylm.ops.rounding import searched
from tinylm.quant.__main__ import main as quant_main
from tinylm.train import finetuning, train

TEXT = "".join(f"the {i % 7} cats of house {i % 13} sleep on {i % 5} mats\n" for i in range(2000))
SMALL = [
    "data.source=cats.txt",
    "data.val_fraction=0.1",
    "tokenizer.kind=byte",
    "model.d_model=32",
    "model.d_ff=32",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.context_length=32",
    "train.batch_size=4",
    "train.steps=8",
    "train.compile=false",
    "evaluate.every=0",
    "sample.max_tokens=4",
    "track.names=[jsonl]",
    "checkpoint.every=1",
    "checkpoint.keep=20",
]
QAT = ["train.qat=int4", "train.qat_start=0.5", "train.qat_ramp=0.25"]
TINY = ModelConfig(vocab_size=11, d_model=32, n_layers=2, n_heads=2, context_length=6, d_ff=64)
GRIDS = [fake.Grid("int8"), fake.Grid("int4", 32), fake.Grid("ternary")]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder with a small text, so that runs/ and data/ are the test's own."""
    monkeypatch.chdir(tmp_path)
    Path("cats.txt").write_text(TEXT)
    return tmp_path


def run(*overrides):
    return train(config.load(None, [*SMALL, *overrides]))


def weights(folder, step=8):
    path = checkpoint.path_of(Path(folder), step)
    return {
        f"{part}.{name}": tensor.clone()
        for part in ("model", "optimizer")
        for name, tensor in load_file(path / f"{part}.safetensors").items()
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@given(start=st.floats(0, 0.99), ramp=st.floats(0, 1))
def test_the_share_rises_from_nothing_and_is_whole_at_the_end(start, ramp):
    if start + ramp > 1:
        with pytest.raises(ValueError, match=r"train.qat_ramp=.* passes the end of the run"):
            TrainConfig(qat="int8", qat_start=start, qat_ramp=ramp)
        return
    settings = TrainConfig(qat="int8", qat_start=start, qat_ramp=ramp)
    shares = [settings.qat_share(step / 20) for step in range(21)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert all(share == 0 for step, share in enumerate(shares) if step / 20 < start)
    assert replace(settings, qat="none").qat_share(1.0) == 0


def test_half_the_ramp_is_half_the_share():
    settings = TrainConfig(qat="int4", qat_start=0.5, qat_ramp=0.25)
    assert [settings.qat_share(x) for x in (0.5, 0.625, 0.75)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.bits)
def test_a_model_computes_with_the_weights_of_its_packed_form(grid):
    base, net = (build(TINY, dtype=torch.float32) for _ in range(2))
    ids = tokens(TINY, 2, 6)
    fake.quantise(net, replace(grid, share=0.0))
    assert torch.equal(net(ids), base(ids))
    fake.set_share(net, 1.0)
    read = []
    with torch.no_grad():
        for name, part in matrices(base):
            if grid.bits == "int8":
                given = ops.dequantise_int8(*ops.quantise_int8(part.weight))
            elif grid.bits == "ternary":
                given = ops.dequantise_ternary(*ops.quantise_ternary(part.weight))
                assert given.unique().numel() == 3, name
            else:
                scales = searched(part.weight, 32)
                packed, scales = ops.quantise_int4(part.weight, 32, scales)
                given = ops.dequantise_int4(packed, scales.float())
            part.weight.copy_(given)
            if grid.bits == "ternary":
                part.register_forward_pre_hook(lambda _, args: ops.fake_rows(args[0]))
            read.append(name)
    assert len(read) == 14
    assert torch.equal(net(ids), base(ids))
    fake.plain(net)
    assert torch.equal(net(ids), build(TINY, dtype=torch.float32)(ids))
    assert {type(part).__name__ for _, part in matrices(net)} == {"Linear"}


def test_half_a_share_is_half_way():
    net = build(TINY, dtype=torch.float32)
    plain = dict(matrices(net))["blocks.0.attention.q"]
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    part = fake.FakeQuantised(plain, fake.Grid("int4"))
    ends = [part(x).detach()]
    for share in (0.5, 0.0):
        part.set_share(share)
        ends.append(part(x).detach())
    torch.testing.assert_close(ends[1], (ends[0] + ends[2]) / 2)
    assert not torch.allclose(ends[0], ends[2], atol=1e-3)


@pytest.mark.slow
def test_a_run_is_plain_until_the_start_and_resumes_bit_for_bit(workplace, capsys):
    run("out=plain")
    run("out=eight", *QAT, "train.qat=int8")
    assert same(weights("plain", 4), weights("eight", 4))
    assert not same(weights("plain"), weights("eight"))
    run("out=whole", *QAT)
    # Before the start, in the middle of the ramp, and after it.
    for step in (2, 5, 7):
        again = f"train.resume=whole/checkpoints/step-{step:08d}"
        run(f"out=from-{step}", *QAT, again)
        assert same(weights("whole"), weights(f"from-{step}")), step
    shares = [
        json.loads((checkpoint.path_of(Path("whole"), step) / "config.json").read_text()).get("qat")
        for step in (4, 5, 6)
    ]
    assert shares == [
        None,
        {"bits": "int4", "group": 32, "share": 0.5, "kept": []},
        {"bits": "int4", "group": 32, "share": 1.0, "kept": []},
    ]


def test_the_values_of_a_new_int4_model_are_turned_and_it_computes_the_same():
    base, net = (build(TINY, dtype=torch.float32) for _ in range(2))
    settings, ids = TrainConfig(qat="int4"), tokens(TINY, 2, 6)
    finetuning.quantise(net, settings, fresh=False)
    assert torch.equal(net(ids), base(ids))
    finetuning.quantise(net, settings, fresh=True)
    torch.testing.assert_close(net(ids), base(ids), rtol=1e-5, atol=1e-5)
    turned = {
        name
        for (name, one), (_, other) in zip(matrices(net), matrices(base), strict=True)
        if not torch.equal(one.weight, other.weight)
    }
    assert turned == {f"blocks.{n}.attention.{part}" for n in (0, 1) for part in "vo"}


def test_the_last_score_is_that_of_the_quantised_model(workplace, capsys):
    run("out=q", "train.qat=ternary", "train.qat_start=0.2", "track.names=[console,jsonl]")
    assert "weights    all scores are of ternary; to pack them: python -m tinylm.quant q" in (
        capsys.readouterr().out
    )
    results = json.loads(Path("q/run.json").read_text())["results"]
    assert results["weights"] == "ternary"
    evaluate_main(["q"])
    scored = capsys.readouterr().out
    assert f"bits per byte  {results['bits_per_byte']:.4f}" in scored
    # Its packed form is scored on the same text, unasked.
    quant_main(["q", "method=trained", "embedding=float", "out=packed"])
    capsys.readouterr()
    evaluate_main(["packed"])
    assert capsys.readouterr().out == scored
    net, _ = checkpoint.load("q")
    found = {name: part.weight for name, part in matrices(net)}
    # The file has the weights of training, not the rounded ones.
    assert all(weight.unique().numel() > 500 for weight in found.values())
    assert fake.grid_of(net) == fake.Grid("ternary")
    # What starts from it starts from them.
    run("out=next", "train.init=q", "train.steps=1")
    assert fake.grid_of(checkpoint.load("next")[0]) is None


def test_a_checkpoint_keeps_the_grid_and_refuses_a_wrong_one(workplace):
    net = build(replace(TINY, vocab_size=257), dtype=torch.float32)
    kept = fake.named(net, ["blocks.1.attention.v", "*.o"])
    assert kept == ("blocks.1.attention.v", "blocks.0.attention.o", "blocks.1.attention.o")
    fake.quantise(net, fake.Grid("int4", 32, kept=kept))
    assert {part.bits for part in fake.fakes(net)} == {"int4", "int8"}
    checkpoint.save("a", net, None)
    ids = tokens(TINY, 2, 6)
    again, _ = checkpoint.load("a")
    assert torch.equal(again(ids), net(ids))
    half, _ = checkpoint.load("a")
    fake.quantise(half, fake.Grid("int4", 32, share=0.5, kept=kept))
    with pytest.raises(ValueError, match=r"50% of .* is trained so far: take a later checkpoint"):
        quant.quantise(half, quant.Settings(method="trained"))
    checkpoint.save("b", again, None)
    assert fake.grid_of(checkpoint.load("b")[0]) == fake.Grid("int4", 32, kept=kept)
    content = json.loads(Path("a/config.json").read_text())
    for change, problem in (
        ({"bits": "int3"}, r"config.json: qat.bits='int3': expected bits of int8, int4, ternary"),
        ({"group": 128}, r"config.json: int4: blocks.0.attention.q: group=128 must be .* K=32"),
        ({"share": 0}, r"qat.share=0: expected"),
        ({"zero": 1}, r"expected the keys bits, group, share, kept"),
    ):
        edited = content | {"qat": content["qat"] | change}
        Path("a/config.json").write_text(json.dumps(edited))
        with pytest.raises(ValueError, match=problem):
            checkpoint.load("a", verify=False)


REFUSED = [
    (["train.qat=int4", "train.qat_group=48"], r"train.qat_group=48: must be 32, 64 or 128"),
    (["train.qat=int2"], r"train.qat=int2: expected none or int8 or int4 or ternary"),
    (["train.qat=int8", "lora.rank=2", "train.init=x"], r"train.qat=int8: .* leave lora.rank out"),
]


@pytest.mark.parametrize(("words", "problem"), REFUSED)
def test_settings_that_do_not_go_together_are_refused(words, problem):
    with pytest.raises(ConfigError, match=problem):
        config.load(None, words)


def test_a_width_that_does_not_fit_is_refused_before_anything_is_trained(workplace):
    with pytest.raises(ConfigError, match=r"train.qat=int4: blocks.0.feedforward.down: group=32"):
        run("out=no", "train.qat=int4", "model.d_ff=40")
    with pytest.raises(ConfigError, match=r"train.qat_keep=blocks.3: names no matrix; there are"):
        run("out=no", "train.qat=int4", "train.qat_keep=[blocks.3]")
    assert not Path("no").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
# The compiler makes an instance of each function with a gradient of its own.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_run_compiles_twice_and_agrees_with_a_plain_one(workplace):
    import torch._dynamo

    keys = [*QAT, "train.dtype=float32", "optim.name=adamw", "optim.eps=1e-3"]
    run("out=plain", *keys)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run("out=compiled", *keys, "train.compile=true")
    # One graph before the start and one after it, whatever the share.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    losses = [
        [record["loss"] for record in track.read_metrics(Path(out)) if "loss" in record]
        for out in ("plain", "compiled")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_train_the_model_of_one(workplace, mode):
    Path("cats.yaml").write_text("data: {source: cats.txt}\n")
    keys = [*SMALL, "train.qat=int8", "train.qat_start=0.25", "train.device=cpu"]
    keys += ["train.dtype=float32", "optim.name=adamw", "optim.eps=1e-3"]
    run(*keys, "out=one")
    two = finished(2, "cats.yaml", *keys, f"distributed.mode={mode}", "out=two")
    assert two.returncode == 0, two.stderr
    one, both = (load_file(checkpoint.latest(out) / "model.safetensors") for out in ("one", "two"))
    torch.testing.assert_close(both, one, rtol=0, atol=1e-4)
    assert fake.grid_of(checkpoint.load("two")[0]) == fake.Grid("int8")
