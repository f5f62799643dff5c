"""Adapters: what they add, what they leave alone, and the files that hold them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.models import build, tokens
from tests.test_finetuning import TEXT, run
from tinylm import checkpoint, config, lora, optim
from tinylm.config import ConfigError, ModelConfig
from tinylm.layers.lora import adapt, adapters
from tinylm.lora import main

SMALL = ModelConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=2, context_length=6, d_ff=12)


def adapted(seed=0, settings=SMALL, **more):
    """A model of float32 and the same with adapters whose A and B are random."""
    base, net = build(settings, dtype=torch.float32), build(settings, dtype=torch.float32)
    adapt(net, **({"rank": 3, "alpha": 6.0, "dropout": 0.0} | more))
    generator = torch.Generator().manual_seed(seed)
    for part in adapters(net).values():
        part.start(generator)
        torch.nn.init.normal_(part.lora_B, generator=generator)
    return base, net.eval()


@pytest.mark.parametrize("architecture", ["llama3", "gpt2"])
def test_the_first_step_begins_at_the_base_and_a_merge_says_the_same(architecture):
    settings = ModelConfig(architecture=architecture, vocab_size=11, d_model=8, n_layers=2,
                           n_heads=2, context_length=6)  # fmt: skip
    base, net = adapted(settings=settings)
    ids = tokens(settings, 3, 6)
    changed = net(ids)
    for part in adapters(net).values():
        part.lora_B.data.zero_()
    # The frozen weights take torch's forms, those of the base may take forms of our own.
    assert torch.allclose(net(ids), base(ids), atol=1e-6)
    _, net = adapted(settings=settings)
    lora.merge(net)
    assert not adapters(net)
    assert all(p.requires_grad for p in net.parameters())
    assert not torch.allclose(changed, base(ids), atol=1e-2)
    torch.testing.assert_close(net(ids), changed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_only_the_adapters_move_and_adamw_moves_them(name):
    _, net = adapted(targets=["q", "v"])
    assert {n.rpartition(".")[2] for n in adapters(net)} == {"q", "v"}
    made = optim.build(net, config.load(None, [f"optim.name={name}"]).optim)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    net.loss(tokens(SMALL, 2, 6), tokens(SMALL, 2, 6, seed=1)).backward()
    made.step(1.0)
    for n, parameter in net.named_parameters():
        assert torch.equal(parameter, before[n]) == (".lora_" not in n), n
    kinds = {key.rpartition(".")[2] for key in made.state()}
    assert {"exp_avg", "exp_avg_sq"} <= kinds
    assert all(".lora_" in key for key in made.state())


def test_a_target_that_names_nothing_and_a_setting_without_effect_are_refused():
    with pytest.raises(ValueError, match=r"lora.targets=query: .* q, k, v, o, gate, up, down"):
        adapt(build(SMALL), rank=1, alpha=1, dropout=0, targets=["query"])
    for words, problem in (
        (["lora.rank=4"], r"lora.rank=4: adapts a model: name it with train.init"),
        (["lora.alpha=4"], "has no effect without lora.rank"),
    ):
        with pytest.raises(ConfigError, match=problem):
            config.load(None, words)


def test_the_files_are_those_of_peft_and_fit_back(tmp_path):
    base, net = adapted(targets=["q", "down"])
    lora.save(tmp_path / "adapter", net)
    found = load_file(tmp_path / "adapter/adapter_model.safetensors")
    names = {f"base_model.model.model.layers.{layer}.{part}.lora_{side}.weight"
             for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")
             for side in "AB"}  # fmt: skip
    assert found.keys() == names
    assert found["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"].shape == (3, 12)
    assert found["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"].shape == (8, 3)
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    assert (settings["r"], settings["lora_alpha"]) == (3, 6.0)
    assert settings["target_modules"] == ["down_proj", "q_proj"]
    lora.load(base, tmp_path / "adapter")
    ids = tokens(SMALL, 2, 6)
    assert torch.equal(base.eval()(ids), net(ids))


BAD = [
    ("use_dora", True, "use_dora=True"),
    ("rank_pattern", {"q_proj": 4}, "rank_pattern"),
    ("peft_type", "LOHA", "peft_type='LOHA'"),
    ("bias", "all", "bias='all'"),
    ("r", 4, r"lora_A is of shape \[3, 8\], expected \[4, 8\]"),
    ("a_new_switch", 1, "a_new_switch=1: this TinyLM does not know it"),
]


@pytest.mark.parametrize(("key", "value", "problem"), BAD)
def test_settings_that_are_not_known_are_refused_by_name(tmp_path, key, value, problem):
    base, net = adapted(targets=["q"])
    lora.save(tmp_path / "a", net)
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=problem):
        lora.load(base, tmp_path / "a")


def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path):
    base, net = adapted(targets=["q"])
    lora.save(tmp_path / "a", net)
    path = tmp_path / "a/adapter_model.safetensors"
    found = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(found | {"base_model.model.x.lora_A.weight": torch.zeros(3, 8)}, path)
    with pytest.raises(ValueError, match=r"base_model.model.x.lora_A.weight is no adapter"):
        lora.load(base, tmp_path / "a")
    save_file({name: t for name, t in found.items() if "lora_B" not in name}, path)
    with pytest.raises(ValueError, match="lora_B is missing"):
        lora.load(build(SMALL, dtype=torch.float32), tmp_path / "a")


@pytest.mark.parametrize("architecture", ["llama3", "gpt2"])
def test_a_checkpoint_holds_base_and_adapters_and_the_command_merges_them(
    tmp_path, capsys, architecture
):
    settings = ModelConfig(architecture=architecture, vocab_size=11, d_model=8, n_layers=2,
                           n_heads=2, context_length=6)  # fmt: skip
    base, net = adapted(settings=settings)
    folder = checkpoint.save(tmp_path / "run", net, None)
    plain = checkpoint.save(tmp_path / "base", base, None)
    assert (folder / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    again, _ = checkpoint.load(folder)
    ids = tokens(settings, 2, 6)
    assert torch.equal(again(ids), net(ids))
    main(["merge", str(folder), f"out={tmp_path / 'merged'}"])
    merged, _ = checkpoint.load(tmp_path / "merged")
    assert not adapters(merged)
    torch.testing.assert_close(merged(ids), net(ids), rtol=1e-5, atol=1e-5)
    main(["save", str(folder), f"out={tmp_path / 'adapter'}"])
    main(["merge", str(tmp_path / "adapter"), f"base={plain}", f"out={tmp_path / 'other'}"])
    both = [load_file(tmp_path / name / "model.safetensors") for name in ("merged", "other")]
    assert all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items())
    with pytest.raises(ConfigError, match="has no adapters"):
        main(["merge", str(plain), f"out={tmp_path / 'none'}"])
    with pytest.raises(ConfigError, match="not empty"):
        main(["merge", str(folder), f"out={plain}"])
    with pytest.raises(ConfigError, match="out: given twice, as a and as b"):
        main(["merge", str(folder), "out=a", "out=b"])
    told = capsys.readouterr().out
    assert "14 adapters merged" in told or architecture == "gpt2"
    # What PEFT cannot open does not look as if it could, to transformers neither.
    known = architecture == "llama3"
    for place in (folder, tmp_path / "adapter"):
        assert (place / "adapter_config.json").exists() == known
        assert (place / "tinylm_adapter.json").exists() != known
    assert ("only TinyLM reads them" in told) != known


@pytest.mark.slow
def test_a_run_trains_adapters_alone_and_resumes_exactly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("cats.txt").write_text(TEXT)
    base = run("out=base")
    more = ["train.init=base", "lora.rank=2", "lora.dropout=0.2", "train.seed=3"]
    whole = run("out=whole", *more, "checkpoint.every=4", "track.names=[console,jsonl]")
    assert "are trained" in capsys.readouterr().out
    again = run("out=again", *more, "train.resume=whole/checkpoints/step-00000004")
    ends = [checkpoint.latest(folder) for folder in (base, whole, again)]
    names = ("model", "adapter_model", "optimizer")
    for name in names:
        one, other = (load_file(end / f"{name}.safetensors") for end in ends[1:])
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    before, after = (load_file(end / "model.safetensors") for end in ends[:2])
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert load_file(ends[1] / "adapter_model.safetensors")
    run("out=next", "train.init=whole", "track.names=[console,jsonl]")
    assert "its 14 adapters are merged" in capsys.readouterr().out


# peft calls names of transformers that warn.
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.slow
def test_peft_and_transformers_open_the_files(tmp_path):
    transformers = pytest.importorskip("transformers")
    base, net = adapted(targets=["q", "v", "down"])
    checkpoint.save(tmp_path / "base", base, None)
    lora.save(tmp_path / "adapter", net)
    ids = tokens(SMALL, 2, 6)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    folder = checkpoint.save(tmp_path / "run", net, None)
    main(["merge", str(folder), f"out={tmp_path / 'merged'}"])
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    gpt2, adapted_gpt2 = adapted(settings=replace(SMALL, architecture="gpt2"))
    folder = checkpoint.save(tmp_path / "gpt2", adapted_gpt2, None)
    opened = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(opened(ids).logits, gpt2.eval()(ids), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged(ids).logits, net(ids), rtol=1e-4, atol=1e-4)
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(ids).logits, net(ids), rtol=1e-4, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    lora.load(base, tmp_path / "theirs")
    assert torch.equal(base.eval()(ids), net(ids))
