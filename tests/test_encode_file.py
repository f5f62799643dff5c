"""`encode_file`: a file straight to shards, in little memory, with the ids of the whole text."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.tokenizer_data import TEXTS, TOKENIZERS
from tinylm import Tokenizer
from tinylm.data import Dataset, Manifest, encode_file, encoding

MAIN = TOKENIZERS["gpt4"]
LONG = "".join(TEXTS) * 40


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches so small that a text of a few kilobytes is a long one."""
    monkeypatch.setattr(encoding, "BATCH_BYTES", 4096)
    monkeypatch.setattr("tinylm.corpus.texts.BLOCK", 1000)


def documents(folder: Path) -> list[list[int]]:
    return [ids.tolist() for ids in Dataset.open(folder).documents()]


def in_memory(texts: list[str]) -> list[list[int]]:
    return [MAIN.encode(text, special="text") for text in texts]


def test_a_long_text_has_the_ids_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(LONG, encoding="utf-8", newline="")
    manifest = encode_file(path, tmp_path / "shards", MAIN)
    assert documents(tmp_path / "shards") == in_memory([LONG])
    assert manifest == Manifest.load(tmp_path / "shards")
    train, val = manifest.splits["train"], manifest.splits["val"]
    assert (train.documents, train.bytes, val.documents) == (1, len(LONG.encode()), 0)
    # The same text again is found and not written again.
    assert encode_file(path, tmp_path / "shards", MAIN) == manifest


def test_documents_are_those_of_the_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(f"one\n<|endoftext|>\n{LONG}\n<|endoftext|>\ntwo", newline="")
    (folder / "b.jsonl").write_text(json.dumps({"text": LONG}) + '\n{"text": "three"}\n')
    (folder / "c.txt").write_text(LONG, newline="")
    encode_file(folder, tmp_path / "shards", MAIN)
    expected = ["one", LONG, "two", LONG, "three", LONG]
    assert documents(tmp_path / "shards") == in_memory(expected)
    encode_file(folder / "a.txt", tmp_path / "whole", MAIN, separator="off")
    assert len(documents(tmp_path / "whole")) == 1


def test_a_tokenizer_that_sees_whole_texts_gives_the_same_ids(tmp_path: Path) -> None:
    own = Tokenizer.train(TEXTS, vocab_size=300, pattern=r"\w+|\W")
    assert len(list(own.chunks([LONG] * 3, special="text", size=4096))) == 1
    (tmp_path / "t.txt").write_text(LONG, newline="")
    encode_file(tmp_path / "t.txt", tmp_path / "shards", own)
    assert documents(tmp_path / "shards") == [own.encode(LONG, special="text")]


def test_chunks_are_encoded_by_themselves_as_in_the_whole() -> None:
    parts = [LONG[at : at + 700] for at in range(0, len(LONG), 700)]
    chunks = list(MAIN.chunks(parts, special="text", size=2000))
    assert len(chunks) > 5
    assert max(map(len, chunks)) < 10_000
    assert b"".join(chunks).decode() == LONG
    found = [id for chunk in chunks for id in MAIN.encode(chunk, special="text")]
    assert found == MAIN.encode(LONG, special="text")


def test_an_error_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_text(LONG, newline="")
    seen = []

    def fails(self: object, n_bytes: int, n_tokens: int) -> None:
        seen.append(n_tokens)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoding.Progress, "add", fails)
        with pytest.raises(KeyboardInterrupt):
            encode_file(tmp_path / "t.txt", tmp_path / "shards", MAIN)
    left = [path.name for path in (tmp_path / "shards").iterdir()]
    assert not [name for name in left if ".bin" in name or ".doc" in name or "manifest" in name]
    encode_file(tmp_path / "t.txt", tmp_path / "shards", MAIN)
    assert documents(tmp_path / "shards") == in_memory([LONG])


RUN = """
import resource, sys
from tinylm import Tokenizer
from tinylm.data import encode_file
tokenizer = Tokenizer.load(sys.argv[1])
tokenizer.encode_batch(["warm"])
begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encode_file(sys.argv[2], sys.argv[3], tokenizer)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - begin) // 1024, peak // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    MAIN.save(tmp_path / "t.json")
    unit = "".join(TEXTS).encode() * 1000
    with (tmp_path / "big.txt").open("wb") as file:
        for _ in range(300_000_000 // len(unit)):
            file.write(unit)
    command = [sys.executable, "-c", RUN, *(str(tmp_path / n) for n in ("t.json", "big.txt", "s"))]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not any((tmp_path / "s").rglob("train-00000.bin.part")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(10) != 0
    assert not list((tmp_path / "s").glob("*.bin*"))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, peak = map(int, done.stdout.split())
    # Of a text of 1 GiB they were 113 and 161 MiB.
    assert grown < 128
    assert peak < 256
