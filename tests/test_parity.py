"""The gpt2 preset computes and trains what nanoGPT does (benches/bench_train.py: with its code)."""

from functools import partial

import torch

from tests.support.plain_gpt import PlainGPT
from tinylm import layers, model, optim
from tinylm.config import ModelConfig, OptimConfig

V, T, D, HEADS, LAYERS = 31, 16, 32, 4, 2
# The largest difference of logits and losses.
CLOSE = 1e-5
# The eps of both is far above the rounding of a gradient near zero, of which AdamW would otherwise
# make a whole step.
ADAMW = OptimConfig(name="adamw", lr=1e-2, betas=(0.9, 0.99), eps=1e-4, clip=0.5)


def ours_of(plain: PlainGPT) -> model.Model:
    """Our gpt2 preset with these weights; its biases are zero and do not train."""
    net = model.build(
        ModelConfig(
            architecture="gpt2",
            feedforward="exact_gelu",
            vocab_size=V,
            context_length=T,
            d_model=D,
            n_heads=HEADS,
            n_layers=LAYERS,
        )
    )
    given, ours = dict(plain.named()), dict(net.named_parameters())
    assert given.keys() == {name for name in ours if not name.endswith(".bias")}
    with torch.no_grad():
        for name, parameter in ours.items():
            if name in given:
                parameter.copy_(given[name])
            else:
                assert not parameter.any()
                parameter.requires_grad_(False)
    return net


def test_nanogpts_weights_give_its_logits_and_three_steps_end_at_its_weights(monkeypatch):
    # GPT-2, and so the preset, takes the approximation by tanh.
    exact = partial(layers.MLP, activation=torch.nn.functional.gelu)
    monkeypatch.setitem(layers.FEEDFORWARDS, "exact_gelu", exact)
    plain = PlainGPT(V, T, D, HEADS, LAYERS)
    net = ours_of(plain)
    matrices = plain.matrices()
    rest = [p for p in plain.parameters() if all(p is not m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=ADAMW.lr, betas=ADAMW.betas, eps=ADAMW.eps)
    ours = optim.build(net, ADAMW)
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        ids = torch.randint(V, (4, T + 1), generator=generator)
        tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        with torch.no_grad():
            torch.testing.assert_close(net(tokens), plain(tokens), rtol=0, atol=CLOSE)
        loss, expected = net.loss(tokens, targets), plain.loss(tokens, targets)
        torch.testing.assert_close(loss, expected, rtol=0, atol=CLOSE)
        loss.backward()
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), ADAMW.clip)
        # The first step is clipped, and not by a rounding.
        assert step > 0 or norm > 1.1 * ADAMW.clip
        rate = (1.0, 0.5, 0.1)[step]
        ours.step(rate)
        for group in theirs.param_groups:
            group["lr"] = rate * ADAMW.lr
        theirs.step()
        theirs.zero_grad()
    moved = dict(net.named_parameters())
    for name, weight in plain.named():
        torch.testing.assert_close(moved[name], weight, rtol=0, atol=CLOSE, msg=name)
