"""Long lists of ids, and long texts of every width of characters, made and read in place."""

import gc
import sys
import threading

import numpy as np
import pytest

from tinylm import Tokenizer

# More ids than lists have before they share their integers.
MANY = 1 << 17
# A character of each number of bytes that a string keeps for one.
WIDTHS = ["a", "\xe9", "\u4e2d", "\U0001f600"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["".join(WIDTHS)], vocab_size=257, special_tokens=["<|end|>"])


@pytest.fixture(scope="module")
def learned():
    texts = ["low lower lowest \u4e2d\u6587 \U0001f600 \xe9\xe8 " * 20]
    return Tokenizer.train(texts, vocab_size=270, special_tokens=[])


def test_integers_of_a_long_list_are_ordinary(tokenizer):
    text = bytes(range(256)) * (MANY // 256)
    expected = tokenizer.encode_array(text).tolist()
    for _ in range(3):
        ids = tokenizer.encode(text)
        assert ids == expected
        assert {type(id) for id in ids} == {int}
        assert [id + 1 for id in ids[:256]] == [id + 1 for id in expected[:256]]
        assert [hash(id) for id in ids[:256]] == [hash(id) for id in expected[:256]]
        assert repr(ids[:300]) == repr(expected[:300])
        held = ids[7]
        assert sys.getrefcount(held) > 1
        del ids
        gc.collect()
        assert held == expected[7]
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text


def test_a_list_may_change_after_it_was_made(tokenizer):
    ids = tokenizer.encode(b"abc" * MANY)
    ids.sort()
    ids.extend([1, 2, 3])
    del ids[:MANY]
    assert ids == [*[98] * MANY, *[99] * MANY, 1, 2, 3]


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_long_texts_of_any_widths_decode(learned, first, second):
    # Each part is longer than what is decoded at once, and odd, so characters are cut anywhere.
    text = f"{WIDTHS[first] * 20_001}low{WIDTHS[second] * 33_333}er lowest"
    ids = learned.encode_array(text)
    assert learned.decode(ids) == text
    assert learned.decode(ids.tolist()) == text
    assert learned.decode(ids.astype(np.int64), errors="strict") == text
    # The string is one that Python would have made: compared, hashed and as large.
    assert hash(learned.decode(ids)) == hash(text)
    assert sys.getsizeof(learned.decode(ids)) == sys.getsizeof("".join([text[:-1], text[-1]]))


@pytest.mark.parametrize("broken", [b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
@pytest.mark.parametrize("place", [0, 40_000, 99_999])
def test_a_long_text_that_is_not_utf8_decodes_as_python_replaces_it(tokenizer, broken, place):
    data = bytearray(b"abc\xc3\xa9" * 20_000)
    data[place:place] = broken
    ids = list(data)
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode(errors="replace")
    with pytest.raises(ValueError, match="not UTF-8 at byte"):
        tokenizer.decode(ids, errors="strict")


def test_a_text_cut_inside_a_character_ends_with_its_replacement(tokenizer):
    data = "\u4e2d".encode() * 30_000
    for cut in (1, 2):
        assert tokenizer.decode(list(data[:-cut])) == "\u4e2d" * 29_999 + "\ufffd"


def test_integers_of_other_kinds_are_ids_too(tokenizer):
    class Index:
        def __index__(self) -> int:
            return 98

    ids = [97] * 50_000 + [Index(), np.int64(99), True] + [97] * 50_000
    expected = b"a" * 50_000 + b"bc\x01" + b"a" * 50_000
    assert tokenizer.decode_bytes(ids) == expected
    for wrong, error in ((-1, KeyError), (1 << 40, KeyError), (300, KeyError), ("a", TypeError)):
        with pytest.raises(error):
            tokenizer.decode([*ids, wrong])


def test_a_list_that_gets_shorter_while_it_is_read_ends_there(tokenizer):
    class Shortens:
        def __index__(self) -> int:
            del ids[1000:]
            return 98

    ids = [97] * 999 + [Shortens()] + [97] * 50_000
    assert tokenizer.decode(ids) == "a" * 999 + "b"


def test_threads_may_make_and_read_lists_together(learned):
    text = "low lower lowest \u4e2d\u6587 " * 5000
    wrong = []

    def work():
        wrong.extend(1 for _ in range(5) if learned.decode(learned.encode(text)) != text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
