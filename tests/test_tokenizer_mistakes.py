"""What people do wrong with a Tokenizer at first: each mistake has an error that names it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.tokenizer_data import TOKENIZERS
from tinylm import Tokenizer

MAIN = TOKENIZERS["gpt4"]
BYTES = {bytes([byte]): byte for byte in range(256)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: Tokenizer(t), "make a Tokenizer by Tokenizer.load"),
        (lambda t: t.encode(None), "text must be str or bytes, not NoneType"),
        (lambda t: t.encode(["a"]), "text must be str or bytes, not list"),
        (
            lambda t: t.encode("a", special=None),
            'special must be "raise", "allow", "text" or a set',
        ),
        (lambda t: t.encode("a", special=[1]), "set of special tokens, found <class 'int'>"),
        (lambda t: t.encode_batch("a"), "for one text use encode_array"),
        (lambda t: list(t.encode_iterable([1])), "text must be str or bytes, not int"),
        (lambda t: t.decode("12"), "iterable of integers, found <class 'str'>"),
        (lambda t: t.decode(5), "iterable of integers, found <class 'int'>"),
        (lambda t: t.decode(np.zeros((2, 2), int)), "for many rows use decode_batch"),
        (lambda t: t.decode_batch([1, 2]), "iterable of integers, found <class 'int'>"),
        (lambda _: Tokenizer.train("a", vocab_size=300), "for one text pass"),
        (lambda _: Tokenizer.train([1], vocab_size=300), "a text must be str or bytes, not int"),
        (lambda _: Tokenizer.train(["a"], vocab_size="9"), "vocab_size must be an integer"),
        (
            lambda _: Tokenizer.from_ranks(BYTES, pattern="gpt4", special_tokens=["x"]),
            "special_tokens must be a dict",
        ),
    ],
)
def test_a_wrong_type_is_named(call: Callable[[Any], object], message: str) -> None:
    # The tokenizer where one is needed, or its name where one is wrong.
    with pytest.raises(TypeError) as caught:
        call("gpt2" if "make a" in message else MAIN)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_size_of_nothing_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="size 0 must be at least 1"):
        MAIN.chunks(["a"], size=0)


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer: neither tokenizer\.json"):
        Tokenizer.load(tmp_path)
