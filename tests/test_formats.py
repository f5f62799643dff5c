"""Files of other programs: read where they are or copied, written, and refused in one line."""

import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import token_files
from tests.support.bytes_tokenizer import Bytes
from tests.support.token_files import (
    EOS,
    documents_of,
    flat,
    of_sizes,
    plain,
    write_datatrove,
    write_llmc,
    write_megatron,
)
from tinylm.data import Dataset, Loader, ShardWriter, __main__
from tinylm.data.importing import import_shards
from tinylm.data.shards import lengths_between

# What writes some documents as a format; the format; the options; whether it is read in place.
WRITERS = {
    "llm.c": (lambda p, d: write_llmc(p / "a_000001.bin", flat(d)), "llm.c", {}, True),
    "llm.c of uint32": (
        lambda p, d: write_llmc(p / "a.bin", flat(d), "uint32"),
        "llm.c",
        {},
        True,
    ),
    "several llm.c": (
        lambda p, d: [
            write_llmc(p / f"a{k}.bin", flat(d)[k * 50 : (k + 1) * 50])
            for k in range(len(flat(d)) // 50 + 1)
        ],
        "llm.c",
        {},
        True,
    ),
    "nanogpt": (
        lambda p, d: (p / "train.bin").write_bytes(token_files.packed(flat(d), "uint16")),
        "nanogpt",
        {},
        True,
    ),
    "nanogpt of int64": (
        lambda p, d: (p / "train.bin").write_bytes(token_files.packed(flat(d), "int64")),
        "nanogpt",
        {"dtype": "int64"},
        False,
    ),
    "datatrove": (lambda p, d: write_datatrove(p / "00000_x.ds", d), "datatrove", {}, True),
    "datatrove without notes": (
        lambda p, d: write_datatrove(p / "a.ds", d, "uint32", note=False, index=False),
        "datatrove",
        {"dtype": "uint32"},
        True,
    ),
    "megatron of sentences": (
        lambda p, d: write_megatron(p / "a", d, cut=lambda ids: [ids[:3], ids[3:]]),
        "megatron",
        {},
        True,
    ),
    "megatron with modes": (
        lambda p, d: write_megatron(p / "a", d, modes=lambda n: [0] * n),
        "megatron",
        {},
        True,
    ),
    **{
        f"megatron of {dtype}": (
            lambda p, d, dtype=dtype: write_megatron(p / "a", d, dtype),
            "megatron",
            {},
            dtype != "int64",
        )
        for dtype in ("uint16", "int16", "int32", "int64")
    },
}


@pytest.mark.parametrize("name", WRITERS)
def test_documents_of_other_programs_are_read(tmp_path, name):
    write, form, changes, in_place = WRITERS[name]
    (tmp_path / "theirs").mkdir()
    documents = of_sizes([5, 0, 60, 1, 31, 7, 90])
    write(tmp_path / "theirs", documents)
    manifest = import_shards(form, [tmp_path / "theirs"], tmp_path / "ours", plain(**changes))
    assert documents_of(tmp_path / "ours") == documents
    dataset = Dataset.open(tmp_path / "ours")
    assert dataset.read(0, dataset.n_tokens).tolist() == flat(documents)
    assert (manifest.splits["train"].shards[0].file is not None) == in_place
    # No token is copied: what is ours is the manifest and the lengths.
    assert any((tmp_path / "ours").glob("*.bin")) != in_place


@given(
    name=st.sampled_from(list(WRITERS)),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    fraction=st.floats(0, 0.9),
    copy=st.booleans(),
    by_eos=st.booleans(),
)
def test_every_document_is_in_one_split_in_its_order(
    tmp_path_factory, name, sizes, fraction, copy, by_eos
):
    write, form, changes, _ = WRITERS[name]
    folder = tmp_path_factory.mktemp("formats")
    (folder / "theirs").mkdir()
    documents = of_sizes(sizes)
    write(folder / "theirs", documents)
    options = plain(
        **changes, val_fraction=fraction, copy=copy, documents="eos" if by_eos else "file"
    )
    goal = round(len(flat(documents)) * (1 - fraction))
    ends = np.cumsum([len(document) for document in documents])
    if fraction and ends[np.argmin(np.abs(ends - goal))] == ends[-1]:
        with pytest.raises(ValueError, match=r"leaves no document|of a single document"):
            import_shards(form, [folder / "theirs"], folder / "ours", options)
        assert not any(folder.glob("ours/*.*"))
        return
    manifest = import_shards(form, [folder / "theirs"], folder / "ours", options)
    splits = [documents_of(folder / "ours", split) for split in manifest.splits]
    assert [document for split in splits for document in split] == documents
    assert set(manifest.splits) == {"train", "val"} or fraction == 0


def test_uint8_of_megatron_is_widened(tmp_path):
    documents = [[1, 2, 9], [9], [255, 9]]
    write_megatron(tmp_path / "a", documents, "uint8")
    import_shards("megatron", [tmp_path / "a"], tmp_path / "ours", plain(eos_id=9))
    dataset = Dataset.open(tmp_path / "ours")
    assert dataset.read(0, 6).tolist() == flat(documents)
    assert dataset.lengths().tolist() == [3, 1, 2]


def test_documents_longer_than_their_lengths_can_say_are_refused(tmp_path):
    # A file of holes: nothing of it is read before its length is known to be too much.
    with (tmp_path / "train.bin").open("wb") as file:
        file.truncate(2 * 4_400_000_000)
    with pytest.raises(ValueError, match=r"document 0 has 4,400,000,000 tokens, more than 4,294,"):
        import_shards("nanogpt", [tmp_path], tmp_path / "ours", plain(eos_id=None))
    ends = np.array([3, 2**32 + 2, 2**33 + 1, 2**33 + 5])
    assert lengths_between(ends[:3], "").tolist() == [3, 2**32 - 1, 2**32 - 1]
    with pytest.raises(ValueError, match=r"document 1 has 4,294,967,296 tokens.*: do this"):
        lengths_between(np.where(ends > 3, ends + 1, ends), "do this")


def test_a_loader_reads_them_as_shards_of_the_same_documents(tmp_path):
    documents = of_sizes([400, 30, 999, 77, 250])
    write_megatron(tmp_path / "a", documents, "int32")
    import_shards("megatron", [tmp_path / "a.idx"], tmp_path / "theirs", plain())
    with ShardWriter(tmp_path / "ours", tokenizer=Bytes()) as writer:
        for document in documents:
            writer.add(document[:-1], n_bytes=1)
    for pack in (False, True):
        loaders = [
            Loader(Dataset.open(tmp_path / name), batch_size=4, context_length=64, pack=pack)
            for name in ("theirs", "ours")
        ]
        for _ in range(9):
            batches = [next(loader) for loader in loaders]
            assert batches[0].tokens.equal(batches[1].tokens)
            assert batches[0].targets.equal(batches[1].targets)
        for loader in loaders:
            loader.close()


def test_damage_in_a_file_of_others_is_found(tmp_path):
    path = tmp_path / "train.bin"
    path.write_bytes(token_files.packed(flat(of_sizes([40, 8])), "uint16"))
    import_shards("nanogpt", [path], tmp_path / "ours", plain())
    original = path.read_bytes()
    for at in range(len(original)):
        path.write_bytes(original[:at] + bytes([original[at] ^ 4]) + original[at + 1 :])
        with pytest.raises(ValueError, match=r"train\.bin: corrupt.*block 0"):
            list(Dataset.open(tmp_path / "ours").verify())
    path.write_bytes(original[:-1])
    with pytest.raises(ValueError, match=r"train\.bin: corrupt.*expected a file"):
        Dataset.open(tmp_path / "ours")


def test_text_without_any_eos_is_one_document(tmp_path):
    # As nanoGPT's characters of Shakespeare: meta.pkl knows the size of the vocabulary alone.
    (tmp_path / "train.bin").write_bytes(token_files.packed(range(60), "uint16"))
    (tmp_path / "val.bin").write_bytes(token_files.packed(range(9), "uint16"))
    meta = {"stoi": {"a": 0}, "vocab_size": 65, "itos": {0: "a"}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    __main__.main(
        ["import", "nanogpt", str(tmp_path), "--out", str(tmp_path / "ours"), "--eos-id", "none"]
    )
    dataset = Dataset.open(tmp_path / "ours", split="val")
    assert (dataset.n_documents, dataset.vocab_size, dataset.eos_id) == (1, 65, None)
    assert [ids.tolist() for ids in dataset.documents()] == [list(range(9))]
    for name in ("mask_eos", "mask_after_eos", "documents", "pack"):
        with pytest.raises(ValueError, match="nothing marks where"):
            Loader(dataset, batch_size=1, context_length=4, **{name: True})


def test_documents_without_eos_are_refused_and_get_one_in_a_copy(tmp_path, capsys):
    write_datatrove(tmp_path / "a.ds", [[1, 2], [3, EOS], [4]])
    arguments = ["import", "datatrove", str(tmp_path / "a.ds"), "--vocab-size=257", "--eos-id=256"]
    arguments += ["--val-fraction=0", f"--out={tmp_path / 'ours'}"]
    with pytest.raises(ValueError, match="1 of 3 documents do not end with eos 256: --copy"):
        __main__.main(arguments)
    __main__.main([*arguments, "--copy"])
    assert "2 documents had no eos and got one" in capsys.readouterr().out
    assert documents_of(tmp_path / "ours") == [[1, 2, EOS], [3, EOS], [4, EOS]]


@given(st.data())
def test_a_changed_index_or_header_is_one_line_or_the_same_documents(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    documents = of_sizes([3, 0, 12])
    form, name = data.draw(
        st.sampled_from(
            [
                ("llm.c", "a.bin"),
                ("megatron", "a.idx"),
                ("megatron", "a.bin"),
                ("datatrove", "a.ds.index"),
                ("datatrove", "a.ds.metadata"),
            ]
        )
    )
    write = {"llm.c": WRITERS["llm.c of uint32"], "megatron": WRITERS["megatron with modes"]}
    write.get(form, (lambda p, d: write_datatrove(p / "a.ds", d), 0))[0](folder, documents)
    path = folder / name
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        change = data.draw(st.binary(max_size=9))
        content[at : at + data.draw(st.sampled_from([len(change), 0, 4]))] = change
    path.write_bytes(content[: data.draw(st.integers(0, len(content))) or None])
    source = folder / {"llm.c": "a.bin", "megatron": "a", "datatrove": "a.ds"}[form]
    problem = ""
    try:
        import_shards(form, [source], folder / "ours", plain(val_fraction=0.2))
    except ValueError as error:
        problem = str(error)
    assert "\n" not in problem
    if problem:
        return
    # What is taken is consistent, whatever it says.
    found = [documents_of(folder / "ours", split) for split in ("train", "val")]
    assert all(0 <= id <= EOS for split in found for id in flat(split))


@pytest.mark.parametrize(
    ("write", "form", "says"),
    [
        (lambda p: (p / "a.bin").write_bytes(b"abc"), "llm.c", "a header of 1024 bytes"),
        (
            lambda p: (p / "a.bin").write_bytes(struct.pack("<256i", 20240522, 1, *[0] * 254)),
            "llm.c",
            "an evaluation file",
        ),
        (lambda p: (p / "a.bin").write_bytes(bytes(2000)), "llm.c", "nanogpt"),
        (
            lambda p: (p / "a.bin").write_bytes(struct.pack("<256i", 20240520, 1, 9, *[0] * 253)),
            "llm.c",
            "9 tokens, which is a file of 1042 bytes, found 1024",
        ),
        (lambda p: (p / "a.bin").write_bytes(b"abc"), "nanogpt", "no whole number of uint16"),
        (
            lambda p: (p / "a.bin").write_bytes(struct.pack("<4H", 1, 2, 300, 4)),
            "nanogpt",
            "token 2 is 300.*is uint16 its dtype",
        ),
        (lambda p: (p / "a.bin").write_bytes(b""), "nanogpt", "train has no token"),
        (lambda p: (p / "a.idx").write_bytes(b"TNTIDX\0\0" + bytes(40)), "megatron", "older"),
        (lambda p: (p / "a.idx").write_bytes(b"MMIDIDX\0\0"), "megatron", "34 bytes"),
        (
            lambda p: write_megatron(p / "a", [[1.0]], "float32"),
            "megatron",
            "code 7 is float32: tokens are",
        ),
        (
            lambda p: write_megatron(p / "a", [[1], [2]], modes=lambda n: [0, 1]),
            "megatron",
            "1 of its sequences are no text",
        ),
        (
            lambda p: (write_megatron(p / "a", [[1]]), (p / "a.bin").write_bytes(b"")),
            "megatron",
            "counts 1 tokens of uint16, which are 2 bytes, found 0",
        ),
        (
            lambda p: (write_datatrove(p / "a.ds", [[1]]), (p / "a.ds").write_bytes(bytes(6))),
            "datatrove",
            "6 bytes do not hold",
        ),
        (
            lambda p: (
                write_datatrove(p / "a.ds", [[1]]),
                (p / "a.ds.index").write_bytes(struct.pack("<Q", 7)),
            ),
            "datatrove",
            "end at token 7 of 1",
        ),
        (
            lambda p: (write_datatrove(p / "a.ds", [[1]]), (p / "a.ds.loss").write_bytes(b"\0")),
            "datatrove",
            "leaves targets out",
        ),
        (lambda p: None, "megatron", "no .idx file"),
    ],
)
def test_what_is_wrong_is_told_with_the_file_and_the_fix(tmp_path, write, form, says):
    (tmp_path / "theirs").mkdir()
    write(tmp_path / "theirs")
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        import_shards(form, [tmp_path / "theirs"], tmp_path / "ours", plain())
    assert "theirs" in str(caught.value)
    assert "\n" not in str(caught.value)
    # Nothing is left of what failed.
    assert not [path for path in (tmp_path / "ours").glob("*") if path.name != ".lock"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocab_size": 0}, "vocab_size=0 must be between"),
        ({"eos_id": 257}, "eos_id=257 must be between 0 and vocab_size - 1 = 256"),
        ({"eos_id": None, "copy": True}, "name the id"),
        ({"val_fraction": 1}, "must be at least 0 and below 1"),
    ],
)
def test_options_are_checked(changes, says):
    with pytest.raises(ValueError, match=says):
        plain(**changes)


def test_a_folder_that_holds_something_is_not_written_into(tmp_path):
    write_llmc(tmp_path / "a.bin", [1, EOS])
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "train-00000.bin").write_bytes(b"theirs")
    with pytest.raises(FileExistsError, match="not empty"):
        import_shards("llm.c", [tmp_path / "a.bin"], tmp_path / "ours", plain())
    assert (tmp_path / "ours" / "train-00000.bin").read_bytes() == b"theirs"
