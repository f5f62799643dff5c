"""Text to ids and back: the Rust tokenizer against `reference.byte_bpe` and `patterns`."""

from functools import cache
from itertools import pairwise
from operator import itemgetter, mul

from hypothesis import strategies as st

from tests.rungs.rung import rust_rung
from tests.support.strategies import any_text, assigned_text, hostile_text, token_soup
from tests.support.tokenizer_data import KINDS, TEXTS, TOKENIZERS, standard_library, tiktoken_of
from tinylm import Tokenizer, _rust
from tinylm.reference import byte_bpe, patterns

EVERY = {**TOKENIZERS, **KINDS}
# Those, and one whose last token overflows the room that the decoder has for a block of ids.
DECODED = TOKENIZERS | {
    "long": Tokenizer.from_ranks(
        {bytes([b]): b for b in range(256)}, pattern="gpt4", special_tokens={"x" * 100: 256}
    )
}
SPECIAL = sorted(TOKENIZERS["gpt4"].special_tokens)
RANKS = {token: id for id, token in TOKENIZERS["gpt4"].vocab.items() if id < 367}
named = st.sampled_from(sorted(TOKENIZERS))
any_decoder = st.sampled_from(sorted(DECODED))
texts = st.lists(assigned_text(), max_size=5)
parts = st.lists(any_text(), max_size=6)
with_special = st.lists(st.sampled_from([*SPECIAL, "<|", "|>", ">", "a "]) | assigned_text()).map(
    "".join
)
# Patterns that no scanner stands for, in the syntax that Python and Rust share.
OF_ONES_OWN = {
    "by classes": r"\p{L}+|\p{N}|\s+",
    "by dollars": r"[$]\d|a\$b|'s",
    "by sight": r"(?<=a)b+",
}
# Bytes that begin, go on with or break a character.
LEADING = [0x41, 0x80, 0x90, 0xA0, 0xBF, 0xC1, 0xC3, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5]
# One piece of many merges: from 100 bytes on the encoder keeps them in a heap.
LETTERS = ["a", "b", "ab", "the", "quick", "fox", "lazy", "na\xefve", "\u4e2d\u6587"]
long_word = st.lists(st.sampled_from(LETTERS), min_size=50, max_size=120).map("".join)


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


def encode_some(name, text, allowed):
    """The ids of `text`, or that it is refused: it holds a special token not in `allowed`."""
    found = byte_bpe.cut_special(text, TOKENIZERS[name].special_tokens)[1::2]
    return encode_special(name, text) if {*found} <= allowed else "refused"


def some(name, text, allowed):
    try:
        return TOKENIZERS[name].encode(text, special=allowed or "raise")
    except ValueError:
        return "refused"


def encode_whole(name, text):
    """The ids of whole words or characters; a piece that is no token is its bytes."""
    special = KINDS[name].special_tokens.values()
    id_of = {token: id for id, token in KINDS[name].vocab.items() if id not in special}
    pieces = [p.encode() for p in patterns.split(text, KINDS[name].pattern)]
    return [
        i for p in pieces for i in ([id_of[p]] if p in id_of else (id_of[bytes([b])] for b in p))
    ]


def allow(name, text):
    return TOKENIZERS[name].encode(text, special="allow")


def as_text(name, text):
    return TOKENIZERS[name].encode(text, special="text")


def around_the_cut(name, text, more):
    """The ids of what stands before a safe cut in `text`, and of what follows."""
    core = TOKENIZERS[name]._core
    at = core.cut(text, "allow")
    assert at, "no place to cut"
    rest = text.encode()[at:] + more.encode()
    return core.encode(text.encode()[:at], "allow") + core.encode(rest, "allow")


def short(name, text):
    ids = TOKENIZERS[name].encode_array(text, special="allow", dtype="uint16")
    return str(ids.dtype), ids.tolist()


def batch(name, texts):
    ids, offsets = TOKENIZERS[name].encode_batch(texts, special="allow")
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


def whole_encode(data):
    tokenizer = Tokenizer.from_ranks(RANKS, pattern="whole", special_tokens={})
    return tokenizer.encode(data)


def pieces_as_tokens(name, text):
    """The pieces of `text`, told by a vocabulary in which every piece is a token.

    Two neighbours together are one too: else a piece too long would be cut into the right ones.
    """
    tokens = {bytes([b]): b for b in range(256)}
    pieces = patterns.split(text, name)
    for piece in [*pieces, *map("".join, pairwise(pieces))]:
        tokens.setdefault(piece.encode(), len(tokens))
    tokenizer = Tokenizer.from_ranks(tokens, pattern=name, special_tokens={})
    return [tokenizer.decode([id]) for id in tokenizer.encode(text)]


def joined(name, ids):
    return byte_bpe.decode(ids, list(DECODED[name].vocab.values()))


def pushed(name, ids):
    """What a stream hands out at each id, and at its end."""
    stream = _rust.DecodeStream(DECODED[name]._core)
    return [*(stream.push(id) for id in ids), stream.finish()]


def begins_a_character(tail):
    """Whether some bytes after `tail` make a character of it."""
    for more in (b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80"):
        try:
            if len((tail + more).decode()) == 1:
                return True
        except UnicodeDecodeError:
            pass
    return False


def pushed_slowly(name, ids):
    """At each id all text but the beginning of a character, which later bytes may complete.

    Python's incremental decoder also holds back the half of a surrogate, which nothing can.
    """
    found, pending = [], b""
    for id in ids:
        pending += DECODED[name].vocab[id]
        lengths = range(min(3, len(pending)), 0, -1)
        held = next((n for n in lengths if begins_a_character(pending[-n:])), 0)
        whole, pending = pending[: len(pending) - held], pending[len(pending) - held :]
        found.append(whole.decode(errors="replace"))
    return [*found, pending.decode(errors="replace")]


def through(name, text):
    """`text` encoded and decoded, its special tokens taken for text, and as themselves."""
    tokenizer = EVERY[name]
    ids = tokenizer.encode(text, special="text"), tokenizer.encode(text, special="allow")
    return [tokenizer.decode(ids[0]), tokenizer.decode(ids[1], errors="strict")]


def bytes_through(name, data):
    return EVERY[name].decode_bytes(EVERY[name].encode(data, special="text"))


def parts_through(name, parts):
    return EVERY[name].decode(EVERY[name].encode_iterable(iter(parts), special="allow"))


@st.composite
def beginnings(draw):
    """The beginning of a text, which may end inside a special token, and what follows."""
    token = draw(st.sampled_from(SPECIAL))
    at = draw(st.integers(0, len(token)))
    # A place to cut, before all that may belong to a special token.
    return draw(assigned_text()) + "a b " * 9 + token[:at], token[at:] + draw(assigned_text())


def ids_of(name):
    last = DECODED[name].vocab_size - 1
    ids = st.lists(st.integers(0, last) | st.just(last))
    return st.tuples(st.just(name), ids | st.builds(mul, ids, st.integers(2, 1000)))


def rows_of(name):
    return st.tuples(st.just(name), st.lists(ids_of(name).map(itemgetter(1)), max_size=4))


def code(name="gpt4"):
    """A tokenizer's name and 40 kB of Python."""
    return name, standard_library(2)[:40_000]


def split_rung(name, called=None):
    return rust_rung(
        f"split {called or name}",
        lambda _, text: patterns.split(text, name),
        pieces_as_tokens,
        st.tuples(st.just(name), assigned_text()),
        lambda: code(name),
    )


def roundtrip(name, fast, values, example, slow=lambda _, value: value):
    """The law that what goes in comes out again."""
    given = st.tuples(st.sampled_from(sorted(EVERY)), values)
    return rust_rung(f"{name} roundtrip", slow, fast, given, example, fuzz=100_000)


RUNGS = (
    *map(split_rung, [name for name in patterns.PATTERNS if name != "whole"]),
    *(split_rung(pattern, called) for called, pattern in OF_ONES_OWN.items()),
    rust_rung(
        "encode",
        encode,
        as_text,
        st.tuples(named, assigned_text() | long_word),
        example=code,
        peer=lambda name, text: tiktoken_of(TOKENIZERS[name]).encode_ordinary(text),
        covers=("Tokenizer", "Tokenizer.encode", "Tokenizer.pattern"),
    ),
    rust_rung(
        "encode whole pieces",
        encode_whole,
        lambda name, text: KINDS[name].encode(text, special="text"),
        st.tuples(st.sampled_from(sorted(KINDS)), assigned_text()),
        example=lambda: code("whitespace"),
    ),
    rust_rung(
        "encode ranks",
        lambda data: byte_bpe.encode_ranks(data, RANKS) if data else [],
        whole_encode,
        st.tuples(token_soup(sorted(RANKS)) | long_word.map(str.encode) | st.binary(max_size=40)),
        example=lambda: (b"the quick brown fox " * 20,),
    ),
    rust_rung(
        "special tokens",
        encode_special,
        allow,
        st.tuples(named, with_special),
        example=lambda: ("gpt4", SPECIAL[0].join([standard_library(1)[:10_000]] * 4)),
        cost=5,
    ),
    rust_rung(
        "special tokens, some",
        encode_some,
        some,
        st.tuples(named, with_special, st.sets(st.sampled_from(SPECIAL))),
        example=lambda: ("gpt4", SPECIAL[0].join([standard_library(1)[:10_000]] * 4), {SPECIAL[0]}),
    ),
    rust_rung(
        "encode array",
        encode_special,
        lambda name, text: TOKENIZERS[name].encode_array(text, special="allow").tolist(),
        st.tuples(named, assigned_text()),
        example=code,
        covers=("Tokenizer.encode_array",),
        cost=2,
    ),
    rust_rung(
        "encode to uint16",
        lambda name, text: ("uint16", encode_special(name, text)),
        short,
        st.tuples(named, assigned_text()),
        example=code,
        cost=2,
    ),
    rust_rung(
        "count",
        lambda name, text: len(encode_special(name, text)),
        lambda name, text: TOKENIZERS[name].count(text, special="allow"),
        st.tuples(named, assigned_text()),
        example=code,
        covers=("Tokenizer.count",),
        cost=2,
    ),
    rust_rung(
        "encode batch",
        lambda name, texts: [encode_special(name, text) for text in texts],
        batch,
        st.tuples(named, texts),
        example=lambda: ("gpt4", [standard_library(1)[:10_000]] * 4),
        covers=("Tokenizer.encode_batch",),
    ),
    rust_rung(
        "cut",
        lambda name, text, more: encode_special(name, text + more),
        around_the_cut,
        st.builds(lambda name, parts: (name, *parts), named, beginnings()),
        example=lambda: (*code(), "the end"),
        covers=("Tokenizer.cut",),
    ),
    rust_rung(
        "decode bytes",
        joined,
        lambda name, ids: DECODED[name].decode_bytes(ids),
        any_decoder.flatmap(ids_of),
        example=lambda: ("gpt4", as_text(*code())),
        covers=("Tokenizer.decode_bytes",),
    ),
    rust_rung(
        "decode",
        lambda name, ids: joined(name, ids).decode(errors="replace"),
        lambda name, ids: DECODED[name].decode(ids),
        any_decoder.flatmap(ids_of),
        example=lambda: ("gpt4", as_text(*code())),
        peer=lambda name, ids: tiktoken_of(DECODED[name]).decode(ids),
        covers=("Tokenizer.decode", "Tokenizer.vocab_size"),
    ),
    rust_rung(
        "decode batch",
        lambda name, rows: [joined(name, ids).decode(errors="replace") for ids in rows],
        lambda name, rows: DECODED[name].decode_batch(rows),
        any_decoder.flatmap(rows_of),
        example=lambda: ("gpt4", [as_text(*code())] * 3),
        covers=("Tokenizer.decode_batch",),
    ),
    rust_rung(
        "stream",
        pushed_slowly,
        pushed,
        any_decoder.flatmap(ids_of)
        | st.tuples(named, hostile_text().map(lambda t: [*t.encode()]))
        | st.tuples(named, st.lists(st.sampled_from(LEADING))),
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
        # An iterable is cut from 65,536 bytes on.
        parts | st.builds(mul, parts, st.integers(2, 2_000)),
        lambda: ("gpt4", [TEXTS[0]] * 400),
        slow=lambda _, parts: "".join(parts),
    ),
)
