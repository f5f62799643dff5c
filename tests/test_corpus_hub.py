"""Repositories of the Hugging Face hub, read from a stand-in on this machine."""

import hashlib
import http.server
import json
import socket
import threading
import time
from contextlib import contextmanager
from urllib.parse import unquote

import pytest

from tests.test_corpus import HALF, folder_of
from tests.test_corpus_kinds import documents, rows
from tinylm import corpus
from tinylm.corpus import hub, requests

COMMIT, OLDER = "a" * 40, "b" * 40
TEXTS = [f"document {k}" for k in range(40)]
FILES = {
    "data/train-0.jsonl": rows(*TEXTS[:20]).encode(),
    "data/train-1.jsonl": rows(*TEXTS[20:]).encode(),
    "data/\xe4 name.txt": b"a text\n" * 9,
    "README.md": b"# About the data\n",
    "load.py": b"import this\n",
}
# What the hub keeps apart, with a SHA-256.
LARGE = ("data/train-0.jsonl",)
PAGE = 2


class Handler(http.server.BaseHTTPRequestHandler):
    """The three addresses of the hub that are read, and what a test makes of them."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        path, _, query = self.path.partition("?")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:4] == ["api", "datasets", "some", "texts"]:
            self._api(parts[4:], query)
        elif parts[:3] == ["datasets", "some", "texts"] and parts[3] == "resolve":
            self._resolve("/".join(parts[5:]))
        elif parts[0] == "apart":
            self._send_file("/".join(parts[1:]))
        else:
            self.send_error(404)

    def _api(self, parts, query):
        if parts == ["revision", "main"] or parts == ["revision", "refs/convert/parquet"]:
            self._json({"id": "some/texts", "sha": COMMIT})
        elif parts[0] == "tree" and parts[1] in (COMMIT, OLDER):
            at = int(query.rpartition("cursor=")[2]) if "cursor=" in query else 0
            every = [{"type": "directory", "path": "data", "oid": "c" * 40, "size": 0}]
            every += [self._row(path, data) for path, data in self.server.files.items()]
            link = None
            if at + PAGE < len(every):
                address = f"http://127.0.0.1:{self.server.server_port}{self.path.partition('?')[0]}"
                link = f'<{address}?recursive=true&cursor={at + PAGE}>; rel="next"'
            self._json(every[at : at + PAGE], link)
        else:
            self.send_error(404)

    def _row(self, path, data):
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        row = {"type": "file", "path": path, "oid": oid, "size": len(data)}
        if path in LARGE:
            sha256 = hashlib.sha256(data).hexdigest()
            row["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
        return row

    def _resolve(self, path):
        if path in LARGE:
            # What is kept apart lies on another host, which must not see the key.
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/apart/{path}")
            self.end_headers()
        else:
            self._send_file(path)

    def _send_file(self, path):
        data = self.server.sent.get(path, self.server.files[path])
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self.wfile.write(data[begin : begin + self.server.breaks_after])

    def _json(self, value, link=None):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if link:
            self.send_header("Link", link)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def served(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.sent, server.asked = dict(FILES), {}, []
        server.breaks_after = 1 << 30
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch, no_proxy):
    with served(monkeypatch) as server:
        yield server


@pytest.fixture
def offline(monkeypatch):
    """A function that takes the hub away."""
    return lambda: monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def opened(tmp_path, source, **settings):
    return corpus.open(source, raw=tmp_path, **{**HALF, **settings})


def test_a_repository_is_a_corpus_of_its_data_files(tmp_path, server):
    text = opened(tmp_path, "hf://some/texts")
    assert documents(text) == sorted([*TEXTS, "a text\n" * 9])
    assert text.name == corpus.source_name("hf://some/texts@main/data") == "texts"
    record = text.provenance()["hub"]
    assert record["repository"] == "some/texts"
    assert (record["revision"], record["commit"]) == ("main", COMMIT)
    first, second, third = (record["files"][k] for k in (1, 2, 0))
    data = FILES["data/train-0.jsonl"]
    sha256 = hashlib.sha256(data).hexdigest()
    found = {file["path"]: file for file in (first, second, third)}
    assert found["data/train-0.jsonl"] == {
        "path": "data/train-0.jsonl",
        "bytes": len(data),
        "hash": f"sha256:{sha256}",
    }
    assert found["data/train-1.jsonl"]["hash"].startswith("git:")
    folder = tmp_path / "hub/some/texts" / COMMIT
    assert {path.name for path in folder.rglob("*.*")} == {
        "train-0.jsonl",
        "train-1.jsonl",
        "\xe4 name.txt",
    }


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("data/train-1.jsonl", 20),
        ("data/*.jsonl", 40),
        ("*-0*", 20),
        ("data", 41),
        ("data/", 41),
        ("README.md", 1),
    ],
)
def test_a_path_names_a_file_a_pattern_or_a_folder(tmp_path, server, path, count):
    text = opened(tmp_path, f"hf://datasets/some/texts@{COMMIT}/{path}", val_fraction=0)
    assert len(documents(text)) == count


def test_a_download_is_made_once_and_a_commit_needs_no_network_then(tmp_path, server, offline):
    source = f"hf://some/texts@{COMMIT}/data/train-0.jsonl"
    first = opened(tmp_path, source)
    asked = len(server.asked)
    again = opened(tmp_path, source)
    assert len(server.asked) == asked
    offline()
    assert opened(tmp_path, source).fingerprint == again.fingerprint == first.fingerprint


def test_of_a_branch_the_commit_of_before_is_taken_without_the_hub(tmp_path, server, offline):
    source = "hf://some/texts@refs/convert/parquet/data/train-0.jsonl"
    first = opened(tmp_path, source)
    offline()
    again = opened(tmp_path, source)
    assert again.fingerprint == first.fingerprint
    assert again.provenance()["hub"]["commit"] == COMMIT
    assert f"does not answer: commit {COMMIT[:8]} of before is taken" in again.notes[0]


def test_a_key_is_sent_to_the_hub_and_to_nobody_else(tmp_path, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    opened(tmp_path, "hf://some/texts/data/*.jsonl")
    for path, key in server.asked:
        assert key == (None if path.startswith("/apart/") else "Bearer secret"), path


@pytest.mark.parametrize("path", ["data/train-0.jsonl", "data/train-1.jsonl"])
@pytest.mark.parametrize("content", [b"other", FILES["data/train-0.jsonl"].swapcase() + b"more"])
def test_a_file_of_another_hash_is_refused_and_removed(tmp_path, server, path, content):
    server.sent[path] = (content * 400)[: len(FILES[path])]
    with pytest.raises(ValueError, match=r"expected \d+ bytes with (sha256|git):\w+, found"):
        opened(tmp_path, f"hf://some/texts/{path}")
    assert not [*tmp_path.rglob("*.jsonl")]
    server.sent.clear()
    assert opened(tmp_path, f"hf://some/texts/{path}")


def test_a_connection_that_breaks_goes_on_where_it_broke(tmp_path, server):
    server.breaks_after = 100
    text = opened(tmp_path, "hf://some/texts/data/*.jsonl")
    assert documents(text) == sorted(TEXTS)
    asked = [path for path, _ in server.asked if "/resolve/" in path and "train-1" in path]
    assert len(asked) == -(-len(FILES["data/train-1.jsonl"]) // 100)


def test_a_connection_that_brings_nothing_ends(tmp_path, server):
    server.breaks_after = 0
    with pytest.raises(
        ConnectionError, match=r"after 0 of \d+ bytes\): try again, or put the file"
    ):
        opened(tmp_path, "hf://some/texts/data/train-1.jsonl")


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_without_the_hub_it_says_what_to_put_where_within_5_seconds(
    tmp_path, monkeypatch, is_there, revision
):
    assert requests.TIMEOUT + 0.5 < 5
    monkeypatch.setattr(requests, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # One that takes the connection and says nothing, and one that does not take it.
        address = f"http://127.0.0.1:{silent.getsockname()[1] if is_there else 9}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        begin = time.monotonic()
        with pytest.raises(ConnectionError, match="cannot reach the hub") as caught:
            opened(tmp_path, f"hf://some/texts@{revision}")
        # A connection and no second one.
        assert time.monotonic() - begin < 2 * 0.7
    folder = tmp_path / "hub/some/texts" / revision
    for part in (f"{address}/datasets/some/texts/tree/{revision}", str(folder)):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    # And so it is done.
    folder_of(folder, {"a.jsonl": rows(*TEXTS), "README.md": "about"})
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    text = opened(tmp_path, f"hf://some/texts@{revision}")
    assert documents(text) == sorted(TEXTS)
    assert "taken without a check" in text.notes[0]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("hf://some", "a repository of the hub is hf://OWNER/NAME"),
        ("hf://some/texts@", "a repository of the hub is"),
        ("hf://some/others", r"no such repository or revision, or wants a key \(404\)"),
        ("hf://some/texts@v2", "no such repository or revision"),
        ("hf://some/texts/other", r"other is not in it; it has README\.md, data/"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(tmp_path, server, source, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        opened(tmp_path, source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["foo", "", "http://", "ftp://hub"])
def test_an_endpoint_that_is_no_address_is_named(tmp_path, monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(ValueError, match=r"^HF_ENDPOINT=.* must be an address: https://hugging"):
        opened(tmp_path, "hf://some/texts")


@pytest.mark.parametrize("path", ["../../outside.jsonl", "/etc/a.jsonl"])
def test_a_hub_cannot_write_outside_of_its_folder(tmp_path, server, path):
    server.files = {path: b"text"}
    with pytest.raises(ValueError, match="would lie outside of its folder"):
        opened(tmp_path, "hf://some/texts")


def test_a_file_that_is_cut_is_named(tmp_path, server):
    opened(tmp_path, "hf://some/texts/data/train-1.jsonl")
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train-1\.jsonl: expected \d+ bytes, found \d+: remove"):
        opened(tmp_path, "hf://some/texts/data/train-1.jsonl")


def test_a_named_dataset_of_the_hub_is_its_repository(tmp_path, server, monkeypatch):
    row = corpus.Hosted(source="hf://some/texts/data/*.jsonl", licence="none")
    monkeypatch.setitem(corpus.DATASETS, "tinystories", row)
    text = opened(tmp_path, "tinystories")
    assert documents(text) == sorted(TEXTS)
    assert (text.source, text.name) == ("tinystories", "tinystories")
    assert text.provenance()["hub"]["commit"] == COMMIT
    with pytest.raises(ValueError, match=r"tinystories is hf://"):
        corpus.fetch("tinystories", tmp_path)


@pytest.mark.parametrize("name", corpus.DATASETS)
def test_every_row_of_the_table_can_be_read(name):
    row = corpus.DATASETS[name]
    assert corpus.is_download(name)
    assert row.licence
    if isinstance(row, corpus.Hosted):
        assert "/" in hub.parse(row.source).name


def test_the_stand_in_answers_as_the_client_of_the_hub_expects(server):
    client = pytest.importorskip("huggingface_hub")
    api = client.HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)
    assert api.dataset_info("some/texts", revision="main").sha == COMMIT
    tree = api.list_repo_tree("some/texts", repo_type="dataset", revision=COMMIT, recursive=True)
    found = {file.path: file for file in tree if isinstance(file, client.RepoFile)}
    assert {path: file.size for path, file in found.items()} == {
        path: len(data) for path, data in FILES.items()
    }
    large = found["data/train-0.jsonl"].lfs
    assert large.sha256 == hashlib.sha256(FILES["data/train-0.jsonl"]).hexdigest()
