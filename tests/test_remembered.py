"""What was found of the files of a text is found once, by whichever process comes first."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.calling import call
from tinylm import Tokenizer, corpus
from tinylm.corpus import remembered, texts
from tinylm.corpus.remembered import order, remembering
from tinylm.data import __main__


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder of twelve files, every one large enough to be remembered; the names looked at."""
    monkeypatch.setattr(remembered, "LEAST", 1)
    folder = tmp_path / "texts"
    folder.mkdir()
    for k in range(12):
        (folder / f"{k:02}.txt").write_text(f"{k} words\n<|endoftext|>\nmore\n" if k % 3 else "one")
    (folder / "rows.jsonl").write_text(json.dumps({"text": "row"}))
    seen, inspect = [], texts._inspect

    def counted(path, *rest):
        seen.append(path.name)
        return inspect(path, *rest)

    monkeypatch.setattr(texts, "_inspect", counted)
    return folder, seen


def opened(folder, **settings):
    return corpus.open(str(folder), val_fraction=0.3, **settings)


def told(text):
    return text.fingerprint, text.notes, text.bytes, [*text.train()], [*text.validation()]


def test_a_text_that_was_found_before_is_the_same_and_not_read_again(files, tmp_path):
    folder, seen = files
    plain = told(opened(folder))
    assert len(seen) == 13
    for looked_at in (13, 0):
        seen.clear()
        with remembering(tmp_path / "found"):
            assert told(opened(folder)) == plain
        assert len(seen) == looked_at
    seen.clear()
    # Another setting, or another text in a file, is another question.
    (folder / "03.txt").write_text("another")
    with remembering(tmp_path / "found"):
        assert told(opened(folder)) == told(opened(folder))
        assert seen == ["03.txt"]
        opened(folder, separator="off")
    assert len(seen) == 14
    seen.clear()
    opened(folder)
    assert len(seen) == 13


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"found": {}, "checksum": "0"}'])
def test_an_entry_that_is_damaged_is_found_anew(damage, files, tmp_path):
    folder, seen = files
    with remembering(tmp_path / "found"):
        plain = told(opened(folder))
        for path in (tmp_path / "found").iterdir():
            path.write_bytes(damage or path.read_bytes()[:-9])
        seen.clear()
        assert told(opened(folder)) == plain
        assert len(seen) == 13


def test_a_place_that_cannot_be_written_to_costs_nothing(files, tmp_path):
    folder, seen = files
    (tmp_path / "found").write_text("a file")
    with remembering(tmp_path / "found"):
        assert told(opened(folder)) == told(opened(folder))
    assert len(seen) == 26


@pytest.mark.parametrize("world", [1, 2, 5, 40])
def test_processes_begin_at_different_files_and_see_all(world):
    for n in (0, 1, 13):
        firsts = set()
        for rank in range(world):
            with remembering("unused", rank=rank, world=world):
                numbers = list(order(n))
            assert sorted(numbers) == list(range(n))
            firsts |= set(numbers[:1])
        assert len(firsts) == min(world, n)


def test_two_at_once_read_each_file_once_or_little_more(files, tmp_path):
    folder, seen = files
    plain = told(opened(folder))
    seen.clear()

    def rank(number):
        with remembering(tmp_path / "found", rank=number, world=2):
            return told(opened(folder))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(rank, range(2))) == [plain, plain]
    assert set(seen) == {path.name for path in folder.iterdir()}


def test_the_command_keeps_it_until_the_shards_are_made(files, tmp_path, monkeypatch):
    folder, seen = files
    Tokenizer.train(["words"], vocab_size=260).save(tmp_path / "t.json")
    given = ["prepare", str(folder), "--tokenizer", str(tmp_path / "t.json"), "--out"]
    given += [str(tmp_path / "out"), "--val-fraction", "0.3", "--job-bytes", "20"]
    assert call(__main__.main, [*given, "--rank", "0", "--world", "2"]) == 0
    assert len(os.listdir(tmp_path / "out/jobs/found")) == 13
    seen.clear()
    assert call(__main__.main, [*given, "--rank", "1", "--world", "2"]) == 0
    assert seen == []
    assert not (tmp_path / "out/jobs").exists()
    assert (tmp_path / "out/manifest.json").exists()
