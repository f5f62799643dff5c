"""Files beside a tokenizer.json: what transformers would apply gives equal ids or is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tinylm import Tokenizer
from tinylm.checkpoint import origin

TEXT = "a<x> <|endoftext|> the in<|endoftext|>s<a>"


def decoder(**flags: object) -> dict[str, Any]:
    """A configuration that lists the token of id 277 with these flags."""
    entry = {"content": "<|endoftext|>", "normalized": False, "special": True, **flags}
    return {"added_tokens_decoder": {"277": entry}}


def folder_of(path: Path, config: dict[str, Any], map: dict[str, Any] | None = None) -> Path:
    """A folder with a tokenizer of 279 tokens and these files beside it."""
    special = ["<|endoftext|>", "<a>"]
    with pytest.warns(UserWarning, match="279"):
        trained = Tokenizer.train(
            ["the quick brown fox in the thing " * 20], vocab_size=300, special_tokens=special
        )
    trained.save(path)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    if map is not None:
        (path / "special_tokens_map.json").write_text(json.dumps(map))
    return path


def by_transformers(folder: Path) -> list[int]:
    transformers = pytest.importorskip("transformers")
    opened = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ids: list[int] = opened(TEXT, add_special_tokens=False)["input_ids"]
    return ids


LACKING: list[tuple[dict[str, Any], dict[str, Any] | None, str]] = [
    ({"additional_special_tokens": ["<x>"]}, None, "additional_special_tokens '<x>'"),
    ({"extra_special_tokens": ["<a>", "<x>"]}, None, "extra_special_tokens '<x>'"),
    ({"extra_special_tokens": {"im": "<x>"}}, None, "extra_special_tokens '<x>'"),
    ({"model_specific_special_tokens": {"im": "<x>"}}, None, "special_tokens '<x>'"),
    *(
        ({f"{role}_token": "<x>"}, None, f"{role}_token '<x>'")
        for role in ("eos", "bos", "pad", "unk", "cls", "sep", "mask", "image")
    ),
    ({"unk_token": "i"}, None, "unk_token 'i'"),
    ({}, {"eos_token": {"content": "<x>"}}, "eos_token '<x>'"),
    ({}, {"additional_special_tokens": ["<x>"]}, "additional_special_tokens '<x>'"),
    ({"added_tokens_decoder": {"105": {"content": "i"}}}, None, "token 'i'"),
]


@pytest.mark.parametrize(("config", "map", "message"), LACKING)
def test_a_token_that_transformers_would_add_is_refused(
    tmp_path: Path, config: dict[str, Any], map: dict[str, Any] | None, message: str
) -> None:
    plain = Tokenizer.load(folder_of(tmp_path / "plain", {})).encode(TEXT, special="allow")
    folder = folder_of(tmp_path / "t", config, map)
    name = "tokenizer_config.json" if map is None else "special_tokens_map.json"
    said = f"{folder / name}: .*{re.escape(message)} is not an added token of tokenizer.json"
    with pytest.raises(ValueError, match=said):
        Tokenizer.load(folder)
    assert by_transformers(folder) != plain


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_beside_that_move_ids_are_refused(tmp_path: Path, flag: str) -> None:
    plain = Tokenizer.load(folder_of(tmp_path / "plain", {})).encode(TEXT, special="allow")
    folder = folder_of(tmp_path / "t", decoder(**{flag: True}))
    with pytest.raises(ValueError, match=rf"'<\|endoftext\|>'\): {flag} = true"):
        Tokenizer.load(folder)
    assert by_transformers(folder) != plain


def test_tokens_found_in_another_order_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {})
    path = folder / "tokenizer.json"
    # The two overlap in "<|endoftext|><a>" from here on.
    path.write_text(path.read_text().replace('"<a>"', '"|><a"'), encoding="utf-8")
    Tokenizer.load(folder)
    entry = {"content": "|><a", "normalized": True, "special": True}
    config = {"added_tokens_decoder": {"277": decoder()["added_tokens_decoder"]["277"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    Tokenizer.load(folder)
    config["added_tokens_decoder"]["277"]["normalized"] = True
    config["added_tokens_decoder"]["278"] = entry | {"normalized": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="normalized = true, other than the tokenizer"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("flag", ["lstrip", "normalized", "special"])
def test_a_flag_that_is_no_boolean_is_refused(tmp_path: Path, flag: str) -> None:
    with pytest.raises(ValueError, match=f'{flag} = "no" is not true or false'):
        Tokenizer.load(folder_of(tmp_path, decoder(**{flag: "no"})))


@pytest.mark.parametrize(
    ("config", "map"),
    [
        (decoder(), None),
        (decoder(special=False), None),
        (decoder(normalized=True), None),
        ({"added_tokens_decoder": {"277": {"content": "<|endoftext|>"}}}, None),
        ({"additional_special_tokens": ["<a>"], "unk_token": "<|endoftext|>"}, None),
        ({"additional_special_tokens": None, "eos_token": ""}, None),
        ({"additional_special_tokens": ["<x>"], "extra_special_tokens": ["<a>"]}, None),
        (
            {"foo": "<x>", "add_bos_token": True, "pad_token": {"content": "<a>", "lstrip": True}},
            {},
        ),
        # transformers does not read the map here.
        (decoder(), {"eos_token": "<a>", "additional_special_tokens": ["<x>"]}),
    ],
)
def test_what_moves_no_id_is_accepted_and_kept(
    tmp_path: Path, config: dict[str, Any], map: dict[str, Any] | None
) -> None:
    folder = folder_of(tmp_path / "t", config, map)
    loaded = Tokenizer.load(folder)
    loaded.save(tmp_path / "again")
    written = json.loads((tmp_path / "again/tokenizer_config.json").read_text())
    kept = {key: value for key, value in config.items() if key != "eos_token"}
    assert kept.items() <= written.items()
    if "pad_token" not in config:
        assert by_transformers(folder) == loaded.encode(TEXT, special="allow")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": "\ud800"}, 'eos_token = "\\ud800" has half a character'),
        (
            {"pad_token": {"content": "a\udfff"}},
            'pad_token.content = "a\\udfff" has half a character',
        ),
        ({"extra_special_tokens": ["\ud800"]}, '"\\ud800" has half a character'),
        ({"extra_special_tokens": "<a>"}, 'extra_special_tokens = "<a>" is not a list'),
        ({"split_special_tokens": True}, "split_special_tokens = true is not supported"),
    ],
)
def test_what_cannot_be_applied_is_named(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Tokenizer.load(folder_of(tmp_path, config))


def test_ids_of_added_tokens_are_numbers(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {})
    (folder / "added_tokens.json").write_text('{"<|endoftext|>": "277"}')
    with pytest.raises(ValueError, match="has the id '277', not an integer"):
        Tokenizer.load(folder)
    with pytest.raises(ValueError, match="is not in the vocabulary"):
        Tokenizer.load(folder_of(tmp_path / "plain", {})).with_eos("\ud800")


@pytest.mark.parametrize("damage", ["torn", "normalizer", "beside"])
def test_a_tokenizer_that_cannot_be_read_is_no_missing_one(tmp_path: Path, damage: str) -> None:
    folder = folder_of(tmp_path, {"eos_token": 3} if damage == "beside" else {})
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    if damage == "torn":
        path.write_text(text[: len(text) // 2], encoding="utf-8")
    if damage == "normalizer":
        path.write_text(json.dumps({**json.loads(text), "normalizer": {"type": "x"}}))
    said = {"torn": "not JSON", "normalizer": "normalizer x is", "beside": "eos_token = 3"}[damage]
    name = "tokenizer_config.json" if damage == "beside" else "tokenizer.json"
    found = str(origin.why_no_tokenizer(folder, "needed"))
    assert found.startswith(f"{folder / name}: {said}")
    path.unlink()
    assert str(origin.why_no_tokenizer(folder, "x")) == f"{folder} holds no tokenizer.json: x"
