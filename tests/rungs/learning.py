"""The options of training: alphabets of characters, what is blocked, counts that lie in files."""

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import strategies as st

from tests.rungs.rung import rust_rung
from tests.support.tokenizer_data import standard_library
from tinylm import _rust
from tinylm.reference import byte_bpe, char_bpe

KNOWN = "ab\xe9\u4e2d\U0001f600"
words = st.dictionaries(st.text(KNOWN, min_size=1, max_size=9), st.integers(1, 5), min_size=1)


def counts_of(words):
    counts = _rust.WordCounts("whole", [], 1)
    for word, count in words.items():
        counts.add([word] * count)
    return counts


def alphabet_slow(words, initial, coverage, limit):
    return char_bpe.alphabet(Counter(words), initial, coverage, limit)


def alphabet_fast(words, initial, coverage, limit):
    limit = 2**32 if limit is None else limit
    return counts_of(words).alphabet([*initial], coverage, limit)


# Learning over an alphabet that some characters of the words are not in


def learn_slow(words, alphabet, size, rules, blocked):
    parts = char_bpe.within(Counter(words), alphabet).elements()
    characters = [char for char in sorted(alphabet) if len(char.encode()) > 1]
    given = {*blocked[0], *blocked[1]}
    tokens, merges = byte_bpe.train(
        (part.encode() for part in parts), size, *rules, blocked=given, characters=characters
    )
    return tokens, merges


def learn_fast(words, alphabet, size, rules, blocked):
    ties, least, longest = rules
    characters = sorted(char.encode() for char in alphabet)
    counts = counts_of(words)
    return counts.train("bpe", size, least, ties, None, longest, blocked, characters)


rules = st.tuples(
    st.sampled_from(["ids", "bytes", "huggingface"]),
    st.integers(1, 3),
    st.sampled_from([None, None, 2, 5]),
)
few = st.text("ab\xe9\u4e2d", min_size=1, max_size=3).map(str.encode)
blocked = st.tuples(st.lists(few, max_size=3), st.lists(st.tuples(few, few), max_size=3))
# At least two symbols of several bytes: without any the symbols are bytes.
alphabets = st.sets(st.sampled_from(KNOWN), min_size=1).map(lambda few: "".join({*few, "\u4e2d"}))


def bytes_slow(words, size, rules, blocked):
    pieces = (word.encode() for word in Counter(words).elements())
    return byte_bpe.train(pieces, size, *rules, blocked={*blocked[0], *blocked[1]})


def bytes_fast(words, size, rules, blocked):
    ties, least, longest = rules
    return counts_of(words).train("bpe", size, least, ties, None, longest, blocked)


# Counts in files


def all_at_once(texts, cuts):
    counts = _rust.WordCounts("word", [], 1)
    for text in texts:
        counts.add([text])
    return counts.train("whole", 400, 1, "ids", None)


def in_files(texts, cuts):
    """The vocabulary from files, one written after each of the texts whose number is in `cuts`."""
    counts, files = _rust.WordCounts("word", [], 1), []
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(texts):
            counts.add([text])
            if number in cuts:
                files += counts.spill(folder, f"run{number}", "a note")
        files += counts.spill(folder, "rest", "a note")
        out = Path(folder, "all")
        _rust.join_counts(files, "another", out)
        assert _rust.count_note(out) == "another"
        joined = _rust.WordCounts("word", [], 1)
        joined.load(out)
    return joined.train("whole", 400, 1, "ids", None)


def code_words():
    return dict(Counter(standard_library(2)[:30_000].split()))


texts = st.lists(st.text("ab \xe9", min_size=1) | st.binary(min_size=1), min_size=1, max_size=6)

RUNGS = (
    rust_rung(
        "alphabet",
        alphabet_slow,
        alphabet_fast,
        st.tuples(
            words,
            st.text(KNOWN + "x", max_size=2),
            st.sampled_from([1.0, 0.9, 0.5]),
            st.sampled_from([None, 2, 3]),
        ),
        lambda: (code_words(), "\u2581", 0.999, None),
        covers=("WordCounts.alphabet",),
    ),
    rust_rung(
        "train characters",
        learn_slow,
        learn_fast,
        st.tuples(words, alphabets, st.integers(260, 275), rules, blocked),
        lambda: (code_words(), "abcdefgh\u4e2d", 300, ("ids", 1, None), ([], [])),
    ),
    rust_rung(
        "train blocked",
        bytes_slow,
        bytes_fast,
        st.tuples(words, st.integers(256, 270), rules, blocked),
        lambda: (code_words(), 300, ("ids", 1, None), ([b"in"], [(b"t", b"h")])),
    ),
    rust_rung(
        "count in files",
        all_at_once,
        in_files,
        st.tuples(texts, st.sets(st.integers(0, 5))),
        lambda: ([standard_library(2)[:50_000]] * 4, {1, 2}),
        covers=(
            *("WordCounts.memory", "WordCounts.spill", "WordCounts.load"),
            *("join_counts", "count_note"),
        ),
        cost=2,
    ),
)
