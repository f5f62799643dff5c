"""A window with first tokens: full attention behind a mask, in memory that does not grow."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.support.models import CLOSE, build, configs, tokens
from tinylm import cache
from tinylm.cache import window as module
from tinylm.config import ModelConfig
from tinylm.model import inference

SMALL = ModelConfig(vocab_size=11, d_model=12, n_layers=2, n_heads=2, context_length=24)


class Masked(cache.KINDS["contiguous"]):
    """All keys in one buffer, and a mask: the first and the newest keys are seen."""

    def attend(self, layer, q, k, v, context):
        self._put(self.k[layer], k)
        self._put(self.v[layer], v)
        keys, values = (self._filled(x[layer], k.size(2)) for x in (self.k, self.v))
        p = self.lengths[:, None, None] + torch.arange(k.size(2))[:, None]
        s = torch.arange(keys.size(2))
        seen = (s <= p) & ((p - s < self.window) | (s < self.first))
        if context.mask.window is not None:
            seen &= p - s < context.mask.window
        return self.states[layer].attend(q, keys, values, mask=seen[:, None])


def masked(model, rows, length, budget, first):
    """A `Masked` cache that shows what a window of `budget` shows."""
    made = Masked(
        model.decode_states(),
        rows,
        length,
        earlier=model.earlier_states(),
        dtype=model.weight.dtype,
        device=model.weight.device,
    )
    made.window, made.first = budget - first, first
    return made


LAW = given(
    config=configs(context_length=30),
    seed=st.integers(0, 2**31),
    budget=st.integers(1, 12),
    first=st.integers(0, 4),
    slack=st.integers(1, 4),
    data=st.data(),
)


@settings(max_examples=6, deadline=None)
@LAW
def test_a_window_is_full_attention_behind_the_same_mask(config, seed, budget, first, slack, data):
    first = min(first, budget - 1)
    model = build(config, seed)
    with pytest.MonkeyPatch.context() as patch, inference(model):
        patch.setattr(module, "SLACK", slack)
        held = cache.build(model, 3, 30, "window", budget=budget, first=first)
        plain = masked(model, 3, 30, budget, first)
        assert held.k[0].size(2) <= budget + slack
        for step in range(6):
            most = 30 - held.longest
            some = data.draw(st.lists(st.integers(0, 2), min_size=1, unique=True))
            count = data.draw(st.integers(0, most))
            if count:
                ids = tokens(config, len(some), count, seed + step)
                found, wanted = (model(ids, cache=each.rows(some)) for each in (held, plain))
                assert_close(found, wanted, **CLOSE)
            # Drafts are taken back, row by row, as far as a window can; then a row ends.
            back = data.draw(st.lists(st.integers(0, slack), min_size=3, max_size=3))
            ends = [max(0, top - n) for top, n in zip(held.tops, back, strict=True)]
            if all(end <= own for end, own in zip(ends, held.ends, strict=True)):
                for each in (held, plain):
                    each.truncate(torch.tensor(ends))
            action, row = data.draw(st.sampled_from(["clear", "fork", "select", "go on"])), step % 3
            if action == "clear":
                held.clear([row]), plain.clear([row])
            elif action == "fork":
                for each in (held, plain):
                    each.clear([(row + 1) % 3])
                    each.fork(row, [(row + 1) % 3])
            elif action == "select":
                order = torch.tensor([row, 0, row])
                held, other = held.select(order), plain.select(order)
                other.window, other.first = plain.window, plain.first
                plain = other
            assert held.ends == plain.ends


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=150, deadline=None)
@LAW
def test_150_windows_are_full_attention_behind_the_same_mask(**drawn):
    test_a_window_is_full_attention_behind_the_same_mask.hypothesis.inner_test(**drawn)


def test_a_draft_longer_than_the_slack_is_not_taken_back():
    model = build(replace(SMALL, context_length=128))
    held = cache.build(model, 1, 128, "window", budget=12)
    model(tokens(SMALL, 1, 100), cache=held)
    words = "100 tokens cannot be cut to 66, because the window then shows tokens that are gone"
    with pytest.raises(ValueError, match=words):
        held.truncate(torch.tensor([66]))
    assert held.ends == [100]
    held.truncate(torch.tensor([67]))
    held.clear()
    assert held.ends == held.tops == [0]


@pytest.mark.parametrize("position", ["rope", "none"])
def test_positions_move_back_and_the_window_does_not_notice(position, monkeypatch):
    monkeypatch.setattr(module, "SLACK", 3)
    # One layer: in more, what a token knows comes from further back than the window.
    config = replace(SMALL, n_layers=1, position=position, context_length=64)
    model = build(config)
    ids = tokens(config, 2, 60, 7)
    short = cache.build(model, 2, 30, "window", budget=8, first=0)
    long = cache.build(model, 2, 64, "window", budget=8, first=0)
    assert short.streams
    # Rows of unequal length move at different times.
    with inference(model):
        model(ids[:1, :5], cache=short.rows([0])), model(ids[:1, :5], cache=long.rows([0]))
        for part in ids[:, 5:].split([1, 2, 3, 9, 11, 1, 11, 6, 11], 1):
            assert_close(model(part, cache=short), model(part, cache=long), **CLOSE)
            assert short.longest <= 30
    assert long.longest == 60


def test_the_first_tokens_stay_where_they_are_and_come_nearer(monkeypatch):
    monkeypatch.setattr(module, "SLACK", 3)
    config = replace(SMALL, n_layers=1, context_length=64)
    model = build(config)
    ids = tokens(config, 1, 40, 7)
    held = cache.build(model, 1, 36, "window", budget=10, first=2)
    with inference(model):
        for part in ids[:, :35].split(7, 1):
            model(part, cache=held)
        logits = model(ids[:, 35:37], cache=held)
        # 35 tokens of which 2 are first, with a ring of 11: the others stand 22 places earlier.
        assert held.ends == [15]
    # The last token sees the newest 8. Read alone at those positions, the first at theirs:
    seen = torch.cat((ids[:, :2], ids[:, 29:37]), 1)
    places = torch.cat((torch.arange(2), torch.arange(29, 37) - 22))
    with inference(model):
        context = model.context(10, positions=places, tokens=seen)
        alone = model.head(model.hidden(model.embed(seen), context))
    assert_close(logits[:, 1], alone[:, -1], **CLOSE)


def test_learned_positions_end_with_the_context():
    config = replace(SMALL, position="learned", context_length=128)
    model = build(config)
    held = cache.build(model, 1, 128, "window", budget=8)
    assert not held.streams
    model(tokens(config, 1, 128), cache=held)
    with pytest.raises(cache.Full, match=r"128 \+ 1 tokens do not fit a cache of 128"):
        model(tokens(config, 1, 1), cache=held)


@pytest.mark.parametrize("budget", [0, 4])
def test_a_window_without_a_newest_token_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget={budget} tokens must be more than the first 4"):
        cache.build(build(SMALL), 1, 8, "window", budget=budget)


def test_the_memory_of_a_window_does_not_depend_on_the_length():
    config = replace(SMALL, context_length=4096)
    model = build(config)
    sizes = {cache.build(model, 2, n, "window", budget=64).stats().bytes for n in (128, 4096)}
    assert sizes == {2 * (64 + module.SLACK) * 2 * 2 * 12 * 8}
