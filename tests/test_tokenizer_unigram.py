"""Unigram as a kind of tokenizer: learned, saved, opened by `tokenizers`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from tests.support.tokenizer_data import standard_library
from tinylm import Tokenizer, _rust
from tinylm.tokenizer.models import Unigram

TEXT = standard_library(2)[:60_000]


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return Tokenizer.train([TEXT], vocab_size=500, kind="unigram")


def test_every_text_comes_back(learned: Tokenizer) -> None:
    assert learned.vocab_size == 500
    assert [learned.vocab[byte] for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    for text in (TEXT[:3000], "", " ", "na\xefve \u4e2d\U0001f600", "\x00\r\n\t"):
        assert learned.decode(learned.encode(text)) == text
    assert learned.decode_bytes(learned.encode(b"\xff\x80a")) == b"\xff\x80a"


def test_it_takes_fewer_tokens_than_bytes_and_no_more_than_bpe(learned: Tokenizer) -> None:
    bpe = Tokenizer.train([TEXT], vocab_size=500)
    assert learned.count(TEXT) < 1.02 * bpe.count(TEXT)


def test_tokenizers_opens_the_file_with_equal_ids(learned: Tokenizer, tmp_path: Path) -> None:
    learned.save(tmp_path)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (TEXT[:20_000], "na\xefve \u4e2d\U0001f600", " a  b\n\n"):
        assert peer.encode(text).ids == learned.encode(text)
        assert peer.decode(learned.encode(text), skip_special_tokens=False) == text
    assert peer.token_to_id("<|endoftext|>") == learned.eos_id == 499


def test_it_loads_as_it_was_saved(learned: Tokenizer, tmp_path: Path) -> None:
    learned.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded == learned
    assert loaded.encode(TEXT) == learned.encode(TEXT)
    loaded.save(tmp_path / "again")
    first, again = (folder / "tokenizer.json" for folder in (tmp_path, tmp_path / "again"))
    assert json.loads(first.read_text()) == json.loads(again.read_text())


def test_other_formats_and_settings_are_refused(learned: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"save as tokenizer\.json"):
        learned.save(tmp_path / "a.model")
    with pytest.raises(ValueError, match="learns none"):
        Tokenizer.train([TEXT], vocab_size=300, kind="unigram", ties="bytes")
    with pytest.raises(ValueError, match="too small"):
        Tokenizer.train([TEXT], vocab_size=200, kind="unigram")


def test_a_small_corpus_gives_fewer_tokens_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="not the 1000 asked for"):
        small = Tokenizer.train(["abc abc"], vocab_size=1000, kind="unigram")
    assert small.decode(small.encode("abc d")) == "abc d"


def test_rare_words_give_no_token() -> None:
    texts = ["common common common common rarest rarest"]
    with pytest.warns(UserWarning, match="not the 300 asked for"):
        often = Tokenizer.train(texts, vocab_size=300, kind="unigram", min_frequency=3)
    assert any(b"common" in token for token in often.vocab.values())
    assert not any(b"rare" in token for token in often.vocab.values())


def test_progress_rises_and_its_error_ends_the_work() -> None:
    counts = _rust.WordCounts("gpt4", [], 1)
    counts.add([TEXT])
    seen: list[tuple[int, int]] = []
    _rust.train_unigram(counts, 400, 1, None, False, lambda *numbers: seen.append(numbers))
    assert seen == sorted(seen)
    assert seen[-1] == (400, 400)

    def stop(done: int, target: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        _rust.train_unigram(counts, 400, 1, None, False, stop)


@pytest.mark.slow
def test_a_model_is_trained_on_it(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(standard_library(20)[:300_000])
    given = (
        *("tokenizer.kind=unigram", "tokenizer.vocab_size=600", "data.source=text.txt"),
        *("out=run", "data.folder=shards", "train.steps=4", "evaluate.every=4"),
        *("model.n_layers=2", "sample.max_tokens=2"),
    )
    command = [sys.executable, "-m", "tinylm.train", "stdlib", *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (saved,) = (tmp_path / "run").glob("checkpoints/*-00000004/tokenizer.json")
    tokenizer = Tokenizer.load(saved)
    assert isinstance(tokenizer._contents.model, Unigram)
    assert tokenizer.vocab_size == 600
