"""Special tokens: what is saved is read back, and the token that ends a text is found."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tokenizer_data import TEXTS, TOKENIZERS
from tinylm import Tokenizer
from tinylm.tokenizer.contents import AddedToken

MAIN, GPT2 = TOKENIZERS["gpt4"], TOKENIZERS["gpt2"]


@pytest.mark.parametrize("token", ["|", "a", "\u0120", "\xe9", "\u0100"])
@pytest.mark.parametrize("kind", ["bpe", "char", "byte"])
def test_training_refuses_a_special_token_that_files_write_as_a_byte(token: str, kind: str) -> None:
    with pytest.raises(ValueError, match=r"write the byte 0x[0-9a-f]{2}: name it otherwise"):
        Tokenizer.train(TEXTS, vocab_size=300, kind=kind, special_tokens=("<|endoftext|>", token))


@pytest.mark.parametrize("token", ["\u0120fox", "\u0120the"])
def test_training_refuses_a_special_token_that_files_write_as_a_learned_one(token: str) -> None:
    with pytest.raises(ValueError, match=r"write the token b' (fox|the)'"):
        Tokenizer.train([" fox the" * 9], vocab_size=263, special_tokens=(token,))


def test_a_special_token_that_is_also_an_ordinary_one_is_refused_when_written(
    tmp_path: Path,
) -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256}
    for token in ("ab", "|", "\u0120"):
        both = Tokenizer.from_ranks(ranks, pattern="gpt2", special_tokens={token: 300})
        with pytest.raises(ValueError, match="special token"):
            both.save(tmp_path / "tokenizer.json")
        both.save(tmp_path / "x.tiktoken")
        again = Tokenizer.load(tmp_path / "x.tiktoken", pattern="gpt2", special_tokens={token: 300})
        assert again == both
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("token", ["", "\ud800", "<\udcff>"])
def test_training_refuses_what_is_no_text(token: str) -> None:
    with pytest.raises(ValueError, match=r"empty string|lone surrogate"):
        Tokenizer.train(TEXTS, vocab_size=300, special_tokens=(token,))


STRANGE = ["|", " ", "\n", "\u4e2d", "the", "\u0120the", " the", "<a>", "<a", "a>", "<a><a>", "\0"]
STRANGE += ["\u0120", "\xa0", "\U0001f600", "ab", "b", "\u0120a", '"', "\\", "#version: 0.2", "x y"]
tokens = st.lists(st.sampled_from(STRANGE) | st.text(max_size=4), max_size=4, unique=True)


@given(special=tokens, text=st.lists(st.sampled_from([*STRANGE, "abab"]), max_size=5).map("".join))
def test_what_training_accepts_is_saved_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, special: list[str], text: str
) -> None:
    folder = tmp_path_factory.mktemp("special", numbered=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            trained = Tokenizer.train(
                ["the the ab ab aba"] * 3,
                vocab_size=266,
                pattern="gpt2",
                special_tokens=special,
            )
        except ValueError:
            return
    ids = trained.encode(text, special="allow")
    for place, format in (("t.json", None), ("folder", None), ("two", "gpt2")):
        trained.save(folder / place, format)
        loaded = Tokenizer.load(folder / place)
        assert loaded == trained
        assert loaded.special_tokens == trained.special_tokens
        assert loaded.encode(text, special="allow") == ids
    trained.save(folder / "x.tiktoken")
    settings = {"pattern": "gpt2", "special_tokens": trained.special_tokens}
    assert Tokenizer.load(folder / "x.tiktoken", **settings).vocab == trained.vocab


# The token that ends a text.


def folder_of(path: Path, name: str, **files: object) -> Path:
    """A folder with a tokenizer whose special token is `name`, and with other files in JSON."""
    contents = MAIN._contents
    one = replace(contents, added_tokens=(AddedToken(name, 367), AddedToken("<|user|>", 368)))
    Tokenizer(one).save(path)
    (path / "tokenizer_config.json").unlink()
    for stem, value in files.items():
        (path / f"{stem}.json").write_text(json.dumps(value), encoding="utf-8")
    return path


NAMED: list[dict[str, Any]] = [
    {"tokenizer_config": {"eos_token": "<|im_end|>"}},
    {"tokenizer_config": {"eos_token": {"content": "<|im_end|>", "lstrip": False}}},
    {"special_tokens_map": {"eos_token": "<|im_end|>"}},
    {"special_tokens_map": {"eos_token": {"content": "<|im_end|>"}}, "tokenizer_config": {}},
    {
        "special_tokens_map": {"eos_token": "<|user|>"},
        "tokenizer_config": {"eos_token": "<|im_end|>"},
    },
]


@pytest.mark.parametrize("files", NAMED)
@pytest.mark.parametrize("name", ["folder", "folder/tokenizer.json"])
def test_the_files_beside_name_the_end_of_a_text(
    tmp_path: Path, files: dict[str, Any], name: str
) -> None:
    folder_of(tmp_path / "folder", "<|im_end|>", **files)
    loaded = Tokenizer.load(tmp_path / name)
    assert loaded.eos_id == 367
    assert loaded.roles["eos_token"] == "<|im_end|>"
    # It is kept by a folder and by a file of the same name, and counts in the hash.
    for place in ("again", "run/tokenizer.json"):
        loaded.save(tmp_path / place)
        assert Tokenizer.load(tmp_path / place) == loaded
        assert Tokenizer.load(tmp_path / place).eos_id == 367
    with pytest.raises(ValueError, match="save to a folder"):
        loaded.save(tmp_path / "other.json")
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "run" / file).unlink(missing_ok=True)
    unsaid = Tokenizer.load(tmp_path / "run/tokenizer.json")
    assert unsaid.eos_id is None
    assert unsaid != loaded


def test_without_files_the_usual_names_end_a_text(tmp_path: Path) -> None:
    assert Tokenizer.load(folder_of(tmp_path / "a", "[EOS]")).eos_id == 367
    assert Tokenizer.load(folder_of(tmp_path / "b", "<|END|>")).eos_id is None
    stated = folder_of(tmp_path / "c", "[EOS]", tokenizer_config={"eos_token": "<|user|>"})
    assert Tokenizer.load(stated).eos_id == 368
    # transformers would add a token that the vocabulary does not have.
    other = folder_of(tmp_path / "d", "[EOS]", tokenizer_config={"eos_token": "<|im_end|>"})
    with pytest.raises(ValueError, match=r"eos_token '<\|im_end\|>' is not an added token"):
        Tokenizer.load(other)


def test_the_end_of_a_text_can_be_chosen(tmp_path: Path) -> None:
    chosen = MAIN.with_eos("<|end|>")
    assert (chosen.eos_id, MAIN.eos_id) == (368, 367)
    assert chosen != MAIN
    assert chosen.with_eos("<|endoftext|>") == MAIN
    # An ordinary token may do it too.
    assert MAIN.with_eos("a").eos_id == 97
    with pytest.raises(ValueError, match=r"'<x>' is not in the vocabulary.*'<\|end\|>'"):
        MAIN.with_eos("<x>")
    for place, format in (("folder", None), ("two", "gpt2")):
        end = GPT2.with_eos("<|end|>")
        end.save(tmp_path / place, format)
        assert Tokenizer.load(tmp_path / place) == end


def test_what_stands_beside_is_kept_and_what_disagrees_is_refused(tmp_path: Path) -> None:
    config = {"eos_token": "<|im_end|>", "add_bos_token": True, "chat_template": "{{ x }}"}
    config["added_tokens_decoder"] = {"367": {"content": "<|im_end|>", "special": True}}
    folder = folder_of(
        tmp_path / "a", "<|im_end|>", tokenizer_config=config, special_tokens_map={"unk": "x"}
    )
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    Tokenizer.load(folder).save(tmp_path / "b")
    written = json.loads((tmp_path / "b/tokenizer_config.json").read_text(encoding="utf-8"))
    assert config.items() <= written.items()
    assert (tmp_path / "b/chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }}"
    assert json.loads((tmp_path / "b/special_tokens_map.json").read_text()) == {"unk": "x"}
    refused: list[tuple[str, object, str]] = [
        ("tokenizer_config", {"add_prefix_space": True}, "add_prefix_space = true"),
        ("tokenizer_config", {"eos_token": 3}, "eos_token = 3 is not a token"),
        ("tokenizer_config", {"added_tokens_decoder": {"9": 3}}, "added_tokens_decoder"),
        (
            "tokenizer_config",
            {"added_tokens_decoder": {"400": {"content": "<|x|>"}}},
            "'<|x|>' has the id 400, but tokenizer.json gives it none",
        ),
        ("added_tokens", {"<|im_end|>": 5}, "has the id 5, but tokenizer.json gives it 367"),
        ("special_tokens_map", [1], "expected a JSON object"),
    ]
    for number, (name, value, message) in enumerate(refused):
        folder = folder_of(tmp_path / f"c{number}", "<|im_end|>", **{name: value})
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            Tokenizer.load(folder)
        assert f"{folder / name}.json" in str(caught.value)


def test_added_tokens_beside_gpt2s_files_are_added(tmp_path: Path) -> None:
    GPT2.save(tmp_path, "gpt2")
    (tmp_path / "added_tokens.json").write_text('{"   ": 370, "<|im_end|>": 371}')
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.eos_id, loaded.vocab_size) == (371, 372)
    assert loaded.encode("a   b") == [97, 370, 98]
    assert "   " not in loaded.special_tokens
