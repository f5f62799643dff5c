"""Sampling: texts against reading everything anew."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fakes import ByteTokenizer
from tests.support.models import build
from tinylm import sample
from tinylm.config import ModelConfig, SampleConfig
from tinylm.sample import decoding, drawer, logits, reader, samples
from tinylm.sample.stops import cut

SMALL = ModelConfig(
    vocab_size=257, d_model=12, n_layers=2, n_heads=2, context_length=16, tied=False
)


@pytest.fixture(scope="module")
def small():
    return build(SMALL, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return ByteTokenizer()


@pytest.mark.parametrize("context", [1, 2, 3, 7, 8])
def test_a_full_window_keeps_its_newer_half_and_grows_again(context):
    half, seen = max(1, context // 2), 0
    for length in range(1, 5 * context):
        seen = seen + 1 if seen < context else half
        assert reader.visible(length, context) == seen


def slow(model, prompt, config, number=0, index=0):
    """Tokens one by one, the whole visible text read anew for each."""
    text = list(prompt)
    numbers = iter(logits.uniforms(config.seed, number, index, 0, config.max_tokens))
    for _ in range(config.max_tokens):
        window = text[-reader.visible(len(text), model.config.context_length) :]
        with torch.no_grad():
            row = model(torch.tensor([window]))[:, -1].double()
        counts = torch.bincount(
            torch.tensor(text[len(prompt) :], dtype=torch.int64), minlength=row.size(1)
        )[None]
        seen = torch.bincount(torch.tensor(text), minlength=row.size(1))[None] > 0
        row = logits.process(row, seen, counts, config)
        u = torch.tensor([next(numbers)], dtype=torch.float64)
        token = int(logits.greedy(row) if config.temperature == 0 else logits.draw(row, u))
        if token in config.stop:
            break
        text.append(token)
    return text[len(prompt) :]


CONFIGS = [
    SampleConfig(temperature=0.0, max_tokens=40),
    SampleConfig(temperature=1.0, max_tokens=40, seed=7),
    SampleConfig(temperature=0.9, top_k=20, top_p=0.9, min_p=0.01, max_tokens=20),
    SampleConfig(
        temperature=1.0, repetition_penalty=1.4, frequency_penalty=0.3, presence_penalty=0.2,
        max_tokens=40,
    ),
    SampleConfig(temperature=1.5, max_tokens=60, stop=tuple(range(0, 257, 5))),
]  # fmt: skip
PROMPTS = [[1, 2, 3], [4], list(range(16)), [7, 8, 9], list(range(30)), [1, 2, 3]]


@pytest.mark.parametrize("config", CONFIGS)
def test_generate_equals_reading_everything_anew(small, config):
    config = dataclasses.replace(config, samples=3)
    wanted = [slow(small, p, config, n, i) for n, p in enumerate(PROMPTS) for i in range(3)]
    assert sample.generate(small, PROMPTS, config) == wanted


def test_the_random_numbers_go_on_where_a_block_of_them_ends(small):
    config = SampleConfig(temperature=1.0, max_tokens=2 * drawer.BLOCK + 5)
    assert sample.generate(small, [[1]], config) == [slow(small, [1], config)]


def test_every_part_of_a_model_can_be_sampled_from():
    for position, context in itertools.product(["rope", "learned", "none"], [1, 2, 5]):
        mixed = dataclasses.replace(SMALL, position=position, context_length=context, vocab_size=9)
        model = build(mixed, dtype=torch.float32)
        config = SampleConfig(max_tokens=12)
        assert sample.generate(model, [[1, 2]], config) == [slow(model, [1, 2], config)]


def test_a_text_does_not_depend_on_its_company(small):
    config = SampleConfig(temperature=1.0, max_tokens=20, samples=2, stop=(3, 5, 8, 13, 21))
    together = sample.generate(small, PROMPTS, config)
    more = sample.generate(small, PROMPTS[:3], dataclasses.replace(config, samples=5))
    assert [more[5 * n + i] for n in range(3) for i in range(2)] == together[:6]
    assert sample.generate(small, PROMPTS[:1], config) == together[:2]


def test_the_number_of_rows_decoded_together_does_not_show(small, monkeypatch):
    config = SampleConfig(temperature=1.0, max_tokens=10, samples=3)
    wanted = sample.generate(small, PROMPTS, config)
    monkeypatch.setattr(samples, "ROWS", 2)
    monkeypatch.setattr(reader, "AT_ONCE", 3)
    assert sample.generate(small, PROMPTS, config) == wanted


def test_equal_prompts_and_samples_differ_and_another_seed_too(small):
    config = SampleConfig(temperature=1.0, max_tokens=20, samples=2)
    texts = sample.generate(small, [[1], [1]], config)
    texts += sample.generate(small, [[1]], dataclasses.replace(config, seed=1))
    assert len({tuple(text) for text in texts}) == 6


def test_a_longer_text_begins_with_the_shorter(small):
    short, long = (SampleConfig(temperature=1.0, max_tokens=n) for n in (10, 50))
    assert sample.generate(small, [[1]], long)[0][:10] == sample.generate(small, [[1]], short)[0]


def test_a_prompt_is_read_once_for_all_its_samples(small):
    read = []
    hook = small.embedding.register_forward_hook(lambda module, args, out: read.append(args[0]))
    sample.generate(small, [[1, 2, 3], [4, 5, 6]], SampleConfig(samples=4, max_tokens=3))
    hook.remove()
    # No pass for the last token: nobody asks what follows it.
    assert [tuple(ids.shape) for ids in read] == [(2, 3), (8, 1), (8, 1)]


def test_generating_leaves_the_model_as_it_was(small):
    small.train()
    state = torch.get_rng_state()
    sample.generate(small, [[1]], SampleConfig(max_tokens=2))
    assert small.training
    assert torch.equal(torch.get_rng_state(), state)
    small.eval()
    sample.generate(small, [[1]], SampleConfig(max_tokens=2))
    assert not small.training


def test_dropout_is_off_while_sampling():
    model = build(dataclasses.replace(SMALL, dropout=0.5), dtype=torch.float32).train()
    config = SampleConfig(temperature=0.0, max_tokens=20)
    one, two = (sample.generate(model, [[1]], config) for _ in range(2))
    assert one == two


def test_weights_in_bfloat16_can_be_sampled_from():
    model = build(SMALL, dtype=torch.bfloat16)
    (text,) = sample.generate(model, [[1]], SampleConfig(max_tokens=30))
    assert len(text) == 30


@pytest.mark.parametrize(
    ("prompts", "config", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1], [2, 257]], {}, "prompt 1 has id 257: the vocabulary is 0 to 256"),
        ([[-1]], {}, "prompt 0 has id -1"),
        ([[1]], {"stop": (300,)}, "stop has id 300"),
        ([[1]], {"stop": (3, "end")}, r"stop='end' is a text .* use stream\(\)"),
    ],
)
def test_bad_input_is_named(small, prompts, config, message):
    with pytest.raises(ValueError, match=message):
        sample.generate(small, prompts, SampleConfig(**config))


def test_weights_that_are_not_finite_are_an_error():
    model = build(SMALL)
    model.norm.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="its weights are not finite"):
        sample.generate(model, [[1]], SampleConfig())


def test_no_prompts_give_no_texts(small):
    assert sample.generate(small, [], SampleConfig()) == []


def test_stream_is_the_text_of_generate(small, tokenizer):
    config = SampleConfig(temperature=1.0, max_tokens=60, samples=3, stop=(7, 70))
    # The end of text comes first, as it stood before each document in training.
    texts = sample.generate(small, [[256, *b"ab"]], config, tokenizer=tokenizer)
    for index in range(3):
        pieces = sample.stream(small, tokenizer, "ab", config, sample=index)
        assert "".join(pieces) == bytes(texts[index]).decode(errors="replace")


def test_an_empty_prompt_starts_from_the_end_of_a_text(small, tokenizer):
    config = SampleConfig(max_tokens=10, seed=3)
    (ids,) = sample.generate(small, [[256]], dataclasses.replace(config, stop=(256,)))
    assert "".join(sample.stream(small, tokenizer, "", config)) == bytes(ids).decode(
        errors="replace"
    )
    tokenizer = ByteTokenizer()
    tokenizer.eos_id = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        sample.stream(small, tokenizer, "", config)


def test_what_stream_cannot_do_is_said_at_once(small, tokenizer):
    with pytest.raises(ValueError, match="special token"):
        sample.stream(small, tokenizer, "a<|endoftext|>", SampleConfig())
    with pytest.raises(ValueError, match=r"sample=1: config\.samples=1"):
        sample.stream(small, tokenizer, "a", SampleConfig(), sample=1)
    with pytest.raises(ValueError, match="stop='': a stop text has at least one character"):
        sample.stream(small, tokenizer, "a", SampleConfig(stop=("",)))


def test_rows_of_the_embedding_beyond_the_tokenizer_are_never_drawn(tokenizer):
    model = build(dataclasses.replace(SMALL, vocab_size=300), dtype=torch.float32)
    hot = SampleConfig(temperature=50.0, max_tokens=200, seed=2)
    assert all(token < 257 for token in decoding.stream_ids(model, tokenizer, "a", hot))


def test_the_consumer_of_a_stream_keeps_its_own_modes(small, tokenizer):
    small.train()
    for _ in sample.stream(small, tokenizer, "a", SampleConfig(max_tokens=3, stop=())):
        assert small.training
        assert not torch.is_inference_mode_enabled()


def written(text, stops):
    config = SampleConfig(stop=tuple(stops))
    return list(decoding.write(ByteTokenizer(), iter(text.encode()), config))


def first_stop(text, stops):
    """Where the text ends, found by reading letter by letter."""
    for end in range(1, len(text) + 1):
        cuts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if cuts:
            return text[: min(cuts)]
    return text


@settings(max_examples=300)
@given(
    text=st.text("ab\u00e4\u20ac", max_size=20),
    stops=st.lists(st.text("ab\u00e4\u20ac", min_size=1, max_size=4), max_size=3),
    sizes=st.lists(st.integers(1, 6), min_size=1),
)
def test_a_text_ends_before_its_first_stop_however_it_is_cut(text, stops, sizes):
    wanted = first_stop(text, stops)
    pieces = written(text, stops)
    assert "".join(pieces) == wanted
    assert all(pieces)
    # The same in pieces of any size: a token may hold a stop and more.
    out, waiting, ended, start = "", "", False, 0
    for size in itertools.cycle(sizes):
        if ended or start >= len(text):
            break
        done, waiting, ended = cut(waiting + text[start : start + size], stops)
        out, start = out + done, start + size
    assert out + waiting == wanted


def test_only_what_may_begin_a_stop_waits():
    assert written("abcabd", ["abd"]) == ["abc"]
    assert written("xaby", ["abc"]) == ["x", "aby"]
    assert written("aab", ["ab"]) == ["a"]
    assert written("xab", ["abc"]) == ["x", "ab"]


def test_no_piece_splits_a_character():
    text = "h\u00e9 \u20ac \U0001f600"
    assert written(text, []) == list(text)
    config = SampleConfig()
    broken = list(decoding.write(ByteTokenizer(), iter(text.encode()[:-1]), config))
    assert broken == [*text[:-1], "\ufffd"]
