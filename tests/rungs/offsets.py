"""Where tokens stand in a text: Rust against `reference.offsets` and `tokenizers`."""

import base64
import tempfile
from functools import cache

import tokenizers
from hypothesis import strategies as st

from tests.rungs.added import TOKENIZER as ADDED
from tests.rungs.added import texts as added_texts
from tests.rungs.rung import rust_rung
from tests.rungs.stages import BYTE_LEVEL, BYTES, FLAGS, NORMALIZERS, PRE_TOKENIZERS
from tests.rungs.stages import texts as stage_texts
from tests.rungs.text import encode_special, named, with_special
from tests.support.charsmap import packed
from tests.support.strategies import assigned_text
from tests.support.tokenizer_data import TOKENIZERS, standard_library
from tinylm import _rust
from tinylm.reference import offsets
from tinylm.tokenizer import steps

# Replacements of a part of a cluster, of a whole one, and by nothing.
MAP = {"\xe9": "e", "\u0301": "", "\u2167": "VIII", "a\u030a": "A", "\u3000": " "}
CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(packed(MAP)).decode()}
# Characters that come apart, go together or change places in a normal form.
FORMED = ["e\u0301\u0323", "a\u030a", "\u1100\u1161\u11a8", "\ufb01", "\uff76\uff9e"]


def ours(tokenizer, text):
    ids, places = tokenizer._core.encode_offsets(text, "allow")
    return ids.tolist(), [*map(tuple, places.tolist())]


def of_bytes(name, text):
    """The ids of `text`, and the bytes that each has."""
    ids = encode_special(name, text)
    vocab = TOKENIZERS[name].vocab
    return ids, offsets.lengths([vocab[id] for id in ids])


def of_characters(name, text):
    ids, places = of_bytes(name, text)
    return ids, offsets.in_characters(text, places)


@cache
def peer_of(name):
    """A tokenizer of `tokenizers` with the same file."""
    with tempfile.TemporaryDirectory() as folder:
        TOKENIZERS[name].save(f"{folder}/tokenizer.json")
        return tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")


def theirs(name, text):
    found = peer_of(name).encode(text, add_special_tokens=False)
    return found.ids, found.offsets


def stages_slowly(text, normalizers, cutters):
    """The bytes that the pieces of a text have, and where each comes from."""
    chars = offsets.normalise(
        offsets.aligned(text), steps.normalizers({"type": "Sequence", "normalizers": normalizers})
    )
    checked = steps.pre_tokenizers({"type": "Sequence", "pretokenizers": cutters})
    found = [char for piece in offsets.cut(chars, checked) for char in piece]
    return offsets.text_of(found).encode(), [place for _, places in found for place in places]


def stages_quickly(text, normalizers, cutters):
    checked = (
        steps.normalizers({"type": "Sequence", "normalizers": normalizers}),
        steps.pre_tokenizers({"type": "Sequence", "pretokenizers": cutters}),
    )
    model = _rust.Model.char_bpe([], byte_fallback=True)
    core = _rust.Tokenizer(BYTES, model, "whole", [], (*checked, True, b"", []))
    ids, places = core.encode_offsets(text.encode(), "text")
    return bytes(ids.tolist()), [*map(tuple, places.tolist())]


@st.composite
def staged(draw):
    """A text with some normalisers and pre-tokenizers, ByteLevel at most once.

    Rust takes a character with 64 marks and more for one stretch, so that it stays linear.
    """
    cutters = draw(st.lists(PRE_TOKENIZERS, max_size=2))
    if draw(FLAGS):
        cutters.insert(draw(st.integers(0, len(cutters))), draw(BYTE_LEVEL))
    text = "".join(draw(st.lists(stage_texts | st.sampled_from(FORMED), max_size=3)))[:60]
    return text, draw(st.lists(NORMALIZERS | st.just(CHARSMAP), max_size=2)), cutters


def added_slowly(text):
    ids = ADDED.encode(text, special="allow")
    return ids, offsets.lengths([ADDED.vocab[id] for id in ids])


RUNGS = (
    rust_rung(
        "offsets of bytes",
        of_bytes,
        lambda name, text: ours(TOKENIZERS[name], text.encode()),
        st.tuples(named, assigned_text() | with_special),
        example=lambda: ("gpt4", standard_library(2)[:40_000]),
        covers=("Tokenizer.encode_offsets",),
    ),
    rust_rung(
        "offsets of characters",
        of_characters,
        lambda name, text: ours(TOKENIZERS[name], text),
        st.tuples(named, assigned_text() | with_special),
        example=lambda: ("gpt4", standard_library(2)[:40_000]),
        peer=theirs,
    ),
    rust_rung(
        "offsets of added tokens",
        added_slowly,
        lambda text: ours(ADDED, text.encode()),
        st.tuples(added_texts),
        example=lambda: ("  ".join([standard_library(1)[:10_000]] * 4),),
        cost=2,
    ),
    rust_rung(
        "offsets of stages",
        stages_slowly,
        stages_quickly,
        staged(),
        example=lambda: (
            standard_library(2)[:2000],
            [{"type": "NFKC"}, {"type": "Lowercase"}],
            [{"type": "WhitespaceSplit"}],
        ),
        cost=2,
    ),
)
