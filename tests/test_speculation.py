"""Speculation: greedy texts are those of plain decoding, drawn ones by their distribution."""

import dataclasses
from collections import Counter
from itertools import product, takewhile

import pytest
import torch

from tests.support.fakes import ByteTokenizer
from tests.support.models import build
from tinylm import Tokenizer, checkpoint, sample
from tinylm.config import ConfigError, ModelConfig, SampleConfig
from tinylm.config import load as load_settings
from tinylm.model import inference
from tinylm.sample import decoding, forward, logits, speculation
from tinylm.sample.drafts import ExitDraft, ModelDraft, find
from tinylm.sample.engine import Engine
from tinylm.sample.lookup import LookupDraft
from tinylm.sample.reader import Reader
from tinylm.sample.speculation import Speculator
from tinylm.sample.stats import Stats

SMALL = ModelConfig(vocab_size=17, d_model=12, n_layers=3, n_heads=2, context_length=24, exits=True)
PENALTIES = {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.1}
PROMPTS = [[1, 2, 3], [5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 1, 2]]


@pytest.fixture(scope="module")
def small():
    return build(SMALL)


@pytest.fixture(scope="module")
def drafts(small):
    """Every kind; of models one that sees less, and one that is always right."""
    other = build(dataclasses.replace(SMALL, n_layers=1, exits=False, context_length=9), 3)
    return {
        "lookup": LookupDraft(),
        "model": ModelDraft(other),
        "same": ModelDraft(small),
        "skip": ExitDraft(2),
    }


KINDS = ["lookup", "model", "same", "skip"]


# Beyond the context the window moves, also in the middle of a pass.
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_are_those_of_plain_decoding(kind, small, drafts):
    stats = Stats()
    for config in (
        SampleConfig(temperature=0, max_tokens=25),
        SampleConfig(temperature=0, max_tokens=8, stop=(3,), draft_tokens=2, **PENALTIES),
    ):
        found = sample.generate(small, PROMPTS, config, draft=drafts[kind], stats=stats)
        assert found == sample.generate(small, PROMPTS, config)
    assert 0 < stats.kept <= stats.guessed
    assert (stats.acceptance == 1) == (kind == "same")


@pytest.mark.parametrize("kind", KINDS)
def test_the_native_step_reads_and_chooses_guesses_bit_for_bit(kind, monkeypatch):
    model = build(SMALL, dtype=torch.float32)
    other = build(dataclasses.replace(SMALL, n_layers=1, exits=False), 3, dtype=torch.float32)
    drafts = {"lookup": LookupDraft(), "skip": ExitDraft(2), "same": ModelDraft(model)}
    draft = drafts.get(kind, ModelDraft(other))
    # Up to the end of the context, where a window moves: torch's way takes over there.
    cold = SampleConfig(temperature=0, max_tokens=15, stop=(3,), samples=2)
    wanted = sample.generate(model, PROMPTS, cold)
    scored = dataclasses.replace(cold, logprobs=2, max_tokens=25)
    found = sample.complete(model, PROMPTS, scored, draft=draft)
    assert found == sample.complete(model, PROMPTS, scored)
    warm = dataclasses.replace(cold, temperature=0.9, stop=(3,), seed=4)
    drawn = sample.generate(model, PROMPTS, warm)
    inside, stats = [], Stats()
    whole = forward.Forward.draw
    monkeypatch.setattr(forward.Forward, "draw", lambda *a, **b: inside.append(1) or whole(*a, **b))
    assert sample.generate(model, PROMPTS, cold, draft=draft, stats=stats) == wanted
    assert len(inside) >= 3
    assert stats.kept > 0
    inside.clear()
    if kind == "lookup":
        assert sample.generate(model, PROMPTS, warm, draft=draft) == drawn
        assert len(inside) >= 3


def test_copied_guesses_leave_every_draw_as_it_is(small):
    config = SampleConfig(temperature=0.9, top_k=9, samples=2, max_tokens=20, **PENALTIES)
    stats = Stats()
    found = sample.generate(small, PROMPTS, config, draft=LookupDraft(), stats=stats)
    assert found == sample.generate(small, PROMPTS, config)
    assert 0 < stats.kept < stats.guessed


@pytest.mark.parametrize("kind", ["model", "skip"])
def test_a_text_does_not_depend_on_its_company(kind, small, drafts):
    config = SampleConfig(temperature=1.0, max_tokens=10, samples=2, stop=(5,))
    together = sample.generate(small, PROMPTS, config, draft=drafts[kind])
    assert together[:2] == sample.generate(small, PROMPTS[:1], config, draft=drafts[kind])
    assert together != sample.generate(small, PROMPTS, config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_the_text_of_generate(kind, drafts):
    tokenizer = ByteTokenizer()
    wide = dataclasses.replace(SMALL, vocab_size=257)
    model = build(wide)
    draft = ModelDraft(build(wide, 5)) if kind in ("model", "same") else drafts[kind]
    for config in (SampleConfig(max_tokens=12, heal=False, bos=False), SampleConfig(max_tokens=12)):
        ids = list(decoding.stream_ids(model, tokenizer, "ab", config, draft=draft))
        if not config.heal:
            prompt = tokenizer.encode("ab")
            generated = sample.generate(model, [prompt], config, tokenizer=tokenizer, draft=draft)
            assert [ids] == generated
        assert len(ids) <= 12


@pytest.mark.parametrize("kind", ["paged", "int8", "int4"])
def test_guesses_are_taken_back_from_every_cache_that_keeps_all_tokens(kind, small, drafts):
    config = SampleConfig(temperature=0, max_tokens=8, cache=kind)
    wanted = sample.generate(small, PROMPTS[:2], config)
    for draft in ("model", "skip"):
        assert sample.generate(small, PROMPTS[:2], config, draft=drafts[draft]) == wanted


def test_guesses_of_several_tokens_take_fewer_passes(small):
    """The model itself is always right: each pass adds all guesses and one token more."""
    passes = []
    hook = small.norm.register_forward_hook(lambda module, args, out: passes.append(out.size(1)))
    config = SampleConfig(temperature=0, max_tokens=16, draft_tokens=4)
    sample.generate(small, [[1, 2, 3]], config, draft=ExitDraft(3), stats=(stats := Stats()))
    hook.remove()
    # The prompt, then three times a plain pass to compare with, four guesses and the pass that
    # reads them.
    assert passes == [3, *[1, 1, 1, 1, 1, 5] * 3]
    assert (stats.tried, 0 < stats.speedup < 3) == (3, True)
    assert (stats.passes, stats.tokens, stats.kept, stats.guessed) == (3, 15, 12, 12)
    assert "12 of 12 guesses kept (100%), 5.00 tokens per pass" in str(stats)


def test_log_probabilities_and_restrictions_are_those_of_plain_decoding(small, drafts):
    """Also of rows that draw on after a guess that was refused, and of what is taken back."""
    given = {"logprobs": 2, "logit_bias": {2: 1.5}, "min_tokens": 6, "stop": (3, 4), "seed": 2}
    config = SampleConfig(temperature=0.8, max_tokens=14, bad_words_ids=((1, 2),), **given)
    for kind, cold in product(("lookup", "model"), (True, False)):
        settings = dataclasses.replace(config, temperature=0) if cold else config
        found = logged(small, settings, drafts[kind])
        assert [len(row) for row, _ in found] >= [6, 6]
        if cold or kind == "lookup":
            for (ids, rows), (wanted, plain) in zip(found, logged(small, settings), strict=True):
                assert ids == wanted
                for one, other in zip(rows, plain, strict=False):
                    assert (one.id, one.rank) == (other.id, other.rank)
                    assert one.logprob == pytest.approx(other.logprob, abs=1e-9)
        for ids, rows in found:
            assert [row.id for row in rows][: len(ids)] == ids


ENDING = {"allowed_token_ids": (7, 8), "stop": (8,), "bad_words_ids": ((8, 7), (8, 8))}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_drawn_after_the_end_of_a_text(kind, small, drafts):
    """No token may follow the stop here, and some rows end before others."""
    for seed in range(6):
        config = SampleConfig(temperature=1.0, max_tokens=12, samples=6, seed=seed, **ENDING)
        found = sample.generate(small, PROMPTS, config, draft=drafts[kind])
        assert {id for ids in found for id in ids} == {7}
        if kind == "lookup":
            assert found == sample.generate(small, PROMPTS, config)


def test_a_draft_that_runs_into_a_dead_end_guesses_no_further(small, drafts):
    """Nothing may follow 8, which the draft takes and the model never does."""
    config = SampleConfig(
        temperature=0, max_tokens=8, allowed_token_ids=(0, 2, 8),
        bad_words_ids=((8, 0), (8, 2), (8, 8)),
    )  # fmt: skip
    with pytest.raises(ValueError, match="no token may follow"):
        sample.generate(drafts["model"].model, PROMPTS[:1], config)
    plain = sample.generate(small, PROMPTS[:1], config)
    assert sample.generate(small, PROMPTS[:1], config, draft=drafts["model"]) == plain


def test_no_guess_comes_after_one_that_ends_the_text(small):
    (plain,) = sample.generate(small, [[1, 2, 3]], SampleConfig(temperature=0, max_tokens=12))
    end = next(i for i in range(1, 12) if plain[i] not in plain[:i])
    config = SampleConfig(temperature=0, max_tokens=12, stop=(plain[end],), draft_tokens=10)
    draft = ModelDraft(small)
    found = sample.generate(small, [[1, 2, 3]], config, draft=draft, stats=(stats := Stats()))
    assert found == [plain[:end]]
    # The first token is no guess, and the stop is one that is kept.
    assert (stats.passes, stats.guessed, stats.kept) == (1, end, end)


def logged(model, config, draft=None):
    """The ids and log-probabilities of two texts, in plain steps or in passes of several tokens."""
    with inference(model):
        reader = Reader(model, [[1, 2, 3], [5, 6, 7]], 60, vocab_size=17)
        drawer = speculation._drawer(reader, [(0, 0), (1, 0)], config, {3, 4}, None)
        if draft is None:
            for _ in range(config.max_tokens):
                ids = drawer.draw(reader.last)
                reader.read([[id] for id in ids])
        else:
            speculator = Speculator(reader, drawer, draft, config.max_tokens, tokens=3)
            while max(speculator.left) > 0:
                speculator.step()
    # A row that ended draws on until the other has, and may then be longer.
    texts = [row[: config.max_tokens] for row in drawer.drawn]
    ended = [len(list(takewhile(lambda id: id not in (3, 4), row))) for row in texts]
    return [(row[:end], logs) for row, end, logs in zip(texts, ended, drawer.logprobs, strict=True)]


CHI = ModelConfig(vocab_size=4, d_model=8, n_layers=2, n_heads=2, context_length=12, exits=True)
DRAWS, LENGTH = 50_000, 4
CHI_PROMPT = [0, 1, 2, 0, 3, 1]


def expected(model, config):
    """The probability of every continuation of `LENGTH` tokens, by whole forward passes."""
    texts = list(product(range(4), repeat=LENGTH))
    share = torch.ones(len(texts), dtype=torch.float64)
    with inference(model):
        for place in range(LENGTH):
            rows = torch.tensor([[*CHI_PROMPT, *text[:place]] for text in texts])
            drawn = torch.tensor(texts)[:, :place]
            counts = torch.nn.functional.one_hot(drawn, 4).sum(1).double()
            seen = torch.nn.functional.one_hot(rows, 4).sum(1) > 0
            p = logits.process(model(rows)[:, -1].double(), seen, counts, config).softmax(-1)
            share *= p.gather(1, torch.tensor(texts)[:, place : place + 1])[:, 0]
    return dict(zip(texts, share.tolist(), strict=True))


def chi_squared(found, wanted):
    """The probability of a difference as large by chance; rare texts count as one."""
    rare = {text for text, share in wanted.items() if share * DRAWS < 5}
    pairs = [(found[text], wanted[text] * DRAWS) for text in wanted.keys() - rare]
    rest = sum(wanted[text] for text in rare) * DRAWS
    if rest >= 5:
        pairs.append((sum(found[text] for text in rare), rest))
    total = sum((seen - share) ** 2 / share for seen, share in pairs)
    half = torch.tensor([(len(pairs) - 1) / 2, total / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def drawn(model, draft, config, monkeypatch):
    monkeypatch.setattr(speculation, "ROWS", 5_000)
    config = dataclasses.replace(config, samples=DRAWS, max_tokens=LENGTH)
    stats = Stats()
    texts = sample.generate(model, [CHI_PROMPT], config, draft=draft, stats=stats)
    return Counter(map(tuple, texts)), stats.acceptance


CHI_CONFIGS = {
    "plain": SampleConfig(temperature=1.0, draft_tokens=2, seed=11),
    "filtered": SampleConfig(temperature=1.3, top_p=0.95, top_k=3, draft_tokens=3, **PENALTIES),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("settings", CHI_CONFIGS)
@pytest.mark.parametrize("kind", ["lookup", "model", "skip"])
def test_the_distribution_is_that_of_plain_decoding(kind, settings, monkeypatch):
    # Models in float32 run on the native step, those in float64 in torch.
    dtype = torch.float64 if settings == "filtered" else torch.float32
    model, config = build(CHI, dtype=dtype), CHI_CONFIGS[settings]
    other = build(dataclasses.replace(CHI, n_layers=1, exits=False), 5, dtype=dtype)
    draft = {"lookup": LookupDraft(), "model": ModelDraft(other), "skip": ExitDraft(1)}[kind]
    found, acceptance = drawn(model, draft, config, monkeypatch)
    assert 0.1 < acceptance < 0.9
    assert chi_squared(found, expected(model, config)) > 0.01


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_draft_that_is_trusted_too_much_is_found_out(monkeypatch):
    """The test above can fail: it does if guesses are kept half as often again as they may be."""
    right = speculation.judge
    monkeypatch.setattr(
        speculation, "judge", lambda p, q, d, keep, n: right(p, q, d, keep / 1.5, n)
    )
    model, config = build(CHI), CHI_CONFIGS["plain"]
    found, _ = drawn(model, ExitDraft(1), config, monkeypatch)
    assert chi_squared(found, expected(model, config)) < 1e-6


def test_a_draft_is_a_folder_and_may_be_the_models_own(tmp_path):
    model = build(dataclasses.replace(SMALL, exits=False), dtype=torch.float32)
    checkpoint.save(tmp_path / "same", model, None)
    config = SampleConfig(temperature=0, max_tokens=12, draft=str(tmp_path / "same"))
    stats = Stats()
    found = sample.generate(model, [[1, 2]], config, stats=stats)
    plain = dataclasses.replace(config, draft=None)
    assert found == sample.generate(model, [[1, 2]], plain)
    assert stats.acceptance == 1


def test_a_draft_that_cannot_guess_for_a_model_is_refused(small, tmp_path):
    other = build(dataclasses.replace(SMALL, vocab_size=18), dtype=torch.float32)
    checkpoint.save(tmp_path / "other", other, None)
    plain = build(dataclasses.replace(SMALL, exits=False))
    for model, draft, problem in (
        (small, str(tmp_path / "other"), "has a vocabulary of 18, and the model one of 17"),
        (small, "skip:3", "skip:3: the model has 3 blocks; N is 1 to 2"),
        (plain, "skip:1", "the model has no exits; train one with model.exits=true"),
    ):
        with pytest.raises(ConfigError, match=f"sample.draft=.*{problem}"):
            find(SampleConfig(draft=draft), model)
    with pytest.raises(FileNotFoundError):
        find(SampleConfig(draft=str(tmp_path / "none")), small)


def test_a_draft_with_another_tokenizer_is_refused(tmp_path):
    model = build(dataclasses.replace(SMALL, vocab_size=262), dtype=torch.float32)
    tokenizers = [Tokenizer.train([text], vocab_size=262) for text in ("the cat", "a dog sat")]
    checkpoint.save(tmp_path / "run", model, tokenizers[0])
    config = SampleConfig(draft=str(tmp_path / "run"))
    assert find(config, model, tokenizers[0]) is not None
    with pytest.raises(ConfigError, match="has another tokenizer"):
        find(config, model, tokenizers[1])


@pytest.mark.parametrize("draft", ["skip", "skip:", "skip:0", "skip:x", "skip:-1"])
def test_blocks_to_guess_with_are_a_number(draft):
    with pytest.raises(ConfigError, match=r"expected skip:N, N at least 1"):
        load_settings(None, [f"sample.draft={draft}"])


def test_an_engine_draws_one_token_at_a_time(small):
    engine = Engine(small)
    for config in (SampleConfig(draft="lookup"), SampleConfig(num_beams=2)):
        with pytest.raises(ValueError, match=r"use generate\(\) or stream\(\)"):
            engine.add([1, 2], config)
    assert not engine.live


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (["sample.num_beams=2"], "has no use for num_beams=2"),
        (
            ["sample.cache=snapkv", "sample.cache_tokens=9"],
            "takes tokens back, and sample.cache=snapkv cannot",
        ),
    ],
)
def test_what_cannot_be_guessed_ahead_is_refused(other, problem):
    with pytest.raises(ConfigError, match=f"sample.draft=lookup: {problem}"):
        load_settings(None, ["sample.draft=lookup", *other])
