"""Texts that some fast path once had wrong, against the tools whose vocabularies are at hand."""

from itertools import islice

import pytest

from tests.support.fuzzing import against_hugging_face, against_tiktoken, recorded, texts


@pytest.mark.parametrize("name", ["cl100k_base", "gpt2"])
def test_a_few_hostile_texts_agree_with_tiktoken(name: str) -> None:
    check, tokens = against_tiktoken(name)
    for text in [*recorded(), *islice(texts(1, tokens), 300)]:
        assert check(text) is None, text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["deepseek", "falcon", "clip_base", "t5-small", "xlnet_base_cased"]
)
def test_hostile_texts_agree_with_hugging_face(name: str) -> None:
    check, tokens = against_hugging_face(name)
    for text in [*recorded(), *islice(texts(1, tokens), 3000)]:
        assert check(text) is None, text
