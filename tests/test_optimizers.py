"""The slow definitions of the optimizers against torch's and the package's own."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinylm import model, optim
from tinylm.config import ModelConfig, OptimConfig
from tinylm.reference import optimizers

# Float64 on both sides: the same numbers in another order.
FLOAT64 = {"rtol": 1e-12, "atol": 1e-14}
# The package steps in float32: 1.2e-7 a rounding, some ten of them.
FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}
# Five rounds in bfloat16, 3.9e-3 half a rounding each, of a matrix whose norm is about 2.
BFLOAT16 = 0.1

SHAPES = {"a.weight": (6, 4), "b.weight": (3, 5), "c.weight": (4, 4)}
STEPS = 4


def drawn(shapes, seed, scale=1.0):
    random = np.random.default_rng(seed)
    return {name: scale * random.normal(size=shape) for name, shape in shapes.items()}


def by_torch(make, weights, gradients):
    """Weights and state after a step of torch's optimizer on each of `gradients`."""
    parameters = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in weights.items()}
    optimizer = make(list(parameters.values()))
    for now in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(now[name], dtype=parameter.dtype)
        optimizer.step()
    state = {
        f"{name}.{key}": value.numpy()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    return {name: p.detach().numpy() for name, p in parameters.items()}, state


def by_reference(step, weights, gradients, **settings):
    state = {}
    for now in gradients:
        weights, state = step(weights, now, state, **settings)
    return weights, state


def assert_equal(fast, slow, tolerance):
    assert fast.keys() == slow.keys()
    for name, value in slow.items():
        np.testing.assert_allclose(fast[name], value, **tolerance, err_msg=name)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_that_of_torch(weight_decay):
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    weights, gradients = drawn(SHAPES, 0), [drawn(SHAPES, 1 + i) for i in range(STEPS)]
    slow, state = by_reference(optimizers.adamw, weights, gradients, **settings)
    fast, kept = by_torch(lambda p: torch.optim.AdamW(p, **settings), weights, gradients)
    assert_equal(fast, slow, FLOAT64)
    assert_equal(kept, state, FLOAT64)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_that_of_torch(weight_decay):
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": weight_decay}
    weights, gradients = drawn(SHAPES, 0), [drawn(SHAPES, 1 + i) for i in range(STEPS)]
    slow, state = by_reference(optimizers.sgd, weights, gradients, **settings)
    fast, kept = by_torch(lambda p: torch.optim.SGD(p, **settings), weights, gradients)
    assert_equal(fast, slow, FLOAT64)
    assert_equal(kept, state, FLOAT64)


def test_muon_is_that_of_the_package_but_for_bfloat16(monkeypatch):
    def in_full(updates):
        return torch.stack([torch.tensor(optimizers.orthogonalise(x.numpy())) for x in updates])

    monkeypatch.setattr(optim, "orthogonalise", in_full)
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    weights, gradients = drawn(SHAPES, 0), [drawn(SHAPES, 1 + i) for i in range(STEPS)]
    slow, state = by_reference(optimizers.muon, weights, gradients, **settings)
    fast, kept = by_torch(lambda p: optim.Muon(p, **settings), weights, gradients)
    assert_equal(fast, slow, FLOAT64)
    assert_equal(kept, state, FLOAT64)


@pytest.mark.parametrize("shape", [(4, 4), (3, 12), (12, 3), (1, 7), (16, 16)])
def test_orthogonalising_leaves_directions_and_evens_their_sizes(shape):
    update = np.random.default_rng(2).normal(size=shape)
    left, sizes, right = np.linalg.svd(update, full_matrices=False)
    near = optimizers.orthogonalise(update)
    rotated = left.T @ near @ right.T
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-9)
    enough = np.diag(rotated)[sizes > 0.003 * np.linalg.norm(update)]
    assert np.all((enough > 0.68) & (enough < 1.21))
    fast = optim.orthogonalise(torch.tensor(update[None]))[0].numpy()
    assert np.linalg.norm(fast - near) < BFLOAT16 * np.linalg.norm(near)


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.integers(0, 100))
@settings(deadline=None, max_examples=40)
def test_clipping_is_that_of_torch(scale, limit, seed):
    gradients = drawn(SHAPES, seed, scale)
    parameters = {
        name: torch.nn.Parameter(torch.zeros(*g.shape).double()) for name, g in gradients.items()
    }
    for name, parameter in parameters.items():
        parameter.grad = torch.tensor(gradients[name])
    norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), limit)
    clipped = optimizers.clip(gradients, limit)
    assert optimizers.gradient_norm(gradients) == pytest.approx(norm.item(), rel=1e-12)
    assert optimizers.gradient_norm(clipped) <= limit
    assert_equal({name: p.grad.numpy() for name, p in parameters.items()}, clipped, FLOAT64)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_packages_optimizer_moves_a_model_as_the_reference_does(name):
    config = ModelConfig(vocab_size=7, d_model=8, n_heads=2, n_layers=1, context_length=4)
    settings = OptimConfig(name=name, lr=0.01, clip=0.5, weight_decay=0.2)
    module = model.build(config, seed=3)
    roles = {full: role for full, _, role in module.named_roles()}
    weights = {k: p.detach().double().numpy().copy() for k, p in module.named_parameters()}
    optimizer = optim.build(module, settings)
    states = ({}, {})
    if name == "sgd":
        move = partial(optimizers.sgd, momentum=settings.betas[0])
    else:
        move = partial(optimizers.adamw, betas=settings.betas, eps=settings.eps)
    for step in range(STEPS):
        gradients = drawn({k: w.shape for k, w in weights.items()}, step)
        for full, parameter in module.named_parameters():
            parameter.grad = torch.tensor(gradients[full], dtype=torch.float32)
        optimizer.step(0.5)
        clipped = optimizers.clip(gradients, settings.clip)
        parts = []
        for decayed, state in zip((True, False), states, strict=True):
            group = {k: w for k, w in weights.items() if (roles[k] == "matrix") == decayed}
            decay = settings.weight_decay if decayed else 0.0
            parts.append(move(group, clipped, state, lr=0.5 * settings.lr, weight_decay=decay))
        weights, states = parts[0][0] | parts[1][0], (parts[0][1], parts[1][1])
    assert_equal({k: p.detach().numpy() for k, p in module.named_parameters()}, weights, FLOAT32)
    state = {k: value.numpy() for k, value in optimizer.state().items()}
    assert_equal(state, states[0] | states[1], FLOAT32)


shares = st.floats(0, 1)


@pytest.mark.parametrize("course", optim.SCHEDULES)
@given(st.integers(1, 60), st.integers(0, 59), shares, shares, shares)
@settings(deadline=None, max_examples=100)
def test_the_rate_is_that_of_the_package_once_the_warmup_has_passed(
    course, steps, step, warmup, decay, min_lr
):
    assume(step < steps and warmup + decay <= 1)
    shape = {"warmup": warmup, "decay": decay, "min_lr": min_lr}
    # Where round(warmup steps) <= step < warmup steps the package's courses start before their 0.
    assume(step < round(warmup * steps) or step / steps >= warmup)
    settings = OptimConfig(schedule=course, **shape)
    slow = optimizers.schedule(step, steps, course=course, **shape)
    assert optim.schedule(step, steps, settings) == pytest.approx(slow, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("course", optim.SCHEDULES)
@given(st.integers(1, 60), shares, shares, shares)
@settings(deadline=None, max_examples=50)
def test_a_rate_rises_to_its_peak_and_never_past_it_nor_below_its_end(
    course, steps, warmup, decay, min_lr
):
    shape = {"course": course, "warmup": warmup, "decay": decay, "min_lr": min_lr}
    rates = [optimizers.schedule(step, steps, **shape) for step in range(steps)]
    rising = round(warmup * steps)
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    assert all(rate <= 1 + 1e-12 for rate in rates)
    assert all(rate >= min_lr - 1e-12 for rate in rates[rising:])


def test_rates_worked_out_by_hand():
    def rates(course, **shape):
        return [optimizers.schedule(step, 4, course=course, **shape) for step in range(4)]

    assert rates("constant", warmup=0.5) == [0.5, 1, 1, 1]
    assert rates("linear") == [1, 0.75, 0.5, 0.25]
    assert rates("wsd", decay=0.5, min_lr=0.5) == [1, 1, 1, 0.75]
    assert rates("cosine", min_lr=0.5)[2] == pytest.approx(0.75)
