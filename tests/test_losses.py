"""The loss of the head in chunks: its memory, its gradients, what it refuses, torch.compile."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from tests.rungs.kernel_losses import limits
from tests.support.allocated import peak
from tinylm import model, ops
from tinylm.config import ModelConfig
from tinylm.ops import losses


def drawn(rows=12, width=8, vocabulary=20, dtype=torch.float32):
    """x, a weight and targets, two of which are ignored."""
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, width, generator=random).to(dtype) for n in (rows, vocabulary))
    targets = torch.randint(vocabulary, (rows,), generator=random)
    targets[1:3] = ops.IGNORED
    return x.requires_grad_(), weight.requires_grad_(), targets


def gradients(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


def in_chunks(loss):
    """Whether `loss` came out of the chunked operation."""
    return "linear_cross_entropy" in loss.grad_fn.name()


def test_few_logits_stay_with_linear_and_many_go_through_in_chunks():
    x, weight, targets = drawn()
    logits = targets.numel() * len(weight)
    with limits(whole=logits):
        assert not in_chunks(ops.linear_cross_entropy(x, weight, targets))
    with limits(whole=logits - 1):
        assert in_chunks(ops.linear_cross_entropy(x, weight, targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_in_chunks_takes_a_quarter_of_the_memory(dtype):
    x, weight, targets = drawn(512, 16, 5_000)

    def step(loss):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            result = loss(x, weight, targets)
        gradients(result, x, weight)

    def whole(x, weight, targets):
        return F.cross_entropy(F.linear(x, weight).float(), targets)

    with limits(least=ops.losses.LEAST_ROWS):
        ours = peak(lambda: step(ops.linear_cross_entropy))
    theirs = peak(lambda: step(whole))
    logits = 4 * weight.size(0) * targets.numel()
    assert theirs >= 3 * logits
    assert ours <= theirs / 4
    # A chunk; the weight's gradient, twice under autocast: the CPU rounds each chunk's share first.
    assert ours <= 1.25 * logits / 8 + weight.numel() * 8 + 2**20


def test_a_backward_pass_holds_the_weights_gradient_once():
    x, weight, targets = drawn(64, 64, 4096)
    with limits():
        loss = ops.linear_cross_entropy(x, weight, targets)
    # The sum that the loss saved becomes the gradient: no new [V, D] is made.
    assert peak(loss.backward) < weight.numel() * 4 / 2
    assert weight.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_step_of_a_model_with_a_large_vocabulary_takes_a_quarter_of_the_memory(tied):
    config = ModelConfig(vocab_size=50_257, context_length=1024, tied=tied)
    net = model.build(config, seed=0)
    tokens = torch.randint(50_257, (1, 1025), generator=torch.Generator().manual_seed(0))

    def step():
        net.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        net.zero_grad()

    ours = peak(step)
    with limits(whole=2**40):
        theirs = peak(step)
    assert ours <= theirs / 4, f"{ours / 2**20:.0f} of {theirs / 2**20:.0f} MiB"


def test_gradients_in_float64_are_those_of_differences():
    x, weight, targets = drawn(5, 3, 7, torch.float64)
    gain = torch.linspace(0.5, 1.5, 3, dtype=torch.float64, requires_grad=True)

    def loss(x, weight, gain):
        return ops.linear_cross_entropy(
            *(x, weight, targets), z_loss=0.1, softcap=2.0, norm_weight=gain, eps=1e-5
        )

    with limits(chunks=3):
        assert torch.autograd.gradcheck(loss, (x, weight, gain))


def test_where_no_target_counts_the_loss_is_nan_and_the_gradients_are_0_as_torchs_are():
    x, weight, _ = drawn()
    targets = torch.full((12,), ops.IGNORED)
    with limits():
        loss = ops.linear_cross_entropy(x, weight, targets)
    theirs = F.cross_entropy(F.linear(x, weight), targets)
    assert loss.isnan()
    assert theirs.isnan()
    for ours, exact in zip(gradients(loss, x, weight), gradients(theirs, x, weight), strict=True):
        assert torch.equal(ours, exact)
        assert not ours.any()


def test_no_rows_give_nan_and_gradients_of_0():
    x, weight, targets = drawn()
    with limits(whole=-1):
        loss = ops.linear_cross_entropy(x[:0], weight, targets[:0])
    assert in_chunks(loss)
    assert loss.isnan()
    assert not gradients(loss, weight)[0].any()


def test_an_infinite_logit_or_nan_spreads_as_torch_spreads_it():
    for value in (math.nan, math.inf):
        x, weight, targets = drawn()
        with torch.no_grad():
            x[5, 0] = value
        with limits():
            loss = ops.linear_cross_entropy(x, weight, targets)
        assert loss.isnan()
        theirs = gradients(F.cross_entropy(F.linear(x, weight), targets), x)[0]
        assert torch.equal(gradients(loss, x)[0].isnan(), theirs.isnan())


def test_without_gradients_the_loss_is_the_same():
    x, weight, targets = drawn()
    with limits():
        recorded = ops.linear_cross_entropy(x, weight, targets)
        with torch.no_grad():
            alone = ops.linear_cross_entropy(x, weight, targets)
        with torch.inference_mode():
            inferred = ops.linear_cross_entropy(x, weight, targets)
    assert torch.equal(recorded, alone)
    assert torch.equal(recorded, inferred)
    assert alone.grad_fn is None


def test_a_frozen_input_costs_no_gradient_and_changes_no_other():
    x, weight, targets = drawn()
    with limits():
        dx, dweight = gradients(ops.linear_cross_entropy(x, weight, targets), x, weight)
        (dx_alone,) = gradients(ops.linear_cross_entropy(x, weight.detach(), targets), x)
        (dweight_alone,) = gradients(ops.linear_cross_entropy(x.detach(), weight, targets), weight)
    assert torch.equal(dx, dx_alone)
    assert torch.equal(dweight, dweight_alone)
    arguments = (x, weight, targets, None, 0.0, 0.0, None, torch.float32, [False, True, False])
    assert [out.numel() for out in torch.ops.tinylm.linear_cross_entropy(*arguments)[2:]] == [
        *(0, weight.numel(), 0)
    ]


def test_the_same_call_gives_the_same_bits_and_a_graph_may_be_walked_twice():
    x, weight, targets = drawn(100, 16, 300)
    with limits(chunks=5):
        loss = ops.linear_cross_entropy(x, weight, targets)
        first = torch.autograd.grad(loss, (x, weight), retain_graph=True)
        again = gradients(ops.linear_cross_entropy(x, weight, targets), x, weight)
    for a, b, c in zip(first, gradients(loss, x, weight), again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_autocast_multiplies_in_bfloat16_and_returns_the_gradients_of_float32():
    x, weight, targets = drawn(64, 32, 100)
    with limits(), torch.autocast("cpu", torch.bfloat16):
        ours = ops.linear_cross_entropy(x, weight, targets)
        theirs = ops.cross_entropy(F.linear(x, weight), targets)
        # Autocast leaves float64 alone, and so must we.
        wide = ops.linear_cross_entropy(x.double(), weight.double(), targets)
    assert torch.allclose(ours, theirs, rtol=1e-6)
    assert wide.dtype == torch.float64
    for a, b in zip(gradients(ours, x, weight), gradients(theirs, x, weight), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 0.01 * b.norm()


@pytest.mark.parametrize("architecture", ["llama3", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_has_the_same_loss_and_gradients_in_chunks(architecture, tied):
    config = ModelConfig(
        vocab_size=50, d_model=16, n_layers=1, n_heads=2, architecture=architecture, tied=tied
    )
    net = model.build(config, seed=0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens, targets = torch.randint(50, (2, 3, 10))
    targets[0, :4] = ops.IGNORED
    found = []
    for whole in (0, 2**24):
        with limits(whole=whole):
            loss = net.loss(tokens, targets)
        assert in_chunks(loss) == (whole == 0)
        found.append((loss, *gradients(loss, *net.parameters())))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_second_derivative_is_refused_in_one_line():
    x, weight, targets = drawn()
    with limits():
        loss = ops.linear_cross_entropy(x, weight, targets)
    with pytest.raises(NotImplementedError, match="second derivative") as error:
        torch.autograd.grad(loss, x, create_graph=True)
    assert "\n" not in str(error.value)


def test_the_loss_in_chunks_is_a_well_formed_torch_operation(monkeypatch):
    # It compares the sums too, after a backward pass that would overwrite them.
    monkeypatch.setattr(ops.losses, "_walked_once", lambda: False)
    x, weight, targets = drawn()
    gain = torch.ones(8, requires_grad=True)
    operation = torch.ops.tinylm.linear_cross_entropy.default
    options = (1e-5, 0.1, 5.0, torch.float32)
    opcheck(operation, (x, weight, targets, gain, *options, [True, True, True]))
    partly = (x.detach(), weight, targets, None, *options, [False, True, False])
    opcheck(operation, partly, test_utils=("test_schema", "test_faketensor"))


def compiled(backend):
    """Loss and gradients of a compiled function, which is one graph, and of the same in eager."""

    def loss(x, weight, gain, targets):
        # Neighbours on both sides, to be in one graph with.
        return 2 * ops.linear_cross_entropy(
            *(x.tanh(), weight, targets), norm_weight=gain, eps=1e-5, z_loss=1e-3
        )

    x, weight, targets = drawn()
    gain = torch.linspace(0.5, 1.5, 8, requires_grad=True)
    found = []
    for function in (torch.compile(loss, backend=backend, fullgraph=True), loss):
        with limits(), torch.autocast("cpu", torch.bfloat16):
            result = function(x, weight, gain, targets)
        found.append((result, *gradients(result, x, weight, gain)))
    return zip(*found, strict=True)


def test_torch_compile_keeps_the_loss_in_chunks_in_one_graph():
    for ours, eager in compiled("aot_eager"):
        assert torch.equal(ours, eager)


@pytest.mark.slow
# Inductor's own.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_inductor_compiles_the_loss_in_chunks():
    for ours, eager in compiled("inductor"):
        assert torch.allclose(ours, eager, rtol=1e-3, atol=1e-5)


REFUSED = {
    "softcap of 0": ({"softcap": 0.0}, {}, ["softcap=0.0", "above 0"]),
    "too few targets": ({}, {"targets": torch.zeros(11).long()}, ["[12, 8]", "[20, 8]", "[11]"]),
    "another width": ({}, {"weight": torch.zeros(20, 7)}, ["[12, 8]", "[20, 7]", "[12]"]),
    "a narrow norm": ({"norm_weight": torch.ones(7)}, {}, ["[7]", "[12, 8]"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case):
    options, others, words = REFUSED[case]
    x, weight, targets = drawn()
    inputs = {"x": x, "weight": weight, "targets": targets} | others
    with limits(), pytest.raises(ValueError) as error:  # noqa: PT011
        ops.linear_cross_entropy(**inputs, **options)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_a_target_outside_the_vocabulary_is_an_error():
    x, weight, targets = drawn()
    targets[4] = 20
    with limits(), pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        ops.linear_cross_entropy(x, weight, targets)


# torch imports decompositions for it, which warn.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_forward_derivative_is_that_of_all_logits(monkeypatch):
    monkeypatch.setattr(losses, "WHOLE_CPU", -1)
    x, weight = torch.randn(9, 8), torch.randn(40, 8)
    targets = torch.randint(40, (9,))

    def loss(x):
        return ops.linear_cross_entropy(x, weight, targets)

    _, tangent = torch.func.jvp(loss, (x,), (x,))
    (gradient,) = torch.autograd.grad(loss(leaf := x.clone().requires_grad_()), leaf)
    assert torch.isclose(tangent, (gradient * x).sum(), rtol=1e-4)
