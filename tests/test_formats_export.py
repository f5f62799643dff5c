"""Shards to the files of other programs, against their layouts and their own writers."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import token_files
from tests.support.bytes_tokenizer import Bytes
from tests.support.token_files import (
    documents_of,
    flat,
    of_sizes,
    plain,
    write_datatrove,
    write_megatron,
)
from tinylm.data import Dataset, ShardWriter, __main__, exporting
from tinylm.data.importing import import_shards


def written(folder, documents, vocab_size=257):
    with ShardWriter(folder, tokenizer=Bytes(vocab_size), shard_tokens=100) as writer:
        for document in documents:
            writer.add(document, n_bytes=1)
    return Dataset.open(folder)


def test_llm_c_and_modded_nanogpt_read_our_shards(tmp_path):
    dataset = written(tmp_path, [document[:-1] for document in of_sizes([50, 80, 0, 99])])
    paths = [tmp_path / shard.name for shard in dataset.shards]
    for read in (token_files.read_llmc, token_files.read_modded):
        assert flat(map(read, paths)) == dataset.read(0, dataset.n_tokens).tolist()


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=10),
    vocab_size=st.sampled_from([257, 65_499, 65_500, 65_536, 65_537]),
)
@settings(max_examples=10)
def test_exports_are_the_bytes_of_the_layout_and_come_back(tmp_path_factory, sizes, vocab_size):
    folder = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(len(sizes))
    documents = [rng.integers(0, vocab_size - 1, size).tolist() for size in sizes]
    dataset = written(folder / "ours", documents, vocab_size)
    documents = [[*document, vocab_size - 1] for document in documents]
    exporting.nanogpt(dataset, folder / "train.bin")
    dtype = "uint16" if vocab_size <= 65_536 else "uint32"
    assert (folder / "train.bin").read_bytes() == token_files.packed(flat(documents), dtype)
    exporting.megatron(dataset, folder / "a.b")
    write_megatron(folder / "peer", documents, "uint16" if vocab_size < 65_500 else "int32")
    for ending in (".bin", ".idx"):
        peer = (folder / f"peer{ending}").read_bytes()
        assert (folder / f"a.b{ending}").read_bytes() == peer
    options = plain(vocab_size=vocab_size, eos_id=vocab_size - 1)
    for form, name in (("nanogpt", "train.bin"), ("megatron", "a.b")):
        import_shards(form, [folder / name], folder / form, options)
        back = Dataset.open(folder / form)
        assert back.read(0, back.n_tokens).tolist() == flat(documents)
        assert np.array_equal(back.lengths(), dataset.lengths())


def test_a_document_too_long_for_megatrons_index_is_refused(tmp_path, monkeypatch):
    dataset = written(tmp_path / "ours", [[1], [2]])
    monkeypatch.setattr(Dataset, "lengths", lambda self: np.array([2, 2**31], np.uint32))
    with pytest.raises(ValueError, match=r"document 1 has 2,147,483,648 tokens, .* at most 2,147"):
        exporting.megatron(dataset, tmp_path / "m")
    assert not [*tmp_path.glob("m*")]


@pytest.mark.filterwarnings("ignore")
def test_megatrons_own_builder_writes_the_same_bytes_and_its_reader_reads_them(tmp_path):
    peer = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    torch = pytest.importorskip("torch")
    for vocab_size in (257, 65_499, 65_500, 70_000):
        rng = np.random.default_rng(vocab_size)
        sizes = [0, 5, 1000, 1, 333]
        documents = [rng.integers(0, vocab_size - 1, size).tolist() for size in sizes]
        dataset = written(tmp_path / f"{vocab_size}", documents, vocab_size)
        dtype = peer.DType.optimal_dtype(vocab_size)
        builder = peer.IndexedDatasetBuilder(str(tmp_path / "peer.bin"), dtype=dtype)
        for document in documents:
            builder.add_item(torch.tensor([*document, vocab_size - 1]))
            builder.end_document()
        builder.finalize(str(tmp_path / "peer.idx"))
        exporting.megatron(dataset, tmp_path / "our")
        for ending in (".bin", ".idx"):
            ours, theirs = (tmp_path / f"{name}{ending}" for name in ("our", "peer"))
            assert ours.read_bytes() == theirs.read_bytes()
        read = peer.IndexedDataset(str(tmp_path / "our"))
        assert [read[k].tolist()[:-1] for k in range(len(sizes))] == documents


@pytest.mark.filterwarnings("ignore")
def test_datatroves_own_writer_is_read(tmp_path):
    peer = pytest.importorskip("datatrove.pipeline.tokens.tokenizer")
    documents = of_sizes([5, 60, 0, 7])
    for width in (2, 4):
        file = peer.TokenizedFile(
            str(tmp_path / f"{width}"), "a.ds", save_final_metadata=True, token_size=width
        )
        for document in documents:
            file.write(document, None)
        file.close()
        import_shards("datatrove", [tmp_path / f"{width}"], tmp_path / f"ours{width}", plain())
        assert documents_of(tmp_path / f"ours{width}") == documents


@pytest.mark.filterwarnings("ignore")
def test_datatroves_dataset_gives_the_windows_of_ours(tmp_path):
    peer = pytest.importorskip("datatrove.utils.dataset")
    documents = of_sizes([40, 60, 20])
    write_datatrove(tmp_path / "a.ds", documents)
    import_shards("datatrove", [tmp_path / "a.ds"], tmp_path / "ours", plain())
    theirs = peer.DatatroveFileDataset(str(tmp_path / "a.ds"), 9)
    dataset = Dataset.open(tmp_path / "ours")
    for k in range(len(theirs)):
        assert theirs[k]["input_ids"].tolist() == dataset.read(10 * k, 10).tolist()


def test_the_command_exports_and_says_what(tmp_path, capsys):
    written(tmp_path / "ours", [[1, 2], [3]])
    __main__.main(["export", str(tmp_path / "ours"), str(tmp_path / "t.bin"), "--format=nanogpt"])
    __main__.main(["export", str(tmp_path / "ours"), str(tmp_path / "m"), "--format=megatron"])
    out = capsys.readouterr().out
    assert re.search(r"t\.bin: 5 tokens of 16 bits\n.*m\.bin: 10 bytes\n.*m\.idx: 82 bytes", out)
    ours = tmp_path / "ours"
    with pytest.raises(IsADirectoryError) as caught:
        __main__.main(["export", str(ours), str(ours), "--format=nanogpt"])
    assert caught.value.filename == str(ours)
    with pytest.raises(FileNotFoundError) as missing:
        __main__.main(["export", str(ours), str(ours / "no/o"), "--format=nanogpt"])
    assert missing.value.filename == str(ours / "no/o")
    for words in (["--format=nanogpt", "--tokenizer=x"], ["--format=jsonl"]):
        with pytest.raises(ValueError, match=r"--tokenizer (has no meaning|is needed)"):
            __main__.main(["export", str(tmp_path / "ours"), str(Path("out")), *words])
