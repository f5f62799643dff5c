"""Documents in an order drawn from a seed: the same documents, the same order everywhere."""

import gc
import random
import resource
import tempfile
import threading
from pathlib import Path

import pytest

from tests.test_corpus import HALF, folder_of
from tests.test_corpus_kinds import documents, rows
from tinylm import corpus
from tinylm.corpus import shuffling
from tinylm.corpus.documents import Section
from tinylm.corpus.shuffling import Shuffled

TEXTS = [f"document {k} \xe9" for k in range(200)]


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """The folder of the buckets, which must be empty in the end."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    gc.collect()
    assert not list(folder.iterdir())


def opened(path, seed=7, **settings):
    return corpus.open(str(path), shuffle_documents=seed, **HALF, **settings)


@pytest.mark.parametrize(("bucket", "most"), [(1 << 26, 1 << 14), (300, 1 << 14), (1, 64)])
def test_the_documents_are_those_of_before_in_another_order(tmp_path, monkeypatch, bucket, most):
    monkeypatch.setattr(shuffling, "BUCKET", bucket)
    monkeypatch.setattr(shuffling, "MOST", most)
    monkeypatch.setattr(shuffling, "WAITING", 1000)
    folder_of(tmp_path / "x", {f"{k}.jsonl": rows(*TEXTS[k::3]) for k in range(3)})
    plain, text = corpus.open(str(tmp_path / "x"), **HALF), opened(tmp_path / "x")
    for split in ("train", "validation"):
        before, after = ([*getattr(c, split)()] for c in (plain, text))
        assert sorted(after) == sorted(before)
        assert after != before
        # Read again, and by another process.
        assert after == [*getattr(text, split)()] == [*getattr(opened(tmp_path / "x"), split)()]
    assert len(text.sections) == min(most, -(-text.bytes // bucket))
    assert sum(section.bytes for section in text.sections) == text.bytes
    assert text.provenance()["shuffle_documents"] == 7
    assert len({c.fingerprint for c in (plain, text, opened(tmp_path / "x", 8))}) == 3
    assert documents(opened(tmp_path / "x", 8)) == sorted(TEXTS)


def test_the_order_does_not_depend_on_the_size_of_a_bucket(tmp_path, monkeypatch):
    path = folder_of(tmp_path, {"a.jsonl": rows(*TEXTS)}) / "a.jsonl"
    orders = []
    for bucket in (1 << 26, 500, 40):
        monkeypatch.setattr(shuffling, "BUCKET", bucket)
        orders.append([*opened(path).train()])
    assert orders == [orders[0]] * 3


def test_there_are_more_buckets_than_files_that_may_be_open(tmp_path, monkeypatch):
    path = folder_of(tmp_path, {"a.jsonl": rows(*TEXTS)}) / "a.jsonl"
    before = [*opened(path).train()]
    monkeypatch.setattr(shuffling, "BUCKET", path.stat().st_size // 900)
    text = opened(path)
    assert len(text.sections) >= 900
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, 256), most))
    try:
        assert [*text.train()] == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))


def test_a_text_of_a_terabyte_has_buckets_of_64_mib():
    sections = Shuffled([Section(1 << 40, list)], 1).sections()
    assert {section.bytes for section in sections} == {64 << 20}


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_a_seed_that_no_run_takes_is_refused(tmp_path, seed):
    path = folder_of(tmp_path, {"a.jsonl": rows(*TEXTS)}) / "a.jsonl"
    message = rf"data\.shuffle_documents={seed} must be at least 0 and below 2\^63"
    with pytest.raises(ValueError, match=message):
        opened(path, seed)
    assert opened(path, (1 << 63) - 1).reading.shuffle_documents


def test_every_place_is_as_likely(tmp_path):
    path = folder_of(tmp_path, {"a.jsonl": rows(*"abcd")}) / "a.jsonl"
    counts = dict.fromkeys("abcd", 0)
    for seed in range(200):
        text = corpus.open(str(path), val_fraction=0, shuffle_documents=seed)
        counts[next(text.train())] += 1
    # 50 in the mean, with a standard deviation of 6.
    assert all(25 < count < 75 for count in counts.values())


def test_files_of_one_document_are_not_copied(tmp_path, scratch):
    folder_of(tmp_path / "x", {f"{k:03}.txt": text for k, text in enumerate(TEXTS)})
    text = opened(tmp_path / "x")
    assert documents(text) == sorted(TEXTS)
    (buckets,) = scratch.iterdir()
    assert sum(path.stat().st_size for path in buckets.iterdir()) == 0
    assert [*text.train()] == [*text.train()]
    assert "".join(opened(tmp_path / "x/000.txt").train()) == TEXTS[0][:6]


@pytest.mark.parametrize("size", [70, 3_000_000])
def test_a_document_that_is_cut_by_its_place_is_whole(tmp_path, size):
    folder_of(tmp_path / "x", {"a.txt": "a line\n" * (size // 7), "b/c.txt": "b\n"})
    plain = corpus.open(str(tmp_path / "x"), val_fraction=0.1)
    settings = {"val_fraction": 0.1, "shuffle_documents": 1, "filters": ["min_chars:1"]}
    text = corpus.open(str(tmp_path / "x"), **settings)
    assert any("all 2 documents fall to one split" in note for note in plain.notes)
    for _ in range(2):
        for split in ("train", "validation"):
            before, after = (sorted(getattr(c, split)()) for c in (plain, text))
            assert after == before


def test_filters_work_in_the_order_of_before(tmp_path):
    texts = [f"{k % 50} {'x' * random.Random(k).randrange(9)}" for k in range(300)]
    path = folder_of(tmp_path, {"a.jsonl": rows(*texts)}) / "a.jsonl"
    names = ["exact_duplicates", "min_chars:5"]
    text = opened(path, filters=names)
    assert documents(text) == documents(corpus.open(str(path), filters=names, **HALF))
    assert text.provenance()["filtered"][0]["seen_documents"] == 300


def test_sections_that_threads_read_at_once_are_written_once(tmp_path, monkeypatch, scratch):
    monkeypatch.setattr(shuffling, "BUCKET", 500)
    path = folder_of(tmp_path, {"a.jsonl": rows(*TEXTS)}) / "a.jsonl"
    text, found = opened(path), {}

    def read(number):
        found[number] = [
            (b"".join(d).decode(), held) for held, d in text.sections[number].documents()
        ]

    threads = [threading.Thread(target=read, args=(n,)) for n in range(len(text.sections))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(scratch.iterdir())) == 1
    in_order = [document for n in range(len(threads)) for document in found[n]]
    assert [d for d, held in in_order if not held] == [*text.train()]


def test_an_error_on_the_way_leaves_nothing_and_is_met_again(tmp_path, scratch):
    path = folder_of(tmp_path, {"a.jsonl": rows(*TEXTS) + "bad"}) / "a.jsonl"
    text = opened(path)
    for _ in range(2):
        with pytest.raises(ValueError, match="line 201 is not JSON"):
            next(text.train())
    del text
    gc.collect()
    assert not list(Path(scratch).iterdir())
