"""The optimizers against their formulas, and the course of the rate at its edges."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rungs.training import Weights, drawn
from tests.support.models import build, tokens
from tinylm import optim
from tinylm.config import ModelConfig, OptimConfig
from tinylm.layers.freezing import freeze
from tinylm.optim import orthogonal

SMALL = ModelConfig(
    vocab_size=11, d_model=12, n_layers=2, n_heads=2, context_length=8, tied=False,
    architecture="gpt2",
)  # fmt: skip
SHARES = st.floats(0, 1)


@st.composite
def schedules(draw):
    """A schedule of any kind and edges."""
    warmup = draw(SHARES | st.sampled_from([0.0, 1.0]))
    decay = draw(st.floats(0, 1 - warmup) | st.sampled_from([0.0, 1 - warmup]))
    name = draw(st.sampled_from(sorted(optim.SCHEDULES)))
    if warmup + decay > 1:
        decay = 0.0
    return OptimConfig(schedule=name, warmup=warmup, decay=decay, min_lr=draw(SHARES))


@settings(max_examples=300, deadline=None)
@given(config=schedules(), steps=st.integers(1, 60))
def test_a_rate_is_positive_and_at_most_one(config, steps):
    rates = [optim.schedule(step, steps, config) for step in range(steps)]
    warm = round(config.warmup * steps)
    assert all(0 <= rate <= 1 for rate in rates)
    assert all(rate >= config.min_lr - 1e-9 for rate in rates[warm:])
    assert rates[:warm] == [(step + 1) / warm for step in range(warm)]
    falling = list(zip(rates[warm:], rates[warm + 1 :], strict=False))
    assert all(one >= two for one, two in falling)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("wsd", [0.5, 1, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325]),
        (
            "wsd_sqrt",
            [0.5, 1, 1, 1, 1, 1, 1, 0.55, 0.1 + 0.9 * (1 - 0.5**0.5), 0.1 + 0.9 * (1 - 0.75**0.5)],
        ),
        ("linear", [0.5, 1] + [1 - 0.9 * n / 8 for n in range(8)]),
        ("cosine", [0.5, 1] + [0.1 + 0.45 * (1 + math.cos(math.pi * n / 8)) for n in range(8)]),
    ],
)
def test_each_schedule_has_its_values(name, wanted):
    config = OptimConfig(schedule=name, warmup=0.2, decay=0.4, min_lr=0.1)
    assert [optim.schedule(step, 10, config) for step in range(10)] == pytest.approx(wanted)


def test_an_unknown_schedule_or_optimizer_is_named():
    with pytest.raises(ValueError, match=r"optim\.schedule=step: not in the registry"):
        optim.schedule(0, 10, OptimConfig(schedule="step", warmup=0.0))
    with pytest.raises(ValueError, match=r"optim\.name=lion: not in the registry, which has muon"):
        optim.build(build(SMALL), OptimConfig(name="lion"))


# Between which values the singular values above 0.01 of the norm end, by method and steps.
ENDS = {
    ("polar_express", 2): (0.19, 1.97),
    ("polar_express", 3): (0.18, 1.87),
    ("polar_express", 5): (0.86, 1.13),
    ("newton_schulz", 5): (0.68, 1.21),
}
shapes = st.tuples(st.integers(2, 24), st.integers(2, 24))


@pytest.mark.parametrize(("method", "steps"), ENDS)
@settings(max_examples=20, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**31))
def test_orthogonalising_moves_the_singular_values_to_about_one(method, steps, shape, seed):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    near = u.T @ optim.orthogonalise(matrix[None], method, steps)[0] @ v.T
    values = near.diagonal()[s > 0.01 * s.norm()]
    low, high = ENDS[method, steps]
    assert ((values > low) & (values < high)).all()
    torch.testing.assert_close(near, torch.diag(near.diagonal()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 64, 64), (4, 32, 128), (4, 128, 32)])
@pytest.mark.parametrize("method", sorted(optim.ORTHOGONAL))
def test_orthogonalising_in_bfloat16_is_off_by_little(method, shape):
    # Singular values from 1 down to 1e-4: a Gram matrix in 8 bits loses the smallest.
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    matrix = u * torch.logspace(0, -4, s.size(-1), dtype=torch.float64) @ v
    exact = optim.orthogonalise(matrix, method)
    rounded = optim.orthogonalise(matrix.bfloat16(), method)
    assert (rounded - exact).norm() < 0.2 * exact.norm()
    largest = [torch.linalg.matrix_norm(x.double(), 2).max() for x in (rounded, exact)]
    assert largest[0] < 1.15 * largest[1]


def test_matrices_are_made_orthogonal_in_the_fastest_dtype(monkeypatch):
    cpu = torch.device("cpu")
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(orthogonal, "has_bfloat16", lambda device, fast=fast: fast)
        optim.working_dtype.cache_clear()
        assert optim.working_dtype(torch.float32, cpu) == dtype
        assert optim.working_dtype(torch.float64, cpu) == torch.float64
    optim.working_dtype.cache_clear()


@pytest.mark.parametrize("adjusted", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(2, 24), (24, 2), (7, 7), (16, 12), (1, 1)])
def test_muon_is_torchs(monkeypatch, shape, adjusted):
    # torch's always computes in bfloat16, which leaves too few digits to tell formulas apart.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
    # torch guards the norm by max(norm, eps), ours adds eps: a ten millionth of the step.
    weight, *gradients = np.random.default_rng(0).standard_normal((4, *shape))
    ours, theirs = (torch.nn.Parameter(torch.tensor(weight)) for _ in range(2))
    # match_rms_adamw scales by 0.2 sqrt(max(rows, columns)) in place of sqrt(max(1, rows /
    # columns)), and scales the decay by neither.
    factor = 1.0 if adjusted == "original" else 0.2 * math.sqrt(shape[1])
    muons = (
        optim.Muon([ours], lr=0.1 * factor, weight_decay=0.1 / factor, orthogonal="newton_schulz"),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn=adjusted),
    )
    for gradient in gradients:
        for parameter, muon in zip((ours, theirs), muons, strict=True):
            parameter.grad = torch.tensor(gradient)
            muon.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    momenta = muons[0].state[ours]["momentum"], muons[1].state[theirs]["momentum_buffer"]
    torch.testing.assert_close(*momenta, rtol=0, atol=0)


def test_muon_moves_matrices_of_one_shape_as_it_moves_each_alone():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 6, 4, generator=generator)
    gradients = torch.randn(3, 6, 4, generator=generator)

    def moved(groups):
        parameters = [torch.nn.Parameter(w.clone()) for w in weights]
        for group in groups:
            for n in group:
                parameters[n].grad = gradients[n].clone()
            optim.Muon([parameters[n] for n in group], lr=0.1).step()
        return torch.stack([p.detach() for p in parameters])

    torch.testing.assert_close(moved([[0, 1, 2]]), moved([[0], [1], [2]]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 6, 4), (3, 4, 6), (2, 3, 5, 5)])
def test_muon_moves_a_stack_as_it_moves_each_of_its_matrices(shape):
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(shape))
    singles = [torch.nn.Parameter(m.clone()) for m in stack.detach().flatten(0, -3)]
    together, *alone = (optim.Muon(moved, lr=0.1) for moved in ([stack], *zip(singles)))
    for _ in range(3):
        stack.grad = torch.randn(shape)
        for single, gradient in zip(singles, stack.grad.flatten(0, -3), strict=True):
            single.grad = gradient.clone()
        for muon in (together, *alone):
            muon.step()
    moved = torch.stack([single.detach() for single in singles])
    torch.testing.assert_close(stack.detach().flatten(0, -3), moved, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_a_loaded_state_goes_on_bit_for_bit(name):
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.1)

    def train(made, optimizer, steps):
        for step in steps:
            ids = tokens(SMALL, 4, 9, seed=step)
            made.loss(ids[:, :-1], ids[:, 1:]).backward()
            optimizer.step(rate=optim.schedule(step, 6, config))

    made = build(SMALL, dtype=torch.float32)
    optimizer = optim.build(made, config)
    train(made, optimizer, range(3))
    weights = {key: value.clone() for key, value in made.state_dict().items()}
    state = {key: value.clone() for key, value in optimizer.state().items()}
    train(made, optimizer, range(3, 6))

    other = build(SMALL, seed=1, dtype=torch.float32)
    other.load_state_dict(weights)
    again = optim.build(other, config)
    again.load_state(state)
    train(other, again, range(3, 6))
    assert all(
        torch.equal(made.state_dict()[key], value) for key, value in other.state_dict().items()
    )
    assert again.state().keys() == optimizer.state().keys()
    assert all(torch.equal(optimizer.state()[key], value) for key, value in again.state().items())


def test_a_state_that_does_not_fit_is_named():
    optimizer = optim.build(build(SMALL), OptimConfig(name="adamw"))
    with pytest.raises(ValueError, match=r"unknown parameters: other\.weight\.exp_avg"):
        optimizer.load_state({"other.weight.exp_avg": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"head\.weight\.exp_avg has shape \[2, 2\]"):
        optimizer.load_state({"head.weight.exp_avg": torch.zeros(2, 2)})


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_weight_decay_shrinks_matrices_alone(name):
    made = build(SMALL, dtype=torch.float32)
    before = {key: p.detach().clone() for key, p in made.named_parameters()}
    optimizer = optim.build(made, OptimConfig(name=name, lr=0.1, matrix_lr=0.1, weight_decay=0.5))
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(rate=1.0)
    for key, parameter, role in made.named_roles():
        wanted = before[key] * (0.95 if role == "matrix" else 1)
        torch.testing.assert_close(parameter, wanted, rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_every_parameter_is_moved_once(name):
    made = build(SMALL)
    parts = optim.build(made, OptimConfig(name=name)).parts
    moved = [p for part in parts for group in part.param_groups for p in group["params"]]
    assert len(moved) == len(set(moved))
    assert set(moved) == set(made.parameters())


def test_muon_moves_the_matrices_and_adamw_the_rest():
    made = build(SMALL)
    muon, adamw = optim.build(made, OptimConfig(name="muon", lr=0.1, matrix_lr=0.2)).parts
    roles = {parameter: role for _, parameter, role in made.named_roles()}
    assert {roles[p] for g in muon.param_groups for p in g["params"]} == {"matrix"}
    assert {roles[p] for g in adamw.param_groups for p in g["params"]} == {
        "embedding",
        "head",
        "gain",
    }
    assert [part.param_groups[0]["lr"] for part in (muon, adamw)] == [0.2, 0.1]


def test_each_role_has_its_rate():
    rates = {"lr": 0.1, "embedding_lr": 0.2, "head_lr": 0.3, "scalar_lr": 0.4, "matrix_lr": 0.5}
    wanted = {"gain": 0.1, "embedding": 0.2, "head": 0.3, "scalar": 0.4, "matrix": 0.5}
    shapes = dict.fromkeys(wanted, (2, 2))
    module = Weights(drawn(shapes, 0), {role: role for role in wanted})
    for name, matrix in (("muon", 0.5), ("adamw", 0.1), ("sgd", 0.1)):
        optimizer = optim.build(module, OptimConfig(name=name, **rates))
        found = {
            optimizer.names[p]: group["peak"]
            for part in optimizer.parts
            for group in part.param_groups
            for p in group["params"]
        }
        assert found == wanted | {"matrix": matrix}


def stepped(optimizer, module, shapes, seed, **settings):
    for name, gradient in drawn(shapes, seed).items():
        module.get_parameter(name).grad = torch.tensor(gradient)
    optimizer.step(0.5, **settings)


def test_momentum_and_decay_follow_their_courses():
    shapes, roles = {"a": (3, 4), "b": (3,)}, {"a": "matrix", "b": "gain"}
    module = Weights(drawn(shapes, 0), roles)
    config = OptimConfig(momentum="0.5@0 0.9@0.5", weight_decay="0.4@0 0@1")
    optimizer = optim.build(module, config)
    for progress, momentum, decay in ((0, 0.5, 0.4), (0.25, 0.7, 0.3), (0.75, 0.9, 0.1)):
        stepped(optimizer, module, shapes, 1, progress=progress)
        muon, adamw = (part.param_groups[0] for part in optimizer.parts)
        assert (muon["momentum"], muon["weight_decay"]) == pytest.approx((momentum, decay))
        assert adamw["weight_decay"] == 0


def bits(optimizer, module):
    """Weights and state as bytes: 0 and -0 differ, and nan equals itself."""
    state = {**optimizer.state(), **dict(module.named_parameters())}
    return {name: value.detach().numpy().tobytes() for name, value in state.items()}


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("read", [True, False])
def test_a_step_that_is_not_ok_changes_no_bit(monkeypatch, name, cautious, read):
    config = OptimConfig(name=name, cautious=cautious and name != "sgd", weight_decay=0.1)
    shapes = {"a": (3, 4), "b": (3, 4), "c": (2, 8), "d": (5,)}
    roles = {"a": "matrix", "b": "matrix", "c": "matrix", "d": "gain"}
    ok, bad = torch.tensor(True), torch.tensor(False)
    if not read:
        # As on a GPU, where the host must not look: `ok` goes to the kernels.
        monkeypatch.setattr(torch.Tensor, "__bool__", refuse)
        ok, bad = (OnGPU(flag) for flag in (ok, bad))

    def run(wrong):
        module = Weights(drawn(shapes, 0), roles)
        optimizer = optim.build(module, config)
        for step in range(4):
            if step in wrong:
                for parameter in module.parameters():
                    parameter.grad = torch.full_like(parameter, math.nan)
                    parameter.grad.view(-1)[0] = math.inf
                before = bits(optimizer, module)
                optimizer.step(0.5, ok=bad)
                after = bits(optimizer, module)
                assert {key: after[key] for key in before} == before
                assert all(parameter.grad is None for parameter in module.parameters())
            stepped(optimizer, module, shapes, step, ok=ok)
        return bits(optimizer, module)

    assert run(wrong=(0, 2)) == run(wrong=())


def refuse(self):
    raise AssertionError("the host read a tensor")


class OnGPU:
    """A flag on the CPU that says it is on a GPU."""

    device = torch.device("cuda")

    def __init__(self, flag):
        self.flag = flag

    def __invert__(self):
        return ~self.flag


@pytest.mark.slow
def test_a_step_does_not_import_the_compiler():
    program = (
        "import sys, torch\n"
        "from tinylm import optim\n"
        "from tinylm.config import OptimConfig\n"
        "from tests.rungs.training import Weights\n"
        "from numpy import ones\n"
        "for name in optim.OPTIMIZERS:\n"
        "    module = Weights({'a': ones((2, 3)), 'b': ones(3)}, {'a': 'matrix', 'b': 'gain'})\n"
        "    optimizer = optim.build(module, OptimConfig(name=name))\n"
        "    for p in module.parameters():\n"
        "        p.grad = p.detach().clone()\n"
        "    optimizer.step(1.0)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_norms_are_on_the_device_of_the_weights_also_if_an_optimizer_has_none():
    # The meta device stands for a GPU: its numbers do not mix with those of a CPU either.
    made = build(SMALL, dtype=torch.float32).to("meta")
    freeze(made, ["matrix"])
    optimizer = optim.build(made, OptimConfig(name="muon"))
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    norms = optimizer.gradient_norms()
    assert norms.device.type == "meta"
    assert norms.shape == (2,)


def test_frozen_parameters_are_left_out():
    made = build(SMALL, dtype=torch.float32)
    made.embedding.weight.requires_grad_(False)
    before = made.embedding.weight.clone()
    optimizer = optim.build(made, OptimConfig())
    ids = tokens(SMALL, 2, 9)
    made.loss(ids[:, :-1], ids[:, 1:]).backward()
    optimizer.step(rate=1.0)
    assert torch.equal(made.embedding.weight, before)


def test_the_rate_scales_every_peak():
    optimizer = optim.build(build(SMALL), OptimConfig(lr=0.1, matrix_lr=0.2))
    optimizer.step(rate=0.25)
    assert [g["lr"] for part in optimizer.parts for g in part.param_groups] == [0.05, 0.025]


def test_clipping_bounds_the_gradients_together():
    made = build(SMALL, dtype=torch.float32)
    before = {key: p.detach().clone() for key, p in made.named_parameters()}
    config = OptimConfig(name="sgd", lr=1.0, betas=(0.0, 0.0), weight_decay=0.0, clip=0.5)
    optimizer = optim.build(made, config)
    for parameter in made.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert optimizer.gradient_norm() == pytest.approx(math.sqrt(made.n_parameters()))
    optimizer.step(rate=1.0)
    moves = [p.detach() - before[key] for key, p in made.named_parameters()]
    assert torch.cat([move.flatten() for move in moves]).norm() == pytest.approx(0.5, rel=1e-4)
    assert all(parameter.grad is None for parameter in made.parameters())
