"""Every legal mix of the registered parts is a language model: five laws, drawn configs.

`make test` draws a few; the slow test draws four configs of each of the 144 mixes of norm,
position, feedforward, attention and tying, 576 together, and asks all five of each. The other parts
are drawn.
"""

from itertools import product
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.rungs.rung import SEEDS, near
from tests.rungs.training import FLOAT64, decoded, whole_forward
from tests.support.models import build, configs, tokens
from tinylm import checkpoint, layers
from tinylm.config import ModelConfig

REGISTRIES = {
    "norm": layers.NORMS,
    "position": layers.POSITIONS,
    "feedforward": layers.FEEDFORWARDS,
    # The others differ from auto on a GPU alone (tests/test_attentions.py).
    "attention": ("auto", "manual"),
    "tied": (True, False),
}
MIXES = [dict(zip(REGISTRIES, mix, strict=True)) for mix in product(*REGISTRIES.values())]
SHARES = st.floats(0, 1)


def is_causal(config, seed, share):
    """Changing a token leaves earlier logits alone, and changes its own."""
    made, place = build(config, seed), int(share * (config.context_length - 1))
    ids = tokens(config, 2, config.context_length, seed)
    other = ids.clone()
    other[:, place] = (ids[:, place] + 1) % config.vocab_size
    before, after = made(ids), made(other)
    assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-12)
    if config.vocab_size > 1:
        assert not torch.equal(after[:, place], before[:, place])


def decodes_in_chunks(config, seed, share):
    """Reading in chunks with a cache gives the logits of reading all at once."""
    cuts = [share, share / 2, share / 3]
    assert near(FLOAT64)(whole_forward(config, seed, cuts), decoded(config, seed, cuts))


def has_finite_gradients(config, seed, share):
    """Every parameter gets one."""
    made = build(config, seed)
    ids = tokens(config, 2, config.context_length + 1, seed)
    loss = made.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    assert loss.isfinite()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def is_saved_and_loaded(config, seed, share):
    """A checkpoint gives the same weights, bit for bit, and the same logits."""
    made = build(config, seed, dtype=torch.float32)
    ids = tokens(config, 2, config.context_length, seed)
    with TemporaryDirectory() as folder:
        checkpoint.save(f"{folder}/model", made, None)
        loaded, tokenizer = checkpoint.load(f"{folder}/model")
    assert tokenizer is None
    assert loaded.state_dict().keys() == made.state_dict().keys()
    for name, tensor in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded(ids), made(ids))


def counts_by_the_formula(config, seed, share):
    """Parameters and operations are what the widths say."""
    made, chosen = build(config, seed), config.components()
    d, vocab = config.d_model, config.vocab_size
    inside = config.kv_heads * config.head_width
    gated = chosen["feedforward"] == "swiglu"
    width = config.d_ff or (-(-(8 * d) // 48) * 16 if gated else 4 * d)
    outside, layers = config.n_heads * config.head_width, config.n_layers
    products = 2 * d * (outside + inside) + (3 if gated else 2) * d * width
    biases = outside + 2 * inside + d + (2 if gated else 1) * width + d
    gained = not chosen["norm"].startswith("plain")
    norm = d * gained * (1 + (chosen["norm"] == "layernorm" and chosen["bias"]))
    heads = 2 * config.head_width * gained * chosen["qk_norm"]
    mixes = inside * chosen["key_mix"] + d * chosen["token_shift"] + 2 * chosen["shortcut"]
    block = products + chosen["bias"] * biases + (2 - chosen["parallel"]) * norm + heads + mixes
    body = layers * block + (1 + chosen["embedding_norm"]) * norm
    body += 2 * (layers - 1) * chosen["value_residual"]
    head = 0 if config.tied else vocab * d
    tables = vocab * d + config.context_length * d * (chosen["position"] == "learned")
    tables += config.value_embeddings * vocab * inside + config.bigrams * d
    assert made.n_parameters() == body + head + tables
    assert made.n_parameters(embedding=False) == body + head
    seen = 12 * layers * outside * config.context_length
    wanted = 6 * (config.n_layers * products + (1 + config.exits) * vocab * d) + seen
    assert made.flops_per_token(config.context_length) == wanted


LAWS = [
    is_causal,
    decodes_in_chunks,
    has_finite_gradients,
    is_saved_and_loaded,
    counts_by_the_formula,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@settings(max_examples=40, deadline=None)
@given(config=configs(), seed=SEEDS, share=SHARES)
def test_a_model_of_any_parts(law, config, seed, share):
    law(config, seed, share)


def test_there_are_144_mixes_and_each_can_be_built():
    assert len(MIXES) == 144
    for mix in MIXES:
        config = ModelConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=1, **mix)
        chosen = config.components()
        assert {name: chosen[name] for name in chosen.keys() & mix} == {
            name: mix[name] for name in chosen.keys() & mix
        }
        assert build(config).n_parameters() > 0


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(map(str, mix.values())))
def test_all_laws_hold_for_every_mix(mix):
    drawn = 0

    @settings(max_examples=4, deadline=None, database=None)
    @given(config=configs(**mix), seed=SEEDS, share=SHARES)
    def hold(config, seed, share):
        nonlocal drawn
        drawn += 1
        for law in LAWS:
            law(config, seed, share)

    hold()
    assert drawn >= 4
