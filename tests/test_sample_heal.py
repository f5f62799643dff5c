"""Prompts that end inside a token, against the plain definition of what may follow them."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.kinds import CONTEXT, KINDS, TEXT, model_of, tokenizer_of
from tests.support.models import build
from tinylm import Tokenizer, sample
from tinylm.config import SampleConfig
from tinylm.model import inference
from tinylm.sample import decoding, healing, prompt
from tinylm.sample.reader import Reader, visible


def slow_ways(tokenizer, text):
    """Every cut, every token: does the tokenizer write the longer text with just these ids?"""
    found = []
    for cut in range(len(text)):
        beginning, rest = text[:cut], text[cut:]
        for id, token in tokenizer.vocab.items():
            longer = token.startswith(rest) and token != rest
            if longer and id not in tokenizer.special_tokens.values():
                ids = tokenizer.encode(beginning, special="text")
                if tokenizer.encode(beginning + token, special="text") == [*ids, id]:
                    found.append(([*ids], id))
    return found


def slow_chances(model, opening, choices):
    """Log-probability of each list of ids after the opening, every token from its own pass."""
    found = []
    for ids in choices:
        total, text = 0.0, [*opening]
        for id in ids:
            window = text[-visible(len(text), CONTEXT) :]
            with torch.no_grad():
                row = model(torch.tensor([window]))[0, -1].double().log_softmax(-1)
            total += float(row[id])
            text.append(id)
        found.append(total)
    return found


@st.composite
def prompts(draw):
    """A kind of tokenizer and a text that ends anywhere, often inside a token."""
    kind = draw(st.sampled_from(KINDS))
    vocab = tokenizer_of(kind).vocab
    words = [*TEXT.split(), " ", "    ", "\n", "(", "\u00e9", "\u20ac", "\U0001f600"]
    spelled = [t.decode() for t in vocab.values() if t.isascii() and t != b"<|endoftext|>"]
    parts = st.sampled_from(words) | st.sampled_from(spelled) | st.text(max_size=3)
    text = "".join(draw(st.lists(parts, min_size=1, max_size=6)))
    text = text.replace("<|endoftext|>", "")
    return kind, text[: draw(st.integers(1, len(text) or 1))] or "d"


@settings(max_examples=60, deadline=None)
@given(prompts(), st.booleans())
def test_the_ways_are_all_that_the_tokenizer_itself_would_write(case, long):
    kind, text = case
    text = "a b " * 20 + text if long else text
    tokenizer = tokenizer_of(kind)
    read = prompt.read(tokenizer, text, SampleConfig(), tokenizer.vocab_size)
    assert read.opening == (tokenizer.eos_id,)
    assert [*read.ids] == tokenizer.encode(text)
    ways = [([*way.beginning], token) for way in read.ways for token in way.tokens]
    assert ways == slow_ways(tokenizer, text.encode())
    # Without a token before the text its first one cannot give way.
    bare = prompt.read(tokenizer, text, SampleConfig(bos=False), tokenizer.vocab_size)
    assert bare.opening == ()
    assert bare.ways == tuple(way for way in read.ways if way.beginning[:1] == read.ids[:1])
    assert bare.shared >= 1


@settings(max_examples=40, deadline=None)
@given(prompts(), st.sampled_from(["auto", False]))
def test_each_way_is_as_likely_as_the_model_says(case, bos):
    kind, text = case
    tokenizer, model = tokenizer_of(kind), model_of(kind)
    read = prompt.read(tokenizer, text, SampleConfig(bos=bos), tokenizer.vocab_size)
    if not read.ways:
        return
    shared, opening = read.shared, [*read.opening, *read.ids[: read.shared]]
    ids = [read.ids] + [(*way.beginning, token) for way in read.ways for token in way.tokens]
    wanted = slow_chances(model, opening, [some[shared:] for some in ids])
    with inference(model):
        reader = Reader(model, [opening], 40, vocab_size=tokenizer.vocab_size)
        found, seen = healing.choices(reader, read)
        assert found[0].tolist() == pytest.approx(wanted, abs=1e-4)
        before = [some[-1] in {*read.opening, *some[:-1]} for some in ids]
        assert seen[0].tolist() == before
        # The likeliest is taken, and the reader has read it but for the new token.
        healed = healing.heal(reader, read, SampleConfig(temperature=0), sample=0)
        best = ids[max(range(len(ids)), key=lambda i: found[0, i].item())]
        assert healed.ids + (() if healed.token is None else (healed.token,)) == best
        begun = [*read.opening, *healed.ids]
        assert reader.texts == [begun]
        again = Reader(model, [begun], 1, vocab_size=tokenizer.vocab_size)
        torch.testing.assert_close(reader.last, again.last, rtol=0, atol=1e-4)


def test_where_one_token_may_grow_its_chance_is_renormalised():
    tokenizer, model = tokenizer_of("gpt4"), model_of("gpt4")
    read = prompt.read(tokenizer, "for ", SampleConfig(), tokenizer.vocab_size)
    (way,) = read.ways
    (space,) = tokenizer.encode(" ")
    assert read.ids == (*way.beginning, space)
    assert all(tokenizer.vocab[id].startswith(b" ") for id in way.tokens)
    with inference(model):
        text = [*read.opening, *way.beginning]
        row = model(torch.tensor([text]))[0, -1].softmax(-1)[[space, *way.tokens]]
        reader = Reader(model, [text], 3, vocab_size=tokenizer.vocab_size)
        found, _ = healing.choices(reader, read)
    torch.testing.assert_close(found[0].softmax(-1), row / row.sum(), rtol=0, atol=1e-5)


CONFIGS = st.builds(
    SampleConfig,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([None, 3]),
    top_p=st.sampled_from([None, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    max_tokens=st.integers(1, 6),
    seed=st.integers(0, 5),
    samples=st.just(3),
    bos=st.sampled_from(["auto", True, False]),
)


@settings(max_examples=60, deadline=None)
@given(prompts(), CONFIGS, st.integers(0, 2))
def test_a_text_goes_on_right_after_the_prompt(case, config, index):
    kind, text = case
    tokenizer, model = tokenizer_of(kind), model_of(kind)
    read = prompt.read(tokenizer, text, config, tokenizer.vocab_size)
    ids = [*decoding.stream_ids(model, tokenizer, text, config, sample=index)]
    whole = tokenizer.decode([*read.ids[: read.shared], *ids])
    assert whole.startswith(text)
    pieces = [*sample.stream(model, tokenizer, text, config, sample=index)]
    assert text + "".join(pieces) == whole
    # One after the other, alone or with others: a sample is its own.
    more = dataclasses.replace(config, samples=index + 1)
    assert [*decoding.stream_ids(model, tokenizer, text, more, sample=index)] == ids
    # The prompt as it is goes on as if nothing had been healed.
    plain = dataclasses.replace(config, heal=False)
    own = [*read.ids[read.shared :]]
    without = [*decoding.stream_ids(model, tokenizer, text, plain, sample=index)]
    prompts_ids = [[*read.opening, *read.ids]]
    assert without == sample.generate(model, prompts_ids, plain, tokenizer=tokenizer)[index]
    drawn = len(ids) - len(own)
    if ids[: len(own)] == own:
        assert ids[len(own) :] == without
    else:
        beginnings = [[*way.beginning[read.shared :]] for way in read.ways]
        drawn = min(len(ids) - len(some) for some in beginnings if ids[: len(some)] == some)
    assert drawn <= config.max_tokens


def test_a_prompt_with_nothing_to_heal_is_not_changed():
    tokenizer, model = tokenizer_of("byte"), model_of("byte")
    config = SampleConfig(max_tokens=20, temperature=1.0)
    plain = dataclasses.replace(config, heal=False)
    for text in ("def ", "caf\u00e9", "x"):
        both = ("".join(sample.stream(model, tokenizer, text, c)) for c in (config, plain))
        assert len({*both}) == 1


def likely(tokenizer, model, after, then):
    """Weights with which `then` surely follows `after`, else a space: taught by hand."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        rows = torch.randn(model.embedding.weight.shape, generator=generator).double()
        model.embedding.weight.copy_(rows / rows.norm(dim=1, keepdim=True))
        model.norm.weight.fill_(1)
        model.head.weight.zero_()
        for one, other in zip(after, then, strict=True):
            model.head.weight[other] += 10 * model.embedding.weight[one]
    return model


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("for ", "name"), ("for", " name"), ("for na", "me"), ("for n", "ame"), ("for name", "")],
)
def test_a_word_that_the_prompt_cuts_goes_on_as_training_saw_it(text, wanted):
    tokenizer = tokenizer_of("gpt4")
    ids = [tokenizer.eos_id, *tokenizer.encode("for name"), tokenizer.eos_id]
    model = likely(tokenizer, build(model_of("gpt4").config), ids[:-1], ids[1:])
    config = SampleConfig(temperature=0, max_tokens=5)
    assert "".join(sample.stream(model, tokenizer, text, config)) == wanted
    cut = "".join(sample.stream(model, tokenizer, text, dataclasses.replace(config, heal=False)))
    assert (cut == wanted) == (text in ("for", "for name"))


def name_model():
    """A tokenizer, a model that goes on with " name" after "for", and the id of " name"."""
    tokenizer = tokenizer_of("gpt4")
    ids = [tokenizer.eos_id, *tokenizer.encode("for name"), tokenizer.eos_id]
    assert tokenizer.vocab[ids[-2]] == b" name"
    model = likely(tokenizer, build(model_of("gpt4").config), ids[:-1], ids[1:])
    return tokenizer, model, ids[-2]


def test_a_healed_token_may_be_all_that_beams_have_room_for():
    tokenizer, model, _ = name_model()
    config = SampleConfig(num_beams=2, max_tokens=1)
    assert "".join(sample.stream(model, tokenizer, "for n", config)) == "ame"


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_stop_id_heals_nothing_before_min_tokens(num_beams):
    tokenizer, model, name = name_model()
    config = SampleConfig(temperature=0, num_beams=num_beams, max_tokens=6, stop=(name,))
    assert [*decoding.stream_ids(model, tokenizer, "for n", config)] == []
    config = dataclasses.replace(config, min_tokens=4)
    read = prompt.read(tokenizer, "for n", config, tokenizer.vocab_size)
    ids = [*decoding.stream_ids(model, tokenizer, "for n", config)]
    assert name not in ids
    assert len(ids) >= 4
    assert tokenizer.decode([*read.ids[: read.shared], *ids]).startswith("for n")


def test_half_a_character_is_healed_and_no_byte_of_the_prompt_comes_twice():
    # The token of both bytes and more: the prompt's own ids are the two bytes alone.
    tokenizer = Tokenizer.train(["\u00e9s\u00e9s\u00e9s"] * 9, vocab_size=259)
    assert b"\xc3\xa9" in tokenizer.vocab.values() or b"\xa9s" in tokenizer.vocab.values()
    model = build(dataclasses.replace(model_of("byte").config, vocab_size=259))
    for seed in range(20):
        config = SampleConfig(temperature=2.0, max_tokens=4, seed=seed)
        read = prompt.read(tokenizer, "\u00e9", config, 259)
        ids = [*decoding.stream_ids(model, tokenizer, "\u00e9", config)]
        whole = tokenizer.decode([*read.ids[: read.shared], *ids])
        assert whole == "\u00e9" + "".join(sample.stream(model, tokenizer, "\u00e9", config))


def test_a_stop_text_is_looked_for_after_the_prompt_alone():
    tokenizer, model = tokenizer_of("gpt4"), model_of("gpt4")
    for seed in range(10):
        config = SampleConfig(temperature=1.0, max_tokens=8, seed=seed)
        whole = "".join(sample.stream(model, tokenizer, "for name in ", config))
        for stop in ("in ", "e", "for", whole[2:4] or "x"):
            stopped = dataclasses.replace(config, stop=stop)
            got = "".join(sample.stream(model, tokenizer, "for name in ", stopped))
            assert got == whole.partition(stop)[0]


def test_a_token_beyond_the_model_or_a_special_one_heals_nothing():
    tokenizer = tokenizer_of("gpt4")
    read = prompt.read(tokenizer, "<|endof", SampleConfig(), tokenizer.vocab_size)
    assert tokenizer.eos_id not in [token for way in read.ways for token in way.tokens]
    read = prompt.read(tokenizer, "for ", SampleConfig(), 280)
    assert all(token < 280 for way in read.ways for token in way.tokens)
