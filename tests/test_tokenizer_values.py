"""Tokenizers of every kind are values: pickled, copied, compared, hashed and shared by threads."""

import copy
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.tokenizer_data import TEXTS, TOKENIZERS, standard_library
from tests.support.tokenizer_json import document_of
from tests.test_tokenizer_offsets import BERT, WORDPIECE
from tests.test_tokenizer_tekken import document as tekken
from tinylm import Tokenizer
from tinylm.tokenizer import Characters

WORDS = [*TEXTS, "Hello, cafe\u0301 CAF\xc9 ab x", "", " a  b\n"]
# Encodes in a new process: what another process pickled, then what it found.
ELSEWHERE = """
import pickle, sys
tokenizers, words = pickle.load(sys.stdin.buffer)
found = {name: ([t.encode(w, special="text") for w in words], t.sha256, t)
         for name, t in tokenizers.items()}
pickle.dump(found, sys.stdout.buffer)
"""


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, int]]:
    """A tokenizer of each kind, and the bytes of its file."""
    folder = tmp_path_factory.mktemp("values")
    nfc = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    documents = {
        "bytes.json": document_of(TOKENIZERS["gpt4"], folder / "bytes.json"),
        "wordpiece.json": {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": BERT,
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": WORDPIECE,
        },
        "tekken.json": tekken(),
    }
    documents["stages.json"] = documents["bytes.json"] | {"normalizer": nfc}
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    learned = Tokenizer.train(
        [standard_library(1)[:8000]], vocab_size=400, kind="unigram", alphabet=Characters()
    )
    learned.save(folder / "unigram.model")
    paths: list[Path] = [folder / name for name in (*documents, "unigram.model")]
    return {path.name: (Tokenizer.load(path), path.stat().st_size) for path in paths}


def test_copies_are_equal(every: dict[str, tuple[Tokenizer, int]]) -> None:
    for name, (tokenizer, size) in every.items():
        expected = [tokenizer.encode(word, special="text") for word in WORDS]
        pickled = pickle.dumps(tokenizer)
        # What the file says, and neither tables nor caches of the core.
        assert len(pickled) < 2 * size + 10_000, name
        for other in (pickle.loads(pickled), copy.copy(tokenizer), copy.deepcopy(tokenizer)):
            assert other == tokenizer, name
            assert (hash(other), other.sha256) == (hash(tokenizer), tokenizer.sha256)
            assert [other.encode(word, special="text") for word in WORDS] == expected
    assert len({tokenizer for tokenizer, _ in every.values()}) == len(every)


def test_another_process_finds_equal_ids(every: dict[str, tuple[Tokenizer, int]]) -> None:
    tokenizers = {name: tokenizer for name, (tokenizer, _) in every.items()}
    sent = pickle.dumps((tokenizers, WORDS))
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], input=sent, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    for name, (ids, sha256, tokenizer) in pickle.loads(done.stdout).items():
        assert tokenizer == tokenizers[name]
        assert sha256 == tokenizers[name].sha256
        assert ids == [tokenizers[name].encode(word, special="text") for word in WORDS]


def test_eight_threads_find_equal_ids(every: dict[str, tuple[Tokenizer, int]]) -> None:
    def found() -> list[object]:
        return [
            [
                [tokenizer.encode(word, special="text") for word in WORDS],
                [tokenizer.count(word, special="text") for word in WORDS],
                tokenizer.encode_batch(WORDS, special="text")[0].tolist(),
            ]
            for tokenizer, _ in every.values()
        ]

    expected, results = found(), []
    threads = [threading.Thread(target=lambda: results.append(found())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


@pytest.mark.parametrize("dtype", ["uint16", np.uint16, np.dtype("uint16")])
def test_ids_go_out_as_uint16(dtype: object, every: dict[str, tuple[Tokenizer, int]]) -> None:
    for tokenizer, _ in every.values():
        for word in WORDS:
            ids = tokenizer.encode_array(word, special="text", dtype=dtype)
            assert ids.dtype == np.uint16
            assert ids.tolist() == tokenizer.encode(word, special="text")
        ids, offsets = tokenizer.encode_batch(WORDS, special="text", dtype=dtype)
        wide, same = tokenizer.encode_batch(WORDS, special="text")
        assert (ids.dtype, wide.dtype) == (np.uint16, np.uint32)
        assert (ids.tolist(), offsets.tolist()) == (wide.tolist(), same.tolist())


def test_a_vocabulary_too_large_for_uint16_is_refused() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    fits, large = (
        Tokenizer.from_ranks(ranks, pattern="gpt4", special_tokens={"<|end|>": id})
        for id in (65_535, 65_536)
    )
    ids = fits.encode_array("a<|end|>", special="allow", dtype="uint16")
    assert ids.tolist() == [97, 65_535]
    reason = "dtype=uint16: the largest id of the vocabulary is 65536, .* use uint32"
    for call in (large.encode_array, lambda text, **kw: large.encode_batch([text], **kw)):
        # Before the text is looked at, whose special token is an error too.
        with pytest.raises(ValueError, match=reason):
            call("<|end|>", dtype="uint16")
        with pytest.raises(ValueError, match="dtype=int64: ids are handed out as uint32 or uint16"):
            call("a", dtype="int64")


def test_a_long_text_is_counted_in_portions() -> None:
    tokenizer = TOKENIZERS["gpt4"]
    text = ("Words of some text<|end|>, 12345 and more.\n" * 40_000)[:-1]
    for special in ("allow", "text"):
        assert tokenizer.count(text, special=special) == len(
            tokenizer.encode(text, special=special)
        )
