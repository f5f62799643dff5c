"""What the post_processor of a tokenizer.json puts around texts: lists, arrays and batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from tests.support.tokenizer_json import MAIN, document_of
from tinylm import Tokenizer

END, EOT = MAIN.special_tokens["<|end|>"], MAIN.special_tokens["<|endoftext|>"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def special(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}


A, B = ({"Sequence": {"id": id, "type_id": 0}} for id in "AB")
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [special("<|endoftext|>"), A, special("both")],
    "pair": [A, special("<|end|>"), special("<|end|>"), B, A],
    "special_tokens": {
        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [EOT], "tokens": ["<|endoftext|>"]},
        "<|end|>": {"id": "<|end|>", "ids": [END], "tokens": ["<|end|>"]},
        "both": {"id": "both", "ids": [END, EOT], "tokens": ["<|end|>", "<|endoftext|>"]},
    },
}
MARKS = {"sep": ["<|end|>", END], "cls": ["<|endoftext|>", EOT]}
KINDS: list[dict[str, Any] | None] = [
    None,
    BYTE_LEVEL,
    TEMPLATE,
    {"type": "BertProcessing", **MARKS},
    {"type": "RobertaProcessing", **MARKS, "trim_offsets": True, "add_prefix_space": False},
    {"type": "Sequence", "processors": [BYTE_LEVEL, TEMPLATE]},
]
TEXTS = ["the lazy dog", "", "a", "quick " * 50, "\u4e2d\u6587"]
SECOND = ["", "x", "fox", " ", "the"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind and kind["type"])
def test_batches_and_arrays_are_framed_as_lists_are_and_as_hugging_face_does(
    kind: dict[str, Any] | None, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    document = {**document_of(MAIN, path), "post_processor": kind}
    path.write_text(json.dumps(document), encoding="utf-8")
    ours, theirs = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    for second in (None, SECOND):
        rows = TEXTS if second is None else list(zip(TEXTS, second, strict=True))
        expected = [row.ids for row in theirs.encode_batch(rows)]
        ids, offsets = ours.encode_batch(TEXTS, template=True, pairs=second)
        assert (ids.dtype, offsets.dtype) == (np.uint32, np.int64)
        rows = [part.tolist() for part in np.split(ids, offsets[1:-1])]
        assert rows == expected
        for row, text, other in zip(expected, TEXTS, second or [None] * len(TEXTS), strict=True):
            assert ours.encode(text, template=True, pair=other) == row
            assert ours.encode_array(text, template=True, pair=other).tolist() == row
    ids, offsets = ours.encode_batch([], template=True, pairs=[])
    assert (len(ids), offsets.tolist()) == (0, [0])


def test_a_second_text_without_a_first_or_without_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pairs?= needs template=True"):
        MAIN.encode_batch(["a"], pairs=["b"])
    with pytest.raises(ValueError, match=r"pairs?= needs template=True"):
        MAIN.encode_array("a", pair="b")
    with pytest.raises(ValueError, match="pairs= has 1 texts for 2; each text needs one"):
        MAIN.encode_batch(["a", "b"], template=True, pairs=["c"])
