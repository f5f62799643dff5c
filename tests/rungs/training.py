"""Whole transformers, decoding with a cache, optimizers and schedules against the reference."""

import contextlib
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from tests.rungs.rung import SEEDS, Rung, near
from tests.support.models import SWITCHES, build, configs, tokens
from tinylm import cache, ops, optim
from tinylm.config import ModelConfig, OptimConfig, courses
from tinylm.reference import arrays_model, optimizers, tensors

FLOAT64 = 1e-10
SHARES = st.floats(0, 1)


def shape_of(config):
    """What the reference transformers need to know of a config."""
    names = ("architecture", "n_heads", "rope_theta", "norm_eps")
    return {name: getattr(config, name) for name in names} | {"n_kv_heads": config.kv_heads}


def batch_of(config, seed):
    """Tokens and targets [2, T], some of them ignored, and the documents of the tokens."""
    random = np.random.default_rng(seed)
    ids, targets = random.integers(0, config.vocab_size, (2, 2, config.context_length))
    targets[random.random(targets.shape) < 0.2] = -100
    targets[0, 0] = 0
    return ids, targets, random.integers(0, 3, ids.shape)


def in_order(loss, gradients):
    """Loss and gradients as a list."""
    return [float(loss), *(np.asarray(gradients[name]) for name in sorted(gradients))]


def step_by_arrays(config, seed):
    weights = {name: p.detach().numpy() for name, p in build(config, seed).named_parameters()}
    ids, targets, documents = batch_of(config, seed)
    return in_order(
        *arrays_model.loss_and_gradients(
            weights, ids, targets, documents=documents, **shape_of(config)
        )
    )


def step_by_tensors(config, seed):
    weights = {name: p.detach() for name, p in build(config, seed).named_parameters()}
    ids, targets, documents = map(torch.tensor, batch_of(config, seed))
    return in_order(
        *tensors.loss_and_gradients(weights, ids, targets, documents=documents, **shape_of(config))
    )


def step_by_model(config, seed):
    made = build(config, seed)
    ids, targets, documents = map(torch.tensor, batch_of(config, seed))
    loss = made.loss(ids, targets, documents=documents)
    loss.backward()
    return in_order(loss.detach(), {name: p.grad for name, p in made.named_parameters()})


def whole_forward(config, seed, cuts):
    """Logits of the whole context at once."""
    ids = tokens(config, 2, config.context_length, seed)
    return [build(config, seed)(ids).detach().numpy()]


def decoded(config, seed, cuts):
    """The same, read in chunks that end at `cuts`, shares of the context, with a cache."""
    made, length = build(config, seed), config.context_length
    ids = tokens(config, 2, length, seed)
    held = cache.build(made, 2, length)
    ends = sorted({length, *(1 + int(cut * (length - 1)) for cut in cuts)})
    logits = []
    for start, end in zip([0, *ends], ends, strict=False):
        logits.append(made(ids[:, start:end], cache=held).detach().numpy())
        assert held.lengths.tolist() == [end, end]
    return [np.concatenate(logits, 1)]


@contextlib.contextmanager
def exact_angles():
    """Rotate by angles of float64: those of float32 part some models by 1e-5, others by 1e-12."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "rotary_angles", tensors.rotary_angles)
        yield


class Weights(torch.nn.Module):
    """Parameters with roles, and no model around them."""

    def __init__(self, weights, roles):
        super().__init__()
        self.roles = roles
        for name, weight in weights.items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(weight)))

    def named_roles(self):
        for name, parameter in self.named_parameters():
            yield name, parameter, self.roles[name]


def drawn(shapes, seed, scale=1.0):
    """Float64 arrays by name."""
    random = np.random.default_rng(seed)
    return {name: scale * random.normal(size=shape) for name, shape in shapes.items()}


def reference_step(settings, roles, weights, gradients, states, rate, progress=0.0):
    """New weights and states (of the matrices, of the rest) after a step of `settings.name`."""
    groups = [{k: w for k, w in weights.items() if (roles[k] == "matrix") == m} for m in (1, 0)]
    adamw = partial(
        optimizers.adamw,
        lr=settings.lr * rate,
        betas=settings.betas,
        eps=settings.eps,
        cautious=settings.cautious,
    )
    sgd = partial(optimizers.sgd, lr=settings.lr * rate, momentum=settings.betas[0])
    muon = partial(
        optimizers.muon,
        lr=settings.matrix_lr * rate,
        momentum=settings.momenta.at(progress),
        cautious=settings.cautious,
        orthogonal=settings.orthogonal,
        steps=settings.orthogonal_steps,
    )
    moves = {"adamw": (adamw, adamw), "sgd": (sgd, sgd), "muon": (muon, adamw)}[settings.name]
    clipped = gradients
    if settings.clip:
        # Muon's matrices are neither clipped nor counted.
        seen = groups[1] if settings.name == "muon" else weights
        clipped = gradients | optimizers.clip({k: gradients[k] for k in seen}, settings.clip)
    decays = (settings.decays.at(progress), 0.0)
    moved = [
        move(group, clipped, state, weight_decay=decay)
        for move, group, state, decay in zip(moves, groups, states, decays, strict=True)
    ]
    new = moved[0][0] | moved[1][0]
    return {name: new[name] for name in weights}, (moved[0][1], moved[1][1])


ROLES = {"a": "matrix", "b": "matrix", "c": "matrix", "d": "embedding", "e": "gain"}


def optimize_slowly(settings, shapes, seed, rates):
    """Weights, then optimizer state, by name, after a step at each of `rates`."""
    weights, states = drawn(shapes, seed), ({}, {})
    for step, rate in enumerate(rates, 1):
        gradients = drawn(shapes, seed + step)
        progress = step / len(rates)
        weights, states = reference_step(
            settings, ROLES, weights, gradients, states, rate, progress
        )
    state = states[0] | states[1]
    return [*weights.values(), *(state[name] for name in sorted(state))]


def optimize(settings, shapes, seed, rates):
    module = Weights(drawn(shapes, seed), ROLES)
    optimizer = optim.build(module, settings)
    for step, rate in enumerate(rates, 1):
        gradients = drawn(shapes, seed + step)
        for name, parameter in module.named_parameters():
            parameter.grad = torch.tensor(gradients[name])
        optimizer.step(rate, progress=step / len(rates))
    state = optimizer.state()
    weights = [p.detach().numpy() for p in module.parameters()]
    return [*weights, *(state[name].numpy() for name in sorted(state))]


@st.composite
def optimizations(draw, name):
    sides = st.integers(1, 6)
    shapes = {name: (draw(sides), draw(sides)) for name in "abd"} | {"e": (draw(sides),)}
    # Muon moves matrices of one shape together.
    shapes["c"] = shapes["a"]
    momenta = st.floats(0.1, 0.99)
    settings = OptimConfig(
        name=name,
        lr=draw(st.floats(1e-4, 0.1)),
        matrix_lr=draw(st.floats(1e-4, 0.1)),
        betas=(draw(momenta), draw(momenta)),
        eps=draw(st.sampled_from([1e-8, 1e-3])),
        momentum=draw(momenta | st.just("0.5@0 0.95@0.5")),
        orthogonal=draw(st.sampled_from(sorted(optim.ORTHOGONAL))),
        orthogonal_steps=draw(st.none() | st.integers(1, 9)),
        weight_decay=draw(st.sampled_from([0.0, 0.1, 1.0, "0.5@0.2 0@1"])),
        cautious=name != "sgd" and draw(st.booleans()),
        clip=draw(st.sampled_from([0.0, 0.5, 100.0])),
    )
    rates = draw(st.lists(SHARES, min_size=1, max_size=4))
    return settings, dict(sorted(shapes.items())), draw(SEEDS), rates


def clip(gradients, limit):
    """What the package's optimizer has left of the gradients: SGD's step at rate 1 from 0."""
    zeros = {name: np.zeros_like(g) for name, g in gradients.items()}
    module = Weights(zeros, dict.fromkeys(zeros, "gain"))
    settings = OptimConfig(name="sgd", lr=1.0, betas=(0.0, 0.0), weight_decay=0.0, clip=limit)
    optimizer = optim.build(module, settings)
    for name, parameter in module.named_parameters():
        parameter.grad = torch.tensor(gradients[name])
    norm = float(optimizer.gradient_norm())
    optimizer.step(1.0)
    return [norm, *(-p.detach().numpy() for p in module.parameters())]


def clip_slowly(gradients, limit):
    clipped = optimizers.clip(gradients, limit)
    return [optimizers.gradient_norm(gradients), *clipped.values()]


@st.composite
def well_conditioned(draw):
    """A matrix with singular values between 0.3 and 1."""
    rows, columns = draw(st.integers(1, 16)), draw(st.integers(1, 16))
    random = np.random.default_rng(draw(SEEDS))
    left, _, right = np.linalg.svd(random.normal(size=(rows, columns)), full_matrices=False)
    return left * random.uniform(0.3, 1, min(rows, columns)) @ right


@st.composite
def points(draw, values):
    """One to four points of a course as (progress, value), in order."""
    places = sorted(draw(st.sets(SHARES, min_size=1, max_size=4)))
    return [(place, draw(values)) for place in places]


def text(points):
    """A course as a setting has it."""
    return " ".join(f"{value!r}@{place!r}" for place, value in points)


@st.composite
def schedules(draw):
    """A schedule of any kind and edges, a number of steps, and one of them."""
    warmup = draw(SHARES | st.sampled_from([0.0, 1.0]))
    decay = draw(st.floats(0, 1 - warmup) | st.sampled_from([0.0, 1 - warmup]))
    shape = {
        "warmup": warmup,
        "decay": decay if warmup + decay <= 1 else 0.0,
        "min_lr": draw(SHARES),
    }
    steps = draw(st.integers(1, 60))
    return draw(st.integers(0, steps - 1)), steps, draw(st.sampled_from([*optim.SCHEDULES])), shape


# What the definitions know: GPT-2 and Llama as they are.
PARTS = ("norm", "position", "feedforward", *SWITCHES, "head_size", "logit_softcap")
SIZES = dict.fromkeys(PARTS) | {"value_embeddings": 0, "bigrams": 0, "windows": ()}
TRANSFORMERS = st.tuples(
    st.one_of(*(configs(architecture=name, exits=False, **SIZES) for name in ("gpt2", "llama3"))),
    SEEDS,
)
LARGE = ModelConfig(
    vocab_size=256, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, context_length=64
)
MATRICES = {"a": (256, 256), "b": (64, 256), "c": (256, 256), "d": (512, 64), "e": (256,)}


def optimizer_rung(name):
    return Rung(
        name=name,
        chapter="tensors",
        media=("arrays", "optim"),
        slow=optimize_slowly,
        fast=optimize,
        inputs=optimizations(name),
        example=lambda: (OptimConfig(name=name), MATRICES, 0, [1.0] * 3),
        same=near(FLOAT64),
    )


RUNGS = (
    Rung(
        name="transformer",
        chapter="tensors",
        media=("arrays", "tensors"),
        slow=step_by_arrays,
        fast=step_by_tensors,
        inputs=TRANSFORMERS,
        example=lambda: (LARGE, 0),
        same=near(FLOAT64),
        gradients=True,
    ),
    Rung(
        name="transformer",
        chapter="tensors",
        media=("tensors", "model"),
        slow=step_by_tensors,
        fast=step_by_model,
        inputs=TRANSFORMERS,
        example=lambda: (LARGE, 0),
        same=near(FLOAT64),
        gradients=True,
        around=exact_angles,
    ),
    Rung(
        name="decode with a cache",
        chapter="tensors",
        media=("model", "cache"),
        slow=whole_forward,
        fast=decoded,
        inputs=st.tuples(configs(), SEEDS, st.lists(SHARES, max_size=5)),
        example=lambda: (LARGE, 0, [i / 64 for i in range(64)]),
        same=near(FLOAT64),
    ),
    *map(optimizer_rung, optim.OPTIMIZERS),
    Rung(
        name="orthogonalise",
        chapter="tensors",
        media=("arrays", "optim"),
        slow=optimizers.orthogonalise,
        fast=lambda x, *way: optim.orthogonalise(torch.tensor(x)[None], *way)[0].numpy(),
        inputs=st.tuples(
            well_conditioned(),
            st.sampled_from(sorted(optim.ORTHOGONAL)),
            st.none() | st.integers(1, 9),
        ),
        example=lambda: (drawn(MATRICES, 0)["b"], "polar_express", 3),
        same=lambda slow, fast: near(FLOAT64)([slow], [fast]),
    ),
    Rung(
        name="clip",
        chapter="tensors",
        media=("arrays", "optim"),
        slow=clip_slowly,
        fast=clip,
        inputs=st.tuples(
            st.builds(partial(drawn, {"a": (6, 4), "b": (3,)}), SEEDS, scale=st.floats(1e-3, 1e3)),
            st.floats(1e-2, 1e2),
        ),
        example=lambda: (drawn(MATRICES, 0), 1.0),
        same=near(FLOAT64),
    ),
    Rung(
        name="schedule",
        chapter="tensors",
        media=("lists", "optim"),
        slow=lambda step, steps, course, shape: optimizers.schedule(
            step, steps, course=course, **shape
        ),
        fast=lambda step, steps, course, shape: optim.schedule(
            step, steps, OptimConfig(schedule=course, **shape)
        ),
        inputs=schedules(),
        example=lambda: (700, 1000, "cosine", {"warmup": 0.1, "decay": 0.2, "min_lr": 0.1}),
        same=partial(math.isclose, rel_tol=1e-12, abs_tol=1e-12),
    ),
    Rung(
        name="course",
        chapter="lists",
        media=("lists", "config"),
        slow=optimizers.line,
        fast=lambda points, progress: courses.course(text(points)).at(progress),
        inputs=st.tuples(points(st.floats(-1e3, 1e3)), SHARES),
        example=lambda: ([(0.0, 0.85), (0.1, 0.95)], 0.05),
        same=partial(math.isclose, rel_tol=1e-9, abs_tol=1e-9),
    ),
    Rung(
        name="stairs",
        chapter="lists",
        media=("lists", "config"),
        slow=optimizers.stairs,
        fast=lambda points, progress: courses.stairs(text(points)).at(progress),
        inputs=st.tuples(points(st.integers(1, 99)), SHARES),
        example=lambda: ([(0.0, 4), (0.25, 8)], 0.25),
    ),
)
