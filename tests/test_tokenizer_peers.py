"""Published vocabularies, token for token as tiktoken has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import any_text
from tests.support.tokenizer_data import CORPORA, corpus, published, standard_library, tiktoken_of
from tinylm import Tokenizer


@pytest.fixture(scope="module", params=["gpt2", "cl100k_base", "o200k_base"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    loaded = published(request.param)
    tiktoken_of(loaded)
    return loaded


def check(tokenizer: Tokenizer, text: str) -> None:
    expected = tiktoken_of(tokenizer).encode_ordinary(text)
    assert tokenizer.encode(text, special="text") == expected
    assert tokenizer.decode(expected) == text


@given(text=any_text())
def test_any_text_is_encoded_as_by_tiktoken(tokenizer: Tokenizer, text: str) -> None:
    check(tokenizer, text)


@given(data=st.data())
def test_allowed_special_tokens_are_as_with_tiktoken(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    tokens = sorted(tokenizer.special_tokens)
    parts = st.lists(st.sampled_from([*tokens, "a", " ", "<|"]), max_size=8)
    text = "".join(data.draw(parts))
    allowed = set(data.draw(st.lists(st.sampled_from(tokens), unique=True)))
    try:
        expected = tiktoken_of(tokenizer).encode(text, allowed_special=allowed)
    except ValueError:
        with pytest.raises(ValueError, match="special token"):
            tokenizer.encode(text, special=allowed)
    else:
        assert tokenizer.encode(text, special=allowed) == expected


@pytest.mark.parametrize("source", CORPORA)
def test_the_beginning_of_a_corpus_is_encoded_as_by_tiktoken(
    tokenizer: Tokenizer, source: str
) -> None:
    check(tokenizer, corpus(source, 100_000))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("source", CORPORA)
def test_a_whole_corpus_is_encoded_as_by_tiktoken(tokenizer: Tokenizer, source: str) -> None:
    check(tokenizer, corpus(source))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_standard_library_is_encoded_as_by_tiktoken(tokenizer: Tokenizer) -> None:
    check(tokenizer, standard_library())


@pytest.mark.parametrize("unit", [" ", "a", "\n", "=", "\u4e2d", "7", "aB", " \n", "'s", "\u0301"])
def test_long_runs_are_encoded_as_by_tiktoken(tokenizer: Tokenizer, unit: str) -> None:
    check(tokenizer, unit * 3000 + "x")


def test_the_sizes_and_special_tokens_of_published_vocabularies_are_known() -> None:
    sizes = {"gpt2": 50257, "cl100k_base": 100277, "o200k_base": 200019}
    assert {name: published(name).vocab_size for name in sizes} == sizes
    assert published("cl100k_base").eos_id == 100257
    assert published("o200k_base").special_tokens == {
        "<|endoftext|>": 199999,
        "<|endofprompt|>": 200018,
    }
    with pytest.raises(KeyError, match="100256"):
        published("cl100k_base").decode([100256])
