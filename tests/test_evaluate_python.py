"""Which samples count as Python."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.evaluate import parse_share
from tinylm.evaluate.python import LONGEST_END

WHOLE = '''\
import re

class Point:
    """A place."""

    def __init__(self, x, y):
        self.x = x
        self.y = y
'''


@pytest.mark.parametrize(
    "end",
    [
        "    def norm(sel",
        "    def norm(self):\n        return ma",
        "    @property\n    def norm(self):\n        ret",
        "\ntry:\n    a = 1\n    b = 2\n    c",
        "\ntry:\n    with a:\n        try:\n            b()\n            c(",
        "\na = [\n    1,\n    2, (",
        '\n"""Some text\nthat does not end',
        "\na = (" + "\n    1 +" * 60,
    ],
)
def test_a_text_that_is_cut_counts_by_what_stands_before_the_cut(end):
    assert parse_share([WHOLE + end]) == 1
    assert parse_share(["a = = 1\n" + WHOLE + end]) == 0


def test_no_more_than_the_last_lines_are_left_out():
    assert parse_share([WHOLE + "(\n" * LONGEST_END]) == 1
    assert parse_share([WHOLE + "(\n" * (LONGEST_END + 1)]) == 0


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("a = 1\nb = 2\nc = 3\n", True),
        ("a = 1\nb = 2\nc", True),
        ("a = 1\nb = 2\nc(", False),
        ("a = 1\n\n# why\n\nb = 2\n", False),
        ('"""One\ntwo\nthree\nfour."""\na = 1\nb = 2\n', False),
        ("a = 1; b = 2; c = 3\n", False),
        ("def f(a,\n      b,\n      c):\n    return a\n", False),
        ("", False),
        ("\0", False),
        ("(" * 5000, False),
        ("-" * 20000 + "1", False),
    ],
)
def test_three_lines_of_code_are_the_least(text, counts):
    assert parse_share([text]) == counts


def test_the_share_is_a_share():
    assert parse_share([WHOLE, "a b c", WHOLE, "("]) == 0.5
    with pytest.raises(ValueError, match="no texts"):
        parse_share([])


def test_pythons_warnings_about_a_sample_are_not_heard():
    assert parse_share(["a = '\\d'\nb = 1 is 1\nc = 2\n"]) == 1


@settings(max_examples=300, deadline=None)
@given(st.text("ab \n#:@()[]'\"\\try", max_size=60))
def test_any_text_has_a_share(text):
    assert parse_share([text]) in (0, 1)


def test_the_standard_library_cut_anywhere_still_parses():
    source = ast.__file__
    with open(source, encoding="utf-8") as file:
        text = file.read()
    cuts = [text[:n] for n in range(3000, len(text), 997)]
    assert len(cuts) > 20
    assert parse_share(cuts) == 1
