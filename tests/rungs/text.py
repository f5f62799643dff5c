"""Text to ids and back: the Rust tokenizer against `reference.byte_bpe` and `patterns`."""

import codecs
import warnings
from functools import cache
from itertools import pairwise
from operator import mul

from hypothesis import strategies as st

from tests.rungs.rung import Rung
from tests.strategies import any_text, assigned_text, hostile_text, runs, token_soup
from tests.tokenizer_data import KINDS, TEXTS, TOKENIZERS, standard_library, tiktoken_of
from tinylm import Tokenizer, _rust
from tinylm.reference import byte_bpe, patterns, word_bpe

EVERY = {**TOKENIZERS, **KINDS}
TIES = ["ids", "bytes"]
SPECIAL = sorted(TOKENIZERS["gpt4"].special_tokens)
RANKS = {token: id for id, token in TOKENIZERS["gpt4"].vocab.items() if id < 367}
named = st.sampled_from(sorted(TOKENIZERS))
texts = st.lists(assigned_text(), max_size=5)
# One piece of many merges: from 100 bytes on the encoder keeps them in a heap.
LETTERS = ["a", "b", "ab", "the", "quick", "fox", "lazy", "na\xefve", "\u4e2d\u6587"]
long_word = st.lists(st.sampled_from(LETTERS), min_size=50, max_size=120).map("".join)


def train_slow(text, size, pattern, ties, min_frequency):
    """Tokens by id, and the merges as pairs of bytes."""
    pieces = (piece.encode() for piece in patterns.split(text, pattern))
    tokens, merges = byte_bpe.train(pieces, size, ties, min_frequency)
    return dict(enumerate(tokens)), [(tokens[left], tokens[right]) for left, right in merges]


def train_fast(text, size, pattern, ties, min_frequency):
    with warnings.catch_warnings():
        # The vocabulary may be smaller than asked for.
        warnings.simplefilter("ignore", UserWarning)
        tokenizer = Tokenizer.train(
            [text],
            vocab_size=size,
            pattern=pattern,
            ties=ties,
            min_frequency=min_frequency,
            special_tokens=(),
        )
    return tokenizer.vocab, tokenizer.merges


def trainings(ties):
    text = assigned_text() | runs() | st.text("ab ", max_size=60)
    pattern = st.sampled_from([*TOKENIZERS, "whole"])
    return st.tuples(
        text.filter(bool), st.integers(256, 300), pattern, st.just(ties), st.integers(1, 3)
    )


@cache
def learned(name):
    """Ids of the merges in order, and the tokens by id, of a tokenizer."""
    special = TOKENIZERS[name].special_tokens.values()
    tokens = [token for id, token in TOKENIZERS[name].vocab.items() if id not in special]
    id_of = {token: id for id, token in enumerate(tokens)}
    return [(id_of[a], id_of[b]) for a, b in TOKENIZERS[name].merges], tokens


def encode(name, text):
    """The ids of `text` by the reference, special tokens taken for text."""
    pieces = patterns.split(text, TOKENIZERS[name].pattern)
    return [id for piece in pieces for id in byte_bpe.encode(piece.encode(), *learned(name))]


def encode_special(name, text):
    """The ids of `text` by the reference, special tokens allowed."""
    ids = TOKENIZERS[name].special_tokens
    parts = byte_bpe.cut_special(text, ids)
    return [
        id
        for place, part in enumerate(parts)
        for id in ([ids[part]] if place % 2 else encode(name, part))
    ]


def allow(name, text):
    return TOKENIZERS[name].encode(text, special="allow")


def as_text(name, text):
    return TOKENIZERS[name].encode(text, special="text")


def around_the_cut(name, text, more):
    """The ids of what stands before a safe cut in `text`, and of what follows."""
    core = TOKENIZERS[name]._core
    at = core.cut(text, "allow") or 0
    rest = text.encode()[at:] + more.encode()
    return core.encode(text.encode()[:at], "allow") + core.encode(rest, "allow")


def batch(name, texts):
    ids, offsets = TOKENIZERS[name].encode_batch(texts, special="allow")
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


def whole_encode(data):
    tokenizer = Tokenizer.from_ranks(RANKS, pattern="whole", special_tokens={})
    return tokenizer.encode(data)


def pieces_as_tokens(name, text):
    """The pieces of `text`, told by a vocabulary in which every piece is a token."""
    tokens = {bytes([b]): b for b in range(256)}
    for piece in patterns.split(text, name):
        tokens.setdefault(piece.encode(), len(tokens))
    tokenizer = Tokenizer.from_ranks(tokens, pattern=name, special_tokens={})
    return [tokenizer.decode([id]) for id in tokenizer.encode(text)]


def joined(name, ids):
    return byte_bpe.decode(ids, list(TOKENIZERS[name].vocab.values()))


def pushed(name, ids):
    """What a stream hands out at each id, and at its end."""
    stream = _rust.DecodeStream(TOKENIZERS[name]._core)
    return [*(stream.push(id) for id in ids), stream.finish()]


def pushed_slowly(name, ids):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    tokens = TOKENIZERS[name].vocab
    return [*(decoder.decode(tokens[id]) for id in ids), decoder.decode(b"", True)]


def through(name, text):
    """`text` encoded and decoded, its special tokens taken for text, and as themselves."""
    tokenizer = EVERY[name]
    ids = tokenizer.encode(text, special="text"), tokenizer.encode(text, special="allow")
    return [tokenizer.decode(ids[0]), tokenizer.decode(ids[1], errors="strict")]


def bytes_through(name, data):
    return EVERY[name].decode_bytes(EVERY[name].encode(data, special="text"))


def parts_through(name, parts):
    return EVERY[name].decode(EVERY[name].encode_iterable(iter(parts), special="allow"))


def counted(pattern, *texts):
    """The vocabulary learned from the pieces of `texts`, as training counts them."""
    counts = _rust.WordCounts(pattern, SPECIAL, 1)
    counts.add([text for text in texts if text])
    return counts.train("bpe", 280, 1, "ids", None)


def counted_in_parts(pattern, text):
    counts = _rust.WordCounts(pattern, SPECIAL, 1)
    at = counts.cut(text) or 0
    return counted(pattern, text.encode()[:at], text.encode()[at:])


def words_through(text, n_merges):
    """`text` after a word-level BPE of `n_merges` merges was trained on it."""
    base = len(word_bpe.build_vocab(word_bpe.char_spaced_word_freq(text)))
    vocab, merges = word_bpe.train(text, base + n_merges)
    return word_bpe.decode(word_bpe.encode(text, vocab, merges), vocab)


def ids_of(name):
    ids = st.lists(st.integers(0, EVERY[name].vocab_size - 1))
    # They are decoded in blocks of 4096.
    return st.tuples(st.just(name), ids | st.builds(mul, ids, st.integers(2, 1000)))


def code(name="gpt4"):
    """A tokenizer's name and 40 kB of Python."""
    return name, standard_library(2)[:40_000]


def split_rung(name):
    return Rung(
        name=f"split {name}",
        chapter="metal",
        media=("lists", "rust"),
        slow=lambda _, text: patterns.split(text, name),
        fast=pieces_as_tokens,
        inputs=st.tuples(st.just(name), assigned_text()),
        example=lambda: code(name),
    )


def train_rung(ties):
    return Rung(
        name=f"train ties={ties}",
        chapter="metal",
        media=("lists", "rust"),
        slow=train_slow,
        fast=train_fast,
        inputs=trainings(ties),
        example=lambda: (standard_library(2)[:100_000], 600, "gpt4", ties, 1),
        covers=("WordCounts", "WordCounts.add", "WordCounts.train") if ties == "ids" else (),
    )


def metal(name, slow, fast, inputs, example=code, **rest):
    return Rung(name, "metal", ("lists", "rust"), slow, fast, inputs, example, **rest)


def roundtrip(name, fast, values, example, slow=lambda _, value: value):
    """The law that what goes in comes out again."""
    given = st.tuples(st.sampled_from(sorted(EVERY)), values)
    return metal(f"{name} roundtrip", slow, fast, given, example, fuzz=100_000)


RUNGS = (
    *map(train_rung, TIES),
    *map(split_rung, TOKENIZERS),
    metal(
        "encode",
        encode,
        as_text,
        st.tuples(named, assigned_text() | long_word),
        peer=lambda name, text: tiktoken_of(TOKENIZERS[name]).encode_ordinary(text),
        covers=("Tokenizer", "Tokenizer.encode", "Tokenizer.pattern"),
    ),
    metal(
        "encode ranks",
        lambda data: byte_bpe.encode_ranks(data, RANKS) if data else [],
        whole_encode,
        st.tuples(token_soup(sorted(RANKS)) | long_word.map(str.encode) | st.binary(max_size=40)),
        example=lambda: (b"the quick brown fox " * 20,),
    ),
    metal(
        "special tokens",
        encode_special,
        allow,
        st.tuples(
            named,
            st.lists(st.sampled_from([*SPECIAL, "<|", "|>", ">", "a "]) | assigned_text()).map(
                "".join
            ),
        ),
        example=lambda: ("gpt4", SPECIAL[0].join([standard_library(1)[:10_000]] * 4)),
    ),
    metal(
        "encode array",
        encode_special,
        lambda name, text: TOKENIZERS[name].encode_array(text, special="allow").tolist(),
        st.tuples(named, assigned_text()),
        covers=("Tokenizer.encode_array",),
    ),
    metal(
        "count",
        lambda name, text: len(encode_special(name, text)),
        lambda name, text: TOKENIZERS[name].count(text, special="allow"),
        st.tuples(named, assigned_text()),
        covers=("Tokenizer.count",),
    ),
    metal(
        "encode batch",
        lambda name, texts: [encode_special(name, text) for text in texts],
        batch,
        st.tuples(named, texts),
        example=lambda: ("gpt4", [standard_library(1)[:10_000]] * 4),
        covers=("Tokenizer.encode_batch",),
    ),
    metal(
        "cut",
        lambda name, text, more: encode_special(name, text + more),
        around_the_cut,
        st.tuples(named, assigned_text(), assigned_text()),
        example=lambda: (*code(), "the end"),
        covers=("Tokenizer.cut",),
    ),
    metal(
        "cut of training",
        lambda pattern, text: counted(pattern, text),
        counted_in_parts,
        # A letter at least: of special tokens alone there is nothing to learn.
        st.tuples(named, assigned_text().map(lambda text: text + "a")),
        covers=("WordCounts.cut",),
    ),
    metal(
        "decode bytes",
        joined,
        lambda name, ids: TOKENIZERS[name].decode_bytes(ids),
        named.flatmap(ids_of),
        example=lambda: ("gpt4", as_text(*code())),
        covers=("Tokenizer.decode_bytes",),
    ),
    metal(
        "decode",
        lambda name, ids: joined(name, ids).decode(errors="replace"),
        lambda name, ids: TOKENIZERS[name].decode(ids),
        named.flatmap(ids_of),
        example=lambda: ("gpt4", as_text(*code())),
        peer=lambda name, ids: tiktoken_of(TOKENIZERS[name]).decode(ids),
        covers=("Tokenizer.decode", "Tokenizer.vocab_size"),
    ),
    metal(
        "stream",
        pushed_slowly,
        pushed,
        named.flatmap(ids_of) | st.tuples(named, hostile_text().map(lambda t: [*t.encode()])),
        example=lambda: ("gpt4", as_text(*code())),
        covers=("DecodeStream", "DecodeStream.push", "DecodeStream.finish"),
    ),
    roundtrip("text", through, any_text(), code, slow=lambda _, text: [text, text]),
    roundtrip(
        "bytes",
        bytes_through,
        st.binary(max_size=60) | hostile_text().map(lambda text: text.encode()[1:-1]),
        lambda: ("gpt4", code()[1].encode()),
    ),
    roundtrip(
        "parts",
        parts_through,
        st.lists(any_text(), max_size=6),
        lambda: ("gpt4", [TEXTS[0]] * 400),
        slow=lambda _, parts: "".join(parts),
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
