"""Tokenizer files: what is written is read back, by us and by others."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import any_text
from tests.support.tokenizer_data import (
    EVERY,
    KINDS,
    TEXTS,
    TOKENIZERS,
    corpus,
    data,
    gpt2,
    published,
    tiktoken_of,
)
from tinylm import Tokenizer, _rust
from tinylm.tokenizer.tiktoken import ranks_in

GPT2, MAIN = TOKENIZERS["gpt2"], TOKENIZERS["gpt4"]
RANKS = Tokenizer.from_ranks(
    {token: id for id, token in MAIN.vocab.items() if id < 367},
    pattern="gpt4",
    special_tokens={"<|endoftext|>": 380},
)


def encoded_by(other: tokenizers.Tokenizer, text: str) -> list[int]:
    return other.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Tokenizer, Any]]:
    """Each tokenizer with its tokenizer.json as Hugging Face's library opens it."""
    folder = tmp_path_factory.mktemp("opened")
    pairs = []
    for i, tokenizer in enumerate([*EVERY, RANKS]):
        tokenizer.save(folder / f"{i}.json")
        pairs.append((tokenizer, tokenizers.Tokenizer.from_file(str(folder / f"{i}.json"))))
    return pairs


@given(text=any_text())
def test_hugging_face_gives_equal_ids_for_any_text(
    opened: list[tuple[Tokenizer, Any]], text: str
) -> None:
    for tokenizer, other in opened:
        ids = encoded_by(other, text)
        assert ids == tokenizer.encode(text, special="allow")
        assert other.decode(ids, skip_special_tokens=False) == text


def test_hugging_face_gives_equal_ids_for_real_text(opened: list[tuple[Tokenizer, Any]]) -> None:
    texts = [corpus("corpora/multilingual.txt", 60_000), corpus("fixtures/corpus.en", 60_000)]
    for tokenizer, other in opened:
        for text in texts:
            assert encoded_by(other, text) == tokenizer.encode(text)


def test_hugging_face_gives_equal_ids_with_published_ranks(tmp_path: Path) -> None:
    published("cl100k_base").save(tmp_path / "tokenizer.json")
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = corpus("corpora/multilingual.txt", 60_000)
    assert encoded_by(other, text) == published("cl100k_base").encode(text)
    assert Tokenizer.load(tmp_path / "tokenizer.json") == published("cl100k_base")


def test_transformers_opens_a_saved_folder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, tokenizer in [*TOKENIZERS.items(), *KINDS.items()]:
        tokenizer.save(tmp_path / name)
        other = AutoTokenizer.from_pretrained(str(tmp_path / name))
        for text in TEXTS:
            assert other(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert other.eos_token_id == tokenizer.eos_id
        assert len(other) == tokenizer.vocab_size
        assert Tokenizer.load(tmp_path / name) == tokenizer


@pytest.mark.parametrize("tokenizer", [*EVERY, RANKS])
def test_a_tokenizer_json_keeps_everything(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "some" / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded == tokenizer
    assert loaded.vocab == tokenizer.vocab
    assert loaded.merges == tokenizer.merges
    assert loaded.special_tokens == tokenizer.special_tokens
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]


def test_a_pattern_of_ones_own_is_kept(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, vocab_size=300, pattern=r"\w+|\s+|[^\w\s]+")
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json") == tokenizer


@pytest.mark.parametrize("name", ["ranks.tiktoken", "ranks.tiktoken.gz"])
def test_tiktoken_ranks_are_written_and_read(tmp_path: Path, name: str) -> None:
    RANKS.save(tmp_path / name)
    special = RANKS.special_tokens
    assert Tokenizer.load(tmp_path / name, pattern="gpt4", special_tokens=special) == RANKS
    with pytest.raises(ValueError, match="pass pattern= and special_tokens="):
        Tokenizer.load(tmp_path / name)
    with pytest.raises(ValueError, match="no merges"):
        KINDS["char"].save(tmp_path / "char.tiktoken")


def test_the_published_ranks_are_written_as_they_were_read(tmp_path: Path) -> None:
    published("cl100k_base").save(tmp_path / "cl100k_base.tiktoken")
    original = gzip.decompress(data("fixtures/cl100k_base.tiktoken.gz").read_bytes())
    assert (tmp_path / "cl100k_base.tiktoken").read_bytes() == original


def test_a_trained_tokenizer_in_tiktoken_gives_equal_ids_for_real_text() -> None:
    text = corpus("fixtures/corpus.en", 60_000)
    for name in ("gpt2", "gpt4", "o200k", "llama3"):
        tokenizer = Tokenizer.train([text], vocab_size=1500, pattern=name)
        assert tiktoken_of(tokenizer).encode_ordinary(text) == tokenizer.encode(text)


def test_gpt2_files_are_written_and_read(tmp_path: Path) -> None:
    GPT2.save(tmp_path / "gpt2", "gpt2")
    assert sorted(file.name for file in (tmp_path / "gpt2").iterdir()) == [
        "merges.txt",
        "vocab.json",
    ]
    assert Tokenizer.load(tmp_path / "gpt2") == GPT2
    assert Tokenizer.load(tmp_path / "gpt2", "gpt2", pattern="llama3").pattern == "llama3"
    with pytest.raises(ValueError, match="cannot say the pattern"):
        MAIN.save(tmp_path / "other", "gpt2")


def test_the_published_gpt2_files_open_as_a_folder(tmp_path: Path) -> None:
    for name in ("gpt2_vocab.json", "gpt2_merges.txt"):
        (tmp_path / name).symlink_to(data(f"fixtures/{name}"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded == gpt2()
    assert loaded.special_tokens == {"<|endoftext|>": 50256}


def test_a_tokenizer_that_hugging_face_trained_opens(tmp_path: Path) -> None:
    other = tokenizers.Tokenizer(tokenizers.models.BPE())
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    other.train_from_iterator(TEXTS, trainer)
    other.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.vocab_size == other.get_vocab_size()
    for text in [*TEXTS, "<s> unseen \u6587\u5b57 </s>"]:
        assert tokenizer.encode(text, special="allow") == encoded_by(other, text)


def changed(path: Path, keys: tuple[str, ...], value: object) -> Path:
    """A tokenizer.json with one value replaced."""
    MAIN.save(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
STRIPPED = {"id": 367, "content": "<|endoftext|>", "lstrip": True}


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("model", "type"), "Unigram", "type Unigram. vocab"),
        (("model", "type"), "WordLevel", "key model .type WordLevel. "),
        (("model", "dropout"), 1.1, "dropout = 1.1 is not a number from 0 to 1"),
        (("model", "merges"), ["a b c"], "not two tokens"),
        (("model", "merges"), [["a", "\u4e2d"]], "not in the vocabulary"),
        (("model", "vocab"), {"a": 0}, "but tokenizers gives it 1"),
        (("normalizer",), {"type": "Mystery"}, "normalizer Mystery is not supported"),
        (("pre_tokenizer",), {"type": "Mystery"}, "pre_tokenizer Mystery is not"),
        (("model",), None, "model = null is not an object"),
        (("model",), {"vocab": {}}, "tokenizers gives it 0; list it"),
    ],
)
def test_what_a_file_has_that_is_not_supported_is_named(
    tmp_path: Path, keys: tuple[str, ...], value: object, message: str
) -> None:
    path = changed(tmp_path / "tokenizer.json", keys, value)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "not JSON"),
        ("tokenizer.json", b"[]", "expected a JSON object"),
        ("tokenizer.json", b"\xff\xfe", "not JSON"),
        ("x.tiktoken", b"!!! 3\n", "line 1: expected a token in base64"),
        ("x.tiktoken", b"YQ== 0\nYg==\n", "line 2"),
        ("x.tiktoken", b"YQ== x\n", "line 1"),
        ("x.tiktoken.gz", b"\x1f\x8b\x08broken", "damaged"),
        ("x.unknown", b"", "cannot tell the format"),
    ],
)
def test_a_damaged_file_is_an_error_with_its_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    settings = {"pattern": "gpt2", "special_tokens": {}} if "tiktoken" in name else {}
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path / name, **settings)


def test_what_is_not_there_is_an_os_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="expected one of"):
        MAIN.save(tmp_path / "x", "wordlist")
    with pytest.raises(ValueError, match="itself"):
        Tokenizer.load(tmp_path / "x.json", pattern="gpt2")


UNSUPPORTED = {
    "tokenizer.model": (b"\n\x0e\n\x05<unk>\x15", "cut short"),
    "spiece.model": (b"\n\x0b", "cut short"),
    "renamed.bin": (b"\n\x0e\n\x05<unk>", "cut short"),
    "tekken.json": (b'{"config": {}, "vocab": []}', "tekken.json"),
    "other.json": (b'{"config": {}, "vocab": []}', "tekken.json"),
    "vocab.txt": (b"[PAD]\n[UNK]\n", "a WordPiece vocab.txt"),
    "tokenizer.pkl": (b"\x80\x04\x95", "a pickled object"),
    "weights.bin": (b"PK\x03\x04", "a zip file"),
    "model.gguf": (b"GGUF\x03", "a GGUF file"),
    "merges.txt": (b"#version: 0.2\n", "without its folder"),
    "ranks.gz": (gzip.compress(b"YQ== 0\n"), "a gzip file"),
    "vocab.json": (b'{"a": 0}', "a vocab.json alone has no merges"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_file_of_another_kind_is_refused_by_its_kind(tmp_path: Path, name: str) -> None:
    content, message = UNSUPPORTED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    if name in ("tokenizer.model", "vocab.txt", "tekken.json"):
        with pytest.raises(ValueError, match=message):
            Tokenizer.load(tmp_path)


def test_a_mark_of_the_byte_order_and_blank_lines_are_no_content(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    GPT2.save(tmp_path / "two", "gpt2")
    MAIN.save(tmp_path / "one/tokenizer.json")
    for path in tmp_path.glob("*/*"):
        path.write_bytes(mark + path.read_bytes() + b"\n\n")
    assert Tokenizer.load(tmp_path / "two") == GPT2
    assert Tokenizer.load(tmp_path / "one") == MAIN
    RANKS.save(tmp_path / "x.tiktoken")
    path = tmp_path / "x.tiktoken"
    path.write_bytes(b"\n" + path.read_bytes().replace(b"\n", b"\r\n") + b"\n \n")
    settings = {"pattern": "gpt4", "special_tokens": RANKS.special_tokens}
    assert Tokenizer.load(path, **settings) == RANKS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b" 256\n", "line 257: expected a token"),
        (b"= 256\n", "line 257: expected a token|the token is empty"),
        (b"YQ== 256\n", "tokens 97 and 256 have the same bytes"),
        (b"YWI= -1\n", "line 257: the rank -1 is not an id"),
        (b"YWI= 4294967296\n", "the rank 4294967296 is not an id"),
        (b"YWI= 97\n", "two tokens have the id 97"),
        (b"YWI= 99999999\n", "token id 99999999 is above the limit"),
    ],
)
def test_what_is_wrong_with_ranks_is_said_with_the_file(
    tmp_path: Path, line: bytes, message: str
) -> None:
    path = tmp_path / "x.tiktoken"
    Tokenizer.from_ranks(
        {bytes([b]): b for b in range(256)}, pattern="gpt2", special_tokens={}
    ).save(path)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(path, pattern="gpt2", special_tokens={})
    assert str(caught.value).startswith(str(path))


def test_an_error_of_the_core_names_the_file(tmp_path: Path) -> None:
    path = changed(tmp_path / "tokenizer.json", ("model", "vocab", "zz"), 5)
    with pytest.raises(ValueError, match="two tokens have the id 5") as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    split = {"type": "Split", "pattern": {"Regex": r"\p{Nonsense}"}, "behavior": "Isolated"}
    ending = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [{**split, "invert": False}, ending]}
    changed(path, ("pre_tokenizer",), steps)
    with pytest.raises(ValueError, match="Nonsense") as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@given(draw=st.data())
def test_a_damaged_file_of_ranks_is_never_read_quickly_as_another(draw: st.DataObject) -> None:
    lines = [b"bG93 7", b"ZXI= 8", b"/+8= 4294967295", b"YQ== 0"]
    whole = b"\n".join(lines) + b"\n"
    at = draw.draw(st.integers(0, len(whole)))
    drop = draw.draw(st.integers(0, 3))
    put = draw.draw(st.binary(max_size=3) | st.sampled_from([b"=", b" ", b"\n", b"\r\n", b"A"]))
    damaged = whole[:at] + put + whole[at + drop :]
    quick = _rust.read_ranks(damaged)
    # Two equal tokens are refused by the tokenizer that is made of them.
    if quick is not None and len(quick) == len(quick.dict()):
        assert quick.dict() == ranks_in(damaged, Path("ranks"))


@given(draw=st.data())
def test_damaged_merges_are_never_read_quickly_as_others(draw: st.DataObject) -> None:
    pairs = '[["a", "b"], ["ab", "\\u0063\\""]]'
    whole = draw.draw(st.sampled_from([pairs, '["a b", "ab c"]']))
    whole = '{"model": {"x": ["]", {"merges": 2}], "merges": ' + whole + ', "y": 1}, "z": null}'
    at = draw.draw(st.integers(0, len(whole)))
    drop = draw.draw(st.integers(0, 3))
    put = draw.draw(st.text('"\\[]{},: \n\x00a\xe9', max_size=3))
    damaged = (whole[:at] + put + whole[at + drop :]).encode()
    if (found := _rust.read_merges(damaged)) is None:
        return
    merges, start, end = found
    rest = damaged[:start] + json.dumps(merges.to_list()).encode() + damaged[end:]
    try:
        expected = json.loads(damaged)
    except ValueError:
        # What is wrong is outside the merges, and still there.
        with pytest.raises(ValueError, match=":"):
            json.loads(rest)
        return
    assert json.loads(rest) == expected
    assert merges.to_list() == expected["model"]["merges"]


def test_an_error_in_a_file_with_merges_is_said_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"merges": [["a", "b"]]},\n "version": nul}')
    with pytest.raises(ValueError, match=r"line 2 column 13"):
        Tokenizer.load(path)
    path.write_text('{"model": {"type": "WordPiece", "merges": [["a", "b"]], "vocab": {}}}')
    with pytest.raises(ValueError, match=r'merges = \[\["a", "b"\]\] is not known'):
        Tokenizer.load(path)
