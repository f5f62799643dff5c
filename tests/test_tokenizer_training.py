"""Training, held to the reference merge by merge."""

import gzip
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rungs.vocabulary import train_fast, train_slow
from tests.support.strategies import assigned_text
from tests.support.tokenizer_data import CORPORA, corpus, over_a_mebibyte, standard_library
from tinylm import Tokenizer
from tinylm.reference import byte_bpe


def train(texts: list[str | bytes], **settings) -> Tokenizer:
    """As `Tokenizer.train`, content with the tokens that the texts give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Tokenizer.train(texts, **{"special_tokens": (), **settings})


def check_against_reference(
    text: str, size: int, pattern: str, ties: str, min_frequency: int = 1
) -> None:
    case = (text, size, pattern, ties, min_frequency, None)
    assert train_fast(*case) == train_slow(*case)


@pytest.mark.parametrize("ties", ["ids", "bytes", "huggingface"])
def test_training_on_real_code_equals_the_reference(ties: str) -> None:
    check_against_reference(standard_library(3), 500, "gpt4", ties)


@settings(max_examples=2, deadline=None)
@given(unit=assigned_text())
def test_a_large_text_is_counted_in_portions_without_a_trace(unit: str) -> None:
    check_against_reference(over_a_mebibyte(unit), 290, "gpt4", "ids")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("ties", ["ids", "bytes"])
@pytest.mark.parametrize("name", CORPORA)
def test_training_on_a_corpus_equals_the_reference(name: str, ties: str) -> None:
    check_against_reference(corpus(name), 2048, "gpt4", ties)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("ties", ["ids", "bytes"])
def test_training_on_the_standard_library_equals_the_reference(ties: str) -> None:
    check_against_reference(standard_library(), 2048, "gpt2", ties)


@settings(max_examples=10)
@given(texts=st.lists(assigned_text().filter(bool), min_size=1, max_size=4))
def test_the_number_of_threads_changes_nothing(texts: list[str]) -> None:
    large = [text * (1 + 40_000 // len(text)) for text in texts] * 20
    one, two, four = (train(large, vocab_size=290, threads=n) for n in (1, 2, 4))
    assert one == two == four


def test_documents_are_split_apart() -> None:
    assert train(["ab"] * 5, vocab_size=300).merges == [(b"a", b"b")]
    assert train(["a", "b"] * 5, vocab_size=300).merges == []


def test_special_tokens_divide_texts_and_are_not_counted() -> None:
    tokenizer = train(["ab<|x|>ab<|x|><|x|>"] * 3, vocab_size=300, special_tokens=("<|x|>",))
    assert tokenizer.merges == [(b"a", b"b")]
    assert tokenizer.special_tokens == {"<|x|>": 257}
    assert tokenizer.vocab_size == 258


@given(
    words=st.lists(st.text("ab", max_size=40) | st.text("abc", max_size=40), max_size=8),
    ties=st.sampled_from(["ids", "bytes"]),
)
def test_no_two_merges_make_the_same_token(words: list[str], ties: str) -> None:
    # Why: rust/tokenizer/src/train.rs. All that can be merged is.
    tokens, merges = byte_bpe.train([word.encode() for word in words], 1000, ties)
    assert len(set(tokens)) == len(tokens) == 256 + len(merges)
    assert len(set(merges)) == len(merges)


def test_a_vocabulary_too_small_for_the_bytes_is_an_error() -> None:
    with pytest.raises(ValueError, match="vocab_size 256 is too small: 256 bytes and 1 special"):
        Tokenizer.train(["text"], vocab_size=256)
    assert Tokenizer.train(["text"], vocab_size=257).vocab_size == 257


def test_a_vocabulary_too_large_for_the_text_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="a vocabulary of 260, not the 1000 asked for") as caught:
        Tokenizer.train(["text"], vocab_size=1000)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char", "byte", "whitespace"])
@pytest.mark.parametrize("texts", [[], [""], ["", b""]])
def test_an_empty_corpus_is_an_error(kind: str, texts: list[str | bytes]) -> None:
    with pytest.raises(ValueError, match="corpus is empty"):
        Tokenizer.train(texts, vocab_size=300, kind=kind)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"kind": "wordpiece"}, ValueError, "expected 'bpe', 'unigram'"),
        ({"kind": "char", "pattern": "gpt2"}, ValueError, "is for bpe and unigram"),
        ({"ties": "random"}, ValueError, 'expected "ids", "bytes" or'),
        ({"min_frequency": 0}, ValueError, "at least 1"),
        ({"max_token_length": 0}, ValueError, "must be at least 1, or None"),
        ({"threads": -1}, ValueError, "must be 0"),
        ({"special_tokens": ("<|a|>", "<|a|>")}, ValueError, "listed twice"),
        ({"special_tokens": "<|a|>"}, TypeError, "pass \\(token,\\)"),
        ({"special_tokens": ("",)}, ValueError, "empty string"),
    ],
)
def test_a_bad_setting_is_an_error_that_names_it(
    settings: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Tokenizer.train(["text"], vocab_size=300, **settings)


def test_one_string_is_no_list_of_texts() -> None:
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        Tokenizer.train("text", vocab_size=300)
    with pytest.raises(TypeError, match=r"pass \[path\]"):
        Tokenizer.train_files("text.txt", vocab_size=300)
    with pytest.raises(TypeError, match="encode_array"):
        Tokenizer.train(["text"], vocab_size=257).encode_batch("text")


def test_characters_are_learned_by_frequency_and_the_rest_is_bytes() -> None:
    tokenizer = train(["\u4e2d\u6587\u4e2d\u6587\u4e2d\xe9ab"], vocab_size=258, kind="char")
    assert tokenizer.vocab[256] == "\u4e2d".encode()
    assert tokenizer.vocab[257] == "\u6587".encode()
    assert tokenizer.encode("a\u4e2d\xe9") == [97, 256, 0xC3, 0xA9]
    assert tokenizer.merges == []


def test_words_carry_the_space_before_them() -> None:
    tokenizer = train(["the cat the dog the end"], vocab_size=258, kind="whitespace")
    assert tokenizer.vocab[256] == b" the"
    assert [tokenizer.decode([i]) for i in tokenizer.encode(" the the\n")] == [" the", " the", "\n"]
    rare = train(["the cat the cat the end"], vocab_size=300, kind="whitespace", min_frequency=2)
    assert rare.vocab_size == 258


@pytest.mark.parametrize("ties", ["ids", "bytes"])
def test_equally_frequent_words_are_taken_in_the_order_of_ties(ties: str) -> None:
    tokenizer = train(["x y z"], vocab_size=257, kind="whitespace", ties=ties)
    assert tokenizer.vocab[256] == (b" y" if ties == "ids" else b" z")


def test_progress_is_told_and_an_error_in_it_ends_the_training() -> None:
    seen: list[tuple[int, int]] = []
    train(["low lower lowest"], vocab_size=260, progress=lambda *step: seen.append(step))
    assert seen[0] == (256, 260)
    assert seen[-1] == (260, 260)

    def fail(done: int, target: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        train(["low lower lowest"], vocab_size=260, progress=fail)


def test_the_progress_line_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    train(["low lower lowest"], vocab_size=260, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("260/260 tokens\n")


def test_files_are_texts_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinylm.tokenizer.training.BATCH", 1000)
    texts = [standard_library(2) + "<|x|>  \n  \u4e2d\u6587 " * 40, " 1  2\n" * 500, "a" * 5000]
    paths = [tmp_path / f"{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    for pattern in ("gpt2", "gpt4", "o200k", r"\S+|\s+"):
        settings = {"vocab_size": 400, "pattern": pattern, "special_tokens": ("<|x|>",)}
        assert Tokenizer.train_files(paths, **settings) == Tokenizer.train(texts, **settings)
    with pytest.raises(FileNotFoundError, match="missing"):
        Tokenizer.train_files([tmp_path / "missing"], vocab_size=300)


@pytest.mark.parametrize("ending", [".jsonl", ".jl", ".NDJSON"])
def test_of_a_file_of_rows_the_texts_are_learned(tmp_path: Path, ending: str) -> None:
    texts = ["one low", "two lower\n", "\u4e2d\u6587 lowest"]
    path = tmp_path / f"a{ending}"
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))
    for kind in ("char", "bpe"):
        settings = {"vocab_size": 262, "kind": kind}
        assert Tokenizer.train_files([path], **settings) == Tokenizer.train(texts, **settings)
    path.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r'line 1 has no text in a field "text"'):
        Tokenizer.train_files([path], vocab_size=262)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        # The name of the case is the same in every process: the time would be a part of it.
        ("a.txt", gzip.compress(b"a text", mtime=0)),
        ("a.arrow", b"ARROW1\0\0"),
        ("a.txt", "a text".encode("utf-16")),
    ],
)
def test_a_file_of_another_format_is_not_learned(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .* is not read as text"):
        Tokenizer.train_files([tmp_path / name], vocab_size=260)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_rows_under_another_name_are_not_learned_with_their_braces(
    tmp_path: Path, mark: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(mark + '{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.txt: .* rename it to end in \.jsonl"):
        Tokenizer.train_files([path], vocab_size=262)
    path.write_text(mark + "low lower lowest", encoding="utf-8")
    wanted = Tokenizer.train(["low lower lowest"], vocab_size=262)
    assert Tokenizer.train_files([path], vocab_size=262) == wanted


def test_training_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "from tinylm import Tokenizer;"
        "print(Tokenizer.train([open(__import__('os').__file__).read()], vocab_size=900).sha256)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


# Whoever counts or learns asks for the GIL now and then, to see signals and to tell progress.
CUTTING = """
import random, threading
from tinylm import _rust

def busy(work, *arguments):
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    cuts = 0
    while thread.is_alive():
        assert counts.cut("low lower lowest") == 9
        cuts += 1
    print(cuts > 0, seen)

seen = []
counts = _rust.WordCounts("gpt4", [], 1)
busy(counts.add, [b" low lower lowest" * 2_000_000])
draw = random.Random(0)
counts.add([" ".join("".join(draw.choices("abcdefgh", k=9)) for _ in range(50_000))])
seen = {"progress"}
busy(counts.train, "bpe", 2000, 1, "ids", lambda *_: seen.discard("progress"))
"""


def test_a_cut_beside_counting_and_learning_does_not_hang() -> None:
    command = [sys.executable, "-c", CUTTING]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout == "True []\nTrue set()\n", done.stderr


def hugging_face_trained(texts: list[str], size: int, least: int) -> Tokenizer:
    """What the trainer of Hugging Face's tokenizers learns, opened here."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    theirs.pre_tokenizer = split
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=least,
        initial_alphabet=split.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(texts, trainer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        theirs.save(str(path))
        return Tokenizer.load(path)


@pytest.mark.parametrize("least", [1, 3])
def test_with_their_ties_the_merges_are_those_of_hugging_face(least: int) -> None:
    text = standard_library(6)[:200_000] + " \u4e2d\u6587 \xe9t\xe9 \0\x01\x02 \U0001f600" * 9
    rules = {"pattern": "gpt2", "ties": "huggingface", "min_frequency": least}
    ours = train([text], vocab_size=2000, **rules)
    theirs = hugging_face_trained([text], 2000, least)
    assert ours.merges == theirs.merges
    assert len(ours.merges) > 500
