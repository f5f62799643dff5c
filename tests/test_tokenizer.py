"""Encoding and decoding, held to the reference and to their own laws."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.strategies import any_text
from tests.support.tokenizer_data import (
    EVERY,
    KINDS,
    TEXTS,
    TOKENIZERS,
    over_a_mebibyte,
    published,
)
from tinylm import Tokenizer

MAIN = TOKENIZERS["gpt4"]


@given(text=any_text())
def test_all_ways_to_encode_agree(text: str) -> None:
    ids = MAIN.encode(text, special="allow")
    array = MAIN.encode_array(text, special="allow")
    assert array.dtype == np.uint32
    assert array.tolist() == ids
    assert MAIN.encode(text.encode(), special="allow") == ids
    assert MAIN.count(text, special="allow") == len(ids)


@given(texts=st.lists(any_text(), max_size=8))
def test_a_batch_is_each_text_by_itself(texts: list[str]) -> None:
    ids, offsets = MAIN.encode_batch(texts, special="allow")
    assert (ids.dtype, offsets.dtype) == (np.uint32, np.int64)
    assert offsets.shape == (len(texts) + 1,)
    rows = [ids[a:b].tolist() for a, b in pairwise(offsets)]
    assert rows == [MAIN.encode(text, special="allow") for text in texts]


@settings(max_examples=20, deadline=None)
@given(unit=any_text(), end=any_text())
def test_large_texts_of_a_batch_are_cut_without_a_trace(unit: str, end: str) -> None:
    large = over_a_mebibyte(unit) + end
    texts = ["small", large, "", "small"]
    ids, offsets = MAIN.encode_batch(texts, special="allow")
    assert ids[offsets[1] : offsets[2]].tolist() == MAIN.encode(large, special="allow")
    assert ids[offsets[3] :].tolist() == MAIN.encode("small")


@pytest.mark.parametrize("tokenizer", EVERY)
@given(parts=st.lists(any_text(), max_size=8))
def test_an_iterable_gives_the_ids_of_the_joined_text(
    tokenizer: Tokenizer, parts: list[str]
) -> None:
    streamed = list(tokenizer.encode_iterable(iter(parts), special="allow"))
    assert streamed == tokenizer.encode("".join(parts), special="allow")


@given(text=any_text(), cut=st.integers(1, 9), repeat=st.integers(1, 4))
def test_a_long_iterable_is_cut_without_a_trace(text: str, cut: int, repeat: int) -> None:
    parts = ["word " * 13_107, text, "\u4e2d\u6587" * 9, text * repeat] * repeat
    joined = "".join(parts)
    chunks = [joined[i : i + 10_000 * cut] for i in range(0, len(joined), 10_000 * cut)]
    streamed = list(MAIN.encode_iterable(chunks, special="allow"))
    assert streamed == MAIN.encode(joined, special="allow")


def test_an_iterable_is_encoded_as_it_comes() -> None:
    def texts() -> Iterator[str]:
        yield from ["some words and 12 numbers\n" * 400] * 20
        pytest.fail("1,000 ids took 200 kB of text")

    stream = MAIN.encode_iterable(texts())
    for _ in range(1000):
        next(stream)


def test_special_tokens_raise_unless_allowed() -> None:
    text = "a<|endoftext|>b<|end|>"
    eot, end = MAIN.special_tokens["<|endoftext|>"], MAIN.special_tokens["<|end|>"]
    with pytest.raises(ValueError, match=r"'?\"?<\|endoftext\|>\"?'? at byte 1"):
        MAIN.encode(text)
    assert MAIN.encode(text, special="allow") == [97, eot, 98, end]
    assert MAIN.encode(text, special={"<|endoftext|>", "<|end|>"}) == [97, eot, 98, end]
    assert not {eot, end} & set(MAIN.encode(text, special="text"))
    with pytest.raises(ValueError, match=r"<\|end\|>"):
        MAIN.encode(text, special={"<|endoftext|>"})
    with pytest.raises(ValueError, match=r"<\|endoftext\|>"):
        MAIN.encode(text, special=set())
    assert MAIN.encode("ab", special=set()) == MAIN.encode("ab")
    with pytest.raises(KeyError, match="nonsense"):
        MAIN.encode(text, special={"nonsense"})
    with pytest.raises(ValueError, match="expected"):
        MAIN.encode(text, special="ignore")


def test_of_overlapping_special_tokens_the_longest_wins() -> None:
    ids = MAIN.encode("<|end|>>", special="allow")
    assert ids == [MAIN.special_tokens["<|end|>>"]]


def test_a_lone_surrogate_is_named_with_its_place() -> None:
    for call in (MAIN.encode, MAIN.encode_array, MAIN.count):
        with pytest.raises(ValueError, match="lone surrogate at character 2"):
            call("ab\ud800c")
    with pytest.raises(ValueError, match="lone surrogate at character 1"):
        list(MAIN.encode_iterable(["a\udfff"]))
    with pytest.raises(TypeError, match="str or bytes, not int"):
        MAIN.encode(3)


@pytest.mark.parametrize("id", [-1, 370, 2**32, 2**70])
def test_an_unknown_id_is_a_key_error_that_names_it(id: int) -> None:
    for call in (MAIN.decode, MAIN.decode_bytes):
        with pytest.raises(KeyError, match=str(id)):
            call([97, id])
    with pytest.raises(KeyError, match=str(id)):
        MAIN.stream().push(id)


def with_hole() -> Tokenizer:
    """A vocabulary of bytes and of <|endoftext|> at id 400."""
    ranks = {bytes([b]): b for b in range(256)}
    return Tokenizer.from_ranks(ranks, pattern="gpt4", special_tokens={"<|endoftext|>": 400})


@pytest.mark.parametrize(
    ("tokenizer", "missing"),
    [(with_hole(), range(256, 400)), (MAIN, ()), (KINDS["byte"], ())],
)
def test_ids_without_a_token_are_told(tokenizer: Tokenizer, missing: Sequence[int]) -> None:
    assert tokenizer.missing_ids == (*missing,)
    assert {*tokenizer.vocab} == {*range(tokenizer.vocab_size)} - {*missing}
    for id in (*missing[:2], *missing[-2:]):
        for call in (tokenizer.decode, tokenizer.decode_bytes):
            with pytest.raises(KeyError, match=f"token id {id} is not in the vocabulary"):
                call([97, id])
        with pytest.raises(KeyError, match=f"token id {id} is not in the vocabulary"):
            tokenizer.stream().push(id)


def test_published_ranks_have_holes_before_their_last_special_token() -> None:
    tokenizer = published("cl100k_base")
    assert tokenizer.missing_ids == (100256, *range(100261, 100276))


@pytest.mark.parametrize(
    "dtype", [np.uint32, np.uint16, np.int32, np.int64, np.uint64, np.int16, np.dtype(">i4")]
)
def test_ids_may_come_as_arrays_and_iterators(dtype: type) -> None:
    ids = MAIN.encode(TEXTS[2])
    array = np.array(ids, dtype=dtype)
    assert MAIN.decode(array) == TEXTS[2]
    assert MAIN.decode(np.repeat(array, 2)[::2]) == TEXTS[2]
    assert MAIN.decode(iter(ids)) == TEXTS[2]
    assert MAIN.decode(tuple(ids)) == TEXTS[2]
    assert MAIN.decode([]) == ""


class Wrapped:
    """What is no array and can make one, as the columns of data frames do."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.array(self.ids)

    def __iter__(self) -> Iterator[int]:
        pytest.fail("the ids are taken one at a time")


def test_ids_may_come_as_what_makes_an_array() -> None:
    ids = MAIN.encode(TEXTS[2])
    for tensor in (torch.tensor(ids), torch.tensor(ids, dtype=torch.int32)[:], Wrapped(ids)):
        assert MAIN.decode(tensor) == TEXTS[2]
        assert MAIN.decode_bytes(tensor) == TEXTS[2].encode()
    assert KINDS["byte"].decode(torch.tensor([97, 98], dtype=torch.uint8)) == "ab"


@pytest.mark.parametrize("id", [-1, 370, 2**31, 2**40, -(2**40)])
def test_an_unknown_id_in_an_array_is_named(id: int) -> None:
    for ids in (np.array([97, id]), torch.tensor([97, id]), Wrapped([97, id])):
        with pytest.raises(KeyError, match=f"token id {id} is not in the vocabulary"):
            MAIN.decode(ids)
    with pytest.raises(KeyError, match="token id 18446744073709551615 is not"):
        MAIN.decode(np.array([2**64 - 1], dtype=np.uint64))


def test_arrays_that_hold_no_ids_are_refused() -> None:
    for ids in (np.array([[97, 98]]), np.array([97.0]), torch.tensor([97.5]), np.array(97)):
        with pytest.raises(TypeError):
            MAIN.decode(ids)


def test_decoding_half_a_character_replaces_it_or_raises() -> None:
    ids = [97, *"\u4e2d".encode()[:2], 98]
    assert MAIN.decode(ids) == "a\ufffdb"
    with pytest.raises(ValueError, match="not UTF-8 at byte 1 of 4"):
        MAIN.decode(ids, errors="strict")
    with pytest.raises(ValueError, match="expected"):
        MAIN.decode(ids, errors="ignore")


@given(text=any_text())
def test_a_stream_never_breaks_a_character(text: str) -> None:
    stream = KINDS["byte"].stream()
    parts = [stream.push(byte) for byte in text.encode()]
    assert "".join(parts) == text
    assert [part for part in parts if part] == list(text)
    assert stream.finish() == ""


@given(text=any_text())
def test_a_pattern_of_ones_own_keeps_what_it_does_not_match(text: str) -> None:
    tokenizer = Tokenizer.train(["one two"], vocab_size=257, pattern=r"\w+", special_tokens=())
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.pattern == r"\w+"


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "not a regular expression"),
        ("gpt5", "not one of gpt2"),
        ("", "not one of"),
        ("x?", "empty"),
        (r"a*", "empty"),
    ],
)
def test_a_bad_pattern_is_an_error_that_says_why(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        Tokenizer.train(["text"], vocab_size=300, pattern=pattern)
    assert "\n" not in str(caught.value)


def test_a_pattern_that_gives_up_is_an_error() -> None:
    # A look at two characters is left to the engine that backtracks; others never give up.
    tokenizer = Tokenizer.train(["a b"], vocab_size=257, pattern=r"(a|b|ab)*(?=cd)|\s|.")
    with pytest.raises(ValueError, match="gave up"):
        tokenizer.encode("ab" * 100)


def test_the_special_ids_are_found_by_name() -> None:
    tokens = ("<|endoftext|>", "<|begin_of_text|>", "<|pad|>")
    tokenizer = Tokenizer.train(TEXTS, vocab_size=300, special_tokens=tokens)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (297, 298, 299)
    plain = Tokenizer.train(TEXTS, vocab_size=300, special_tokens=())
    assert (plain.eos_id, plain.bos_id, plain.pad_id) == (None, None, None)


def test_a_tokenizer_is_a_value() -> None:
    again = Tokenizer.train(
        TEXTS, vocab_size=370, special_tokens=("<|endoftext|>", "<|end|>", "<|end|>>")
    )
    others = [tokenizer for tokenizer in EVERY if tokenizer is not MAIN]
    assert again == MAIN
    assert hash(again) == hash(MAIN)
    assert again.sha256 == MAIN.sha256
    assert all(other != MAIN for other in others)
    assert len({*others, MAIN, again}) == len(EVERY)
    for tokenizer in EVERY:
        assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer
        assert copy.deepcopy(tokenizer) == tokenizer
    with pytest.raises(AttributeError):
        MAIN.pattern = "gpt2"
    assert MAIN != "a string"
    assert repr(MAIN) == "Tokenizer(vocab_size=370, pattern='gpt4')"


def test_changing_what_a_tokenizer_hands_out_does_not_change_it() -> None:
    MAIN.vocab.clear()
    MAIN.merges.clear()
    MAIN.special_tokens.clear()
    assert len(MAIN.vocab) == 370
    assert MAIN.special_tokens
    assert MAIN.merges


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": {0: b"a"}}, "byte 0x00 is not a token"),
        ({"vocab": {300: b"a"}}, "have the same bytes"),
        ({"vocab": {300: b""}}, "empty"),
        ({"vocab": {2**24: b"ab"}}, "above the limit"),
        ({"special_tokens": {"<|x|>": 97}}, "two tokens have the id 97"),
        ({"special_tokens": {"": 300}}, "empty"),
        ({"merges": [(b"a", b"b")]}, "not a token"),
        ({"merges": [(b"ab", b"c")]}, "not in the vocabulary"),
        ({"vocab": {300: b"ab"}, "merges": [(b"a", b"b")] * 2}, "listed twice"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_an_error(
    change: dict[str, object], message: str
) -> None:
    parts = {"vocab": {}, "merges": [], "special_tokens": {}, **change}
    if change.get("vocab") != {0: b"a"}:
        parts["vocab"] = {i: bytes([i]) for i in range(256)} | parts["vocab"]
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_merges(
            parts["vocab"],
            parts["merges"],
            pattern="gpt2",
            special_tokens=parts["special_tokens"],
        )


def test_importing_the_tokenizer_imports_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, tinylm.tokenizer as t; t.Tokenizer.train(['a b'], vocab_size=257)"
        ".decode([97]); print({'numpy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
