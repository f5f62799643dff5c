"""The command `prepare` as several processes, and on a Ray cluster: the bytes of one process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.calling import call
from tinylm import Tokenizer, corpus
from tinylm.data import __main__, prepare
from tinylm.data.cluster import on_ray

# A job of each few files of the texts below.
JOB = 4000


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with twenty files, a tokenizer and the shards that one process makes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for k in range(20):
        words = f"{k} the words of a small text\n" * (k + 3)
        if k % 5:
            (tmp_path / f"texts/{k:02}.txt").write_text(words)
        else:
            rows = [json.dumps({"text": f"{n} {line}"}) for n, line in enumerate(words.split("\n"))]
            (tmp_path / f"texts/{k:02}.jsonl").write_text("\n".join(rows))
    Tokenizer.train(["the words of a small text"], vocab_size=270).save("t.json")
    text = corpus.open("texts", val_fraction=0.3)
    prepare(text, Tokenizer.load("t.json"), "whole", job_bytes=JOB)
    return tmp_path


def shards(folder):
    """The bytes of every file; of the manifest without the command and its checksum."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(found["manifest.json"])
    del manifest["command"], manifest["checksum"]
    return {**found, "manifest.json": manifest}


def arguments(out, *more):
    given = ["prepare", "texts", "--tokenizer", "t.json", "--out", out, "--val-fraction", "0.3"]
    return [*given, "--job-bytes", str(JOB), *map(str, more)]


def start(*words):
    command = [sys.executable, "-m", "tinylm.data", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_make_the_bytes_of_one(here):
    ranks = [start(*arguments("two", "--rank", k, "--world", 2)) for k in range(2)]
    said = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert shards(here / "two") == shards(here / "whole")
    # One of them has written the manifest; the other may have found it.
    assert any(out.startswith("two\n") for out, _ in said)
    manifests = [json.loads((here / n / "manifest.json").read_text()) for n in ("two", "whole")]
    assert "--rank" not in manifests[0]["command"]
    assert manifests[0]["splits"] == manifests[1]["splits"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux alone")
def test_one_core_and_all_make_the_same_bytes(here):
    # Long enough for several batches, and for each to be shared by the cores.
    words = "the words of a small text, and others: caf\u00e9 \u4e16\u754c\n"
    (here / "texts/long.txt").write_text(words * 100_000)
    rows = [json.dumps({"text": words * (n % 9 + 1)}) for n in range(9000)]
    (here / "texts/rows.jsonl").write_text("\n".join(rows))
    whole = corpus.open("texts", val_fraction=0.3)
    prepare(whole, Tokenizer.load("t.json"), "all")
    one = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
    one += "from tinylm.data.__main__ import main; main(sys.argv[1:])"
    given = arguments("one")[:-2]
    subprocess.run([sys.executable, "-c", one, *given], check=True, capture_output=True)
    assert shards(here / "one") == shards(here / "all")


def test_a_rank_that_is_not_the_last_says_so_and_mistakes_are_one_line(here, capsys):
    assert call(__main__.main, arguments("two", "--rank", 0, "--world", 2)) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == (
        "two: the jobs of rank 0 are done; the last of the 2 ranks to finish writes the manifest"
    )
    # Any later call does the rest.
    assert call(__main__.main, arguments("two")) == 0
    assert shards(here / "two") == shards(here / "whole")
    for wrong in (["--rank", 1], ["--rank", 2, "--world", 2], ["--world", 0], ["--job-bytes", 0]):
        capsys.readouterr()
        assert call(__main__.main, arguments("other", *wrong)) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not (here / "other").exists()


def test_without_ray_the_command_says_what_to_install(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert call(__main__.main, arguments("two", "--engine", "ray")) == 1
    assert capsys.readouterr().err == (
        "error: --engine ray needs ray, which is not installed: pip install 'tinylm[ray]'\n"
    )


@pytest.mark.slow
def test_a_rank_that_is_killed_anywhere_is_given_again(here):
    for after in (0.3, 0.4, 0.5, 0.6, 0.8):
        killed = start(*arguments("two", "--rank", 0, "--world", 2))
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            killed.send_signal(signal.SIGKILL)
        killed.communicate()
        ranks = [start(*arguments("two", "--rank", k, "--world", 2)) for k in range(2)]
        said = [rank.communicate(timeout=60) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], said
        assert shards(here / "two") == shards(here / "whole")
        subprocess.run(["rm", "-r", here / "two"], check=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_workers_of_ray_make_the_bytes_of_one_process(here, monkeypatch, capsys):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'tinylm[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # The workers import what this process does.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        assert call(__main__.main, arguments("two", "--engine", "ray", "--world", 2)) == 0
        assert capsys.readouterr().out.startswith("two\n")
        assert shards(here / "two") == shards(here / "whole")
        # What a worker raises is the error of one process, in one line.
        (here / "texts/07.txt").write_bytes(b"\xff" * 10)
        for name in ("05", "10", "15"):
            (here / f"texts/{name}.jsonl").write_text('{"text": "good"}\n{"text": 3}\n')
        assert call(__main__.main, arguments("bad", "--engine", "ray", "--world", 2)) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert "line 2" in last
        with pytest.raises(ValueError, match="--world 0 must be at least 1"):
            on_ray("texts", "t.json", world=0, job_bytes=JOB, val_fraction=0.3)
        # No text and no token has gone through Ray: by its own account, below 1 MiB in all.
        pytest.importorskip("grpc", reason="ray counts its memory with grpc: pip install grpcio")
        from ray._private.internal_api import memory_summary

        summary = memory_summary(stats_only=True)
        print(summary)
        assert "Plasma memory usage 0 MiB, 0 objects" in summary, summary
    finally:
        ray.shutdown()
