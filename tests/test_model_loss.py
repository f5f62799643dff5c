"""The loss of a model is that of its logits, also of a model whose parts were changed."""

import pytest
import torch
from torch.testing import assert_close

from tests.support.models import CLOSE, build, tokens
from tinylm import ops
from tinylm.config import ModelConfig
from tinylm.model import Model

SMALL = ModelConfig(vocab_size=11, d_model=12, n_layers=2, n_heads=2, context_length=8, tied=False)


class Doubled(Model):
    """A model whose blocks count twice."""

    def hidden(self, x, context):
        return 2 * super().hidden(x, context)


def doubled_by_subclass(made):
    made.__class__ = Doubled


def doubled_by_hook(name):
    def change(made):
        made.get_submodule(name).register_forward_hook(lambda module, inputs, y: 2 * y)

    return change


def given_a_bias(made):
    head = torch.nn.Linear(made.config.d_model, made.config.vocab_size).double()
    with torch.no_grad():
        head.weight.copy_(made.head.weight)
    made.head = head


def given_a_forward(made):
    made.norm.forward = lambda x: 3 * x


CHANGES = {
    "a subclass": doubled_by_subclass,
    "a hook on the norm": doubled_by_hook("norm"),
    "a hook on the head": doubled_by_hook("head"),
    "a head with a bias": given_a_bias,
    "a norm with a forward of its own": given_a_forward,
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_loss_is_that_of_the_logits_however_the_model_was_changed(change):
    made = build(SMALL)
    ids = tokens(SMALL, 2, 5)
    before = made.loss(ids, ids)
    CHANGES[change](made)
    after = made.loss(ids, ids)
    assert not torch.isclose(before, after)
    assert_close(after, ops.cross_entropy(made(ids), ids), **CLOSE)


def test_hooks_of_every_norm_run():
    made, called = build(SMALL), []
    for name, module in made.named_modules():
        if name.endswith("norm"):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    made.loss(tokens(SMALL, 1, 4), tokens(SMALL, 1, 4))
    assert len(called) == 2 * SMALL.n_layers + 1
