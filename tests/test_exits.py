"""Exits: the loss of the first blocks, passes that end early, and a run that trains them."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.support.models import CLOSE, build, tokens
from tests.test_train import SMALL as RUN
from tests.test_train import TEXT
from tinylm import cache, checkpoint, config, convert, ops, sample
from tinylm.config import ConfigError, ModelConfig, SampleConfig
from tinylm.layers import EXITS
from tinylm.model import inference
from tinylm.reference.speculation import exit_of, leaves_early
from tinylm.sample import exits
from tinylm.sample.engine import Engine
from tinylm.sample.exits import EarlyExit
from tinylm.sample.reader import Reader
from tinylm.sample.stats import Stats
from tinylm.train import train

SMALL = ModelConfig(vocab_size=11, d_model=12, n_layers=4, n_heads=2, context_length=30, exits=True)


# The native step, and torch.
BOTH = [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]


def shorter(made, layers):
    """The model of the first blocks of another, with its norm and head."""
    config = dataclasses.replace(made.config, n_layers=layers, exits=False)
    cut = build(config, dtype=made.weight.dtype)
    cut.load_state_dict(made.state_dict(), strict=False)
    return cut


@pytest.mark.parametrize("architecture", ["llama3", "gpt2"])
def test_the_loss_is_that_of_the_exits_and_of_the_last_block_by_their_shares(architecture):
    shape = dataclasses.replace(SMALL, architecture=architecture)
    made = build(shape).train()
    ids, targets = tokens(shape, 3, 30, seed=1), tokens(shape, 3, 30, seed=2)
    targets[:, :4] = ops.IGNORED
    plain = ops.cross_entropy(made(ids), targets)
    logits = torch.stack([shorter(made, n)(ids) for n in (1, 2, 3)])
    which = torch.tensor([exit_of(place, 3) for place in range(30)])
    early = ops.cross_entropy(logits[which, :, torch.arange(30)].transpose(0, 1), targets)
    assert_close(made.loss(ids, targets), (1 - EXITS) * plain + EXITS * early, **CLOSE)
    with inference(made):
        assert_close(made.loss(ids, targets), plain, **CLOSE)


@pytest.mark.slow
def test_the_compiled_loss_is_the_same():
    made = build(SMALL, dtype=torch.float32).train()
    ids = tokens(SMALL, 2, 16)
    loss = torch.compile(made.loss, dynamic=False, fullgraph=True, backend="aot_eager")
    assert_close(loss(ids, ids), made.loss(ids, ids))


def test_every_exit_has_tokens_in_a_short_row_and_deeper_ones_have_more():
    for count in (1, 2, 11, 31):
        counts = torch.bincount(torch.tensor([exit_of(n, count) for n in range(256)])).tolist()
        assert len(counts) == count
        assert min(counts) > 0
        halves = sum(counts[: count // 2]), sum(counts[-(count // 2) or count :])
        assert count < 2 or halves[0] < halves[1]


def test_a_pass_through_the_first_blocks_is_that_of_a_shorter_model():
    made = build(SMALL)
    ids = tokens(SMALL, 2, 9)
    with inference(made):
        context = made.context(9, tokens=ids, layers=2)
        found = made.head(made.hidden(made.embed(ids), context))
        assert_close(found, shorter(made, 2)(ids), **CLOSE)


def test_what_the_first_blocks_read_alone_is_read_again_by_all():
    """Their keys are taken back, so no block is left without those of a token."""
    made = build(SMALL)
    texts, more = tokens(SMALL, 2, 5).tolist(), tokens(SMALL, 2, 4, seed=3).tolist()
    with inference(made):
        reader, plain = (Reader(made, texts, 9, vocab_size=11) for _ in range(2))
        for step in range(3):
            reader.read([[row[step]] for row in more], layers=1)
        reader.truncate([5, 5])
        assert_close(reader.read(more), plain.read(more), rtol=0, atol=0)
        assert_close(reader.cache.k, plain.cache.k, rtol=0, atol=0)
        assert cache.build(made, 1, 5).lengths.tolist() == [0]


def test_a_folder_with_exits_stays_one_that_transformers_opens(tmp_path):
    for architecture, kind in (("llama3", "llama"), ("qwen3", "qwen3"), ("gpt2", "gpt2")):
        plain = dataclasses.replace(SMALL, architecture=architecture, exits=False)
        exits = dataclasses.replace(plain, exits=True)
        assert convert.model_type(exits) == kind
        for name, shape in (("plain", plain), ("exits", exits)):
            checkpoint.save(tmp_path / kind / name, build(shape, dtype=torch.float32), None)
        files = [load_file(tmp_path / kind / n / "model.safetensors") for n in ("plain", "exits")]
        assert files[0].keys() == files[1].keys()
        described = json.loads((tmp_path / kind / "exits/config.json").read_text())
        assert described["tinylm"]["exits"] is True
        assert checkpoint.load(tmp_path / kind / "exits")[0].config == exits


def defined(made, prompt, config, layers, confidence):
    """The greedy text of an early exit by whole passes, and how many tokens are from the exit."""
    text, early, cut = [*prompt], 0, shorter(made, layers)
    with inference(made):
        for place in range(config.max_tokens):
            ids = torch.tensor([text])
            whole, first = made(ids)[0, -1], cut(ids)[0, -1]
            # All blocks read the prompt.
            leaves = place > 0 and leaves_early(first.double().softmax(-1).tolist(), confidence)
            early += leaves
            text.append(int((first if leaves else whole).argmax()))
    return text[len(prompt) :], early


@pytest.mark.parametrize("dtype", BOTH)
def test_an_early_exit_is_that_of_the_definition(dtype, monkeypatch):
    made = build(SMALL, dtype=dtype)
    prompts = tokens(SMALL, 3, 5).tolist()
    config = SampleConfig(temperature=0, max_tokens=20)
    for layers, confidence in ((1, 0.5), (3, 0.8)):
        early = EarlyExit(layers, confidence)
        wanted = [defined(made, prompt, config, layers, confidence) for prompt in prompts]
        stats = Stats()
        found = sample.generate(made, prompts, config, draft=early, stats=stats)
        assert found == [text for text, _ in wanted]
        assert (stats.kept, stats.guessed) == (sum(n for _, n in wanted), 3 * 19)
        assert 0 < stats.kept < stats.guessed
        # Blocks that catch up sooner change nothing.
        monkeypatch.setattr(exits, "SKIPPED", 2)
        assert sample.generate(made, prompts, config, draft=early) == found
        monkeypatch.undo()
    # A probability of 1 is never reached: the texts are those of the whole model.
    assert sample.generate(made, prompts, config, draft=EarlyExit(2, 1.0)) == sample.generate(
        made, prompts, config
    )


@pytest.mark.parametrize("dtype", BOTH)
def test_a_text_that_exits_early_does_not_depend_on_its_company(dtype):
    """Also where stops end some texts, and where the window moves on."""
    made = build(SMALL, dtype=dtype)
    prompts = tokens(SMALL, 4, 5).tolist()
    config = SampleConfig(temperature=1.0, max_tokens=40, stop=(3,), exit_confidence=0.5)
    together = sample.generate(made, prompts, dataclasses.replace(config, samples=2))
    assert len({len(text) for text in together}) > 1
    assert together[0] == sample.generate(made, prompts[:1], config)[0]
    whole = dataclasses.replace(config, exit_confidence=None, samples=2)
    assert together != sample.generate(made, prompts, whole)
    for kind in ("paged", "int8"):
        held = dataclasses.replace(config, samples=2, cache=kind)
        found = sample.generate(made, prompts, held)
        assert found == together or kind == "int8"


def test_an_early_exit_that_cannot_be_is_refused():
    model = build(SMALL)
    plain = build(dataclasses.replace(SMALL, exits=False))
    for made, given, problem in (
        (plain, {}, "sample.exit_confidence=0.9: the model has no exits; train one with"),
        (model, {"exit_layer": 4}, "sample.exit_layer=4: the model has 4 blocks; it is 1 to 3"),
    ):
        with pytest.raises(ConfigError, match=problem):
            sample.generate(made, [[1]], SampleConfig(exit_confidence=0.9, **given))
    for given, problem in (
        ({"draft": "lookup"}, "has no use for sample.draft='?lookup'?: leave one of them out"),
        ({"logprobs": 1}, "sample.logprobs=1 are the whole model's"),
        (
            {"cache": "window", "cache_tokens": 9},
            "takes tokens back, and sample.cache=window cannot",
        ),
    ):
        with pytest.raises(ConfigError, match=f"sample.exit_confidence=0.9: {problem}"):
            config.load(None, ["sample.exit_confidence=0.9", *overrides(given)])
    with pytest.raises(ValueError, match=r"exit_confidence=0\.9: the engine draws one token at"):
        Engine(model).add([1], SampleConfig(exit_confidence=0.9))


def overrides(given):
    return [f"sample.{name}={value}" for name, value in given.items()]


def test_exits_need_a_block_that_is_none():
    with pytest.raises(ConfigError, match=r"model.exits=true: needs n_layers of at least 2"):
        config.load(None, ["model.exits=true", "model.n_layers=1"])


@pytest.mark.slow
def test_a_run_with_exits_goes_on_as_it_was_and_drafts_for_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cats.txt").write_text(TEXT)
    keys = [*RUN, "model.n_layers=3", "model.exits=true", "train.steps=8", "track.names=[]"]
    keys.append("checkpoint.keep=9")
    train(config.load(None, [*keys, "out=whole", "sample.draft=skip:1"]))
    train(config.load(None, [*keys, "out=again", "train.resume=whole/checkpoints/step-00000004"]))
    whole, again = (
        load_file(checkpoint.latest(n) / "model.safetensors") for n in ("whole", "again")
    )
    assert_close(whole, again, rtol=0, atol=0)
    # A run that begins from plain weights learns them, if it is told to.
    begun = train(config.load(None, [*RUN, "train.steps=2", "out=plain", "model.n_layers=3"]))
    more = [f"train.init={begun}", "model.exits=true", "train.steps=2", "out=more"]
    assert checkpoint.load(train(config.load(None, [*RUN, *more])))[0].config.exits
    model, tokenizer = checkpoint.load("whole")
    prompt, plain = tokenizer.encode("the 3 cats"), SampleConfig(temperature=0, max_tokens=20)
    drafted, stats = dataclasses.replace(plain, draft="skip:1"), Stats()
    found = sample.generate(model, [prompt], drafted, stats=stats)
    assert found == sample.generate(model, [prompt], plain)
    assert stats.guessed > 0
    early, stats = dataclasses.replace(plain, exit_confidence=1e-6), Stats()
    assert len(sample.generate(model, [prompt], early, stats=stats)) == 1
    assert stats.kept == stats.guessed > 0
    assert "tokens from the first 2 blocks (100%)" in str(stats)
