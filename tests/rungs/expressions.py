"""Splitting by expressions of anybody: the automaton against Python's `regex` and Oniguruma."""

from hypothesis import strategies as st

from tests.rungs import stages
from tests.rungs.rung import rust_rung
from tests.support.tokenizer_data import standard_library
from tinylm.tokenizer.steps import BEHAVIORS

# Syntax that all three have with one meaning.
ONE = (
    *(r"\s", r"\S", r"\p{L}", r"\p{N}", r"[^\s\p{L}\p{N}]", r"[\r\n]", r"[^\r\n\p{L}\p{N}]"),
    *("a", "'", " ", "(?i:s)", r"\p{Lu}", "[ab]", r"\d"),
)
TIMES = ("", "", "", "?", "*", "+", "{1,3}", "+?", "*?", "{1,2}?", "++", "?+", "*+")
LOOKS = (
    *(r"(?!\S)", r"(?=\s)", "(?!a)", r"(?<=a)", r"(?<!\s)", r"(?=\p{L}+)", r"(?=[^\s\p{L}])"),
    # Several characters, which the engine that backtracks looks at.
    *(r"(?=\d\d)", r"(?=(\d{3})+(?!\d))"),
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def step(regex, behavior="Isolated", *, invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def joined(parts):
    return st.lists(parts, min_size=1, max_size=3).map("".join)


once = st.builds(str.__add__, st.sampled_from(ONE), st.sampled_from(TIMES))
part = once | once | once | st.sampled_from(LOOKS)
# Oniguruma repeats no look-around, and takes exponential time for repetitions of repetitions.
group = st.builds("(?:{}|{})".format, joined(part), joined(part)) | st.builds(
    "(?:{}|{}){}".format,
    joined(st.sampled_from(ONE)),
    joined(st.sampled_from(ONE)),
    st.sampled_from("?*+"),
)
expression = st.lists(joined(part | group), min_size=1, max_size=4).map("|".join)
splits = st.builds(
    lambda regex, behavior, invert: [step(regex, behavior, invert=invert)],
    expression,
    st.sampled_from(BEHAVIORS),
    invert=st.booleans(),
)

RUNGS = (
    rust_rung(
        "expressions",
        stages.cut_slowly,
        stages.cut_quickly,
        st.tuples(stages.texts, splits),
        example=lambda: (standard_library(2)[:40_000], [step(DEEPSEEK[2])]),
        peer=stages.cut_theirs,
        cost=2,
    ),
    rust_rung(
        "split deepseek",
        stages.cut_slowly,
        stages.cut_quickly,
        st.tuples(stages.texts, st.just([*map(step, DEEPSEEK)])),
        example=lambda: (standard_library(2)[:40_000], [*map(step, DEEPSEEK)]),
        peer=stages.cut_theirs,
        cost=2,
    ),
)
