"""The table of all that `tokenizers` writes into a tokenizer.json, walked and drawn from.

Whatever stands in a file, TinyLM gives the ids and the text of `tokenizers` and writes the file
back, or refuses it by name. There is no third thing.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tokenizer_data import TEXTS, TOKENIZERS
from tinylm import Tokenizer

MAIN = TOKENIZERS["gpt4"]
BOTH = [False, True]
REGEX = {"Regex": r"\p{N}{1,2}+|\w+$|."}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SPLIT = {"type": "Split", "pattern": REGEX, "behavior": "Isolated", "invert": False}
BARE = {**BYTE_LEVEL, "use_regex": False}
END = {"id": "<|end|>", "ids": [368], "tokens": ["<|end|>"]}
SINGLE: list[dict[str, Any]] = [
    {"SpecialToken": {"id": "<|end|>", "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}},
]
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": SINGLE,
    "pair": [*SINGLE, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|end|>": END},
}
STRING = {"String": "o"}
BERT = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}

# By its place, the values that a key may have, in the words of tokenizers 0.23.
KINDS: dict[str, list[Any]] = {
    "normalizer": [
        None,
        *({"type": kind} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt")),
        {"type": "StripAccents"},
        {"type": "ByteLevel"},
        {"type": "Strip", "strip_left": True, "strip_right": False},
        {"type": "Replace", "pattern": STRING, "content": "0"},
        {"type": "Prepend", "prepend": "_"},
        {"type": "BertNormalizer", **BERT},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        {"type": "Sequence", "normalizers": []},
    ],
    "pre_tokenizer": [
        None,
        *(
            {**BYTE_LEVEL, "add_prefix_space": a, "trim_offsets": b, "use_regex": c}
            for a in BOTH
            for b in BOTH
            for c in BOTH
        ),
        *(
            {"type": kind}
            for kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts")
        ),
        {"type": "CharDelimiterSplit", "delimiter": "o"},
        {"type": "Digits", "individual_digits": True},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True},
        {"type": "Punctuation", "behavior": "Isolated"},
        {"type": "FixedLength", "length": 3},
        SPLIT,
        *(
            {
                "type": "Sequence",
                "pretokenizers": [
                    {**SPLIT, "pattern": pattern, "behavior": behavior, "invert": inverted},
                    BARE,
                ],
            }
            for pattern in (REGEX, STRING)
            for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext")
            for inverted in BOTH
        ),
        {"type": "Sequence", "pretokenizers": [{**SPLIT, "behavior": "Contiguous"}, BARE]},
        {"type": "Sequence", "pretokenizers": [SPLIT, {**BARE, "use_regex": True}]},
        {"type": "Sequence", "pretokenizers": [SPLIT, SPLIT, BARE]},
        {"type": "Sequence", "pretokenizers": [BARE]},
        {"type": "Sequence", "pretokenizers": []},
    ],
    "post_processor": [
        None,
        TEMPLATE,
        {"type": "BertProcessing", "sep": ["<|end|>", 368], "cls": ["<|endoftext|>", 367]},
        *(
            {
                "type": "RobertaProcessing",
                "sep": ["<|end|>", 368],
                "cls": ["<|endoftext|>", 367],
                "trim_offsets": trim,
                "add_prefix_space": not trim,
            }
            for trim in BOTH
        ),
        {**BYTE_LEVEL, "add_prefix_space": True, "use_regex": False},
        {"type": "Sequence", "processors": [BYTE_LEVEL, TEMPLATE]},
    ],
    "decoder": [
        None,
        BYTE_LEVEL,
        {**BARE, "add_prefix_space": True},
        *({"type": kind} for kind in ("ByteFallback", "Fuse")),
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True},
        {"type": "Replace", "pattern": STRING, "content": "0"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        {
            "type": "CTC",
            "pad_token": "<pad>",
            "word_delimiter_token": "|",
            "cleanup": True,
        },
        {"type": "Sequence", "decoders": [BYTE_LEVEL]},
        {"type": "Sequence", "decoders": [BYTE_LEVEL, {"type": "Fuse"}]},
    ],
    "truncation": [
        None,
        *(
            {"direction": side, "max_length": 3, "strategy": strategy, "stride": 0}
            for side in ("Left", "Right")
            for strategy in ("LongestFirst", "OnlyFirst", "OnlySecond")
        ),
    ],
    "padding": [
        None,
        *(
            {
                "strategy": strategy,
                "direction": side,
                "pad_to_multiple_of": multiple,
                "pad_id": 367,
                "pad_type_id": 0,
                "pad_token": "<|endoftext|>",
            }
            for strategy in ("BatchLongest", {"Fixed": 9})
            for side in ("Left", "Right")
            for multiple in (None, 4)
        ),
    ],
    "model.type": ["BPE", "WordPiece", "WordLevel", "Unigram"],
    "model.dropout": [None, 0.0, 0.5, 1.0],
    "model.unk_token": [None, "", "!"],
    "model.continuing_subword_prefix": [None, "", "##"],
    "model.end_of_word_suffix": [None, "", "</w>"],
    "model.fuse_unk": [False, True],
    "model.byte_fallback": [False, True],
    "model.ignore_merges": [False, True],
    **{
        f"added_tokens.{number}.{flag}": [False, True]
        for number in ("0", "1")
        for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
    },
}
PLACES = [(key, value) for key, values in KINDS.items() for value in values]
MARKS = ["<|end|>", "<|endoftext|>", " <|end|> x", "a<|end|>b", "fox"]


def changed(document: dict[str, Any], changes: list[tuple[str, Any]]) -> dict[str, Any]:
    """The document with other values at some places, each named by its keys."""
    document = copy.deepcopy(document)
    for place, value in changes:
        *keys, last = place.split(".")
        inner: Any = document
        for key in keys:
            inner = inner[int(key) if key.isdigit() else key]
        inner[last] = value
    return document


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The file of a trained tokenizer."""
    path = tmp_path_factory.mktemp("keys") / "tokenizer.json"
    MAIN.save(path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def check(document: dict[str, Any], changes: list[tuple[str, Any]], text: str, path: Path) -> None:
    """Equal ids and text and an equal file, or an error that names what was changed."""
    document = changed(document, changes)
    path.write_text(json.dumps(document), encoding="utf-8")
    problem = None
    try:
        ours = Tokenizer.load(path)
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        assert any(place.rpartition(".")[2] in problem for place, _ in changes), problem
        return
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.no_truncation()
    theirs.no_padding()
    if isinstance(theirs.model, tokenizers.models.BPE):
        # What it would draw at every call.
        theirs.model.dropout = None
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, special="allow") == ids
    if document["decoder"] is not None:
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    ours.save(path)
    assert json.loads(path.read_text(encoding="utf-8")) == document


@pytest.mark.parametrize(("place", "value"), PLACES, ids=lambda part: str(part)[:60])
def test_every_value_is_applied_or_kept_or_refused(
    original: dict[str, Any], tmp_path: Path, place: str, value: object
) -> None:
    text = "".join([*TEXTS[:4], *MARKS, " 12345 low\n\nlower <|end|>"])
    check(original, [(place, value)], text, tmp_path / "x.json")


@given(
    changes=st.lists(st.sampled_from(PLACES), min_size=1, max_size=4, unique_by=lambda c: c[0]),
    text=st.lists(st.sampled_from([*MARKS, " ", "12", "\n", "The "]), max_size=6).map("".join),
)
def test_values_together_are_applied_or_kept_or_refused(
    original: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[str, Any]],
    text: str,
) -> None:
    check(original, changes, text, tmp_path_factory.getbasetemp() / "drawn.json")


OBJECTS: list[tuple[str, dict[str, Any]]] = [
    (key, value) for key, value in PLACES if isinstance(value, dict)
]


@pytest.mark.parametrize(("place", "value"), OBJECTS, ids=lambda part: str(part)[:60])
def test_a_key_that_no_kind_has_is_refused(
    original: dict[str, Any], tmp_path: Path, place: str, value: dict[str, Any]
) -> None:
    path = tmp_path / "x.json"
    for where in ("", "model", "added_tokens.0", place):
        changes = [(place, value), (f"{where}.colour".strip("."), 1)]
        path.write_text(json.dumps(changed(original, changes)), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"colour|{place}"):
            Tokenizer.load(path)
