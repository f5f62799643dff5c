"""Files that are packed, and tables: read as what they hold, in bounded memory, or named."""

import bz2
import gzip
import json
import lzma
import sys
import tracemalloc

import pytest

from tests.test_corpus import HALF, folder_of
from tests.test_corpus_kinds import documents, rows
from tinylm import corpus
from tinylm.corpus.archives import opened
from tinylm.tokenizer import Tokenizer

zstandard = pytest.importorskip("zstandard")
pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".ZSTD": zstandard.compress,
}
EACH = pytest.mark.parametrize("ending", PACK)
TEXTS = [f"document {k} caf\xe9\n" * 9 for k in range(40)]
PLAIN = {
    "a.jsonl": rows(*TEXTS),
    "a.txt": "\ufeff" + "".join(TEXTS),
    "marks.txt": "<|endoftext|>\n".join(TEXTS),
    "a": "of no ending\n" * 99,
}


def table(path, **columns):
    """A parquet file of these columns, in groups of 16 rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=16)
    return path


@EACH
@pytest.mark.parametrize("name", PLAIN)
def test_an_archive_is_the_corpus_of_what_it_holds(tmp_path, name, ending):
    content = PLAIN[name].encode()
    folder_of(tmp_path, {name: content, name + ending: PACK[ending](content)})
    plain, packed = (corpus.open(str(tmp_path / n), **HALF) for n in (name, name + ending))
    assert list(packed.train()) == list(plain.train())
    assert list(packed.validation()) == list(plain.validation())
    assert (packed.fingerprint, packed.bytes) == (plain.fingerprint, plain.bytes)


@EACH
def test_archives_of_several_parts_are_read_to_their_end(tmp_path, ending):
    parts = [rows(*TEXTS[:20]).encode(), rows(*TEXTS[20:]).encode()]
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(b"".join(map(PACK[ending], parts)))
    assert documents(corpus.open(str(path), **HALF)) == sorted(TEXTS)


def test_a_folder_may_hold_every_kind(tmp_path):
    files = {
        f"{k}.jsonl{end}": PACK[end](rows(*TEXTS[k::6]).encode()) for k, end in enumerate(PACK)
    }
    folder_of(tmp_path, files)
    table(tmp_path / "deep/5.parquet", text=TEXTS[5::6])
    text = corpus.open(str(tmp_path), **HALF)
    assert documents(text) == sorted(TEXTS)
    assert text.files == 6


@EACH
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_an_archive_that_is_cut_off_or_damaged_is_named_in_one_line(tmp_path, name, ending):
    packed = PACK[ending](b"".join(b'{"text": "%d"}\n' % (k * k) for k in range(2000)))
    for data in (packed[:-9], packed[: len(packed) // 2], b"no archive at all " * 9):
        folder_of(tmp_path, {name + ending: data, "b.txt": "text"})
        for source in (tmp_path / (name + ending), tmp_path):
            with pytest.raises(
                ValueError, match=r"the archive is (cut off|damaged|damag)"
            ) as caught:
                list(corpus.open(str(source), **HALF).train())
            assert name + ending in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("ending", "megabytes"), [(".gz", 32), (".bz2", 8), (".zst", 256)])
def test_memory_does_not_grow_with_what_an_archive_holds(tmp_path, ending, megabytes):
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(PACK[ending](bytes(megabytes << 20)))
    assert path.stat().st_size < 50_000
    # The libraries' own memory is not seen by tracemalloc, what they return is.
    tracemalloc.start()
    try:
        with opened(path) as file:
            while file.read(1 << 16):
                pass
        assert tracemalloc.get_traced_memory()[1] < (megabytes << 20) // 3
    finally:
        tracemalloc.stop()


def test_what_is_no_text_is_none_in_an_archive_either(tmp_path):
    archive = gzip.compress
    folder_of(
        tmp_path,
        {
            "a.csv.gz": archive(b"a,b\n"),
            "b.txt.gz": archive(archive(b"text")),
            "c.gz": archive(b"\x89PNG\0\0"),
            "d.txt.gz": archive(b""),
            "e.txt.gz": archive("text".encode("utf-16")),
            "f.parquet.gz": archive(b"PAR1\x15"),
        },
    )
    with pytest.raises(ValueError, match="no text file; 6 left out: ") as caught:
        corpus.open(str(tmp_path), **HALF)
    for reason in ("archive of .csv data", "of gzip data", "binary", "empty", "UTF-16", "parquet"):
        assert reason in str(caught.value)


@EACH
def test_a_tokenizer_learns_from_archives(tmp_path, ending):
    folder_of(tmp_path, {f"a.txt{ending}": PACK[ending](b"aaa bbb ccc\n" * 99)})
    # What the file holds, and not its packed bytes, is learned.
    made = Tokenizer.train_files([tmp_path / f"a.txt{ending}"], vocab_size=265)
    assert len(made.encode("aaa bbb ccc")) <= 6


def test_without_the_packages_the_line_says_what_to_install(tmp_path, monkeypatch):
    folder_of(tmp_path, {"a/a.txt.zst": PACK[".zst"](b"text")})
    table(tmp_path / "b/a.parquet", text=["a", "b"])
    for name in ("zstandard", "compression", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    for place, package in (("a", "zstandard"), ("b", "pyarrow")):
        # Left out, a folder would be another text on another machine.
        with pytest.raises(ValueError, match=rf"needs {package}, .* pip install 'tinylm\[files\]'"):
            corpus.open(str(tmp_path / place), **HALF)


# Tables


def test_a_table_is_a_document_a_row(tmp_path):
    path = table(tmp_path / "a.parquet", id=list(range(41)), text=[*TEXTS, ""])
    text = corpus.open(str(path), **HALF)
    assert documents(text) == sorted(TEXTS)
    lines = folder_of(tmp_path, {"a.jsonl": rows(*TEXTS)}) / "a.jsonl"
    assert list(text.validation()) == list(corpus.open(str(lines), **HALF).validation())


def test_a_table_of_messages_is_conversations(tmp_path):
    turns = [
        [{"role": "user", "content": f"{k}?"}, {"role": "assistant", "content": str(k)}]
        for k in range(20)
    ]
    path = table(tmp_path / "a.parquet", messages=turns)
    text = corpus.open(str(path), **HALF)
    assert text.kind == "chat"
    lines = "".join(json.dumps({"messages": turn}) + "\n" for turn in turns)
    wanted = corpus.open(str(folder_of(tmp_path, {"b.jsonl": lines}) / "b.jsonl"), **HALF)
    assert documents(text) == documents(wanted)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (
            {"content": ["a", "b"]},
            r'has no column "text" \(its columns: content\): .* data\.text_field',
        ),
        ({"text": ["a", None]}, r'row 2 has no text in a field "text": it is null there'),
        ({"text": [1, 2]}, r"row 1 has no text .* it is a number there"),
        ({"text": pyarrow.array([], pyarrow.string())}, r"is empty"),
    ],
)
def test_a_table_without_texts_is_named(tmp_path, columns, problem):
    path = table(tmp_path / "a.parquet", **columns)
    with pytest.raises(ValueError, match=rf"a\.parquet: {problem}") as caught:
        list(corpus.open(str(path), **HALF).train())
    assert "\n" not in str(caught.value)


def test_a_table_that_is_cut_off_or_damaged_is_named_in_one_line(tmp_path):
    whole = table(tmp_path / "a.parquet", text=TEXTS).read_bytes()
    middle = len(whole) // 4
    for data in (whole[:-9], b"text", whole[:middle] + bytes(99) + whole[middle + 99 :]):
        (tmp_path / "a.parquet").write_bytes(data)
        for source in (tmp_path / "a.parquet", tmp_path):
            with pytest.raises(ValueError, match=r"a\.parquet: is cut off, damaged") as caught:
                list(corpus.open(str(source), **HALF).train())
            assert "\n" not in str(caught.value)


def test_a_page_that_does_not_fit_its_checksum_is_damage(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pyarrow.table({"text": TEXTS}), path, compression="none", write_page_checksum=True
    )
    whole = path.read_bytes()
    at = whole.index(TEXTS[3].encode())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1, whole[at + 1] ^ 1]) + whole[at + 2 :])
    with pytest.raises(ValueError, match=r"a\.parquet: is cut off, damaged") as caught:
        list(corpus.open(str(path), **HALF).train())
    assert "\n" not in str(caught.value)


# Fields


@pytest.mark.parametrize("field", ["meta.nope", "meta.raw.deep", "text.x", "metal", "many.deep"])
def test_a_field_that_no_structure_of_a_table_has_is_named(tmp_path, field):
    columns = {"meta": [{"raw": "a"}] * 2, "text": ["a", "b"], "many": [[{"deep": "a"}]] * 2}
    path = table(tmp_path / "a.parquet", **columns)
    with pytest.raises(ValueError, match=rf'has no column "{field}" .*: meta, meta\.raw, text'):
        corpus.open(str(path), text_field=field, **HALF)


def test_a_field_of_a_table_may_have_a_dot_in_its_name(tmp_path):
    path = table(tmp_path / "a.parquet", meta=[{"a.b": {"c": text}} for text in TEXTS])
    assert documents(corpus.open(str(path), text_field="meta.a.b.c", **HALF)) == sorted(TEXTS)


def test_another_field_may_hold_the_text(tmp_path):
    lines = [{"text": "no", "content": t, "meta": {"raw": t, "a.b": t}} for t in TEXTS]
    folder_of(tmp_path, {"a.jsonl": "".join(json.dumps(line) + "\n" for line in lines)})
    table(tmp_path / "a.parquet", **{k: [line[k] for line in lines] for k in lines[0]})
    for name in ("a.jsonl", "a.parquet"):
        whole = {corpus.open(str(tmp_path / name), **HALF).fingerprint}
        for field in ("content", "meta.raw"):
            text = corpus.open(str(tmp_path / name), text_field=field, **HALF)
            assert documents(text) == sorted(TEXTS)
            assert text.provenance()["text_field"] == field
            whole.add(text.fingerprint)
        assert len(whole) == 3


def test_a_name_with_a_dot_comes_before_a_field_of_an_object(tmp_path):
    lines = '{"a.b": "dotted", "a": {"b": "nested"}}\n{"a": {"b": "nested"}}\n'
    path = folder_of(tmp_path, {"a.jsonl": lines}) / "a.jsonl"
    assert documents(corpus.open(str(path), text_field="a.b", **HALF)) == ["dotted", "nested"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "a"}', r'no text in a field "a\.b" \(its fields: "text"\)'),
        ('{"a": {"c": "a"}}', r'no text in a field "b" \(its fields: "c"\)'),
        ('{"a": {"b": 3}}', r'no text in a field "a\.b": it is a number there'),
    ],
)
def test_a_row_without_the_field_is_named(tmp_path, line, problem):
    path = folder_of(tmp_path, {"a.jsonl": line}) / "a.jsonl"
    with pytest.raises(ValueError, match=rf"a\.jsonl: line 1 has {problem}"):
        corpus.open(str(path), text_field="a.b", **HALF)
    with pytest.raises(ValueError, match=r"data\.text_field=''"):
        corpus.open(str(path), text_field="", **HALF)


def test_a_field_of_no_row_is_named(tmp_path):
    folder_of(tmp_path, {"a.txt": "text\n" * 9, "b/b.jsonl": '{"c": "a"}\n{"c": "b"}\n'})
    for source, is_told in (("a.txt", True), ("b", False)):
        text = corpus.open(str(tmp_path / source), text_field="c", **HALF)
        assert any("data.text_field=c names a field of rows" in n for n in text.notes) == is_told
