"""A file is read by what it holds, and what is not read is refused, or counted and named."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.test_corpus import HALF, folder_of
from tinylm import corpus


def rows(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def documents(text):
    """Every document of a corpus, sorted."""
    return sorted([*text.train(), *text.validation()])


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", data)
    return buffer.getvalue()


def tarred(data):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(data)
        file.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


TEXT = b"a line of text\n" * 99
# By the reason that is given: how such a file begins, and an ending that tells it.
FOREIGN = {
    "gzip data": (gzip.compress(TEXT), None),
    "bzip2 data": (bz2.compress(TEXT), None),
    "xz data": (lzma.compress(TEXT), None),
    "zstd data": (b"\x28\xb5\x2f\xfd" + TEXT, None),
    "zip data": (zipped(TEXT), ".zip"),
    "tar data": (tarred(TEXT), ".tar"),
    "parquet data": (b"PAR1\x15\x04\x15" + TEXT + b"PAR1", None),
    "arrow data": (b"ARROW1\0\0" + TEXT, ".arrow"),
    "PDF data": (b"%PDF-1.7\n" + TEXT, ".pdf"),
    "sqlite data": (b"SQLite format 3\0" + TEXT, ".sqlite"),
    "UTF-16": (TEXT.decode().encode("utf-16"), None),
    "UTF-32": (TEXT.decode().encode("utf-32"), None),
    "binary data": (b"\x89PNG\r\n\x1a\n\0\0" + TEXT, None),
}
# Text that is no text to train on, and only its ending says so.
TELLING = [".json", ".csv", ".tsv", ".tar.lz4", ".TGZ", ".docx", ".epub", ".7z"]


@pytest.mark.parametrize("name", ["a.txt", "a", "A.JSONL", "a.md"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_text_is_refused_by_its_first_bytes_under_any_name(tmp_path, kind, name):
    path = folder_of(tmp_path, {name: FOREIGN[kind][0]}) / name
    with pytest.raises(ValueError, match=rf"{name}: {kind}, which is not read as text: ") as caught:
        corpus.open(str(path), **HALF)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [*TELLING, *(end for _, end in FOREIGN.values() if end)])
def test_what_is_no_text_is_refused_by_its_ending(tmp_path, ending):
    path = folder_of(tmp_path, {f"a{ending}": TEXT}) / f"a{ending}"
    with pytest.raises(ValueError, match=r"data, which is not read as text: \w+ "):
        corpus.open(str(path), **HALF)


@pytest.mark.parametrize("start", ["BZh", "PK", "PAR1", "%", "Rar!", "{}", "a\ufeff", "\x1b["])
def test_a_text_may_begin_as_a_format_nearly_does(tmp_path, start):
    path = folder_of(tmp_path, {"a.txt": f"{start} and more"}) / "a.txt"
    assert "".join(corpus.open(str(path), val_fraction=1).validation()) == f"{start} and more"


def test_rows_are_rows_wherever_they_lie(tmp_path):
    folder_of(
        tmp_path,
        {
            "part-0.jsonl": rows("a", "b"),
            "deep/er/part-1.JSONL": rows("c", "d"),
            "part-2.ndjson": rows("e", "f"),
            "notes.txt": "text as it is",
            "code.py": 'x = {"text": "no row"}\n',
        },
    )
    text = corpus.open(str(tmp_path), **HALF)
    assert documents(text) == sorted(["text as it is", 'x = {"text": "no row"}\n', *"abcdef"])
    for name in ("deep/er/part-1.JSONL", "part-2.ndjson"):
        assert len(documents(corpus.open(str(tmp_path / name), **HALF))) == 2


def test_a_row_is_in_the_same_split_in_every_file_that_has_it(tmp_path):
    texts = [f"row {k}" for k in range(40)]
    folder_of(tmp_path, {"all.jsonl": rows(*texts)})
    folder_of(tmp_path / "parts", {f"{k}.jsonl": rows(*texts[k::3]) for k in range(3)})
    one, parts = (corpus.open(str(tmp_path / name), **HALF) for name in ("all.jsonl", "parts"))
    assert sorted(one.validation()) == sorted(parts.validation())
    # Nearly the same bytes, but other documents.
    folder_of(tmp_path / "texts", {f"{k}.txt": "x" + rows(*texts[k::3]) for k in range(3)})
    assert corpus.open(str(tmp_path / "texts"), **HALF).fingerprint != parts.fingerprint


def test_a_folder_says_what_it_takes_and_what_it_leaves_out(tmp_path):
    texts = {f"{k}.txt": f"file {k}" for k in range(9)}
    foreign = {
        "a.tgz": FOREIGN["gzip data"][0],
        "b.txt": FOREIGN["UTF-16"][0],
        "c.txt": "text".encode("utf-16-le"),
        "d.png": FOREIGN["binary data"][0],
        "e.png": FOREIGN["binary data"][0],
        "f.csv": "a,b\n",
        "g.txt": b"caf\xe9",
        "h.txt": b"",
        ".git/config": "hidden",
    }
    folder = folder_of(tmp_path / "texts", {**texts, **foreign})
    folder_of(tmp_path / "elsewhere", {"x.txt": "x"})
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "broken").symlink_to(tmp_path / "nothing")
    (folder / "9.txt").symlink_to(tmp_path / "elsewhere/x.txt")
    os.mkfifo(folder / "pipe")
    text = corpus.open(str(folder), **HALF)
    assert documents(text) == sorted([*texts.values(), "x"])
    (note,) = text.notes
    assert note.startswith(f"data.source={folder}: 10 files taken, 12 left out: ")
    reasons = dict(part.rstrip(")").split(" (") for part in note.partition("out: ")[2].split(", "))
    assert reasons == {
        "1 .csv data": "f.csv",
        "1 UTF-16": "b.txt",
        "3 binary data": "c.txt",
        "1 broken links": "broken",
        "1 empty": "h.txt",
        "1 gzip data": "a.tgz",
        "1 hidden": ".git",
        "1 linked folders": "linked",
        "1 not UTF-8": "g.txt",
        "1 pipes or devices": "pipe",
    }


def test_a_folder_without_text_says_what_lies_there(tmp_path):
    folder_of(tmp_path, {"a.tgz": FOREIGN["gzip data"][0], "b/c.epub": TEXT, ".d": "d"})
    with pytest.raises(ValueError, match=r"no text file; 3 left out: .*\.epub data \(b/c\.epub"):
        corpus.open(str(tmp_path), **HALF)


def test_a_file_or_folder_that_may_not_be_read_is_counted(tmp_path, monkeypatch):
    folder_of(tmp_path, {"a.txt": "one\ntwo\n", "b.txt": "b", "c/d.txt": "d"})
    real_open, real_scan = Path.open, os.scandir

    def refuse(path, *given, **named):
        if Path(path).name in ("b.txt", "c"):
            raise PermissionError(13, "Permission denied", str(path))
        return (real_scan if isinstance(path, str) else real_open)(path, *given, **named)

    # Root, as which tests may run, may read everything.
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    text = corpus.open(str(tmp_path), **HALF)
    assert "1 files taken, 2 left out: 1 unreadable (b.txt), 1 unreadable folders (c)" in str(text)


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"\xff", b"new\nline.txt"])
def test_a_name_of_any_bytes_is_taken(tmp_path, name):
    folder_of(tmp_path, {f"{k}.txt": f"file {k}" for k in range(9)})
    for path in (os.fsencode(tmp_path / "x") + name, os.fsencode(tmp_path / "y") + name):
        Path(os.fsdecode(path)).write_bytes(b"named" if b"/x" in path else b"\0")
    text = corpus.open(str(tmp_path), **HALF)
    assert "named" in documents(text)
    # What is printed of it is one line of text.
    (note,) = text.notes
    assert "1 binary data (y" in note
    assert note.encode().decode().isprintable()


def test_a_source_whose_own_name_is_not_utf_8_is_refused(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9.txt"))
    path.write_text("text")
    with pytest.raises(ValueError, match=r"its name is not UTF-8: rename it"):
        corpus.open(str(path), **HALF)


def test_a_pipe_cannot_be_read_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a pipe or a device: save its text to a file"):
        corpus.open(str(tmp_path / "pipe"), **HALF)


# Rows

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (f'{{"text": {DEEP}}}', "is nested too deeply"),
        (f'{{"text": "a", "meta": {DEEP}}}', "is nested too deeply"),
        ("[" * 100_000, "is nested too deeply"),
        (f'{{"text": {"1" * 5000}}}', 'has no text in a field "text": it is a number there'),
        ('{"text": null}', 'has no text in a field "text": it is null there'),
        ('{"text": ["a"]}', "it is a list there"),
        ('{"text": {"text": "a"}}', "it is an object there"),
        ('{"text": NaN}', "it is a number there"),
        ('{"text": true}', "it is true or false there"),
        ('{"content": "a", "id": 3}', r'\(its fields: "content", "id"\): rename'),
        ("{}", r"\(its fields: none\)"),
        ('{"text": "a", "text": "b"}', 'has the field "text" 2 times'),
        ('{"text": "a", "te\\u0078t": "b"}', 'has the field "text" 2 times'),
        ('{"text": "a"', "is not JSON: Expecting ',' delimiter at character 13"),
        ('{"text": "a', "is not JSON: Unterminated string"),
        ('{"text": "a"} {"text": "b"}', "is not JSON: Extra data"),
        ('{"text": "tail \\udc80"}', "half of a surrogate pair at character 6"),
        ("3", "it is a number, not an object"),
        ("null", "it is null, not an object"),
    ],
    ids=lambda value: value[:24],
)
def test_a_row_that_cannot_be_read_is_named_by_file_and_line(tmp_path, line, problem):
    path = folder_of(tmp_path, {"a.jsonl": rows("good") + line}) / "a.jsonl"
    for source in (path, tmp_path):
        with pytest.raises(ValueError, match=rf"a\.jsonl: line 2 .*{problem}") as caught:
            list(corpus.open(str(source), **HALF).train())
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_what_does_not_matter_in_a_row_is_passed_over(tmp_path):
    lines = [
        '\ufeff{"text": "mark"}',
        '{"text": "crlf"}\r',
        f'{{"n": {"1" * 5000}, "text": "number"}}',
        '{"x": NaN, "y": -Infinity, "z": 1e999, "text": "floats"}',
        '{"id": 1, "id": 2, "text": "twice"}',
        '{"meta": {"text": 3, "a": [{"text": "b"}]}, "text": "nested"}',
        '{"text": "\\ud83d\\ude00\\u0000"}',
        "  \t",
        '{"text": ""}',
        '  {"text": "blanks"}  ',
    ]
    path = folder_of(tmp_path, {"a.jsonl": "\n".join(lines)}) / "a.jsonl"
    wanted = ["mark", "crlf", "number", "floats", "twice", "nested", "\U0001f600\0", "blanks"]
    assert documents(corpus.open(str(path), **HALF)) == sorted(wanted)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"text": "a\tb"}', "Invalid control character at character 12: mend"),
        (b'{"text": "a', "Unterminated string starting at character 10: mend"),
        (b'{\n  "text": "a"\n}\n', "at character 2: write one whole object per line"),
        (b'{"text": "a",\n"id": 3}\n', "write one whole object per line"),
        (b'[{"text": "a"}, {"text": "b"}]', "it is a list, not an object: write one whole object"),
        (b'[\n{"text": "a"}\n]', r"of a list, jq -c '\.\[\]' FILE"),
        (b'{"text": "a"} {"text": "b"}', "Extra data at character 15: write one whole object"),
        (b'{"text": "a"}\r{"text": "b"}\r', "end with CR alone: convert them"),
    ],
)
def test_the_error_of_a_row_says_how_to_mend_it(tmp_path, content, words):
    path = folder_of(tmp_path, {"a.jsonl": content}) / "a.jsonl"
    with pytest.raises(ValueError, match=rf"line 1 .*{words}") as caught:
        corpus.open(str(path), **HALF)
    assert "at at" not in str(caught.value)


# Rows under other names, byte order marks, zero bytes


@pytest.mark.parametrize("ending", [".jl", ".jsonlines", ".ldjson", ".JL"])
def test_every_usual_ending_of_rows_is_read_as_rows(tmp_path, ending):
    path = folder_of(tmp_path, {f"a{ending}": rows("one", "two", "three")}) / f"a{ending}"
    assert documents(corpus.open(str(path), **HALF)) == ["one", "three", "two"]


LONG = "word " * 300_000
UNNAMED = {
    "rows": rows("one", "two", "three", "four"),
    "one row": rows("one"),
    "text after another field": '{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n',
    "blank lines and CR": '\n{"text": "a"}\r\n\r\n{"text": "b"}',
    "CR alone": '{"text": "a"}\r{"text": "b"}',
    "a mark": '\ufeff{"text": "a"}\n{"text": "b"}\n',
    "a torn row": '{"text": "a"}\n{"text": "b\n{"text": "c"}\n',
    "a row over several blocks": rows(LONG, "b"),
}


@pytest.mark.parametrize("separator", ["auto", "off", "##"])
@pytest.mark.parametrize("kind", UNNAMED)
def test_rows_under_another_name_are_not_trained_on_with_their_braces(tmp_path, kind, separator):
    folder = folder_of(
        tmp_path, {"a.txt": UNNAMED[kind], "b": UNNAMED[kind], "c.txt": "text\n" * 9}
    )
    for name in ("a.txt", "b"):
        with pytest.raises(ValueError, match=rf"{name}: .* rename it to end in \.jsonl"):
            corpus.open(str(folder / name), separator=separator, **HALF)
    text = corpus.open(str(folder), separator=separator, **HALF)
    assert "".join([*text.train(), *text.validation()]) == "text\n" * 9
    assert "1 files taken, 2 left out: 2 rows of JSON not named .jsonl (a.txt)" in text.notes[0]


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a"}\nis a row, says this page.\n',
        '{"name": "a"}\n{"name": "b"}\n',
        '["text"]\n["text"]\n',
        "{ text }\n",
        "{" * 100_000,
        'print({"text": "a"})\n',
    ],
)
def test_a_text_with_braces_is_text(tmp_path, content):
    path = folder_of(tmp_path, {"a.txt": content}) / "a.txt"
    assert list(corpus.open(str(path), val_fraction=1).validation()) == [content]


@pytest.mark.parametrize(
    "content", ["one\ntwo\ufeff\n", "one\u00e9\n" * 9, "<|endoftext|>\none\n<|endoftext|>two"]
)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "folder"])
def test_a_byte_order_mark_is_no_text(tmp_path, name, content):
    texts = []
    for place, mark in (("plain", ""), ("marked", "\ufeff")):
        files = {"a.txt" if name == "folder" else name: mark + content}
        path = folder_of(tmp_path / place, files) / ("" if name == "folder" else name)
        texts.append(corpus.open(str(path), **HALF))
    plain, marked = texts
    assert list(marked.train()) == list(plain.train())
    assert list(marked.validation()) == list(plain.validation())
    assert (marked.fingerprint, marked.bytes) == (plain.fingerprint, plain.bytes)


def test_without_a_byte_order_mark_the_fingerprint_is_the_hash_of_the_file(tmp_path):
    folder_of(tmp_path, {"a.txt": TEXT, "b.txt": b"\xef\xbb\xbf"})
    text = corpus.open(str(tmp_path / "a.txt"), **HALF)
    assert (text.fingerprint, text.bytes) == (hashlib.sha256(TEXT).hexdigest(), len(TEXT))
    with pytest.raises(ValueError, match=r"b\.txt: is empty"):
        corpus.open(str(tmp_path / "b.txt"), **HALF)


@pytest.mark.parametrize("at", [0, 100, 8191, 8192, 1 << 20, (1 << 20) + 3])
def test_a_zero_byte_anywhere_in_a_text_is_refused(tmp_path, at):
    folder_of(tmp_path, {"a.txt": b"a" * at + b"\0" + b"b" * 9, "b.txt": "text\n" * 9})
    with pytest.raises(ValueError, match=rf"a\.txt: binary data, .* byte {at} is zero: remove"):
        corpus.open(str(tmp_path / "a.txt"), **HALF)
    note = corpus.open(str(tmp_path), **HALF).notes[0]
    assert note.endswith("1 files taken, 1 left out: 1 binary data (a.txt)")


# A source that changes

CHANGES = {
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"more\n"),
    "cut": lambda path: os.truncate(path, 20),
    "of equal size": lambda path: path.write_bytes(path.read_bytes().swapcase()),
    "another file": lambda path: os.replace(folder_of(path.parent, {"b": "b"}) / "b", path),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "marks.txt", "folder"])
def test_a_file_that_changes_after_it_was_hashed_is_named(tmp_path, name, change):
    content = {
        "a.jsonl": rows(*(f"row {k}" for k in range(20))),
        "marks.txt": "\n<|endoftext|>\n".join(f"document {k}" for k in range(20)),
    }.get(name, "a line of text\n" * 9)
    folder = name == "folder"
    path = folder_of(tmp_path / "x", {"a.txt" if folder else name: content})
    path = path / ("a.txt" if folder else name)
    os.utime(path, ns=(0, 0))
    text = corpus.open(str(path.parent if folder else path), **HALF)
    CHANGES[change](path)
    for split in (text.train, text.validation):
        with pytest.raises(ValueError, match=rf"{path.name}: changed while it was being read"):
            list(split())
