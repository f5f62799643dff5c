"""Text to a vocabulary: how tokenizers are trained, in Rust and in lists."""

import base64
import json
import random
import warnings
from itertools import product
from pathlib import Path

from hypothesis import strategies as st

from tests.rungs.rung import Rung, rust_rung
from tests.rungs.text import SPECIAL, beginnings, code, named
from tests.support.strategies import assigned_text, runs
from tests.support.tokenizer_data import TEXTS, TOKENIZERS, standard_library
from tinylm import Tokenizer, _rust
from tinylm.reference import byte_bpe, patterns, word_bpe
from tinylm.tokenizer.contents import CHARS, to_bytes, to_chars
from tinylm.tokenizer.json_models import _merges as two_of_json
from tinylm.tokenizer.json_models import _pairs as pairs_of_json
from tinylm.tokenizer.tiktoken import ranks_in

TIES = ["ids", "bytes", "huggingface"]
BYTES = [bytes([b]) for b in range(256)]


def train_slow(text, size, pattern, ties, min_frequency, max_length=None):
    """The tokens after the 256 bytes in the order of their ids, and the merges."""
    pieces = (piece.encode() for piece in patterns.split(text, pattern))
    tokens, merges = byte_bpe.train(pieces, size, ties, min_frequency, max_length)
    assert tokens[:256] == BYTES
    return tokens[256:], [(tokens[left], tokens[right]) for left, right in merges]


def train_fast(text, size, pattern, ties, min_frequency, max_length=None):
    with warnings.catch_warnings():
        # The vocabulary may be smaller than asked for.
        warnings.simplefilter("ignore", UserWarning)
        tokenizer = Tokenizer.train(
            [text],
            vocab_size=size,
            pattern=pattern,
            ties=ties,
            min_frequency=min_frequency,
            max_token_length=max_length,
            special_tokens=(),
        )
    tokens = [token for _, token in sorted(tokenizer.vocab.items())]
    assert tokens[:256] == BYTES
    return tokens[256:], tokenizer.merges


@st.composite
def json_merges(draw):
    """Merges as a tokenizer.json writes them, in either way, and a vocabulary with all parts."""
    vocab = draw(st.dictionaries(st.text("ab\xe9", min_size=1), st.integers(0, 2**32 - 1)))
    token = st.sampled_from(sorted(vocab) or ["a"])
    pair = st.lists(token, min_size=2, max_size=2)
    return draw(st.lists(pair | pair.map(" ".join) if vocab else st.nothing())), vocab


def read_merges(document):
    """The merges of a document as the file has them, and as `_rust.Merges`; None if not plain."""
    found = _rust.read_merges(document)
    if found is None:
        return None
    merges, start, end = found
    rest = json.loads(document[:start] + b"null" + document[end:])
    assert rest["model"].pop("merges") is None
    return merges


def merges_of_document(document):
    merges = read_merges(document)
    return json.loads(document)["model"]["merges"] if merges is None else merges.to_list()


@st.composite
def documents(draw):
    """A tokenizer.json with merges, written in different ways."""
    text = st.text(st.sampled_from('ab"\\/\n\x7f\xe9\u0120\U0001f600'), max_size=4)
    pair = st.lists(text, min_size=2, max_size=2)
    merges = draw(st.lists(pair, min_size=1) | st.lists(pair.map(" ".join), min_size=1))
    model = draw(
        st.permutations([("merges", merges), ("vocab", {"[{": 1}), ("x", [1.5, None, {}])])
    )
    document = draw(st.permutations([("model", dict(model)), ("y", {"merges": []}), ("z", True)]))
    written = json.dumps(
        dict(document), indent=draw(st.sampled_from([None, 1])), ensure_ascii=draw(st.booleans())
    )
    return (written.encode(),)


def ids_of_merges(merges, vocab):
    found = _rust.merge_ids(merges, vocab)
    read = read_merges(json.dumps({"model": {"merges": merges}}).encode())
    if read is not None:
        assert len(read) == len(merges)
        assert read.joined == isinstance(merges[0], str)
        assert _rust.merge_ids(read, vocab) == found
        pairs = two_of_json(merges)
        used = {part for left, right in pairs for part in (left, right, left + right)}
        texts = ["a", "ab", "\xe9b", "", "abab"]
        assert read.using(texts) == [text for text in texts if text in used]
    return found


def splits_of(tokens):
    splits = _rust.every_split(tokens)
    vocab = {to_chars(token): id for token, id in tokens.items()}
    chars = {id: token for token, id in vocab.items()}
    merges = [[chars[left], chars[right]] for left, right in splits]
    assert _rust.is_every_split(merges, vocab, tokens)
    for other in (merges[1:], merges[::-1], [*merges[:-1], ["no", "token"]]):
        assert _rust.is_every_split(other, vocab, tokens) == (other == merges)
        read = read_merges(json.dumps({"model": {"merges": other}}).encode())
        assert read is None or _rust.is_every_split(read, vocab, tokens) == (other == merges)
    return splits


def trainings(ties):
    text = assigned_text() | runs() | st.text("ab ", max_size=60)
    pattern = st.sampled_from([*TOKENIZERS, "whole"])
    return st.tuples(
        text.filter(bool),
        st.integers(256, 300),
        pattern,
        st.just(ties),
        st.integers(1, 3),
        st.sampled_from([None, None, 1, 2, 5]),
    )


def crowd(seed):
    """Over 2,048 different words, each one to three times: the table that counts them grows."""
    draws = random.Random(seed)
    words = map("".join, product("abcdefghijklm", repeat=3))
    return "".join(f" {word}" * draws.randint(1, 3) for word in words)


def most_frequent(text, size, kind, ties, min_frequency):
    """The tokens of a vocabulary of whole characters or words."""
    pieces = patterns.split(text, {"char": "character", "whitespace": "word"}[kind])
    return byte_bpe.most_frequent((p.encode() for p in pieces), size, ties, min_frequency)


def train_whole(text, size, kind, ties, min_frequency):
    tokenizer = Tokenizer.train(
        [text],
        vocab_size=size,
        kind=kind,
        ties=ties,
        min_frequency=min_frequency,
        special_tokens=(),
    )
    return list(tokenizer.vocab.values())


def counted(pattern, *texts):
    """The vocabulary learned from the pieces of `texts`, as training counts them."""
    counts = _rust.WordCounts(pattern, SPECIAL, 1)
    counts.add([text for text in texts if text])
    return counts.train("bpe", 280, 1, "ids", None)


def counted_in_parts(pattern, text, more):
    at = _rust.WordCounts(pattern, SPECIAL, 1).cut(text)
    assert at, "no place to cut"
    return counted(pattern, text.encode()[:at], text.encode()[at:] + more.encode())


def ranks_file(ranks):
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    return b"".join(lines)


def words_through(text, n_merges):
    """`text` after a word-level BPE of `n_merges` merges was trained on it."""
    base = len(word_bpe.build_vocab(word_bpe.char_spaced_word_freq(text)))
    vocab, merges = word_bpe.train(text, base + n_merges)
    return word_bpe.decode(word_bpe.encode(text, vocab, merges), vocab)


def train_rung(ties):
    return rust_rung(
        f"train ties={ties}",
        train_slow,
        train_fast,
        trainings(ties),
        lambda: (standard_library(2)[:100_000], 600, "gpt4", ties, 1, None),
        covers=("WordCounts", "WordCounts.add", "WordCounts.train") if ties == "ids" else (),
    )


RUNGS = (
    *map(train_rung, TIES),
    rust_rung(
        "train many words",
        train_slow,
        train_fast,
        st.tuples(
            st.builds(crowd, st.integers(0, 2**32)),
            st.integers(256, 270),
            named,
            st.sampled_from(TIES),
            st.integers(1, 3),
        ),
        example=lambda: (crowd(0), 270, "gpt4", "ids", 1),
        cost=4,
    ),
    rust_rung(
        "train whole pieces",
        most_frequent,
        train_whole,
        st.tuples(
            assigned_text().filter(bool),
            st.integers(256, 300),
            st.sampled_from(["char", "whitespace"]),
            st.sampled_from(TIES),
            st.integers(1, 3),
        ),
        example=lambda: (standard_library(2)[:100_000], 600, "whitespace", "ids", 1),
    ),
    rust_rung(
        "cut of training",
        lambda pattern, text, more: counted(pattern, text + more),
        counted_in_parts,
        st.builds(lambda name, parts: (name, *parts), named, beginnings()),
        example=lambda: (*code(), "the end"),
        covers=("WordCounts.cut",),
    ),
    rust_rung(
        "read ranks",
        lambda data: ranks_in(data, Path("ranks")),
        lambda data: None if (found := _rust.read_ranks(data)) is None else found.dict(),
        st.dictionaries(st.binary(min_size=1, max_size=40), st.integers(0, 2**32 - 1)).map(
            lambda ranks: (ranks_file(ranks),)
        ),
        example=lambda: (ranks_file({bytes([b, 7]): b for b in range(256)}),),
        covers=("read_ranks", "TokenIds", "TokenIds.dict"),
    ),
    rust_rung(
        "byte tokens",
        lambda vocab: {to_bytes(token): id for token, id in vocab.items()},
        lambda vocab: _rust.byte_tokens(vocab),
        st.dictionaries(
            st.text(sorted(CHARS), min_size=1, max_size=12), st.integers(0, 2**32 - 1)
        ).map(lambda vocab: (vocab,)),
        example=lambda: ({to_chars(bytes([b, 7])): b for b in range(256)},),
        covers=("byte_tokens",),
    ),
    rust_rung(
        "merge ids",
        lambda merges, vocab: pairs_of_json(two_of_json(merges), vocab),
        ids_of_merges,
        json_merges(),
        example=lambda: ([["a", "b"], "b a"] * 1000, {"a": 1, "b": 2}),
        covers=("merge_ids", "Merges.using"),
    ),
    rust_rung(
        "read merges",
        lambda document: json.loads(document)["model"]["merges"],
        merges_of_document,
        documents(),
        example=lambda: (json.dumps({"model": {"merges": [["a", "b"]] * 1000}}).encode(),),
        covers=("read_merges", "Merges", "Merges.to_list", "Merges.joined"),
    ),
    rust_rung(
        "every split",
        byte_bpe.every_split,
        splits_of,
        st.sets(st.binary(min_size=1, max_size=6) | st.text("ab", min_size=1).map(str.encode)).map(
            lambda tokens: (dict(zip(sorted(tokens, key=hash), range(len(tokens)), strict=True)),)
        ),
        example=lambda: ({b"ab" * n + b"a" * m: 99 * n + m for n in range(99) for m in (1, 2)},),
        covers=("every_split", "is_every_split"),
    ),
    Rung(
        name="word bpe",
        chapter="lists",
        media=("text", "lists"),
        slow=lambda text, _: " ".join(word_bpe.isolate(text).split()),
        fast=words_through,
        inputs=st.tuples(
            st.text(st.characters(codec="utf-8") | st.sampled_from("aab. \n\t'</w>[]_"))
            | st.sampled_from(["a\u2028b\x85c\x1cd\u200be", "</w> [UNK] [EOS]"]),
            st.integers(0, 30),
        ),
        example=lambda: (TEXTS[0] + TEXTS[1], 30),
        fuzz=100_000,
    ),
)
