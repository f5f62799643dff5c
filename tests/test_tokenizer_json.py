"""Every key of a tokenizer.json: applied, kept and written back, or refused by its name.

Hugging Face's `tokenizers` is the oracle: what it makes of a file before and after TinyLM.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from tests.support.tokenizer_json import MAIN, added, by_theirs, document_of, with_added
from tinylm import Tokenizer

# As Llama 3's published file begins a text.
TEMPLATE: dict[str, Any] = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|end|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        "<|end|>": {"id": "<|end|>", "ids": [MAIN.special_tokens["<|end|>"]], "tokens": ["<|end|>"]}
    },
}
OFFSETS = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
ROBERTA = {
    "type": "RobertaProcessing",
    "sep": ["<|end|>", 368],
    "cls": ["<|endoftext|>", 367],
    "trim_offsets": True,
    "add_prefix_space": False,
}
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 5},
    "direction": "Left",
    "pad_to_multiple_of": 2,
    "pad_id": 367,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}


KEPT: list[tuple[tuple[str, ...], object]] = [
    (("post_processor",), TEMPLATE),
    (("post_processor",), OFFSETS),
    (("post_processor",), ROBERTA),
    (("post_processor",), {"type": "Sequence", "processors": [OFFSETS, TEMPLATE]}),
    (("truncation",), TRUNCATION),
    (("padding",), PADDING),
    (("decoder",), None),
    (("decoder",), {"type": "Sequence", "decoders": [OFFSETS]}),
    (("model", "fuse_unk"), True),
    (("model", "fuse_unk"), None),
    (("model", "byte_fallback"), None),
    (("model", "unk_token"), ""),
    (("model", "continuing_subword_prefix"), ""),
    (("model", "end_of_word_suffix"), ""),
    (("model", "dropout"), 0.0),
    (("pre_tokenizer", "pretokenizers", "1", "trim_offsets"), False),
    (("pre_tokenizer", "pretokenizers", "0", "behavior"), "Removed and inverted"),
]


@pytest.mark.parametrize(("keys", "value"), KEPT, ids=lambda part: str(part)[:40])
def test_what_moves_no_id_is_written_back(
    tmp_path: Path, keys: tuple[str, ...], value: object
) -> None:
    document = document_of(MAIN, tmp_path / "theirs.json")
    inner: Any = document
    for key in keys[:-1]:
        inner = inner[int(key) if key.isdigit() else key]
    if value == "Removed and inverted":
        inner |= {"behavior": "Removed", "invert": True}
    else:
        assert inner[keys[-1]] != value
        inner[keys[-1]] = value
    (tmp_path / "theirs.json").write_text(json.dumps(document), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path / "theirs.json")
    assert loaded.sha256 == MAIN.sha256
    assert loaded.encode("low lower lowest") == MAIN.encode("low lower lowest")
    loaded.save(tmp_path / "ours.json")
    assert json.loads((tmp_path / "ours.json").read_text(encoding="utf-8")) == document
    assert by_theirs(tmp_path / "ours.json") == by_theirs(tmp_path / "theirs.json")
    Tokenizer.load(tmp_path / "ours.json").save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "ours.json").read_bytes()


def test_a_template_is_applied_where_it_is_asked_for_and_never_lost(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    document = document_of(MAIN, tmp_path / "theirs.json") | {"post_processor": TEMPLATE}
    (tmp_path / "theirs.json").write_text(json.dumps(document), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path / "theirs.json")
    loaded.save(tmp_path / "folder")
    begin, ids = MAIN.special_tokens["<|end|>"], MAIN.encode("the lazy dog")
    assert loaded.encode("the lazy dog") == ids
    assert loaded.encode("the lazy dog", template=True) == [begin, *ids]
    assert loaded.encode("the", template=True, pair=" fox") == MAIN.encode("the fox")
    with pytest.raises(ValueError, match="pair= needs template=True"):
        loaded.encode("the", pair="fox")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "folder/tokenizer.json"))
    assert theirs.encode("the lazy dog").ids == [begin, *ids]
    opened = AutoTokenizer.from_pretrained(str(tmp_path / "folder"))
    assert opened("the lazy dog")["input_ids"] == [begin, *ids]


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"version": "2.0"}, 'version "2.0" is not supported'),
    ({"extra": [1]}, r"key extra = \[1\] is not known"),
    ({"truncation": 3}, "truncation = 3 is not an object"),
    ({"padding": "max"}, 'padding = "max" is not an object'),
    ({"post_processor": {"type": "Mystery"}}, "post_processor Mystery is not known"),
    (
        {"post_processor": {"type": "Sequence", "processors": [{"type": "Mystery"}]}},
        "post_processor Mystery",
    ),
    ({"decoder": {"type": "BPEDecoder", "suffix": "</w>"}}, "decoder BPEDecoder is not supported"),
    ({"decoder": {"type": "Sequence", "decoders": [{"type": "CTC"}]}}, "decoder CTC"),
    (
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "x": 1}},
        "key pre_tokenizer ByteLevel.x = 1",
    ),
    ({"normalizer": {"type": "Mystery"}}, "normalizer Mystery is not supported"),
    ({"normalizer": {"type": "Strip", "strip_left": True}}, r"Strip.strip_right is missing"),
    (
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": "a",
                "behavior": "Isolated",
                "invert": True,
            }
        },
        'Split.pattern = "a" is not an object',
    ),
    (
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "ab"}},
        'Metaspace.replacement = "ab" is not one character',
    ),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=lambda part: str(part)[:40])
def test_what_is_not_known_is_refused_by_its_name(
    tmp_path: Path, keys: dict[str, object], message: str
) -> None:
    path = with_added(tmp_path / "tokenizer.json", added("<|end|>", 367), **keys)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([added("<a>", 400)], "has the id 400, but tokenizers gives it 367"),
        ([added("<a>", 367), added("<b>", 369)], "has the id 369, but tokenizers gives it 368"),
        ([added("\u0100", 367)], "has the id 367, but tokenizers gives it 0"),
        ([added("<a>", 367), added("<a>", 368)], "'<a>' is listed twice"),
        ([added("<a>", 367) | {"color": "red"}], "key added_tokens '<a>' color = \"red\""),
    ],
)
def test_added_tokens_that_would_get_other_ids_are_refused(
    tmp_path: Path, tokens: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(with_added(tmp_path / "tokenizer.json", *tokens))


def test_an_unknown_key_of_the_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    document = document_of(MAIN, path)
    document["model"]["temperature"] = 2
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=r"key model\.temperature = 2 is not known"):
        Tokenizer.load(path)


def test_ignore_merges_of_null_is_false(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    document = document_of(MAIN, path)
    document["model"]["ignore_merges"] = None
    path.write_text(json.dumps(document), encoding="utf-8")
    assert by_theirs(path)["model"]["ignore_merges"] is False
    assert Tokenizer.load(path) == MAIN


WRONG_TYPE: list[tuple[tuple[str, ...], object, str]] = [
    (("normalizer",), {}, "normalizer = {} is not an object with a type"),
    (("normalizer",), False, "normalizer = false is not an object with a type"),
    (("truncation",), [], r"truncation = \[\] is not an object"),
    (("padding",), False, "padding = false is not an object"),
    (("post_processor",), {}, "post_processor = {} is not an object with a type"),
    (("decoder",), False, "decoder = false is not an object with a type"),
    (("pre_tokenizer",), [], r"pre_tokenizer = \[\] is not an object with a type"),
    (("pre_tokenizer", "pretokenizers"), None, "pre_tokenizer pretokenizers = null is not a list"),
    (("pre_tokenizer", "pretokenizers", "1", "trim_offsets"), 0, "ByteLevel.trim_offsets = 0 is"),
    (("pre_tokenizer", "pretokenizers", "1", "use_regex"), "false", 'use_regex = "false" is not'),
    (("pre_tokenizer", "pretokenizers", "0", "invert"), 0, "pre_tokenizer Split.invert = 0 is not"),
    (("added_tokens",), None, "added_tokens = null is not a list"),
    (("added_tokens",), ["<a>"], 'an entry of added_tokens = "<a>" is not an object'),
    (("added_tokens", "0", "content"), 3, "content of an added token = 3 is not a string"),
    (("added_tokens", "0", "id"), 367.0, r"added_tokens '<\|endoftext\|>' id = 367.0 is not"),
    (("added_tokens", "0", "id"), True, "id = true is not an id"),
    (("added_tokens", "0", "special"), None, "special = null is not true or false"),
    (("added_tokens", "0", "special"), "false", 'special = "false" is not true or false'),
    (("added_tokens", "0", "normalized"), "no", 'normalized = "no" is not true or false'),
    (("added_tokens", "0", "normalized"), 0, "normalized = 0 is not true or false"),
    (("added_tokens", "0", "lstrip"), 0, "lstrip = 0 is not true or false"),
    (("added_tokens", "0", "rstrip"), None, "rstrip = null is not true or false"),
    (("model",), [], r"model = \[\] is not an object"),
    (("model", "type"), None, "model type null is not supported"),
    (("model", "ignore_merges"), "false", 'model.ignore_merges = "false" is not true or false'),
    (("model", "fuse_unk"), 0, "model.fuse_unk = 0 is not true or false"),
    (("model", "dropout"), False, "model.dropout = false is not a number from 0 to 1"),
    (("model", "dropout"), "", 'model.dropout = "" is not a number from 0 to 1'),
    (("model", "unk_token"), False, "model.unk_token = false is not a string"),
    (("model", "continuing_subword_prefix"), 0, "continuing_subword_prefix = 0 is not a string"),
    (("model", "byte_fallback"), 0, "model.byte_fallback = 0 is not true or false"),
    (("model", "vocab"), [], r"model.vocab = \[\] is not an object"),
    (("model", "vocab", "!"), 0.0, "model.vocab '!' = 0.0 is not an id"),
    (("model", "vocab", "!"), False, "model.vocab '!' = false is not an id"),
    (("model", "vocab", "!"), "0", "model.vocab '!' = \"0\" is not an id"),
    (("model", "vocab", "!"), None, "model.vocab '!' = null is not an id"),
    (("model", "vocab", "!"), -1, "model.vocab '!' = -1 is not an id"),
    (("model", "vocab", "!"), 2**32, "model.vocab '!' = 4294967296 is not an id"),
    (("added_tokens", "0", "id"), 2**70, "id = 1180591620717411303424 is not an id"),
    (("model", "merges"), {}, "model.merges = {} is not a list"),
    (("model", "merges", "0"), [1, 2], r"merge \[1, 2\] is not two tokens"),
    (("model", "merges", "0"), 5, "merge 5 is not two tokens"),
]


@pytest.mark.parametrize(("keys", "value", "message"), WRONG_TYPE, ids=lambda part: str(part)[:40])
def test_a_value_of_another_type_is_refused_here_as_there(
    tmp_path: Path, keys: tuple[str, ...], value: object, message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    inner: Any = (document := document_of(MAIN, path))
    for key in keys[:-1]:
        inner = inner[int(key) if key.isdigit() else key]
    inner[int(keys[-1]) if keys[-1].isdigit() else keys[-1]] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(Exception, match="at line 1 column"):
        tokenizers.Tokenizer.from_file(str(path))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"added_tokens": [{"id": 0, "content": "\ud800"}]}, r'added_tokens[0].content = "\ud800"'),
        ({"model": {"type": "BPE", "vocab": {"a\udfff": 1}}}, r'model.vocab key = "a\udfff"'),
        ({"post_processor": {"x": ["\udc00"]}}, r'post_processor.x[0] = "\udc00"'),
    ],
)
def test_half_a_character_is_refused_by_its_place(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    Tokenizer.train(["a b c"], vocab_size=257).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {named} has half a character")):
        Tokenizer.load(path)


def test_a_whole_character_in_two_escapes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    tokenizer = Tokenizer.train(["a"], vocab_size=257, special_tokens=["\U0001f642"])
    tokenizer.save(path)
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert r"\ud83d" in path.read_text()
    assert Tokenizer.load(path).sha256 == tokenizer.sha256


WORDS = {"type": "WordLevel", "vocab": {"<unk>": 0, "low": 1, "lo": 2, "w": 3, "\u4e2d": 4}}


def test_a_vocabulary_of_words_agrees_with_hugging_face(tmp_path: Path) -> None:
    document = {
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {**WORDS, "unk_token": "<unk>"},
    }
    path = tmp_path / "words.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    ours, theirs = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    for text in ("low lo w", "LOW lower wlo", "", "\u4e2d \u4e2d\u4e2d lo-w", "x" * 100_000):
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    ours.save(path)
    assert json.loads(path.read_text(encoding="utf-8")) == document


# How files write the tokens of bytes without a ByteLevel among the pre_tokenizers.
BY_NORMALIZER = {
    "normalizer": {"type": "ByteLevel"},
    "pre_tokenizer": {
        "type": "Split",
        "pattern": {"Regex": "\u0120?[a-z]+"},
        "behavior": "Isolated",
        "invert": False,
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
}


def test_bytes_written_by_the_normalizer_agree_with_hugging_face(tmp_path: Path) -> None:
    document = {**document_of(MAIN, tmp_path / "main.json"), **BY_NORMALIZER}
    path = tmp_path / "bytes.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    ours, theirs = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    for text in ("the lazy dog", "  \xe9t\xe9 \u4e2d\n", "", "<|endoftext|> quick"):
        ids = ours.encode(text, special="allow")
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    ours.save(path)
    assert json.loads(path.read_text(encoding="utf-8")) == document
