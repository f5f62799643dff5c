"""Shard files: Rust writes what the reference writes, reads it back, and trusts no byte."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.bytes_tokenizer import Bytes
from tinylm.data import Dataset, Manifest, ShardWriter
from tinylm.data.shards import BLOCK_BYTES


def write(folder, documents, vocab_size=257, shard_tokens=1000, split="train"):
    tokenizer = Bytes(vocab_size)
    with ShardWriter(folder, tokenizer=tokenizer, split=split, shard_tokens=shard_tokens) as writer:
        for document in documents:
            writer.add(document)
    return Dataset.open(folder, split=split)


def of_sizes(sizes, vocab_size=257):
    rng = np.random.default_rng(len(sizes))
    return [rng.integers(0, vocab_size - 1, size).tolist() for size in sizes]


def test_a_shard_is_one_that_llm_c_reads(tmp_path):
    write(tmp_path, [[1, 2, 3]])
    data = (tmp_path / "train-00000.bin").read_bytes()
    header = np.frombuffer(data, np.int32, 256)
    assert header[:3].tolist() == [20240520, 1, 4]
    assert np.frombuffer(data, np.uint16, offset=1024).tolist() == [1, 2, 3, 256]
    assert len(data) == 1024 + 4 * 2


def test_a_range_over_blocks_and_shards_reads_as_a_slice(tmp_path):
    ids = np.arange(3_000_000) % 60_000
    dataset = write(tmp_path, [ids], 60_001, shard_tokens=1_300_000)
    assert len(dataset.shards) == 3
    assert [len(shard.blocks) for shard in dataset.shards] == [3, 3, 1]
    assert np.array_equal(dataset.read(500_000, 2_400_000), ids[500_000:2_900_000])


@pytest.mark.parametrize(("start", "n"), [(-1, 2), (0, 102), (101, 1), (2**40, 1), (0, -1)])
def test_reading_outside_the_dataset_is_refused(tmp_path, start, n):
    dataset = write(tmp_path, of_sizes([100]))
    with pytest.raises(ValueError, match="of a dataset of 101"):
        dataset.read(start, n)


@pytest.mark.parametrize("ids", [[257], [-1], [2**33], [0.5], [[1]]])
def test_ids_outside_the_vocabulary_are_refused(tmp_path, ids):
    with ShardWriter(tmp_path, tokenizer=Bytes()) as writer:
        with pytest.raises(ValueError, match=r"vocab_size|sequence of integers"):
            writer.add(ids)
        writer.add([1, 2])
    assert Dataset.open(tmp_path).read(0, 3).tolist() == [1, 2, 256]


def test_every_flipped_byte_is_found(tmp_path):
    write(tmp_path, of_sizes([40, 8]))
    for path in sorted(tmp_path.iterdir()):
        original = path.read_bytes()
        for at in range(len(original)):
            path.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])
            with pytest.raises(ValueError, match=f"{path.name}.*(corrupt|version)"):
                list(Dataset.open(tmp_path).verify())
        path.write_bytes(original)
    list(Dataset.open(tmp_path).verify())


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.doc"])
@pytest.mark.parametrize("change", [-1, 1, -1000])
def test_a_cut_or_grown_file_is_found(tmp_path, name, change):
    write(tmp_path, of_sizes([600]))
    path = tmp_path / name
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) + change)] + bytes(max(0, change)))
    with pytest.raises(ValueError, match=f"{name}: corrupt at byte .*expected a file of"):
        Dataset.open(tmp_path).lengths()


def test_a_file_cut_while_it_is_open_is_an_error_not_a_crash(tmp_path):
    dataset = write(tmp_path, of_sizes([1000]), shard_tokens=5000)
    os.truncate(tmp_path / "train-00000.bin", 1500)
    with pytest.raises(ValueError, match=r"00000\.bin: corrupt at byte 1024: the file was cut"):
        dataset.read(0, 10)


def test_a_damaged_block_names_file_byte_and_hashes(tmp_path):
    dataset = write(tmp_path, [np.zeros(1_500_000, int)], 257, shard_tokens=10**7)
    with (tmp_path / "train-00000.bin").open("r+b") as file:
        file.seek(1024 + (1 << 20) + 7)
        file.write(b"x")
    assert dataset.read(0, 5).tolist() == [0] * 5
    expected = r"train-00000.bin: corrupt at byte 1049600: block 1: expected xxh3 \w{16}, found"
    with pytest.raises(ValueError, match=expected):
        dataset.read(524_288, 5)


def test_a_missing_shard_or_folder_is_an_os_error_that_names_it(tmp_path):
    write(tmp_path, of_sizes([5]))
    (tmp_path / "train-00000.bin").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        Dataset.open(tmp_path)
    assert caught.value.filename == str(tmp_path / "train-00000.bin")
    with pytest.raises(FileNotFoundError, match="prepare it first"):
        Dataset.open(tmp_path / "nothing")


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    manifest = write(tmp_path, of_sizes([5])).manifest
    split = manifest.splits["train"]
    shard = replace(split.shards[0], name="../train-00000.bin")
    replace(manifest, splits={"train": replace(split, shards=[shard])}).save(tmp_path)
    with pytest.raises(ValueError, match="not the name of a shard"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1, "checksum": "0"}'])
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    write(tmp_path, of_sizes([5]))
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: corrupt"):
        Manifest.load(tmp_path)


def test_splits_join_one_manifest_and_are_never_overwritten(tmp_path):
    write(tmp_path, of_sizes([5]))
    write(tmp_path, of_sizes([7]), split="val")
    assert Dataset.open(tmp_path).n_tokens == 6
    assert Dataset.open(tmp_path, split="val").n_tokens == 8
    with pytest.raises(ValueError, match="holds a split 'val' already"):
        ShardWriter(tmp_path, tokenizer=Bytes(), split="val")
    with pytest.raises(ValueError, match="another tokenizer"):
        ShardWriter(tmp_path, tokenizer=Bytes(300), split="more")
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        Dataset.open(tmp_path, split="test")


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    with ShardWriter(tmp_path, tokenizer=Bytes()) as writer:
        writer.add([1, 2])
        with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()} .*close that"):
            ShardWriter(tmp_path, tokenizer=Bytes(), split="val")
    with pytest.raises(ValueError, match="holds a split 'train' already"):
        ShardWriter(tmp_path, tokenizer=Bytes())
    # Neither a finished writer nor one that was refused is in the way.
    write(tmp_path, [[3]], split="val")
    assert Dataset.open(tmp_path).read(0, 3).tolist() == [1, 2, 256]


def test_a_writer_left_by_an_exception_leaves_no_dataset(tmp_path):
    def interrupted():
        with ShardWriter(tmp_path, tokenizer=Bytes()) as writer:
            writer.add([1, 2, 3])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    with pytest.raises(FileNotFoundError):
        Dataset.open(tmp_path)
    assert write(tmp_path, [[9]]).read(0, 2).tolist() == [9, 256]
    assert not list(tmp_path.glob("*.part"))


def test_a_killed_writer_leaves_no_dataset(tmp_path):
    script = (
        "import os, sys; from tests.support.bytes_tokenizer import Bytes\n"
        "from tinylm.data import ShardWriter\n"
        "writer = ShardWriter(sys.argv[1], tokenizer=Bytes(), shard_tokens=100)\n"
        "for _ in range(25): writer.add([1] * 10)\n"
        "os.kill(os.getpid(), 9)"
    )
    here = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=here, check=False)
    left = {path.name for path in tmp_path.iterdir()}
    assert {"train-00000.bin", "train-00001.doc", "train-00002.bin.part"} <= left
    with pytest.raises(FileNotFoundError):
        Dataset.open(tmp_path)
    (tmp_path / "manifest.json.4711-0badcafe.part").touch()
    write(tmp_path, [[1]])
    assert len(list(tmp_path.iterdir())) == 3


def test_text_bytes_are_counted_by_decoding_when_not_given(tmp_path):
    with ShardWriter(tmp_path, tokenizer=Bytes()) as writer:
        writer.add(list(b"abc"))
        writer.add([200], n_bytes=7)
    assert Dataset.open(tmp_path).n_bytes == 10


def test_the_fingerprint_changes_with_tokens_and_not_with_the_folder(tmp_path):
    first = write(tmp_path / "a", [[1, 2]]).fingerprint
    assert write(tmp_path / "b", [[1, 2]]).fingerprint == first
    assert write(tmp_path / "c", [[1, 3]]).fingerprint != first
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["tokens"] == 3


def test_a_shard_that_is_synced_while_it_is_written_is_whole(tmp_path):
    # Two blocks more than are written before a thread begins.
    n = 18 * BLOCK_BYTES // 2
    ids = np.arange(n, dtype=np.uint32) % 50_000
    with ShardWriter(tmp_path, tokenizer=Bytes(60_000)) as writer:
        writer.add(ids, n_bytes=n)
    dataset = Dataset.open(tmp_path)
    list(dataset.verify())
    assert np.array_equal(dataset.read(0, n), ids)
