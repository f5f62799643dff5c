"""One piece to ids by each kind of model, against its reference and Hugging Face's `tokenizers`."""

from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import tokenizers.models as peers
from hypothesis import strategies as st

from tests.rungs.rung import rust_rung
from tests.support.charsmap import packed
from tests.support.tokenizer_data import standard_library
from tinylm import _rust
from tinylm.reference import char_bpe, sentencepiece, unigram, wordpiece

MARK = "\u2581"
BYTE = [bytes([byte]) for byte in range(256)]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Few characters, so that tokens overlap; one of each width, and some that no vocabulary has.
KNOWN = "ab\xe9\u4e2d" + MARK
pieces = st.text(KNOWN + "\xfc\U0001f600", min_size=1, max_size=24)
words = st.text(KNOWN, min_size=1, max_size=5)
# A coarse grid: many segmentations have equal sums, and those are exact.
grid = st.integers(-20, -1).map(lambda half: half / 2)


def core(tokens, model, piece):
    """The ids of one piece; twice, because the second time they may come from the cache."""
    tokenizer = _rust.Tokenizer({t.encode(): i for t, i in tokens.items()}, model, "whole", [])
    first = tokenizer.encode(piece, "text")
    assert tokenizer.encode(piece, "text") == first
    return first


def ids(model, piece):
    return [token.id for token in model.tokenize(piece)]


# Unigram


@st.composite
def unigrams(draw):
    """A piece, tokens with their scores, the unknown one first, and whether bytes are tokens."""
    scores = {"<unk>": 0.0, **draw(st.dictionaries(words, grid, max_size=12))}
    has_bytes = draw(st.booleans())
    if has_bytes:
        scores |= dict.fromkeys(BYTES, 0.0)
    return draw(pieces), scores, has_bytes


def unigram_slow(piece, scores, has_bytes):
    ids = {token.encode(): i for i, token in enumerate(scores)}
    own = {token.encode(): score for token, score in scores.items()}
    return unigram.encode(piece.encode(), own, ids, 0, has_bytes)


def unigram_fast(piece, scores, has_bytes):
    model = _rust.Model.unigram(list(scores.values()), unknown=0, byte_fallback=has_bytes)
    return core({token: i for i, token in enumerate(scores)}, model, piece)


def unigram_peer(piece, scores, has_bytes):
    return ids(peers.Unigram(list(scores.items()), 0, has_bytes), piece)


@st.composite
def over_bytes(draw):
    """Any bytes, and scores of all 256 of them and of some longer tokens."""
    longer = draw(st.dictionaries(st.binary(min_size=2, max_size=4), grid, max_size=8))
    near = st.lists(st.sampled_from([*longer, b"a", b"\xe4\xb8", b"\xff"]), max_size=8).map(
        b"".join
    )
    piece = draw(st.binary(max_size=12) | near)
    return piece, {bytes([byte]): draw(grid) for byte in b"ab"}, longer


def bytes_scores(some, longer):
    return {bytes([byte]): some.get(bytes([byte]), -9.5) for byte in range(256)} | longer


def over_bytes_slow(piece, some, longer):
    scores = bytes_scores(some, longer)
    return unigram.encode(piece, scores, {token: i for i, token in enumerate(scores)})


def over_bytes_fast(piece, some, longer):
    scores = bytes_scores(some, longer)
    tokens = {token: i for i, token in enumerate(scores)}
    model = _rust.Model.unigram(list(scores.values()))
    return _rust.Tokenizer(tokens, model, "whole", []).encode(piece, "text")


# BPE over characters


@st.composite
def merges(draw):
    """A piece, tokens, merges of tokens, and the rest of the model as keywords."""
    prefix, suffix = draw(st.sampled_from([("", ""), ("", "</w>"), ("##", ""), ("##", "$")]))
    known = draw(st.text(KNOWN, max_size=5))
    tokens = dict.fromkeys(
        [p + c + s for c in known for p in {"", prefix} for s in {"", suffix}]
        + (BYTES if draw(st.booleans()) else [])
        + ["<unk>"]
    )
    pairs = {}
    for left, right in draw(st.lists(st.tuples(st.integers(0), st.integers(0)), max_size=14)):
        parts = [token for token in tokens if token[0] != "<"]
        right_parts = [token for token in parts if token.startswith(prefix)]
        if right_parts:
            pair = parts[left % len(parts)], right_parts[right % len(right_parts)]
            tokens.setdefault(pair[0] + pair[1].removeprefix(prefix))
            pairs.setdefault(pair)
    more = {
        "unknown": draw(st.sampled_from([None, "<unk>"])),
        "fuse": draw(st.booleans()),
        "byte_fallback": draw(st.booleans()),
        "prefix": prefix,
        "suffix": suffix,
    }
    piece = draw(pieces | st.text(known or "a", min_size=1, max_size=40))
    return piece, {token: i for i, token in enumerate(tokens)}, list(pairs), more


def char_bpe_slow(piece, tokens, pairs, more):
    return char_bpe.encode(piece, tokens, {pair: r for r, pair in enumerate(pairs)}, **more)


def char_bpe_model(tokens, pairs, more):
    return _rust.Model.char_bpe(
        [(tokens[left], tokens[right]) for left, right in pairs],
        unknown=tokens.get(more["unknown"]),
        fuse_unknown=more["fuse"],
        byte_fallback=more["byte_fallback"],
        prefix=more["prefix"],
        suffix=more["suffix"],
    )


def char_bpe_fast(piece, tokens, pairs, more):
    return core(tokens, char_bpe_model(tokens, pairs, more), piece)


def char_bpe_peer(piece, tokens, pairs, more):
    # It takes no None for what is not there.
    named = {
        "unk_token": more["unknown"],
        "continuing_subword_prefix": more["prefix"],
        "end_of_word_suffix": more["suffix"],
    }
    named = {name: value for name, value in named.items() if value}
    flags = {"fuse_unk": more["fuse"], "byte_fallback": more["byte_fallback"]}
    return ids(peers.BPE(tokens, pairs, **named, **flags), piece)


@st.composite
def scored(draw):
    """A piece and tokens with scores: every character of the piece, and some words."""
    piece = draw(st.text(KNOWN, min_size=1, max_size=40))
    longer = draw(st.dictionaries(words, grid, max_size=12))
    return piece, dict.fromkeys(sorted({*piece}), -99.0) | longer


def by_score_slow(piece, scores):
    tokens = {token: i for i, token in enumerate(scores)}
    return char_bpe.encode(piece, tokens, char_bpe.ranks_of_scores(scores))


def by_score_fast(piece, scores):
    model = _rust.Model.char_bpe(None, scores=list(scores.values()))
    return core({token: i for i, token in enumerate(scores)}, model, piece)


# WordPiece


@st.composite
def vocabularies(draw):
    """A word, tokens that begin one or stand inside one, and the longest word's length."""
    tokens = draw(st.lists(words | words.map("##".__add__), max_size=16))
    word = draw(pieces | st.lists(st.sampled_from([*tokens, "a"]), min_size=1).map("".join))
    vocab = {token: i for i, token in enumerate(dict.fromkeys(["[UNK]", *tokens]))}
    return word, vocab, draw(st.sampled_from([3, 100]))


def wordpiece_fast(word, vocab, longest):
    return core(vocab, _rust.Model.wordpiece(unknown=0, longest=longest), word)


# Unigram's training


def learn_slow(words, size, over_bytes):
    required = BYTE if over_bytes else sorted({c.encode() for word in words for c in word})
    counts = {word.encode(): count for word, count in words.items()}
    scores = unigram.train(counts, size, required)
    return list(scores), list(scores.values())


def learn_fast(words, size, over_bytes):
    counts = _rust.WordCounts("whole", [], 1)
    for word, count in words.items():
        counts.add([word] * count)
    required = None if over_bytes else sorted({c.encode() for word in words for c in word})
    return _rust.train_unigram(counts, size, 1, required, False, None)


def same_vocabulary(a, b):
    """Equal tokens, and scores equal to nine digits."""
    return a[0] == b[0] and np.allclose(a[1], b[1], rtol=1e-9, atol=0)


def trainings(over_bytes):
    parts = st.text("ab" if over_bytes else KNOWN, min_size=1, max_size=7)
    words = st.dictionaries(parts | parts.map(lambda part: part * 9), st.integers(1, 9), min_size=1)
    # 256 tokens of one byte count, if they are required.
    size = st.integers(257, 270) if over_bytes else st.integers(1, 24)
    return st.tuples(words, size, st.just(over_bytes))


def counted_words():
    """The words of some code, with their counts."""
    return dict(Counter(standard_library(2)[:20_000].split()))


# What sentencepiece's models do to a text before


def normalised(text, chars, kept, flags):
    return sentencepiece.normalise(text, chars, kept, **flags)


def normalise_fast(text, chars, kept, flags):
    """The normalised text, told by a tokenizer whose tokens are the bytes of a text."""
    step = {
        "type": "SentencePiece",
        "precompiled_charsmap": packed(chars) if chars else b"",
        "kept": kept,
        "add_dummy_prefix": flags["prefix"],
        "treat_whitespace_as_suffix": flags["suffix"],
        "remove_extra_whitespaces": flags["collapse"],
        "escape_whitespaces": flags["escape"],
    }
    tokens = {byte: id for id, byte in enumerate(BYTE)}
    stages = ([step], [], False, b"", [])
    model = _rust.Model.bpe([], whole_pieces=False)
    core = _rust.Tokenizer(tokens, model, "marks", [], stages)
    made = core.encode(text, "text")
    # Who asks for offsets goes another way.
    assert core.encode_offsets(text, "text")[0].tolist() == made
    return bytes(made).decode()


BLANKS = "ab \t\u3000e\u0301" + MARK
texts_of_blanks = st.text(BLANKS, max_size=20)
maps = st.dictionaries(
    st.text(BLANKS, min_size=1, max_size=3), st.text("xy " + MARK, max_size=3), max_size=6
)
flags = st.fixed_dictionaries(
    {name: st.booleans() for name in ("prefix", "suffix", "collapse", "escape")}
)


def marks_slow(text):
    """The pieces of the pattern `marks`: cut before each mark that follows another character."""
    cuts = [i for i in range(1, len(text)) if text[i] == MARK != text[i - 1]]
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)]) if a < b]


def marks_fast(text):
    pieces = {piece.encode() for piece in marks_slow(text)} - {*BYTE}
    together = [a + b for a, b in pairwise(marks_slow(text))]
    longer = [*pieces, *(pair.encode() for pair in together)]
    tokens = dict.fromkeys([*BYTE, *longer])
    tokens = {token: id for id, token in enumerate(tokens)}
    core = _rust.Tokenizer(tokens, _rust.Model.bpe([], whole_pieces=True), "marks", [])
    return [core.decode([id], "strict") for id in core.encode(text, "text")]


@cache
def frequent():
    """2,000 substrings of code with their logarithms of counts, and one piece of 400 bytes."""
    text = standard_library(2)[:40_000].replace(" ", MARK)
    counts = {}
    for length in range(1, 7):
        for start in range(len(text) - length):
            part = text[start : start + length]
            counts[part] = counts.get(part, 0) + length
    best = sorted(counts, key=lambda part: (-counts[part], part))[:2000]
    scores = {"<unk>": 0.0, **{part: float(-rank) / 200 for rank, part in enumerate(best)}}
    return text[5000:5400], scores


RUNGS = (
    rust_rung(
        "unigram",
        unigram_slow,
        unigram_fast,
        unigrams(),
        lambda: (*frequent(), False),
        peer=unigram_peer,
        covers=("Model", "Model.unigram"),
    ),
    rust_rung(
        "unigram over bytes",
        over_bytes_slow,
        over_bytes_fast,
        over_bytes(),
        lambda: (frequent()[0].encode(), {}, {b"th": -1.0, b"self": -2.0}),
        cost=4,
    ),
    rust_rung(
        "train unigram",
        learn_slow,
        learn_fast,
        trainings(over_bytes=False),
        lambda: (counted_words(), 200, False),
        same=same_vocabulary,
        covers=("train_unigram",),
        cost=2,
    ),
    rust_rung(
        "train unigram over bytes",
        learn_slow,
        learn_fast,
        trainings(over_bytes=True),
        lambda: (counted_words(), 400, True),
        same=same_vocabulary,
        cost=8,
    ),
    rust_rung(
        "sentencepiece normaliser",
        normalised,
        normalise_fast,
        st.tuples(
            texts_of_blanks,
            maps,
            st.lists(st.text(BLANKS, min_size=1, max_size=3), max_size=2),
            flags,
        ),
        lambda: (
            standard_library(2)[:20_000],
            {"\n": " ", "\t": " "},
            [],
            {"prefix": True, "suffix": False, "collapse": True, "escape": True},
        ),
    ),
    rust_rung(
        "split marks",
        marks_slow,
        marks_fast,
        st.tuples(st.text(KNOWN + MARK, max_size=20)),
        lambda: (standard_library(2)[:20_000].replace(" ", MARK),),
    ),
    rust_rung(
        "char bpe",
        char_bpe_slow,
        char_bpe_fast,
        merges(),
        lambda: (
            "abab" * 100,
            {"a": 0, "b": 1, "ab": 2, "abab": 3, "<unk>": 4},
            [("a", "b"), ("ab", "ab")],
            {"unknown": None, "fuse": False, "byte_fallback": False, "prefix": "", "suffix": ""},
        ),
        peer=char_bpe_peer,
        covers=("Model.bpe", "Model.char_bpe"),
    ),
    rust_rung(
        "char bpe by scores",
        by_score_slow,
        by_score_fast,
        scored(),
        lambda: ("abab" * 100, {"a": -9.0, "b": -9.0, "ab": -1.0, "abab": -2.0}),
    ),
    rust_rung(
        "wordpiece",
        lambda word, vocab, longest: wordpiece.encode(word, vocab, 0, longest=longest),
        wordpiece_fast,
        vocabularies(),
        lambda: ("ab" * 40, {"[UNK]": 0, "ab": 1, "##a": 2, "##b": 3, "##ba": 4}, 100),
        peer=lambda word, vocab, longest: ids(
            peers.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=longest), word
        ),
        covers=("Model.wordpiece",),
    ),
)
