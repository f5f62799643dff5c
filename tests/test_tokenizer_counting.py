"""Counts in files: the tokenizer of the texts, whoever counted them, in whatever memory."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.tokenizer_data import standard_library
from tinylm import Tokenizer, _rust
from tinylm.tokenizer import Characters, counting
from tinylm.tokenizer.counting import count_files, join_counts


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """Five files, the fourth of rows."""
    code = standard_library(3)[:200_000]
    paths = [tmp_path / f"{number}.txt" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_text(code[number * 50_000 : (number + 1) * 50_000] + "<|endoftext|>\xe9 \u4e2d")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "low lower"}\n{"text": "lowest  low"}\n')
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    return [*paths, rows, empty]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("alphabet", [None, Characters(coverage=0.999)])
def test_training_on_counts_is_training_on_the_texts(
    texts: list[Path], tmp_path: Path, kind: str, alphabet: Characters | None
) -> None:
    files = count_files(texts, tmp_path / "counts", alphabet=alphabet)
    settings = {"vocab_size": 500, "kind": kind, "alphabet": alphabet}
    wanted = Tokenizer.train_files(texts, **settings)
    assert Tokenizer.train_counts(files, **settings) == wanted
    pieces, total = join_counts(files, tmp_path / "all.counts")
    assert 0 < pieces < total
    assert Tokenizer.train_counts([tmp_path / "all.counts"], **settings) == wanted
    left = [path.name for path in (tmp_path / "counts").iterdir() if path not in files]
    assert left == []


def test_tables_that_grow_over_the_bound_go_to_the_disk(
    texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spills = []
    spill = counting._Counter._spill
    monkeypatch.setattr(counting, "LEAST", 0)
    monkeypatch.setattr(counting, "FILES", 2)
    monkeypatch.setattr("tinylm.tokenizer.training.BATCH", 5000)
    monkeypatch.setattr(counting._Counter, "_spill", lambda self: spills.append(1) or spill(self))
    files = count_files(texts, tmp_path / "counts", memory=250_000, threads=2)
    assert len(spills) > 10
    assert Tokenizer.train_counts(files, vocab_size=500) == Tokenizer.train_files(
        texts, vocab_size=500
    )


def test_what_is_counted_is_not_counted_again(texts: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "counts"
    files = count_files(texts, folder)
    before = [path.stat().st_mtime_ns for path in files]
    seen: list[tuple[int, int]] = []
    assert count_files(texts, folder, progress=lambda *numbers: seen.append(numbers)) == files
    assert [path.stat().st_mtime_ns for path in files] == before
    total = sum(path.stat().st_size for path in texts)
    assert seen[-1] == (total, total)
    texts[0].write_text("another text")
    assert count_files(texts, folder)[0] != files[0]
    assert count_files(texts, folder, pattern="gpt2")[1] != files[1]


def test_two_processes_share_a_folder(texts: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "counts"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=count_files, args=(texts, folder)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    files = count_files(texts, folder)
    assert sorted(folder.iterdir()) == sorted(files)
    wanted = Tokenizer.train_files(texts, vocab_size=500)
    assert Tokenizer.train_counts(files, vocab_size=500) == wanted


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_nothing_wrong(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.txt", tmp_path / "counts"
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=7)) for _ in range(400_000)]
    path.write_text(" ".join(words * 4))
    code = (
        "import sys; from tinylm.tokenizer import counting; counting.LEAST = 0;"
        "counting.count_files([sys.argv[1]], sys.argv[2], memory=4_000_000)"
    )
    for wait in (0.4, 0.6, 0.8, 1.0):
        process = subprocess.Popen([sys.executable, "-c", code, path, folder])
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    files = count_files([path], folder)
    assert sorted(folder.iterdir()) == files
    wanted = Tokenizer.train_files([path], vocab_size=400)
    assert Tokenizer.train_counts(files, vocab_size=400) == wanted


def test_a_damaged_file_is_refused(texts: list[Path], tmp_path: Path) -> None:
    file = count_files(texts[3:4], tmp_path / "counts")[0]
    data = file.read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        at = draw.randrange(len(data))
        changed = data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
        file.write_bytes(draw.choice([changed, data[:at], data + changed[-1:]]))
        with pytest.raises(ValueError, match=r"\.counts: .*count that part"):
            Tokenizer.train_counts([file], vocab_size=300)
    file.write_bytes(data)
    with pytest.raises(ValueError, match="no file of counts"):
        Tokenizer.train_counts([texts[0]], vocab_size=300)
    with pytest.raises(FileNotFoundError, match="missing"):
        Tokenizer.train_counts([tmp_path / "missing"], vocab_size=300)


def test_files_that_were_counted_otherwise_are_refused(texts: list[Path], tmp_path: Path) -> None:
    first = count_files(texts[:1], tmp_path / "counts")
    other = count_files(texts[:1], tmp_path / "counts", pattern="gpt2")
    chars = count_files(texts[:1], tmp_path / "counts", alphabet=Characters())
    with pytest.raises(ValueError, match=r"its pattern is 'gpt2', that of .* 'gpt4'"):
        Tokenizer.train_counts([*first, *other], vocab_size=300)
    with pytest.raises(ValueError, match=r"pass alphabet=Characters"):
        Tokenizer.train_counts(chars, vocab_size=300)
    with pytest.raises(ValueError, match="another alphabet; pass none"):
        Tokenizer.train_counts(first, vocab_size=300, alphabet=Characters())
    with pytest.raises(ValueError, match="no files of counts"):
        Tokenizer.train_counts([], vocab_size=300)
    with pytest.raises(ValueError, match=r"64 MiB"):
        count_files(texts, tmp_path / "counts", memory=1000)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        count_files(texts, tmp_path / "file")


def test_the_commands_count_join_and_train(texts: list[Path], tmp_path: Path) -> None:
    def run(*words: str | Path) -> str:
        command = [sys.executable, "-m", "tinylm.tokenizer", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout + done.stderr

    folder = tmp_path / "counts"
    assert "4 files of counts" in run("count", *texts[:4], "--out", folder)
    files = sorted(folder.iterdir())
    assert "distinct pieces" in run("join", *files, "--out", tmp_path / "all.counts")
    out = tmp_path / "tokenizer.json"
    said = run("train", tmp_path / "all.counts", "--vocab-size", "500", "--out", out)
    assert "500 tokens" in said
    assert Tokenizer.load(out) == Tokenizer.train_files(texts[:4], vocab_size=500)
    said = run("train", *files, "--vocab-size", "500", "--out", out, "--force", "--pattern", "gpt2")
    assert "--pattern: files of counts say it themselves" in said
    out = tmp_path / "a.model"
    options = ("--characters", "--coverage", "0.999", "--block", " self", "--kind", "unigram")
    assert "500 tokens" in run("train", texts[0], "--vocab-size", "500", "--out", out, *options)
    assert "\u2581self".encode() not in Tokenizer.load(out).vocab.values()


def test_counts_refuse_a_folder_that_is_not_there(tmp_path: Path) -> None:
    counts = _rust.WordCounts("gpt4", [], 1)
    counts.add(["a b"])
    with pytest.raises(FileNotFoundError, match="missing"):
        counts.spill(tmp_path / "missing", "a", "")
