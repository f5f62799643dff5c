"""The slow definitions of the optimizers against torch's and the package's own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm import optim
from tinylm.reference import optimizers

# Float64 on both sides: the same numbers in another order.
FLOAT64 = {"rtol": 1e-12, "atol": 1e-14}

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


ENDS = [("polar_express", 3, 0.18, 1.87), ("polar_express", 8, 0.99, 1.01)]
ENDS += [("newton_schulz", 5, 0.68, 1.21)]


@pytest.mark.parametrize("shape", [(4, 4), (3, 12), (12, 3), (1, 7), (16, 16)])
@pytest.mark.parametrize(("method", "steps", "low", "high"), ENDS)
def test_orthogonalising_leaves_directions_and_evens_their_sizes(method, steps, low, high, shape):
    update = np.random.default_rng(2).normal(size=shape)
    left, sizes, right = np.linalg.svd(update, full_matrices=False)
    near = optimizers.orthogonalise(update, method, steps)
    rotated = left.T @ near @ right.T
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-9)
    enough = np.diag(rotated)[sizes > 0.003 * np.linalg.norm(update)]
    assert np.all((enough > low) & (enough < high))


def test_a_cautious_decay_leaves_what_the_update_moves_away_from_zero():
    w, update = np.array([1.0, 1.0, -1.0, -1.0, 2.0]), np.array([0.1, -0.1, 0.1, -0.1, 0.0])
    np.testing.assert_array_equal(
        optimizers.decayed(w, update, 0.5, cautious=True), [0.5, 1, -1, -0.5, 1]
    )
    np.testing.assert_array_equal(optimizers.decayed(w, update, 0.5, cautious=False), w / 2)


def test_courses_worked_out_by_hand():
    points = [(0.2, 4), (0.6, 8)]
    progress = [0, 0.2, 0.3, 0.6, 1]
    assert [optimizers.line(points, p) for p in progress] == pytest.approx([4, 4, 5, 8, 8])
    assert [optimizers.stairs(points, p) for p in progress] == [4, 4, 4, 8, 8]


shares = st.floats(0, 1)


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
