"""What a model costs: counts against the model itself, memory against what autograd keeps."""

import pytest
import torch

from tinylm import model, optim
from tinylm.config import ModelConfig, OptimConfig
from tinylm.profiling import estimate

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
