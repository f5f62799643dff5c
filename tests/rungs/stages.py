"""Stages of a tokenizer.json, each against its reference and Hugging Face's `tokenizers`."""

import json
from functools import cache

import tokenizers
from hypothesis import assume
from hypothesis import strategies as st

from tests.rungs.rung import rust_rung
from tests.support.strategies import assigned_text
from tests.support.tokenizer_data import standard_library
from tinylm import _rust
from tinylm.reference import normalizers, pieces, surfaces
from tinylm.tokenizer import decoders, steps
from tinylm.tokenizer.contents import CHAR_TO_BYTE

MARK, END = "\u2581", "\ue000"
BYTES = {f"<0x{byte:02X}>".encode(): byte for byte in range(256)}
FLAGS = st.booleans()
BEHAVIOR = st.sampled_from(steps.BEHAVIORS)
PATTERN = st.sampled_from(
    [
        {"String": "a"},
        {"String": "  "},
        {"Regex": r"\s+"},
        {"Regex": r"\p{N}{1,3}"},
        {"Regex": r"'s|[\p{L}]+|[^\s\p{L}]+"},
        {"Regex": r"\s+(?!\S)|\s"},
    ]
)
# The tables of Python, of these crates and of `tokenizers` are of different years: what one of them
# does not know is no case.
texts = assigned_text().map(
    lambda text: "".join(c for c in text if c.isprintable() or ord(c) < 0x2100)
)


def kinds(*names):
    return st.sampled_from([{"type": name} for name in names])


def objects(kind, **keys):
    return st.fixed_dictionaries({"type": st.just(kind), **keys})


NORMALIZERS = (
    kinds("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel")
    | objects("Strip", strip_left=FLAGS, strip_right=FLAGS)
    | objects("Replace", pattern=PATTERN, content=st.sampled_from(["", " ", "xy"]))
    | objects("Prepend", prepend=st.just(MARK))
    | objects(
        "BertNormalizer",
        clean_text=FLAGS,
        handle_chinese_chars=FLAGS,
        strip_accents=st.none() | FLAGS,
        lowercase=FLAGS,
    )
)
PRE_TOKENIZERS = (
    kinds("Whitespace", "WhitespaceSplit", "BertPreTokenizer")
    | objects("Split", pattern=PATTERN, behavior=BEHAVIOR, invert=FLAGS)
    | objects("Digits", individual_digits=FLAGS)
    | objects("Punctuation", behavior=BEHAVIOR)
    | objects(
        "Metaspace",
        replacement=st.just(MARK),
        prepend_scheme=st.sampled_from(["first", "always", "never"]),
        split=FLAGS,
    )
    | objects("CharDelimiterSplit", delimiter=st.just(" "))
    | objects("FixedLength", length=st.integers(1, 3))
)
BYTE_LEVEL = objects("ByteLevel", add_prefix_space=FLAGS, trim_offsets=FLAGS, use_regex=FLAGS)
DECODERS = st.lists(
    objects(
        "Replace",
        pattern=st.sampled_from([{"String": MARK}, {"Regex": f"^{MARK}|a"}, {"Regex": r"\s+"}]),
        content=st.just(" "),
    )
    | objects("Strip", content=st.just(" "), start=st.integers(0, 2), stop=st.integers(0, 2))
    | objects("WordPiece", prefix=st.just("##"), cleanup=FLAGS)
    | objects(
        "Metaspace",
        replacement=st.just(MARK),
        prepend_scheme=st.sampled_from(["first", "always", "never"]),
        split=FLAGS,
    ),
    max_size=2,
)
ENDS = st.sampled_from(
    [
        [],
        [{"type": "Fuse"}],
        [{"type": "ByteFallback"}, {"type": "Fuse"}],
        [
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
        [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}],
    ]
)


@cache
def theirs(key, text):
    """A tokenizer of `tokenizers` with the parts in JSON, and no tokens."""
    model = {"type": "BPE", "vocab": {}, "merges": []}
    return tokenizers.Tokenizer.from_str(json.dumps({"model": model, key: json.loads(text)}))


def peer_of(key, inner, found):
    document = {"type": "Sequence", inner: found}
    return getattr(theirs(key, json.dumps(document)), key)


def ends(text, stages):
    """What the stages make of a text, each of its pieces followed by END."""
    model = _rust.Model.char_bpe([], byte_fallback=True, suffix=END)
    tokenizer = _rust.Tokenizer(BYTES, model, "whole", [], stages)
    return bytes(tokenizer.encode(text, "text")).decode()


# Normalizers


def normalise_slowly(text, found):
    return normalizers.normalise(
        text, steps.normalizers({"type": "Sequence", "normalizers": found})
    )


def normalise_quickly(text, found):
    checked = steps.normalizers({"type": "Sequence", "normalizers": found})
    made = _rust.normalise(text, checked)
    assert ends(text, (checked, [], True, b"", [])).removesuffix(END) == made
    return made


def normalise_theirs(text, found):
    return peer_of("normalizer", "normalizers", found).normalize_str(text)


# Pre-tokenizers


def cut_slowly(text, found):
    return pieces.cut(text, steps.pre_tokenizers({"type": "Sequence", "pretokenizers": found}))


def cut_quickly(text, found):
    checked = steps.pre_tokenizers({"type": "Sequence", "pretokenizers": found})
    return ends(text, ([], checked, True, b"", [])).split(END)[:-1]


def cut_theirs(text, found):
    peer = peer_of("pre_tokenizer", "pretokenizers", found)
    return [piece for piece, _ in peer.pre_tokenize_str(text) if piece]


@st.composite
def cuttings(draw):
    """A text and some steps, ByteLevel at most once and anywhere."""
    found = draw(st.lists(PRE_TOKENIZERS, max_size=3))
    if draw(FLAGS):
        found.insert(draw(st.integers(0, len(found))), draw(BYTE_LEVEL))
    # tokenizers takes every piece whose offset is 0 for the first one: behind the blank that
    # ByteLevel puts in, and between the bytes of a first character.
    kinds = [step["type"] for step in found]
    late = [step.get("prepend_scheme") == "first" for step in found]
    assume(not any(first and "ByteLevel" in kinds[:at] for at, first in enumerate(late)))
    return draw(texts), found


# Decoders

TOKENS = ["", " ", " .", "##ing", "n't", MARK, f"{MARK}a", f"{MARK}{MARK}", "a ", "  b", "<0x41>"]
TOKENS += ["<0xC3>", "<0xA9>", "\xe9", "\u0120a", "\u4e2d", "x"]


def decode_slowly(ids, found):
    try:
        decoders.steps({"type": "Sequence", "decoders": found})
    except ValueError:
        return "refused"
    return surfaces.decode([TOKENS[id] for id in ids], found)


def decode_quickly(ids, found):
    try:
        checked = decoders.steps({"type": "Sequence", "decoders": found})
    except ValueError:
        return "refused"
    made = decoders.surfaces(checked, dict(enumerate(TOKENS)), CHAR_TO_BYTE)
    model = _rust.Model.char_bpe([])
    core = _rust.Tokenizer(
        {b"x": TOKENS.index("x")},
        model,
        "whole",
        [],
        None,
        ([*made.all.items()], [*made.first.items()], made.strip),
    )
    whole = core.decode_bytes(ids)
    stream = _rust.DecodeStream(core)
    parts = [stream.push(id) for id in ids]
    assert "".join([*parts, stream.finish()]) == whole.decode(errors="replace")
    return whole


def decode_theirs(ids, found):
    slow = decode_slowly(ids, found)
    # It takes runs of bytes apart in another way, where they are not UTF-8.
    if slow == "refused" or not found or b"\xff" in slow.replace(b"\xef\xbf\xbd", b"\xff"):
        return slow
    try:
        text = slow.decode()
    except UnicodeDecodeError:
        return slow
    try:
        peer = peer_of("decoder", "decoders", found).decode([TOKENS[id] for id in ids])
    except BaseException as error:
        # It panics where a token is shorter than what it strips.
        if type(error).__name__ == "PanicException":
            return slow
        raise
    return slow if peer == text else peer.encode()


RUNGS = (
    rust_rung(
        "normalise",
        normalise_slowly,
        normalise_quickly,
        st.tuples(texts, st.lists(NORMALIZERS, max_size=3)),
        example=lambda: (standard_library(2)[:40_000], [{"type": "NFKC"}, {"type": "Lowercase"}]),
        peer=normalise_theirs,
        covers=("normalise",),
        cost=2,
    ),
    rust_rung(
        "pre-tokenize",
        cut_slowly,
        cut_quickly,
        cuttings(),
        example=lambda: (
            standard_library(2)[:40_000],
            [{"type": "Punctuation", "behavior": "Contiguous"}, {"type": "WhitespaceSplit"}],
        ),
        peer=cut_theirs,
        cost=2,
    ),
    rust_rung(
        "scripts",
        cut_slowly,
        cut_quickly,
        st.tuples(
            st.text(
                "  a\xe9\u03b1\u0436\u05d0\u0627\u0915\u0e01\uac00\u6f22\u3042\u30ab\u30fc.,1\u0301"
            ),
            st.just([{"type": "UnicodeScripts"}]),
        ),
        example=lambda: (standard_library(2)[:40_000], [{"type": "UnicodeScripts"}]),
        peer=cut_theirs,
    ),
    rust_rung(
        "surfaces",
        decode_slowly,
        decode_quickly,
        st.tuples(
            st.lists(st.integers(0, len(TOKENS) - 1), max_size=8),
            st.builds(list.__add__, DECODERS, ENDS),
        ),
        example=lambda: ([5, 6, 1, 10] * 2000, [{"type": "Fuse"}]),
        peer=decode_theirs,
    ),
)
