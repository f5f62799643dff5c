"""The model as a whole: what it may look at, what it counts, where its weights start."""

import dataclasses
from functools import partial
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.support.models import CLOSE, build, configs, tokens
from tinylm import layers, model, ops
from tinylm.config import ARCHITECTURES, ModelConfig
from tinylm.context import Context
from tinylm.mask import Mask

SEEDS = st.integers(0, 2**31)
SMALL = ModelConfig(vocab_size=11, d_model=12, n_layers=2, n_heads=2, context_length=8)


@settings(max_examples=40, deadline=None)
@given(config=configs(position="rope") | configs(position="none"), seed=SEEDS, data=st.data())
def test_a_document_gives_the_logits_that_it_gives_alone(config, seed, data):
    # Rotations and no position see distances only, so that a document may stand anywhere.
    cut = data.draw(st.integers(0, config.context_length))
    made = build(config, seed)
    ids = tokens(config, 2, config.context_length, seed)
    documents = (torch.arange(config.context_length) >= cut).expand(2, -1)
    together = made(ids, documents=documents)
    for part in (slice(0, cut), slice(cut, None)):
        if ids[:, part].numel():
            assert_close(together[:, part], made(ids[:, part]), **CLOSE)


@settings(max_examples=25, deadline=None)
@given(config=configs(), seed=SEEDS)
def test_a_document_sees_nothing_of_another(config, seed):
    made = build(config, seed)
    ids = tokens(config, 1, config.context_length, seed)
    documents = torch.randint(3, ids.shape, generator=torch.Generator().manual_seed(seed))
    other = torch.where(documents == 0, ids, (ids + 1) % config.vocab_size)
    one, two = (made(x, documents=documents) for x in (ids, other))
    assert_close(one[documents == 0], two[documents == 0], rtol=0, atol=1e-12)


def test_every_parameter_matters_to_the_loss():
    for architecture in ARCHITECTURES:
        config = dataclasses.replace(SMALL, architecture=architecture, tied=False)
        made = build(config)
        ids = tokens(config, 4, 9)
        made.loss(ids[:, :-1], ids[:, 1:]).backward()
        # A bias of the keys shifts all scores of a query alike, which softmax does not see.
        idle = [n for n, p in made.named_parameters() if p.grad.abs().max() < 1e-10]
        assert all(name.endswith("attention.k.bias") for name in idle), idle


@settings(max_examples=25, deadline=None)
@given(config=configs(attention="manual"), seed=SEEDS)
def test_attention_spelled_out_equals_sdpa(config, seed):
    manual = build(config, seed)
    fused = build(dataclasses.replace(config, attention="sdpa"), seed)
    ids = tokens(config, 2, config.context_length, seed)
    assert_close(manual(ids), fused(ids), **CLOSE)


@settings(max_examples=25, deadline=None)
@given(config=configs(), seed=SEEDS)
def test_the_same_seed_gives_the_same_weights(config, seed):
    one, two = (model.build(config, seed=seed).state_dict() for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_seed_gives_other_weights_and_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    one, two = model.build(SMALL, seed=1), model.build(SMALL, seed=2)
    assert not torch.equal(one.embedding.weight, two.embedding.weight)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model.initialise(one, seed=5)
    assert torch.equal(torch.rand(3), expected)
    torch.set_rng_state(before)


@settings(max_examples=25, deadline=None)
@given(config=configs())
def test_every_parameter_has_one_role(config):
    made = build(config)
    named = [(name, parameter) for name, parameter, _ in made.named_roles()]
    assert dict(named).keys() == dict(made.named_parameters()).keys()
    assert len(named) == len(dict(named))
    for name, parameter, role in made.named_roles():
        if role == "matrix":
            assert parameter.dim() == 2, name
        if role == "gain":
            assert parameter.dim() == 1, name
    heads = [name for name, _, role in made.named_roles() if role == "head"]
    assert heads == ([] if config.tied else ["head.weight"])


def test_a_part_without_roles_is_named(monkeypatch):
    monkeypatch.setattr(layers.RMSNorm, "roles", {})
    with pytest.raises(ValueError, match=r"RMSNorm declares no role for .*norm\.weight"):
        list(model.build(SMALL).named_roles())


def test_a_new_model_predicts_every_token_alike_when_untied():
    made = model.build(dataclasses.replace(SMALL, tied=False))
    assert torch.equal(made(tokens(SMALL, 1, 8)), torch.zeros(1, 8, 11))


def test_a_tied_model_scores_with_its_embedding():
    made = build(SMALL)
    assert made.head.weight is made.embedding.weight
    hidden = []
    made.norm.register_forward_hook(lambda module, args, out: hidden.append(out))
    logits = made(tokens(SMALL, 1, 5))
    assert_close(logits, hidden[0] @ made.embedding.weight.T)


def test_loss_is_the_mean_over_the_targets_that_count():
    made = build(SMALL)
    ids = tokens(SMALL, 2, 5)
    targets = ids.clone()
    targets[0, 2:] = -100
    log = torch.log_softmax(made(ids), -1)
    wanted = [-log[b, t, targets[b, t]] for b in range(2) for t in range(5) if targets[b, t] >= 0]
    assert_close(made.loss(ids, targets), torch.stack(wanted).mean())


def test_the_limits_are_named():
    made = build(SMALL)
    with pytest.raises(ValueError, match="9 tokens pass the context length, 8"):
        made(tokens(SMALL, 1, 9))
    with pytest.raises(ValueError, match=r"model\.vocab_size=null"):
        model.build(dataclasses.replace(SMALL, vocab_size=None))
    with pytest.raises(ValueError, match=r"model\.norm=mine: not in the registry, which has rmsn"):
        model.build(dataclasses.replace(SMALL, norm="mine"))
    with pytest.raises(ValueError, match=r"model\.d_model=6: divided by n_heads=2 it must be even"):
        model.build(dataclasses.replace(SMALL, d_model=6))


def test_a_part_of_ones_own_is_chosen_by_name(monkeypatch):
    class Mine(layers.RMSNorm):
        pass

    monkeypatch.setitem(layers.NORMS, "mine", Mine)
    made = model.build(dataclasses.replace(SMALL, norm="mine"))
    assert isinstance(made.norm, Mine)
    assert all(isinstance(block.attention_norm, Mine) for block in made.blocks)


def test_a_norm_of_ones_own_needs_nothing_but_forward(monkeypatch):
    class Doubled(layers.RMSNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    class Plain(torch.nn.Module):
        roles: ClassVar[dict[str, str]] = {}

        def __init__(self, width, *, eps, bias):
            super().__init__()

        def forward(self, x):
            return 2 * torch.nn.functional.rms_norm(x, x.shape[-1:], eps=SMALL.norm_eps)

    logits = []
    for norm in (Doubled, Plain):
        monkeypatch.setitem(layers.NORMS, "mine", norm)
        made = build(dataclasses.replace(SMALL, norm="mine"))
        generator = torch.Generator().manual_seed(0)
        for name, parameter in made.named_parameters():
            if "norm" in name:
                torch.nn.init.ones_(parameter)
            else:
                torch.nn.init.normal_(parameter, generator=generator)
        logits.append(made(tokens(SMALL, 1, 8)))
    assert_close(*logits)


def test_dropout_acts_in_training_alone():
    made = build(dataclasses.replace(SMALL, dropout=0.5))
    ids = tokens(SMALL, 1, 8)
    assert not torch.equal(made(ids), made(ids))
    with model.inference(made):
        assert torch.equal(made(ids), made(ids))


@pytest.mark.parametrize("name", layers.ATTENTIONS)
def test_attention_drops_a_share_of_its_weights_in_training_and_scales_the_rest(name):
    # One head and one key, whose weight is 1: dropped, or over 1 - dropout.
    config = dataclasses.replace(SMALL, n_heads=1, dropout=0.25)
    part = layers.ATTENTIONS[name](config, layer=0, bias=False)
    generator = torch.Generator().manual_seed(0)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x = torch.randn(1000, 1, SMALL.d_model, generator=generator)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        context = Context(torch.zeros(1, dtype=torch.int64), layers.identity)
        trained = part(x, context)
        whole = part.eval()(x, context)
        assert torch.equal(part(x, context), whole)
    dropped = (trained == 0).all(-1)
    assert_close(trained, torch.where(dropped[..., None], 0.0, whole / 0.75))
    # Four deviations of 1000 draws.
    assert abs(dropped.float().mean() - 0.25) < 0.055


def test_inference_restores_the_mode_of_each_module():
    made = build(SMALL)
    made.blocks[0].eval()
    modes = [module.training for module in made.modules()]
    with pytest.raises(KeyError), model.inference(made):  # noqa: PT012
        assert not any(module.training for module in made.modules())
        assert not made(tokens(SMALL, 1, 2)).requires_grad
        raise KeyError
    assert [module.training for module in made.modules()] == modes
    assert True in modes
    assert False in modes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_model_turns_by_the_angles_of_float32(dtype):
    config = dataclasses.replace(SMALL, context_length=300)
    cos, sin = ops.rotary_angles(300, config.head_width, config.rope_theta)
    for made in (build(config, dtype=dtype), build(config, dtype=torch.float32).to(dtype)):
        assert made.embedding.weight.dtype == dtype
        assert torch.equal(made.position.cos, cos)
        assert torch.equal(made.position.sin, sin)


def test_weights_in_bfloat16_give_nearly_the_same_logits():
    for architecture in ARCHITECTURES:
        config = dataclasses.replace(SMALL, architecture=architecture)
        wide, narrow = build(config, dtype=torch.float32), build(config, dtype=torch.bfloat16)
        ids = tokens(SMALL, 2, 8)
        got = narrow(ids)
        assert got.dtype == torch.bfloat16
        assert (got.float() - wide(ids)).norm() < 0.05 * wide(ids).norm()


@settings(max_examples=30, deadline=None)
@given(
    config=configs(context_length=8, exits=False),
    seed=SEEDS,
    cuts=st.tuples(*[st.integers(1, 7)] * 2),
)
def test_texts_packed_into_a_row_give_what_they_give_alone(config, seed, cuts):
    made = build(config, seed)
    ids = tokens(config, 2, 9, seed)
    wanted, positions = 0.0, []
    for row, cut in zip(ids, cuts, strict=True):
        pieces = [row[None, : cut + 1], row[None, cut:]]
        lengths = [part.size(1) - 1 for part in pieces]
        losses = [made.loss(part[:, :-1], part[:, 1:]) for part in pieces]
        wanted += sum(loss * length for loss, length in zip(losses, lengths, strict=True)) / 16
        positions.append(torch.cat([torch.arange(length) for length in lengths]))
    documents = (torch.arange(8) >= torch.tensor(cuts)[:, None]).long()
    places = torch.stack(positions)
    packed = made.loss(ids[:, :-1], ids[:, 1:], positions=places, documents=documents)
    assert_close(packed, wanted, **CLOSE)
    if cuts[0] == cuts[1]:
        shared = made.loss(ids[:, :-1], ids[:, 1:], positions=places[0], documents=documents)
        assert_close(shared, wanted, **CLOSE)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([7, 8], "position 8: must be 0 to 7, for T is 8"),
        ([-1, 0], "position -1: must be 0"),
        ([0, 1, 2], r"positions has shape \[3\]: must end in T=2"),
    ],
)
def test_a_position_that_cannot_be_is_named(places, message):
    made = build(SMALL)
    with pytest.raises(ValueError, match=message):
        made.loss(tokens(SMALL, 1, 2), tokens(SMALL, 1, 2), positions=torch.tensor(places))


def test_documents_of_another_length_are_named():
    made = build(SMALL)
    with pytest.raises(ValueError, match=r"documents has shape \[1, 3\]: must end in T=2"):
        made(tokens(SMALL, 1, 2), documents=torch.zeros(1, 3))


def one_document_at_a_time(q, k, v, *, mask, past=None, dropout=0.0):
    """Attention that reads a mask's documents and makes no tensor of bools."""
    assert past is None
    out = torch.empty_like(q)
    for row, documents in enumerate(mask.documents):
        for number in documents.unique():
            mine = documents == number
            parts = (x[row : row + 1, :, mine] for x in (q, k, v))
            out[row, :, mine] = ops.attention(*parts)[0]
    return out


@settings(max_examples=15, deadline=None)
@given(config=configs(attention="sdpa"), seed=SEEDS)
def test_a_form_of_attention_may_read_the_mask_instead_of_a_tensor(config, seed):
    # This form reads no window.
    config = dataclasses.replace(config, windows=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            layers.ATTENTIONS,
            "mine",
            partial(layers.Attention, attend=one_document_at_a_time),
        )
        patch.setattr(Mask, "dense", None)
        mine = build(dataclasses.replace(config, attention="mine"), seed)
        ids = tokens(config, 2, config.context_length, seed)
        documents = torch.randint(3, ids.shape, generator=torch.Generator().manual_seed(seed))
        documents = documents.sort(1).values
        logits = mine(ids, documents=documents)
    assert_close(logits, build(config, seed)(ids, documents=documents), **CLOSE)


class Priced(layers.SwiGLU):
    """A feedforward with a loss of its own, as a router has one."""

    def forward(self, x, context):
        context.losses.append(0.5 * self.up.weight.square().sum())
        return super().forward(x, context)


@pytest.mark.parametrize(("compiled", "again"), [(False, False), (False, True), (True, True)])
def test_a_layer_may_add_a_loss_of_its_own(monkeypatch, compiled, again):
    monkeypatch.setitem(layers.FEEDFORWARDS, "priced", Priced)
    plain = build(dataclasses.replace(SMALL, d_ff=16), dtype=torch.float32)
    priced = build(dataclasses.replace(SMALL, d_ff=16, feedforward="priced"), dtype=torch.float32)
    ids = tokens(SMALL, 2, 9)
    ups = [block.feedforward.up.weight for block in priced.blocks]
    priced.activation_checkpointing = again
    loss = torch.compile(priced.loss, backend="eager", fullgraph=True) if compiled else priced.loss
    found = loss(ids[:, :-1], ids[:, 1:])
    price = sum(0.5 * up.square().sum() for up in ups)
    assert_close(found, plain.loss(ids[:, :-1], ids[:, 1:]) + price)
    found.backward()
    assert all(up.grad.norm() > 0.5 * up.norm() for up in ups)


def test_logits_of_one_token_need_only_its_hidden_vector():
    made = build(SMALL)
    ids = tokens(SMALL, 2, 5)
    x = made.hidden(made.embed(ids), made.context(5))
    assert_close(made.head(x[:, -1]), made(ids)[:, -1])


def test_building_a_model_leaves_the_generator_of_torch_alone():
    for config in (SMALL, dataclasses.replace(SMALL, architecture="gpt2", tied=False)):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        model.build(config, seed=7)
        assert torch.equal(torch.rand(3), expected)


def test_a_part_that_draws_when_it_is_made_draws_by_the_seed(monkeypatch):
    class Mine(torch.nn.Module):
        roles: ClassVar = {"weight": "gain"}

        def __init__(self, width, *, eps, bias):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(width))

        def forward(self, x):
            return x * self.weight

    monkeypatch.setitem(layers.NORMS, "mine", Mine)
    config = dataclasses.replace(SMALL, norm="mine")
    one, same, other = (model.build(config, seed=seed).norm.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
