"""`diff`: what it says of two folders is what was changed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bytes_tokenizer import Bytes
from tinylm.data import ShardWriter, __main__
from tinylm.data.diff import differences


def write(folder, documents, vocab_size=257, shard_tokens=40, splits=("train",)):
    for split in splits:
        with ShardWriter(
            folder, tokenizer=Bytes(vocab_size), split=split, shard_tokens=shard_tokens
        ) as writer:
            for document in documents:
                writer.add(document, n_bytes=len(document))
    return folder


DOCUMENTS = [[k] * (k + 3) for k in range(20)]


def test_equal_folders_do_not_differ(tmp_path, capsys):
    write(tmp_path / "a", DOCUMENTS)
    write(tmp_path / "b", DOCUMENTS)
    assert list(differences(tmp_path / "a", tmp_path / "b")) == []
    __main__.main(["diff", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "the same tokens" in capsys.readouterr().out


def test_another_tokenizer_split_and_source_are_named(tmp_path):
    write(tmp_path / "a", DOCUMENTS, splits=("train", "val"))
    write(tmp_path / "b", DOCUMENTS, vocab_size=70_000)
    found = "\n".join(differences(tmp_path / "a", tmp_path / "b"))
    for says in (
        "tokenizer_sha256: ",
        "vocab_size: 257 -> 70000",
        "eos_id: 256 -> 69999",
        "itemsize: 2 -> 4",
        f"val: only in {tmp_path / 'a'}",
        "train: document 0 is the first that differs, from token 3 of it on",
    ):
        assert says in found


@given(
    at=st.integers(0, 19),
    change=st.sampled_from(["id", "longer", "split", "gone", "last gone"]),
    shard_tokens=st.sampled_from([40, 10_000]),
)
def test_the_first_document_that_differs_is_found(tmp_path_factory, at, change, shard_tokens):
    folder = tmp_path_factory.mktemp("diff")
    changed = [list(document) for document in DOCUMENTS]
    token, at = 1, at if change != "last gone" else 19
    if change == "id":
        changed[at][1] += 1
    elif change == "longer":
        changed[at].append(99)
        token = len(DOCUMENTS[at])
    elif change == "split":
        changed[at : at + 1] = [changed[at][:1], changed[at][1:]]
    else:
        del changed[at]
        token = 0
    write(folder / "a", DOCUMENTS, shard_tokens=shard_tokens)
    write(folder / "b", changed, shard_tokens=shard_tokens)
    found = list(differences(folder / "a", folder / "b"))
    says = f"train: document {at} is the first that differs, from token {token} of it on"
    assert found[-1] == (
        says if at < len(changed) else f"train: the first {at} documents are the same"
    )
    if change != "id":
        before, after = (sum(map(len, d)) + len(d) for d in (DOCUMENTS, changed))
        assert f"train: tokens {before:,} -> {after:,} ({after - before:+,})" in found
    assert any("shards changed" in line or "removed" in line for line in found)


def test_blocks_that_are_equal_are_not_read(tmp_path, monkeypatch):
    ids = np.arange(1_300_000) % 255
    write(tmp_path / "a", [ids], shard_tokens=10**7)
    ids[1_200_000] += 1
    write(tmp_path / "b", [ids], shard_tokens=10**7)
    read = []
    monkeypatch.setattr(
        "tinylm.data.shards.Dataset.read",
        lambda self, start, n: read.append(start) or self.tokens.read(start, n),
    )
    (*_, last) = differences(tmp_path / "a", tmp_path / "b")
    assert last.endswith("document 0 is the first that differs, from token 1,200,000 of it on")
    assert min(read) == 1 << 20


def test_files_that_are_gone_leave_the_manifests(tmp_path):
    write(tmp_path / "a", DOCUMENTS)
    write(tmp_path / "b", DOCUMENTS[1:])
    (tmp_path / "b" / "train-00000.bin").unlink()
    (*found, last) = differences(tmp_path / "a", tmp_path / "b")
    assert "train: documents 20 -> 19 (-1)" in found
    assert "the first document that differs is not known" in last
    with pytest.raises(FileNotFoundError, match="not a folder of shards"):
        list(differences(tmp_path, tmp_path))
