"""`Tokenizer.encode_offsets`: where the tokens of a text stand in it."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from tests.support.tokenizer_data import corpus, data, tiktoken_of
from tests.support.tokenizer_json import MAIN, added, with_added
from tinylm import Tokenizer

# Cut characters, blanks of all kinds, characters that a normal form composes or takes apart.
HARD = ["", " ", "  a  b ", "\ta\n\nb", "\ufb01 \uff8a\uff9d \u2460", "x" * 200, "\u2581x \u2581"]
HARD += ["\u65e5\u672c\u8a9e \u30c6\u30b9\u30c8", "\U0001f600\U0001f468\u200d\U0001f469"]
HARD += ["A\xa0B\u3000C", "caf\xe9 na\xefve, isn't it?", "<0x0A> <s> hello", "\u0e44\u0e17\u0e22"]


def test_offsets_count_what_the_text_is_made_of() -> None:
    text = "na\xefve \u4e2d\u6587 fox<|end|>"
    ids, of_str = MAIN.encode_offsets(text, special="allow")
    assert (ids.dtype, of_str.dtype, of_str.shape) == (np.uint32, np.int64, (len(ids), 2))
    assert ids.tolist() == MAIN.encode(text, special="allow")
    data = text.encode()
    _, of_bytes = MAIN.encode_offsets(data, special="allow")
    assert [data[a:b] for a, b in of_bytes] == [MAIN.vocab[id] for id in ids.tolist()]
    # In a str a token has all of a character that it cuts.
    assert all(MAIN.vocab[id] in text[a:b].encode() for id, (a, b) in zip(ids, of_str, strict=True))
    starts = tiktoken_of(MAIN).decode_with_offsets(ids.tolist())[1]
    assert of_str[:, 0].tolist() == starts


@pytest.mark.parametrize("text", ["", b""])
def test_no_text_has_no_offsets(text: str | bytes) -> None:
    ids, offsets = MAIN.encode_offsets(text)
    assert (len(ids), offsets.shape) == (0, (0, 2))


def test_bytes_that_are_no_text_have_offsets_too() -> None:
    ids, offsets = MAIN.encode_offsets(b"a\xff\xe4\xb8b")
    assert len(ids) == 5
    assert offsets.tolist() == [[i, i + 1] for i in range(5)]


def test_an_added_token_has_the_white_space_that_it_takes(tmp_path: Path) -> None:
    path = with_added(tmp_path / "t.json", added("<m>", 367, lstrip=True, rstrip=True))
    ids, offsets = Tokenizer.load(path).encode_offsets("a  <m> \nb", special="allow")
    assert ids.tolist() == [97, 367, 98]
    assert offsets.tolist() == [[0, 1], [1, 8], [8, 9]]


def test_special_tokens_are_refused_as_in_encode() -> None:
    with pytest.raises(ValueError, match=r"special token '?\"?<\|end\|>"):
        MAIN.encode_offsets("a<|end|>")


def both(tmp_path: Path, document: dict[str, object]) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))


def agree(ours: Tokenizer, theirs: tokenizers.Tokenizer, text: str) -> int:
    """How many tokens have the offsets of `tokenizers`; the others come of nothing, have all of a
    character that their form composed, or keep the blanks that its post-processor takes away."""
    ids, offsets = ours.encode_offsets(text, special="allow")
    assert ids.tolist() == ours.encode(text, special="allow")
    found = theirs.encode(text, add_special_tokens=False)
    assert found.ids == ids.tolist()
    same = 0
    for (a, b), (c, d) in zip(offsets.tolist(), found.offsets, strict=True):
        trimmed = text[a:b].strip() == text[c:d].strip()
        assert a == b or (a, b) == (c, d) or trimmed or (a <= c and d <= b), (text, (a, b), (c, d))
        same += (a, b) == (c, d)
    return same


WORDPIECE = {
    "type": "WordPiece",
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
    "vocab": {"[UNK]": 0, "hell": 1, "##o": 2, "cafe": 3, "a": 4, "##b": 5, ",": 6, "x": 7},
}
UNIGRAM = {
    "type": "Unigram",
    "unk_id": 0,
    "vocab": [["<unk>", 0.0], ["\u2581", -2.0], ["\u2581hell", -3.0], ["o", -3.0], ["caf", -4.0]],
    "byte_fallback": False,
}
CHARS = ["<unk>", "\u2581", "h", "e", "l", "o", "c", "a", "f", "he", "hel", "\u2581c", "\u2581ca"]
BPE = {
    "type": "BPE",
    "unk_token": "<unk>",
    "fuse_unk": True,
    "byte_fallback": False,
    "vocab": {token: id for id, token in enumerate(CHARS)},
    "merges": [["h", "e"], ["he", "l"], ["\u2581", "c"], ["\u2581c", "a"]],
}
BYTES = {token: len(CHARS) + byte for byte, token in enumerate(f"<0x{b:02X}>" for b in range(256))}
META = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
BERT = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": True,
    "lowercase": True,
}
NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "NFKC"},
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ],
}


@pytest.mark.parametrize(
    ("model", "normalizer", "pre_tokenizer"),
    [
        (WORDPIECE, BERT, {"type": "BertPreTokenizer"}),
        (UNIGRAM, {"type": "NFKC"}, META),
        (BPE, NORMALIZER, None),
        ({**BPE, "fuse_unk": False}, None, META),
        ({**BPE, "byte_fallback": True, "vocab": {**BPE["vocab"], **BYTES}}, NORMALIZER, None),
    ],
    ids=["wordpiece", "unigram", "bpe", "bpe-unknown", "bpe-bytes"],
)
def test_offsets_are_those_of_tokenizers_through_every_stage(
    tmp_path: Path, model: object, normalizer: object, pre_tokenizer: object
) -> None:
    parts = {"model": model, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    ours, theirs = both(tmp_path, {"version": "1.0", "added_tokens": [], **parts})
    assert sum(agree(ours, theirs, text) for text in [*HARD, "hello  caf\xe9 \xe9\xe9o, hell"]) > 30


def test_a_text_of_marks_alone_takes_no_longer_than_others(tmp_path: Path) -> None:
    path = with_added(tmp_path / "t.json", normalizer={"type": "NFC"})
    text = "e" + "\u0301" * 50_000
    ids, offsets = Tokenizer.load(path).encode_offsets(text)
    assert len(ids) > 50_000
    assert (offsets.min(), offsets.max()) == (0, len(text))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_base_cased", "clip_base", "llama2", "roberta-base"])
def test_offsets_of_published_tokenizers(tmp_path: Path, name: str) -> None:
    raw = gzip.decompress(data(f"fixtures/tokenizers/{name}.json.gz").read_bytes())
    ours, theirs = both(tmp_path, json.loads(raw))
    theirs.no_truncation()
    lines = corpus("corpora/multilingual.txt", 60_000).splitlines()
    assert sum(agree(ours, theirs, text) for text in [*HARD, *lines]) > 10_000
