"""What a model costs: counts against the model itself, memory against what autograd keeps."""

import json

import pytest
import torch

from tinylm import checkpoint, config, model, optim
from tinylm.config import ConfigError, LoraConfig, ModelConfig, OptimConfig
from tinylm.profiling import estimate
from tinylm.profiling.__main__ import main

SHAPE = {"d_model": 32, "n_layers": 2, "n_heads": 4, "context_length": 16, "vocab_size": 64}


def kept_by(net, rows):
    """Bytes that autograd keeps of a real forward pass through the blocks."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    length = net.config.context_length
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net.hidden(net.embed(torch.zeros(rows, length, dtype=torch.int64)), net.context(length))
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    return sum(storage.nbytes() for at, storage in kept.items() if at not in own)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("architecture", ["llama3", "gpt2"])
def test_the_activations_are_those_that_autograd_keeps(architecture, rows):
    config = ModelConfig(architecture=architecture, **SHAPE)
    guess = estimate.memory(config, rows=rows, optimizer="adamw").activations
    # Equal up to what a fused LayerNorm keeps per row.
    assert guess == pytest.approx(kept_by(model.build(config), rows), rel=0.08)


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_weights_and_state_are_those_of_the_optimizer(name):
    config = ModelConfig(tied=False, **SHAPE)
    net = model.build(config)
    guess = estimate.memory(config, rows=2, optimizer=name)
    assert guess.weights == guess.gradients == 4 * net.n_parameters()
    optimizer = optim.build(net, OptimConfig(name=name))
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    net.loss(tokens, tokens).backward()
    optimizer.step(1.0)
    large = [value for value in optimizer.state().values() if value.dim()]
    assert guess.optimizer == sum(4 * value.numel() for value in large)


def test_the_counts_by_part_and_by_role_add_up():
    net = estimate.outline(ModelConfig(**SHAPE))
    assert sum(estimate.components(net).values()) == net.n_parameters()
    assert sum(estimate.roles(net).values()) == net.n_parameters()
    cost = estimate.operations(net)
    assert cost.total == net.flops_per_token(16)
    # Two layers, each 12 operations per number of D and token looked at.
    assert cost.attention == 2 * 12 * 32 * 16


def test_the_command_prints_the_costs_of_a_recipe_a_run_and_a_model(tmp_path, capsys):
    overrides = ["model.d_model=32", "model.n_heads=2", "train.device=cpu", "train.dtype=float32"]
    assert main(["stdlib", *overrides]) == 0
    text = capsys.readouterr().out
    assert "tokens per parameter" in text
    assert "% of the measured" in text
    (tmp_path / "run.yaml").write_text(config.to_yaml(config.load("stdlib", overrides)))
    found = []
    for name in ("stdlib", str(tmp_path / "run.yaml")):
        assert main([name, *overrides, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["parameters"] == found[1]["parameters"]
    # A transformers folder has no settings; its model is that of its config.json.
    shape = ModelConfig(architecture="gpt2", **SHAPE)
    checkpoint.save(tmp_path / "gpt2", model.build(shape), None)
    assert main([str(tmp_path / "gpt2"), "--json"]) == 0
    theirs = json.loads(capsys.readouterr().out)
    assert theirs["parameters"]["total"] == model.build(shape).n_parameters()
    memory = theirs["memory of a step"]
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    parts += ("weights in the dtype of the products",)
    assert memory["total"] == sum(memory[part] for part in parts)
    with pytest.raises(ConfigError, match=r"model.n_layers=9: the model is that of the weights"):
        main([str(tmp_path / "gpt2"), "model.n_layers=9"])


TINY = ["model.d_model=16", "model.n_heads=2", "train.device=cpu", "train.dtype=float32"]


def costs(capsys, *arguments):
    assert main([*arguments, *TINY, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_vocabulary_is_that_of_the_tokenizer_that_the_run_will_have(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("ab\u00e9\u20ac\n" * 50)
    source = f"data.source={tmp_path / 'a.txt'}"
    for kind, tokens in (("byte", 257), ("char", 259), ("bpe", 300)):
        # All bytes are tokens of each; only a bpe is as large as asked for.
        given = (f"tokenizer.kind={kind}", "tokenizer.vocab_size=300", source)
        found = costs(capsys, "chat", "model.start=plain", *given)
        assert found["parameters"]["by component"]["embedding"] == 16 * tokens, kind
    with pytest.raises(ConfigError, match=r"tinyshakespeare is a download: add model.vocab_size"):
        main(["shakespeare"])


def test_rows_that_are_cut_cost_what_their_lengths_cost(capsys):
    given = ("stdlib", "model.context_length=64", "train.batch_size=2", "train.steps=10")
    cut = costs(capsys, *given, "train.sequence_length=16@0 32@0.5")
    whole = costs(capsys, *given, "train.sequence_length=null")
    part, full = (c["operations per token"]["of these attention"] for c in (cut, whole))
    assert part == full * 24 // 64
    memory = cut["memory of a step"]
    assert (memory["rows"], memory["tokens of a row"]) == (4, 32)
    assert whole["memory of a step"]["rows"] == 2
    assert cut["time"]["seconds per step"] < whole["time"]["seconds per step"] * 1.5


def test_frozen_weights_have_no_gradients_and_cost_four_operations():
    shape = ModelConfig(tied=False, **SHAPE)
    whole = estimate.outline(shape)
    adapted = estimate.outline(shape, LoraConfig(rank=2, targets=("q",)))
    # Matrices of 32 x 32: A and B in two blocks.
    small = 2 * 2 * (32 + 32)
    guess = estimate.memory(adapted, rows=2, optimizer="adamw")
    assert guess.gradients == 4 * small
    assert guess.optimizer == 8 * small
    assert guess.weights == 4 * (whole.n_parameters() + small)
    full, cheap = estimate.operations(whole), estimate.operations(adapted)
    assert cheap.forward == full.forward + 2 * small
    products = full.forward - full.attention // 3
    assert cheap.backward == products + 2 * full.attention // 3 + 4 * small
    frozen = estimate.outline(shape, frozen=["head"])
    assert estimate.operations(frozen).total == full.total - 2 * 32 * 64
    assert estimate.memory(frozen, rows=2, optimizer="sgd").gradients == 4 * (
        whole.n_parameters() - 32 * 64
    )


def test_slips_of_the_command_are_named(tmp_path):
    with pytest.raises(ConfigError, match="which run"):
        main([])
    with pytest.raises(FileNotFoundError):
        main([str(tmp_path)])
