"""Where text comes from: every kind of source, its split, its errors, and nothing heavy."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm import corpus

HALF = {"val_fraction": 0.5}


def folder_of(path, texts):
    for name, text in texts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def names(documents):
    return [document.strip() for document in documents]


def test_importing_it_imports_neither_numpy_nor_torch():
    script = "import sys, tinylm.corpus; assert not {'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_standard_library_is_python_without_tests_and_packages():
    text = corpus.open("stdlib", val_fraction=0.1)
    train, validation = list(text.train()), list(text.validation())
    assert 300 < text.files == len(train) + len(validation)
    assert sum(len(t.encode()) for t in train + validation) == text.bytes > 5_000_000
    assert 0.02 < len(validation) / text.files < 0.2
    assert any("class Random(" in document for document in train + validation)


def test_an_interpreter_without_sources_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"data\.source="):
        corpus.open("stdlib", val_fraction=0.1)


# A zero byte among the first is a sign of a binary file.
TEXTS = st.text(st.characters(exclude_characters="\0"), min_size=4).filter(str.strip)


@given(TEXTS, st.floats(0.01, 0.99))
@settings(deadline=None)
def test_a_text_is_cut_between_two_characters(tmp_path_factory, content, fraction):
    data = content.encode(errors="ignore")
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_bytes(data)
    try:
        text = corpus.open(str(path), val_fraction=fraction)
    except ValueError as error:
        assert "too small" in str(error)  # noqa: PT017
        return
    train, validation = "".join(text.train()), "".join(text.validation())
    assert (train + validation).encode() == data
    assert 0 <= int((1 - fraction) * len(data)) - len(train.encode()) < 4


def test_an_ascii_text_is_cut_where_nanogpt_cuts_it(tmp_path):
    content = "".join(chr(97 + k % 26) for k in range(1_115_394))
    path = folder_of(tmp_path, {"input.txt": content}) / "input.txt"
    text = corpus.open(str(path), val_fraction=0.1)
    cut = int(len(content) * 0.9)
    assert list(text.train()) == [content[:cut]]
    assert list(text.validation()) == [content[cut:]]


def test_a_folder_gives_its_visible_text_files_in_the_order_of_their_paths(tmp_path):
    texts = {f"{k % 3}/{k:02}.txt": f"{k % 3}/{k:02}" for k in range(30)}
    hidden = {".git/config": "no", "1/.hidden": "no", "2/image.bin": b"\x89P\0", "empty": ""}
    folder_of(tmp_path, {**texts, **hidden})
    text = corpus.open(str(tmp_path), val_fraction=0.3)
    train, validation = list(text.train()), list(text.validation())
    assert sorted(train + validation) == sorted(texts.values())
    assert train == sorted(train)
    assert validation == sorted(validation)
    assert text.files == 30


def test_validation_files_stay_validation_when_others_come_and_go(tmp_path):
    texts = {f"{k:02}.txt": f"{k:02}" for k in range(30)}
    before = set(corpus.open(str(folder_of(tmp_path / "a", texts)), **HALF).validation())
    del texts["03.txt"]
    texts["99.txt"] = "99"
    after = set(corpus.open(str(folder_of(tmp_path / "b", texts)), **HALF).validation())
    assert before - {"03"} == after - {"99"}


def test_the_fingerprint_is_of_the_text_and_not_of_the_place(tmp_path):
    texts = {f"{k}.txt": str(k) for k in range(10)}
    first = corpus.open(str(folder_of(tmp_path / "a", texts)), **HALF).fingerprint
    assert corpus.open(str(folder_of(tmp_path / "b", texts)), **HALF).fingerprint == first
    texts["3.txt"] = "4"
    assert corpus.open(str(folder_of(tmp_path / "c", texts)), **HALF).fingerprint != first


def test_jsonl_is_a_document_a_line_split_by_content(tmp_path):
    lines = [json.dumps({"text": f"line {k}\n", "other": 1}) for k in range(40)]
    path = folder_of(tmp_path, {"a.jsonl": "\n\n".join(lines) + '\n{"text": ""}'}) / "a.jsonl"
    text = corpus.open(str(path), **HALF)
    train, validation = list(text.train()), list(text.validation())
    assert sorted(train + validation) == sorted(f"line {k}\n" for k in range(40))
    path.write_text("\n".join(reversed(lines)))
    assert set(corpus.open(str(path), **HALF).validation()) == set(validation)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "line 2 is not JSON"),
        (b'{"Text": "a"}', 'line 2 has no text in a field "text"'),
        (b'{"text": 3}', 'line 2 has no text in a field "text"'),
        (b'["text"]', 'line 2 has no text in a field "text"'),
        (b'{"text": "\xff"}', "line 2 is not UTF-8"),
        (b'{"text": "\\ud800"}', "line 2 is not UTF-8"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path, line, problem):
    path = folder_of(tmp_path, {"a.jsonl": b'{"text": "good"}\n' + line}) / "a.jsonl"
    with pytest.raises(ValueError, match=f"a.jsonl: {problem}") as caught:
        list(corpus.open(str(path), **HALF).train())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "bad"),
    [
        (b"a" * 5 + b"\xff" + b"a" * 94, 5),
        (b"a" * 95 + b"\xffaaaa", 95),
        # The first byte of a character, and then the end of the file.
        (b"aaa\xe4\xb8", 3),
        # The same around the border of two blocks.
        (b"a" * ((1 << 20) - 1) + b"\xe4\xb8aaa", (1 << 20) - 1),
    ],
)
def test_bytes_that_are_not_utf_8_are_named_at_once_by_file_and_offset(tmp_path, data, bad):
    path = folder_of(tmp_path, {"a.txt": data}) / "a.txt"
    with pytest.raises(ValueError, match=rf"a\.txt: byte {bad} is not UTF-8: convert"):
        corpus.open(str(path), **HALF)


def test_bad_sources_are_refused_in_one_line(tmp_path):
    folder_of(tmp_path, {"empty.txt": "", "none/.hidden": "a", "one/a.txt": "a", "b.txt": "b"})
    cases = [
        (
            "nowhere.txt",
            FileNotFoundError,
            "neither a file, a folder, hf:// nor a dataset .*stdlib",
        ),
        (tmp_path / "empty.txt", ValueError, "is empty"),
        (tmp_path / "none", ValueError, "holds no text file"),
        (tmp_path / "one", ValueError, "of 1 bytes is too small"),
        (tmp_path / "b.txt", ValueError, "too small"),
    ]
    for source, kind, problem in cases:
        with pytest.raises(kind, match=problem) as caught:
            corpus.open(str(source), **HALF)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fraction", [-0.1, 1.01, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ValueError, match=r"data\.val_fraction"):
        corpus.open("stdlib", val_fraction=fraction)


def test_of_the_fraction_1_everything_is_validation(tmp_path):
    files = {
        "a.txt": b"caf\xc3\xa9",
        "b.jsonl": b'{"text": "one"}\n{"text": "two"}',
        "c/d.txt": b"x",
    }
    folder = folder_of(tmp_path, files)
    for source, documents in (
        ("a.txt", ["caf\xe9"]),
        ("b.jsonl", ["one", "two"]),
        ("c", ["x"]),
    ):
        text = corpus.open(str(folder / source), val_fraction=1)
        assert list(text.validation()) == documents
        assert list(text.train()) == []
        text = corpus.open(str(folder / source), val_fraction=0)
        assert list(text.train()) == documents
        assert list(text.validation()) == []


def test_documents_are_read_one_at_a_time(tmp_path):
    lines = b"".join(b'{"text": "%d"}\n' % k for k in range(100)) + b"not json"
    path = folder_of(tmp_path, {"a.jsonl": lines}) / "a.jsonl"
    assert next(corpus.open(str(path), **HALF).train())
    assert next(corpus.open(str(path), **HALF).validation())


# Downloads


@pytest.fixture
def server(tmp_path):
    """A local server of `tmp_path/served`; yields (its address, the folder)."""
    (tmp_path / "served").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "served"))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "served"
        server.shutdown()
        thread.join()


def dataset_at(monkeypatch, url, content=b"some text " * 100):
    row = replace(
        corpus.DATASETS["tinyshakespeare"],
        url=url,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )
    monkeypatch.setitem(corpus.DATASETS, "tinyshakespeare", row)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return row


def test_a_named_dataset_is_downloaded_once_and_never_changed(tmp_path, monkeypatch, server):
    address, served = server
    (served / "input.txt").write_bytes(b"some text " * 100)
    dataset_at(monkeypatch, f"{address}/input.txt")
    hashed, real = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: hashed.append(1) or real(*given))
    text = corpus.open("tinyshakespeare", val_fraction=0.1, raw=tmp_path / "raw")
    assert len(hashed) == 1
    assert "".join(text.train()) == "some text " * 90
    assert [path.name for path in (tmp_path / "raw/tinyshakespeare").iterdir()] == ["input.txt"]
    (served / "input.txt").write_bytes(b"other")
    again = corpus.open("tinyshakespeare", val_fraction=0.1, raw=tmp_path / "raw")
    assert again.fingerprint == text.fingerprint
    assert len(hashed) == 2


def test_of_two_that_want_a_dataset_one_downloads_it_and_the_other_waits(tmp_path, monkeypatch):
    downloads = []

    def download(url, file, size):
        downloads.append(url)
        time.sleep(0.3)
        file.write(b"some text " * 100)

    monkeypatch.setattr("tinylm.corpus.download._download", download)
    dataset_at(monkeypatch, "http://127.0.0.1:9/input.txt")
    with ThreadPoolExecutor(2) as pool:
        paths = [*pool.map(corpus.fetch, ["tinyshakespeare"] * 2, [tmp_path] * 2)]
    assert downloads == ["http://127.0.0.1:9/input.txt"]
    assert paths == [tmp_path / "tinyshakespeare/input.txt"] * 2
    assert [path.name for path in paths[0].parent.iterdir()] == ["input.txt"]


@pytest.mark.parametrize("content", [b"other", b"some text " * 100 + b"!", b""])
def test_a_download_of_something_else_is_refused_and_removed(
    tmp_path, monkeypatch, server, content
):
    address, served = server
    (served / "input.txt").write_bytes(content)
    row = dataset_at(monkeypatch, f"{address}/input.txt")
    with pytest.raises(ValueError, match=f"expected 1000 bytes with sha256 {row.sha256}"):
        corpus.fetch("tinyshakespeare", tmp_path / "raw")
    assert not list((tmp_path / "raw/tinyshakespeare").iterdir())


@pytest.mark.parametrize("place", ["missing", "closed", "unreachable", "unnamed"])
def test_without_the_network_it_says_what_to_put_where_within_5_seconds(
    tmp_path, monkeypatch, server, place
):
    url = {
        "missing": f"{server[0]}/nothing/input.txt",
        "closed": "http://127.0.0.1:9/input.txt",
        "unreachable": "http://10.255.255.1/input.txt",
        "unnamed": "http://no-such-host.invalid/input.txt",
    }[place]
    row = dataset_at(monkeypatch, url)
    begin = time.monotonic()
    with pytest.raises(OSError, match="cannot download tinyshakespeare") as caught:
        corpus.fetch("tinyshakespeare", tmp_path)
    assert time.monotonic() - begin < 5
    for part in (url, row.sha256, str(tmp_path / "tinyshakespeare/input.txt")):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_raw_file_is_named(tmp_path, monkeypatch):
    dataset_at(monkeypatch, "http://127.0.0.1:9/input.txt")
    folder_of(tmp_path, {"tinyshakespeare/input.txt": "damaged"})
    with pytest.raises(ValueError, match=r"input\.txt: expected 1000 bytes .* found 7"):
        corpus.open("tinyshakespeare", val_fraction=0.1, raw=tmp_path)
