"""`prepare` and the command: text to a folder of shards, once, and back."""

import json
import os
import selectors
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bytes_tokenizer import Bytes
from tests.support.calling import call
from tinylm import corpus, disk
from tinylm.data import (
    Dataset,
    Loader,
    Manifest,
    ShardWriter,
    __main__,
    prepare,
)
from tinylm.data.manifest import NAME


def opened(source, val_fraction=0.3):
    return corpus.open(str(source), val_fraction=val_fraction)


@pytest.fixture
def texts(tmp_path):
    """A folder of 40 files: empty lines, control tokens, several scripts."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for k in range(40):
        content = f"{k} <|endoftext|> \u00e9\u4e16\U0001f600\n" * (k % 7 + 1)
        (folder / f"{k:02}.txt").write_text(content, encoding="utf-8")
    return folder


@pytest.fixture
def tokenizer_file(monkeypatch):
    """Lets the command load the tokenizer of bytes, whatever file it is given."""
    module = SimpleNamespace(Tokenizer=SimpleNamespace(load=lambda path: Bytes()))
    monkeypatch.setitem(sys.modules, "tinylm.tokenizer", module)
    return "tokenizer.json"


def decoded(dataset):
    return [Bytes().decode_bytes(ids).decode() for ids in dataset.documents()]


def test_every_document_of_the_corpus_is_in_its_split_and_ends_with_eos(texts, tmp_path):
    prepare(opened(texts), Bytes(), tmp_path / "shards")
    text = corpus.open(str(texts), val_fraction=0.3)
    for split, documents in (("train", text.train()), ("val", text.validation())):
        documents = list(documents)
        dataset = Dataset.open(tmp_path / "shards", split=split)
        assert decoded(dataset) == documents
        assert dataset.n_bytes == sum(len(document.encode()) for document in documents)
        ends = dataset.lengths().cumsum() - 1
        ids = dataset.read(0, dataset.n_tokens)
        assert np.flatnonzero(ids == 256).tolist() == ends.tolist()
        list(dataset.verify())


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=30), st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_text_goes_through_whatever_the_size_of_the_batches(tmp_path_factory, lines, size):
    folder = tmp_path_factory.mktemp("jsonl")
    path = folder / "a.jsonl"
    lines = [f"{k}{line}" for k, line in enumerate(lines)]
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinylm.data.encoding.BATCH_BYTES", size)
        prepare(opened(path, 0.5), Bytes(), folder / "shards")
    splits = [Dataset.open(folder / "shards", split=split) for split in ("train", "val")]
    assert sorted(decoded(splits[0]) + decoded(splits[1])) == sorted(lines)


def test_a_prepared_folder_is_used_again_and_nothing_is_written(texts, tmp_path):
    folder = tmp_path / "shards"
    first = prepare(opened(texts), Bytes(), folder)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare(opened(texts), Bytes(), folder) == first
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_a_folder_of_something_else_is_refused_and_left_alone(texts, tmp_path):
    folder = tmp_path / "shards"
    prepare(opened(texts), Bytes(), folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"val_fraction 0\.3, not 0\.4"):
        prepare(opened(texts, 0.4), Bytes(), folder)
    with pytest.raises(FileExistsError, match="another tokenizer"):
        prepare(opened(texts), Bytes(300), folder)
    (texts / "00.txt").write_text("changed")
    with pytest.raises(FileExistsError, match="another text"):
        prepare(opened(texts), Bytes(), folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(FileExistsError, match=r"00\.txt, which is no shard"):
        prepare(opened(texts), Bytes(), texts)
    assert len(list(texts.iterdir())) == 40


def test_an_interrupted_run_takes_its_files_away_and_the_next_starts_anew(texts, tmp_path):
    class Interrupted(Bytes):
        calls = 0

        def encode_batch(self, texts, *, special="raise"):
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().encode_batch(texts, special=special)

    folder = tmp_path / "shards"
    with pytest.raises(KeyboardInterrupt):
        prepare(opened(texts), Interrupted(), folder)
    assert not list(folder.glob("*.bin*"))
    with pytest.raises(FileNotFoundError, match="prepare it first"):
        Dataset.open(folder)
    # What a process that was killed may leave.
    for name in (
        "train-00000.bin",
        "train-00000.doc",
        "val-00007.bin.part",
        "manifest.json.4711-0badcafe.part",
        "manifest.json.part",
    ):
        (folder / name).write_text("left over")
    prepare(opened(texts), Bytes(), folder)
    assert len(list(folder.iterdir())) == 5
    again = prepare(opened(texts), Bytes(), tmp_path / "other")
    assert again.splits == Manifest.load(folder).splits


# Prepares its first argument in the second and stops in the middle until a line comes.
PREPARE = """
import sys
from tests.support.bytes_tokenizer import Bytes
from tinylm import corpus
from tinylm.data import prepare

class Slow(Bytes):
    def encode_batch(self, texts, *, special):
        print("begun", flush=True)
        sys.stdin.readline()
        return super().encode_batch(texts, special=special)

prepare(corpus.open(sys.argv[1], val_fraction=0.3), Slow(), sys.argv[2])
print("prepared", flush=True)
"""


def test_of_two_processes_that_prepare_one_waits_and_uses_what_the_other_made(texts, tmp_path):
    pipe, shards = subprocess.PIPE, tmp_path / "shards"
    command = [sys.executable, "-c", PREPARE, str(texts), str(shards)]
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    ]
    with processes[0], processes[1]:
        # A line comes of each: the owner of the lock has begun, the other says that it waits.
        with selectors.DefaultSelector() as streams:
            for process in processes:
                streams.register(process.stdout, selectors.EVENT_READ, process)
            owner = streams.select()[0][0].data
        (other,) = (process for process in processes if process is not owner)
        assert owner.stdout.readline() == "begun\n"
        owner.stdin.write("\n")
        owner.stdin.flush()
        assert owner.stdout.readline() == "begun\n"
        line = other.stderr.readline()
        assert line.startswith(f"{shards} is in use by process {owner.pid} on ")
        # The files of the owner's first split are still there.
        assert [path.name for path in shards.rglob("train*")]
        assert owner.communicate("\n" * 9)[1] == ""
        # It has encoded nothing: it took what the owner had written.
        assert other.communicate() == ("prepared\n", "")
    assert (owner.returncode, other.returncode) == (0, 0)
    for split in ("train", "val"):
        list(Dataset.open(shards, split=split).verify())
    assert len(list(shards.iterdir())) == 5


def test_a_tokenizer_without_eos_is_refused(texts, tmp_path):
    tokenizer = Bytes()
    tokenizer.eos_id = None
    with pytest.raises(ValueError, match=r"no end-of-text token, .*: name one with tokenizer\.eos"):
        prepare(opened(texts), tokenizer, tmp_path / "shards")


def test_the_manifest_says_where_the_text_came_from(texts, tmp_path):
    manifest = prepare(opened(texts), Bytes(), tmp_path / "shards")
    assert manifest.source["files"] == 40
    assert manifest.source["source"] == str(texts)
    assert manifest.tokenizer_sha256 == Bytes().sha256
    assert Manifest.load(tmp_path / "shards") == manifest


# The command


def run(*arguments):
    return call(__main__.main, [str(argument) for argument in arguments])


def test_the_command_prepares_inspects_verifies_exports_and_cuts(
    texts, tmp_path, tokenizer_file, capsys
):
    folder, out, small = tmp_path / "shards", tmp_path / "out.jsonl", tmp_path / "small"
    tokenizer = ("--tokenizer", tokenizer_file)
    assert run("prepare", texts, *tokenizer, "--out", folder, "--val-fraction", "0.3") == 0
    assert run("inspect", folder, *tokenizer) == 0
    assert run("verify", folder) == 0
    assert run("export", folder, out, *tokenizer) == 0
    dataset = Dataset.open(folder)
    lines = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert lines == decoded(dataset)
    assert run("subset", folder, small, "--tokens", 200) == 0
    output = capsys.readouterr().out
    assert f"train: {dataset.n_tokens:,} tokens, {dataset.n_documents} documents" in output
    assert "as text: '" in output
    assert "every hash is right" in output
    part = Dataset.open(small)
    assert decoded(part) == decoded(dataset)[: part.n_documents]
    assert 200 <= part.n_tokens < 200 + 300
    assert Dataset.open(small, split="val").fingerprint == Manifest.load(folder).fingerprint("val")
    list(part.verify())


def test_a_subset_is_for_a_folder_that_is_empty_but_for_leftovers(texts, tmp_path, capsys):
    folder, small = tmp_path / "shards", tmp_path / "small"
    prepare(opened(texts), Bytes(), folder)
    small.mkdir()
    for name in (disk.LOCK, "manifest.json.4711-0badcafe.part"):
        (small / name).touch()
    assert run("subset", folder, small, "--tokens", 200) == 0
    assert {path.suffix for path in small.iterdir()} == {".bin", ".doc", ".json"}
    before = {path: path.read_bytes() for path in small.iterdir()}
    assert run("subset", folder, small, "--tokens", 200) == 1
    assert capsys.readouterr().err == f"error: {small}: the folder is not empty\n"
    assert {path: path.read_bytes() for path in small.iterdir()} == before


def test_a_subset_sees_what_another_process_made_before_it_had_the_lock(
    texts, tmp_path, monkeypatch, capsys
):
    class Late(disk.Lock):
        def __init__(self, folder, **options):
            (folder / NAME).write_text("of another process")
            super().__init__(folder, **options)

    folder, small = tmp_path / "shards", tmp_path / "small"
    prepare(opened(texts), Bytes(), folder)
    monkeypatch.setattr(disk, "Lock", Late)
    assert run("subset", folder, small, "--tokens", 200) == 1
    assert "the folder is not empty" in capsys.readouterr().err
    assert (small / NAME).read_text() == "of another process"


def test_preparing_where_this_thread_writes_is_an_error_and_no_endless_waiting(texts, tmp_path):
    shards, wanted = tmp_path / "shards", f"process {os.getpid()} .*close its writer"
    with (
        ShardWriter(shards, tokenizer=Bytes()),
        pytest.raises(BlockingIOError, match=wanted),
    ):
        prepare(opened(texts), Bytes(), shards)


def test_verify_names_the_damaged_file_and_block_and_exits_1(texts, tmp_path, capsys):
    folder = tmp_path / "shards"
    prepare(opened(texts), Bytes(), folder)
    path = folder / "val-00000.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run("verify", folder) == 1
    error = capsys.readouterr().err
    assert "val-00000.bin: corrupt at byte 1024: block 0" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["train-00000.doc", "val-00000.doc"])
@pytest.mark.parametrize("lost", [True, False])
def test_verify_names_a_lost_or_damaged_file_of_lengths(texts, tmp_path, capsys, name, lost):
    folder = tmp_path / "shards"
    prepare(opened(texts), Bytes(), folder)
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if not lost:
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert run("verify", folder) == 1
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train-00001.bin", "test-00000.bin", "train-00000 copy.bin"])
def test_verify_warns_of_a_shard_that_the_manifest_does_not_name(texts, tmp_path, name):
    folder = tmp_path / "shards"
    prepare(opened(texts), Bytes(), folder)
    (folder / name).write_bytes((folder / "train-00000.bin").read_bytes())
    with pytest.warns(UserWarning, match=f"never read.*{name}"):
        __main__.main(["verify", str(folder)])


def test_errors_are_one_line_and_their_codes_are_1_and_2(tmp_path, tokenizer_file, capsys):
    assert run("inspect", tmp_path) == 1
    assert run("prepare", tmp_path / "no", "--tokenizer", tokenizer_file) == 1
    assert capsys.readouterr().err.count("\n") == 2
    for arguments in (["prepare"], ["verify"], ["nothing"], []):
        assert run(*arguments) == 2


def test_ctrl_c_ends_the_command_with_130(monkeypatch, tmp_path):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "load", interrupted)
    assert run("verify", tmp_path) == 130


@pytest.mark.parametrize("name", ["", "prepare", "inspect", "verify", "export", "subset"])
def test_every_command_has_help(name, capsys):
    assert run(*[name] if name else [], "--help") == 0
    assert "usage: python -m tinylm.data" in capsys.readouterr().out


def test_preparing_and_reading_need_no_torch(texts, tmp_path):
    script = (
        "import sys\nimport tinylm.data.__main__\n"
        "from tinylm.data import Loader, Dataset\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    run_module = [sys.executable, "-m", "tinylm.data", "verify", tmp_path]
    result = subprocess.run(run_module, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")


def test_text_to_batches_and_back(texts, tmp_path):
    prepare(opened(texts), Bytes(), tmp_path / "shards")
    dataset = Dataset.open(tmp_path / "shards", split="val")
    loader = Loader(dataset, batch_size=4, context_length=33, order="sequential")
    first = int(dataset.read(0, 1)[0])
    ids = [first]
    for batch in loader.epoch():
        ids += [t for t in batch.targets.flatten().tolist() if t != -100]
    assert Bytes().decode_bytes(ids).decode() == "".join(decoded(dataset))
