"""Mistral's tekken.json: ranks that are numbered after the special tokens, against tiktoken."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given

from tests.support.strategies import any_text
from tests.support.tokenizer_data import TOKENIZERS
from tinylm import Tokenizer

RANKS = {
    token: rank
    for rank, token in enumerate(
        token
        for id, token in TOKENIZERS["o200k"].vocab.items()
        if id not in TOKENIZERS["o200k"].special_tokens.values()
    )
}
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PEER = tiktoken.Encoding("tekken", pat_str=PATTERN, mergeable_ranks=RANKS, special_tokens={})


def document(**changes: object) -> dict[str, Any]:
    """A file with 30 special tokens, and 5 ranks more than its vocabulary has."""
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": len(RANKS) + 5,
        "default_vocab_size": len(RANKS) + 30,
        "default_num_special_tokens": 30,
        "version": "v3",
    }
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in {**RANKS, **{b"more %d" % i: len(RANKS) + i for i in range(5)}}.items()
    ]
    return {"config": config, "vocab": vocab, **changes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file."""
    path = tmp_path_factory.mktemp("tekken")
    (path / "tekken.json").write_text(json.dumps(document()), encoding="utf-8")
    return path


@given(text=any_text())
def test_ids_are_those_of_tiktoken_after_the_special_tokens(folder: Path, text: str) -> None:
    ours = Tokenizer.from_pretrained(folder)
    ids = ours.encode(text, special="text")
    assert ids == [id + 30 for id in PEER.encode_ordinary(text)]
    assert ours.decode(ids) == text


def test_special_tokens_have_the_first_ids_and_a_saved_file_is_equal(
    folder: Path, tmp_path: Path
) -> None:
    ours = Tokenizer.load(folder / "tekken.json")
    assert ours.special_tokens["</s>"] == ours.eos_id == 2
    assert ours.special_tokens["<SPECIAL_20>"] == 20
    assert len(ours.special_tokens) == 30
    assert ours.encode("[INST]the fox", special="allow")[0] == 3
    ours.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json") == ours
    named = [{"rank": 3, "token_str": "<x>", "is_control": True}]
    (tmp_path / "tekken.json").write_text(json.dumps(document(special_tokens=named)))
    assert Tokenizer.load(tmp_path / "tekken.json").special_tokens["<x>"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {}}, "not a tekken.json: no 'default_vocab_size'"),
        ({"vocab": []}, "does not fit 30 special tokens and 0 others"),
        ({"special_tokens": [{"rank": 30, "token_str": "<x>"}]}, "not below 30"),
        ({"vocab": [{"rank": 1, "token_bytes": ""}] * 400}, r"vocab\[0\] = .* is not the token"),
        ({"vocab": [{"rank": 0, "token_bytes": "!"}] * 400}, r"vocab\[0\]: "),
    ],
)
def test_what_is_wrong_is_said_with_the_file(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(document(**changes)), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(f"{path}: ")
