"""Which folder of shards a text gets, and how it is found again."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.bytes_tokenizer import Bytes
from tinylm import corpus
from tinylm.data import Manifest, default_folder, find, fits, prepare
from tinylm.data.manifest import NAME


def opened(source):
    return corpus.open(str(source), val_fraction=0.3)


@pytest.fixture
def texts(tmp_path):
    """A folder of 40 files."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for k in range(40):
        (folder / f"{k:02}.txt").write_text(f"file {k}\n" * (k % 7 + 1))
    return folder


def test_shards_fit_by_source_fraction_and_tokenizer_without_a_look_at_the_text(texts, tmp_path):
    folder = tmp_path / "shards"
    wanted = {
        "source": str(texts),
        "val_fraction": 0.3,
        "separator": "auto",
        "tokenizer_sha256": Bytes().sha256,
    }
    assert not fits(folder, **wanted)
    prepare(opened(texts), Bytes(), folder)
    shutil.rmtree(texts)
    assert fits(folder, **wanted)
    other = {
        "source": "stdlib",
        "val_fraction": 0.4,
        "separator": "off",
        "tokenizer_sha256": Bytes(300).sha256,
    }
    for name, value in other.items():
        assert not fits(folder, **{**wanted, name: value}), name


@pytest.fixture
def processed(tmp_path, monkeypatch):
    """Default folders are made in an empty working directory; returns theirs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data/processed"


def prepared(source, tokenizer=None, **options):
    """Prepare a source in its default folder, and return that."""
    tokenizer = tokenizer or Bytes()
    text = corpus.open(str(source), **{"val_fraction": 0.3, **options})
    folder = default_folder(text, tokenizer.sha256)
    prepare(text, tokenizer, folder)
    return folder


def test_each_text_fraction_and_tokenizer_has_a_folder_of_its_own_and_finds_it_again(
    texts, processed
):
    first = prepared(texts)
    assert re.fullmatch(r"data/processed/texts-[0-9a-f]{8}", str(first))
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    others = [
        prepared(texts, val_fraction=0.4),
        prepared(texts, Bytes(300)),
        prepared(texts, separator="\n"),
    ]
    (texts / "00.txt").write_text("edited")
    others.append(prepared(texts))
    # Another file of the same stem.
    stem = texts.parent / "texts.txt"
    stem.write_text("a text of one file\n" * 9)
    others.append(prepared(stem))
    assert len({first, *others}) == 6 == len(list(processed.iterdir()))
    (texts / "00.txt").write_text("file 0\n")
    assert prepared(texts) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before


def test_a_folder_that_an_older_version_named_is_used_if_it_holds_these_shards(texts, processed):
    old = Path("data/processed") / f"texts-{Bytes().sha256[:8]}"
    manifest = prepare(opened(texts), Bytes(), old)
    source = {name: value for name, value in manifest.source.items() if name != "separator"}
    replace(manifest, source=source).save(old)
    assert prepared(texts) == old
    assert prepared(texts, val_fraction=0.4) != old


def test_shards_are_found_again_without_the_text_also_among_those_of_other_versions(
    texts, processed
):
    wanted = {"val_fraction": 0.3, "separator": "auto", "tokenizer_sha256": Bytes().sha256}
    assert find(str(texts), **wanted) is None
    first = prepared(texts)
    (texts / "00.txt").write_text("edited")
    second = prepared(texts)
    os.utime(second / NAME, ns=(0, (first / NAME).stat().st_mtime_ns + 1))
    # A damaged one beside them is in nobody's way.
    (processed / "texts-damaged").mkdir()
    (processed / "texts-damaged" / NAME).write_text("{")
    shutil.rmtree(texts)
    assert find(str(texts), **wanted) == second
    fingerprint = Manifest.load(first).fingerprint("train")
    assert find(str(texts), **wanted, fingerprint=fingerprint) == first
    assert find(str(texts), **wanted, fingerprint="0" * 16) is None
    assert find(str(texts), **{**wanted, "val_fraction": 0.4}) is None
