"""Starting weights that copy: an untrained model reads a text better the second time."""

import dataclasses
import json

import pytest
import torch

from tests.support import ranks
from tests.support.models import tokens
from tinylm import checkpoint, config, model
from tinylm.config import ModelConfig
from tinylm.layers import bigram
from tinylm.train import beginning, processes
from tinylm.train.distributed import First

SMALL = ModelConfig(
    architecture="qwen3",
    vocab_size=500,
    d_model=192,
    n_heads=3,
    n_layers=2,
    context_length=256,
    rope_theta=1e5,
    start="copying",
)


def second_reading(config, text=None):
    """Nats per token that the second reading of random texts is cheaper than the first."""
    made, ids = model.build(config, text=text), tokens(config, 8, 60)
    twice = torch.cat((ids, ids), 1)
    with torch.no_grad():
        logits = made(twice[:, :-1]).transpose(1, 2)
    nats = torch.nn.functional.cross_entropy(logits, twice[:, 1:], reduction="none").mean(0)
    return float(nats[:59].mean() - nats[62:].mean())


@pytest.mark.parametrize("changes", [{}, {"n_heads": 6, "n_kv_heads": 3, "head_size": 64}])
def test_an_untrained_model_copies_what_it_has_read(changes):
    config = dataclasses.replace(SMALL, **changes)
    assert second_reading(config) > 0.7
    assert abs(second_reading(dataclasses.replace(config, start="plain"))) < 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "llama3"}, "qk_norm=true"),
        ({"n_layers": 1}, "2 blocks"),
        ({"n_kv_heads": 1}, "2 heads"),
        ({"n_heads": 12}, "32 channels"),
        ({"n_heads": 2, "d_model": 96, "head_size": 64}, "d_model of at least"),
        ({"rope_theta": 2.0}, "larger rope_theta than 2"),
    ],
)
def test_what_cannot_start_so_is_refused(changes, words):
    with pytest.raises(ValueError, match=r"model\.start=copying") as error:
        model.build(dataclasses.replace(SMALL, **changes))
    assert words in str(error.value)


def test_a_run_that_cannot_start_so_is_refused_before_its_text_is_read():
    def text():
        raise AssertionError("the text was opened")

    words = ["model.start=copying", "model.n_layers=1", "model.architecture=qwen3"]
    run = config.load(None, words)
    first = First(ranks.session(processes.Place()))
    with pytest.raises(config.ConfigError, match=r"model\.start=copying: needs at least 2 blocks"):
        beginning.start(run, None, text, text, first)


def chain(count=200_000, words=200, seed=0):
    """Ids of a text in which each token has three that may follow it, and the best loss on it."""
    chance = torch.Generator().manual_seed(seed)
    following = torch.randint(0, words, (words, 3), generator=chance)
    picks = torch.randint(0, 3, (count,), generator=chance).tolist()
    ids, table = [0], following.tolist()
    for pick in picks:
        ids.append(table[ids[-1]][pick])
    return torch.tensor(ids)


@pytest.mark.parametrize("tied", [True, False])
def test_an_untrained_model_predicts_as_the_bigrams_of_its_text_and_copies(tied):
    config = dataclasses.replace(SMALL, start="bigram", tied=tied, vocab_size=200)
    text = chain()
    made = model.build(config, text=text)
    rows = text[: 8 * 65].view(8, 65)
    with torch.no_grad():
        loss = float(made.loss(rows[:, :-1], rows[:, 1:]))
    share = torch.bincount(text, minlength=200) / len(text)
    entropy = -float((share * share.clamp_min(1e-9).log()).sum())
    # The best possible is ln 3 or less; a model that knows the shares alone has the entropy.
    assert loss < 0.85 * entropy
    assert second_reading(config, text) > 1
    again = model.build(config, text=text)
    assert all(map(torch.equal, made.parameters(), again.parameters()))


def test_the_factors_of_a_bigram_model_are_the_largest_singular_triples():
    text, size = chain(5000, 40), 40
    after, what = bigram.factors(text, size, 12, torch.Generator().manual_seed(0))
    counts = torch.zeros(size, size).index_put_(
        (text[:-1], text[1:]), torch.ones(()), accumulate=True
    )
    share = (torch.bincount(text, minlength=size) + 1).float()
    share /= share.sum()
    smooth = bigram.SMOOTHING
    log = ((counts + smooth * share) / (counts.sum(1, keepdim=True) + smooth)).log()
    log -= (share[:, None] * share * log).sum()
    root = share.sqrt()
    left, strength, right = torch.linalg.svd(root[:, None] * log * root)
    best = (left[:, :12] * strength[:12]) @ right[:12]
    found = root[:, None] * (after @ what.T) * root
    assert torch.allclose(found, best, atol=1e-3 * float(strength[0]))


def test_a_bigram_start_needs_a_text():
    with pytest.raises(
        ValueError, match=r"model\.start=bigram needs a text: give its ids as text="
    ):
        model.build(dataclasses.replace(SMALL, start="bigram"))
    with pytest.raises(ValueError, match="a text of 1 tokens has no pairs"):
        model.build(dataclasses.replace(SMALL, start="bigram"), text=torch.tensor([1]))
    few = dataclasses.replace(SMALL, start="bigram", n_kv_heads=2, n_heads=2, head_size=64)
    with pytest.raises(
        ValueError, match=r"model\.start=bigram: needs at least 2 blocks and 3 heads"
    ):
        model.build(few, text=chain(100, 40))


def test_a_saved_model_says_how_it_started(tmp_path):
    made = model.build(dataclasses.replace(SMALL, vocab_size=9))
    checkpoint.save(tmp_path / "model", made, None)
    assert checkpoint.load(tmp_path / "model")[0].config == made.config
    content = json.loads((tmp_path / "model/config.json").read_text())
    assert content["model_type"] == "qwen3"
