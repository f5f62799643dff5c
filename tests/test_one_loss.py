"""The keystone: one tiny model, one set of weights, one batch, one loss, in every medium.

Each medium computes the loss and the gradient of every weight; neighbours are compared, so a
failure names the step that broke. Then each trains three steps, and the weights are compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.rungs.kernel_losses import limits
from tests.rungs.training import reference_step
from tests.support import interpreter
from tinylm import model, optim
from tinylm.config import ModelConfig, OptimConfig
from tinylm.reference import arrays_model, optimizers, scalars, tensors

# Relative differences in the 2-norm of all gradients, or all weights, together. Each is two to
# eight times the largest difference that five seeds of weights and batch gave, all problems and
# optimizers alike: other processors add up in another order.
# Sums in another order, a few roundings of 2.2e-16: at most 1.6e-15.
FLOAT64 = 1e-14
# The model computes in float32, 1.2e-7 a rounding, about ten of them along a path: 8e-7.
FLOAT32 = 2e-6
# Muon orthogonalises in bfloat16, 7.8e-3 a rounding: a few of these on the updates, and three
# updates together are a seventh of the weights' size: 4.2e-3.
BFLOAT16 = 8e-3

# triton 3.6's interpreter warns at every loop with NumPy before 2.4, and stops there with later.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

STEPS = 3
# An eps far above the gradients' rounding errors: some gradients are 0 in exact arithmetic (a
# key's bias shifts all scores of a query alike), and AdamW would make whole steps of their noise.
OPTIM = {
    "eps": 1e-3,
    "matrix_lr": 0.02,
    "clip": 0.5,
    "schedule": "cosine",
    "warmup": 1 / 3,
}
# A clipped step of SGD is as long as its rate: one that moves the weights as far as the others do.
RATES = {"adamw": 0.05, "muon": 0.05, "sgd": 0.5}


@dataclass(frozen=True, eq=False)
class Problem:
    """A model's settings, weights by name, and a batch."""

    config: ModelConfig
    weights: dict[str, np.ndarray]
    roles: dict[str, str]
    tokens: np.ndarray
    targets: np.ndarray

    @property
    def shape(self):
        """What the references need to know of the settings."""
        names = ("architecture", "n_heads", "n_kv_heads", "rope_theta", "norm_eps")
        return {name: getattr(self.config, name) for name in names}


@cache
def problem(architecture, tied=True):
    """Weights are float32 numbers in float64 arrays: the same in every medium."""
    config = ModelConfig(
        architecture=architecture,
        tied=tied,
        vocab_size=11,
        # Heads of 4 have two pairs to turn; a head's only pair has frequency 1 whatever the base.
        d_model=16,
        n_layers=1 if tied else 2,
        n_heads=4,
        n_kv_heads=2,
        d_ff=12,
        context_length=6,
        rope_theta=100.0,
        norm_eps=1e-3,
    )
    draws = np.random.default_rng(7)
    weights, roles = {}, {}
    for name, parameter, role in model.Model(config).named_roles():
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        drawn = draws.normal(centre, 0.2, tuple(parameter.shape))
        weights[name], roles[name] = drawn.astype(np.float32).astype(np.float64), role
    tokens, targets = draws.integers(0, 11, (2, 2, 5))
    targets[1, 2:4] = -100
    return Problem(config, weights, roles, tokens, targets)


def on_scalars(problem, weights):
    lists = {name: weight.tolist() for name, weight in weights.items()}
    loss, gradients = scalars.loss_and_gradients(
        lists, problem.tokens.tolist(), problem.targets.tolist(), **problem.shape
    )
    return loss, {name: np.array(gradient) for name, gradient in gradients.items()}


def on_arrays(problem, weights):
    return arrays_model.loss_and_gradients(
        weights, problem.tokens, problem.targets, **problem.shape
    )


def on_tensors(problem, weights):
    loss, gradients = tensors.loss_and_gradients(
        {name: torch.tensor(weight) for name, weight in weights.items()},
        torch.tensor(problem.tokens),
        torch.tensor(problem.targets),
        **problem.shape,
    )
    return loss.item(), {name: gradient.numpy() for name, gradient in gradients.items()}


def built(problem, weights):
    """The package's own model with these weights, in float32."""
    module = model.build(problem.config)
    module.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()})
    return module


def backward(problem, module):
    loss = module.loss(torch.tensor(problem.tokens), torch.tensor(problem.targets))
    loss.backward()
    return loss.item()


def on_model(problem, weights):
    module = built(problem, weights)
    loss = backward(problem, module)
    return loss, {name: p.grad.numpy() for name, p in module.named_parameters()}


def settings_of(name):
    return OptimConfig(name=name, lr=RATES[name], **OPTIM)


@cache
def at_first(gradients_of, problem):
    """Loss and gradients at the problem's own weights, taken once: scalars are slow."""
    return gradients_of(problem, problem.weights)


def train_by_reference(gradients_of, problem, name):
    """The weights after three steps of the reference optimizers on a medium's gradients."""
    settings = settings_of(name)
    weights, states = problem.weights, ({}, {})
    for step in range(STEPS):
        _, gradients = gradients_of(problem, weights) if step else at_first(gradients_of, problem)
        rate = optimizers.schedule(
            step, STEPS, course="cosine", warmup=settings.warmup, min_lr=settings.min_lr
        )
        weights, states = reference_step(settings, problem.roles, weights, gradients, states, rate)
    return weights


def train_the_model(problem, name):
    """The weights after three steps of the package's model and optimizer."""
    settings = settings_of(name)
    module = built(problem, problem.weights)
    optimizer = optim.build(module, settings)
    for step in range(STEPS):
        backward(problem, module)
        optimizer.step(optim.schedule(step, STEPS, settings))
    return {k: p.detach().numpy() for k, p in module.named_parameters()}


def by_kernels(problem, function, *rest):
    """`function` with the fused kernels in the place of every operation that has one."""
    with limits(), interpreter.chosen_by_ops() as taken:
        result = function(problem, *rest)
    wanted = {
        "llama3": {"rms_norm", "add_rms_norm", "rope", "swiglu"},
        "gpt2": {"layer_norm", "add_layer_norm"},
    }
    assert set(taken) >= {"cross_entropy_", *wanted[problem.config.architecture]}
    return result


@dataclass(frozen=True)
class Medium:
    """How one medium computes and trains, and how near it is to the one before it."""

    name: str
    gradients: Callable
    train: Callable
    tolerance: float
    tolerance_of_muon: float


def reference(name, gradients):
    train = partial(train_by_reference, gradients)
    return Medium(name, gradients, train, FLOAT64, FLOAT64)


MEDIA = [
    reference("scalars", on_scalars),
    reference("arrays", on_arrays),
    reference("tensors", on_tensors),
    Medium("model", on_model, train_the_model, FLOAT32, BFLOAT16),
    Medium(
        "kernels",
        lambda problem, weights: by_kernels(problem, on_model, weights),
        lambda problem, name: by_kernels(problem, train_the_model, name),
        FLOAT32,
        BFLOAT16,
    ),
]
STEPS_OF_THE_LADDER = [
    pytest.param(
        slow,
        fast,
        id=f"{slow.name}-{fast.name}",
        marks=pytest.mark.skipif(
            fast.name == "kernels" and bool(interpreter.missing()), reason=interpreter.missing()
        ),
    )
    for slow, fast in pairwise(MEDIA)
]
PROBLEMS = [("llama3", True), ("llama3", False), ("gpt2", True), ("gpt2", False)]
# Scalars are slow, and the arrays' optimizers move them: all three on the smaller problems alone.
# Quick are all optimizers on two problems, and one on the others.
QUICK = [("llama3", True), ("gpt2", False)]
TRAININGS = [
    pytest.param(
        *step.values,
        *given,
        optimizer,
        id="-".join(map(str, (step.id, *given, optimizer))),
        marks=[
            *step.marks,
            *([] if given in QUICK or optimizer == "adamw" else [pytest.mark.slow]),
        ],
    )
    for step in STEPS_OF_THE_LADDER
    for given in PROBLEMS
    for optimizer in RATES
    if step.values[0].name != "scalars" or given[1] or optimizer == "adamw"
]


def gradients(medium, architecture, tied):
    return at_first(medium.gradients, problem(architecture, tied))


@cache
def trained(medium, architecture, tied, name):
    return medium.train(problem(architecture, tied), name)


def distance(slow, fast):
    """2-norm of the difference over that of `slow`, all names together."""
    assert slow.keys() == fast.keys()
    apart = sum(np.square(slow[name] - fast[name]).sum() for name in slow)
    return np.sqrt(apart / sum(np.square(value).sum() for value in slow.values()))


@pytest.mark.parametrize(("architecture", "tied"), PROBLEMS)
@pytest.mark.parametrize(("slow", "fast"), STEPS_OF_THE_LADDER)
def test_neighbouring_media_have_one_loss_and_the_same_gradients(slow, fast, architecture, tied):
    loss, slow_gradients = gradients(slow, architecture, tied)
    fast_loss, fast_gradients = gradients(fast, architecture, tied)
    assert fast_loss == pytest.approx(loss, rel=fast.tolerance)
    for name, gradient in slow_gradients.items():
        assert gradient.shape == fast_gradients[name].shape, name
        # A floor for the gradients that are 0 but for rounding.
        limit = 10 * fast.tolerance * max(np.linalg.norm(gradient), 1e-2)
        assert np.linalg.norm(gradient - fast_gradients[name]) <= limit, name
    assert distance(slow_gradients, fast_gradients) <= fast.tolerance


@pytest.mark.parametrize(("slow", "fast", "architecture", "tied", "optimizer"), TRAININGS)
def test_neighbouring_media_agree_after_three_steps(slow, fast, architecture, tied, optimizer):
    before = problem(architecture, tied).weights
    slow_weights = trained(slow, architecture, tied, optimizer)
    fast_weights = trained(fast, architecture, tied, optimizer)
    tolerance = fast.tolerance_of_muon if optimizer == "muon" else fast.tolerance
    assert distance(before, slow_weights) > 0.1
    assert distance(slow_weights, fast_weights) <= tolerance


@pytest.mark.parametrize("architecture", ["llama3", "gpt2"])
def test_only_bfloat16_parts_the_model_from_the_reference_under_muon(architecture, monkeypatch):
    monkeypatch.setattr(optim.muon, "working_dtype", lambda *_: torch.float64)
    given = problem(architecture)
    trained_in_full = train_the_model(given, "muon")
    assert distance(trained(MEDIA[2], architecture, True, "muon"), trained_in_full) <= FLOAT32


@pytest.mark.parametrize("architecture", ["llama3", "gpt2"])
def test_the_loss_falls_along_the_gradient_as_the_gradient_says(architecture):
    given = problem(architecture)
    _, slopes = on_arrays(given, given.weights)
    h = 1e-5
    up, down = (
        on_arrays(given, {k: w + sign * h * slopes[k] for k, w in given.weights.items()})[0]
        for sign in (1, -1)
    )
    slope = sum(np.square(value).sum() for value in slopes.values())
    assert (up - down) / (2 * h) == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize("architecture", ["llama3", "gpt2"])
def test_a_document_mask_gives_one_loss_in_every_medium_that_takes_one(architecture):
    given = problem(architecture)
    documents = np.array([[0, 0, 1, 1, 1], [4, 4, 4, 5, 6]])
    batch = (given.tokens, given.targets)
    slow, slopes = arrays_model.loss_and_gradients(
        given.weights, *batch, documents=documents, **given.shape
    )
    weights = {name: torch.tensor(weight) for name, weight in given.weights.items()}
    batch = tuple(torch.tensor(part) for part in batch)
    documents = torch.tensor(documents)
    middle, gradients = tensors.loss_and_gradients(
        weights, *batch, documents=documents, **given.shape
    )
    assert middle.item() == pytest.approx(slow, rel=FLOAT64)
    assert distance(slopes, {k: g.numpy() for k, g in gradients.items()}) <= FLOAT64
    fast = built(given, given.weights).loss(*batch, documents=documents)
    assert fast.item() == pytest.approx(slow, rel=FLOAT32)
    assert slow != pytest.approx(on_arrays(given, given.weights)[0], rel=1e-3)
