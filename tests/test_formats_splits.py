"""Which split a file of another program belongs to, and what is held out where none says so."""

from pathlib import Path

import pytest

from tests.support import token_files
from tests.support.token_files import EOS, flat, of_sizes, plain, write_llmc
from tinylm.data import Dataset
from tinylm.data.importing import import_shards


def test_splits_are_told_by_names(tmp_path):
    for name in ("fineweb_train_000001", "fineweb_val_000000", "fineweb_train_000002", "test"):
        write_llmc(tmp_path / f"{name}.bin", [len(name), int(name[-1] == "2"), EOS])
    manifest = import_shards("llm.c", [tmp_path], tmp_path / "ours", plain(val_fraction=0.5))
    assert {name: split.tokens for name, split in manifest.splits.items()} == {
        "train": 6,
        "val": 3,
        "test": 3,
    }
    assert Dataset.open(tmp_path / "ours").read(0, 6).tolist() == [20, 0, EOS, 20, 1, EOS]


def test_folders_tell_the_split_where_a_name_does_not(tmp_path):
    files = {
        "train/0.bin": "train",
        "val/0.bin": "val",
        "val/more/1.bin": "val",
        "val/train_2.bin": "train",
        "for-test/deep/0.bin": "test",
        "valley/0.bin": "train",
        "val/old train/0.bin": "train",
    }
    for name in files:
        (tmp_path / "tv" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tv" / name).write_bytes(token_files.packed([len(name), EOS], "uint16"))
    manifest = import_shards("nanogpt", [tmp_path / "tv"], tmp_path / "ours", plain())
    for split, part in manifest.splits.items():
        found = {str(Path(shard.file).relative_to(tmp_path / "tv")) for shard in part.shards}
        assert found == {name for name, place in files.items() if place == split}
    # A source counts if it is called so and nothing else.
    sources = [tmp_path / "tv" / name for name in ("train", "val/more", "for-test")]
    (tmp_path / "tv/val/more").rename(tmp_path / "tv/Validation")
    sources[1] = tmp_path / "tv/Validation"
    manifest = import_shards("nanogpt", sources, tmp_path / "more", plain())
    assert {name: len(part.shards) for name, part in manifest.splits.items()} == {
        "train": 2,
        "val": 1,
    }


def test_without_a_file_for_train_nothing_is_held_out_of_it(tmp_path):
    path = tmp_path / "test.bin"
    path.write_bytes(token_files.packed(flat(of_sizes([5, 5])), "uint16"))
    with pytest.raises(ValueError, match=r"test\.bin: by its name it is test alone, and val_frac"):
        import_shards("nanogpt", [path], tmp_path / "ours", plain(val_fraction=0.5))
    assert [*import_shards("nanogpt", [path], tmp_path / "ours", plain()).splits] == ["test"]


def test_what_is_empty_or_one_document_cannot_be_split(tmp_path):
    for ids, says in (([], "train has no token: the file is empty"), ([1, EOS], "of a single doc")):
        (tmp_path / "a.bin").write_bytes(token_files.packed(ids, "uint16"))
        with pytest.raises(ValueError, match=rf"a\.bin: .*{says}"):
            import_shards("nanogpt", [tmp_path], tmp_path / "ours", plain(val_fraction=0.5))
    with pytest.raises(ValueError, match="column=text has no meaning for nanogpt"):
        import_shards("nanogpt", [tmp_path], tmp_path / "ours", plain(column="text"))
