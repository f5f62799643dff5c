"""Regular expressions of a tokenizer.json give the pieces that `tokenizers` gives, or are refused.

Oniguruma, as the Split of `tokenizers` runs it, is the oracle.
"""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.strategies import assigned_text
from tests.support.tokenizer_data import TEXTS, TOKENIZERS
from tinylm import Tokenizer
from tinylm.tokenizer import dialect

HOSTILE = [
    *TEXTS,
    "\n\na\n",
    "a\nb\n\n",
    "a\r\nb\x0b\x0c\x85\u2028\u2029c\n",
    "\u00bda1\u00b2 x\u00b9_y\u200cz \u200d a",
    "stra\u00dfe STRASSE \u017ft \ufb06 \ufb03 \u212a k \u0130i\u0307 \u0149 's'S'\u017f",
    "1234567 12 3 \u0661\u0662 aaaa a{2} a{,3} ~~--&&<>[x]",
    "e\u0301 \u4e2d\u6587 \U0001f600 \u0345\u24d0 $+<=>^`|~!",
]


def split_by_theirs(regex: str, text: str) -> list[str]:
    """The pieces of `text` by Oniguruma."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(regex), "isolated")
    return [piece for piece, _ in split.pre_tokenize_str(text)]


def split_by_ours(pattern: str, text: str, expected: list[str]) -> list[str]:
    """The pieces of `text`, told by a vocabulary that has the expected ones and pairs of them."""
    tokens = {bytes([b]): b for b in range(256)}
    for piece in [*expected, *map("".join, pairwise(expected))]:
        tokens.setdefault(piece.encode(), len(tokens))
    tokenizer = Tokenizer.from_ranks(tokens, pattern=pattern, special_tokens={})
    return [tokenizer.decode([id]) for id in tokenizer.encode(text)]


def check(regex: str, text: str) -> None:
    expected = split_by_theirs(regex, text)
    assert split_by_ours(dialect.read(regex), text, expected) == expected, (regex, text)


CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


@pytest.mark.parametrize(
    "regex",
    [
        CL100K,
        # Repetitions.
        r"a{1,3}+",
        r"\p{N}{2}+",
        r"a{2,}+b?|.",
        r"a{2}?b|a",
        r"xa{,3}|a{0,2}b",
        r"a{1,2}?a|x\d{3}?",
        r"a++|b*+c|\s?+x",
        r"a{|x{,}|\{2\}|}",
        # Lines and texts.
        r"a$",
        r"^a",
        r"^.|\n",
        r"$\n",
        r"\s+$|.",
        r"\Aa|a\z|\w\Z|\n\Z",
        r"(?m:.+)",
        r"(?m)a.b|.",
        r"(?m-i:x.)|.",
        r".+",
        r"\R|\w",
        # Words and classes.
        r"\w+|\W",
        r"[\w-]+",
        r"[^\w\s]+",
        r"[\W_]+",
        r"\b",
        r"\b\w+\b|\d",
        r"\h+|\H",
        r"[\h_]+",
        *(f"[[:{name}:]_]+" for name in dialect._POSIX),
        *(f"[^[:{name}:]]+" for name in dialect._POSIX),
        r"[[:^alpha:]]+",
        r"\p{^L}+|\P{^N}",
        r"\p{Alpha}+|\p{punct}|\P{Space}",
        r"\p{Han}+|\p{letter}|\p{Lu}",
        r"[a-z&&[^aeiou]]+",
        r"[^a-m&&[\p{L}]]+",
        r"[&~-]+|[a~~]+",
        r"[\]\[\-]|[x\u0061-\x63\x{4e2d}]+",
        r"\<|\>|\-|\ |\#|\e|\a",
        # Case.
        r"(?i)'s|'[tk]|K+|.",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|x",
        r"(?i:a(?-i:b)c)|.",
        r"(?:(?i)ab|c)d|.",
        # Groups.
        r"(?<word>\w)(?<=e)|(?<!a)b|(?>a|ab)c|x(?=y)",
    ],
)
def test_pieces_are_those_of_oniguruma(regex: str) -> None:
    for text in HOSTILE:
        check(regex, text)


@pytest.mark.parametrize(
    ("regex", "what"),
    [
        (r"(a)\1", r"\\1"),
        (r"(?<x>a)\k<x>", r"\\k"),
        (r"\Ga", r"\\G"),
        (r"\Xa", r"\\X"),
        (r"a\Kb", r"\\K"),
        (r"\Ba", r"\\B"),
        (r"(?~a)", r"\(\?~a"),
        (r"(?#a)b", r"\(\?#a"),
        (r"(?x) a", r"\(\?x\)"),
        (r"(?s:.)", r"\(\?s:"),
        (r"a(?i)b|c", r"\(\?i\)"),
        (r"(?i:ss)", "'ss' under"),
        (r"(?i:f+i)", "'fi' under"),
        (r"(?i:\p{L})", r"p\{L\}' under"),
        ("(?i:\u00e9)", "under"),
        (r"(?i:[\w])", "under"),
        (r"a**", r"\*\*"),
        (r"a{2}{3}", "repeats a repetition"),
        (r"a{3,2}", r"\{3,2\}"),
        (r"[]a]", r"\[\]"),
        (r"[a-\d]", "not a range"),
        (r"[a-c-e]", "a-c-"),
        (r"[[:graph:]]", r"\[:graph:\]"),
        (r"\p{Print}", r"p\{Print\}"),
        (r"\p{InGreek}", r"p\{InGreek\}"),
        (r"\xff", "is a byte"),
        (r"\012", r"\\0"),
        (r"\cA", r"\\c"),
        (r"(a", "not closed"),
        (r"[a", "not closed"),
        (r"a)", "closes no group"),
        (r"+a", "repeats nothing"),
    ],
)
def test_what_cannot_be_said_is_refused_by_its_name(regex: str, what: str) -> None:
    with pytest.raises(ValueError, match=what) as caught:
        dialect.read(regex)
    assert "\n" not in str(caught.value)


SHORT = list("abfist1 _-\n.^${}\u00bd\u00df")
ATOMS = (
    st.sampled_from(
        [*SHORT, r"\n", r"\p{L}", r"\p{N}", r"\P{Lu}", r"\w", r"\W", r"\s", r"\S", r"\d", r"\b"]
    )
    | st.sampled_from(
        [r"\A", r"\z", r"\Z", r"\R", r"\h", r"\-", r"\x{17f}", "[a-f]", r"[\w.]", r"[^\s\p{L}]"]
    )
    | st.sampled_from(["[[:alpha:]]", "[[:punct:]x]", "[a-t&&[^f]]", "[^a]"])
)
ONCE = ["", "", "", "{x", "?", "*", "+", "??", "*?", "+?", "?+", "*+", "++"]
COUNTED = ["{2}", "{2}?", "{2}+", "{1,2}", "{1,2}?", "{1,2}+", "{1,}+", "{,2}", "{,2}+"]
QUANTIFIERS = st.sampled_from(ONCE + COUNTED)
OPENINGS = st.sampled_from(
    ["(", "(?:", "(?i:", "(?m:", "(?-i:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i)", "(?<n>"]
)


def larger(smaller: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    groups = st.builds(lambda opening, inside: f"{opening}{inside})", OPENINGS, smaller)
    groups = groups.map(lambda group: group.removesuffix(")") if group[:4] == "(?i)" else group)
    repeated = st.builds(str.__add__, smaller | groups, QUANTIFIERS)
    return repeated | st.lists(repeated, min_size=1, max_size=3).map("".join)


expressions = st.lists(
    st.recursive(st.builds(str.__add__, ATOMS, QUANTIFIERS), larger, max_leaves=5),
    min_size=1,
    max_size=3,
).map("|".join)
SIGNS = [*"abfist1 _\n.{}\r\u00bd\u00df\u017f\ufb06\u200d\u4e2d", "ss", "st"]
strange = st.lists(st.sampled_from(SIGNS), max_size=12).map("".join)


@given(regex=expressions, text=strange | assigned_text())
def test_any_expression_gives_equal_pieces_or_is_refused(regex: str, text: str) -> None:
    try:
        pattern = dialect.read(regex)
        Tokenizer.from_ranks(
            {bytes([b]): b for b in range(256)}, pattern=pattern, special_tokens={}
        )
    except ValueError:
        return
    try:
        tokenizers.Regex(regex)
    except Exception:
        assume(False)
    check(regex, text)


@pytest.mark.parametrize("name", sorted(dialect._PROPERTIES))
@pytest.mark.parametrize("form", [r"\p{%s}+", r"\P{%s}{2}", r"\p{^%s}?x", r"[\p{%s}_]+|\p{%s}"])
def test_a_named_property_is_one_item_in_and_outside_of_a_class(name, form):
    regex = form.replace("%s", name)
    for text in HOSTILE:
        check(regex, text)


OWN = [r"\w+|\s+|[^\w\s]+", r"\bfoo\b|.", r"(?s:.)", r"(?i)ab|.", r"[\W_]+|\w", r"\p{L}+\z|\s"]


@pytest.mark.parametrize("pattern", OWN)
def test_a_pattern_of_ones_own_is_written_for_oniguruma(tmp_path: Path, pattern: str) -> None:
    regex = dialect.write(pattern)
    assert dialect.read(regex) == pattern
    for text in HOSTILE:
        expected = split_by_theirs(regex, text)
        assert split_by_ours(pattern, text, expected) == expected
    tokenizer = Tokenizer.train(TEXTS, vocab_size=257, pattern=pattern)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json") == tokenizer


@pytest.mark.parametrize("pattern", ["a$|.", r"\p{N}{1,3}+|.", r"(a)\1|.", r"[[:alpha:]]+"])
def test_a_pattern_that_cannot_be_written_is_refused_in_training(pattern: str) -> None:
    with pytest.raises(ValueError, match="regular expression"):
        Tokenizer.train(TEXTS, vocab_size=300, pattern=pattern)


@pytest.mark.parametrize("regex", [CL100K, r"\w+$|[[:digit:]]{1,3}+", r"(?m).\b|^x"])
def test_a_file_with_any_expression_gives_equal_ids_and_keeps_it(
    tmp_path: Path, regex: str
) -> None:
    path = tmp_path / "theirs.json"
    TOKENIZERS["gpt4"].save(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = regex
    path.write_text(json.dumps(document), encoding="utf-8")
    loaded = Tokenizer.load(path)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    for text in HOSTILE:
        assert loaded.encode(text) == theirs.encode(text).ids
    loaded.save(tmp_path / "ours.json")
    assert json.loads((tmp_path / "ours.json").read_text(encoding="utf-8")) == document
    assert Tokenizer.load(tmp_path / "ours.json") == loaded
