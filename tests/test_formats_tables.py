"""Lists of tokens in parquet and arrow files, copied into shards."""

import importlib

import pytest

from tests.support.token_files import (
    documents_of,
    flat,
    of_sizes,
    plain,
)
from tinylm.data.importing import import_shards


def table(path, rows, kind=None, name="input_ids"):
    """Rows of ids as parquet, an arrow file or an arrow stream."""
    arrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    importlib.import_module("pyarrow.ipc")
    made = arrow.table(
        {"url": ["x"] * len(rows), name: arrow.array(rows, kind or arrow.list_(arrow.uint16()))}
    )
    if path.suffix == ".parquet":
        parquet.write_table(made, path, row_group_size=2)
        return
    opened = arrow.ipc.new_file if path.suffix == ".feather" else arrow.ipc.new_stream
    with opened(path, made.schema) as writer:
        writer.write_table(made, max_chunksize=3)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
@pytest.mark.parametrize("kind", ["uint16", "uint32", "int32", "int64"])
def test_lists_of_tokens_in_tables_are_read(tmp_path, name, kind):
    arrow = pytest.importorskip("pyarrow")
    documents = of_sizes([5, 0, 60, 1, 31])
    rows = [document[:-1] for document in documents[:2]] + documents[2:]
    table(tmp_path / name, rows, arrow.large_list(getattr(arrow, kind)()), "tokens")
    manifest = import_shards(
        "parquet", [tmp_path / name], tmp_path / "ours", plain(val_fraction=0.4)
    )
    assert documents_of(tmp_path / "ours") == documents[:3]
    assert documents_of(tmp_path / "ours", "val") == documents[3:]
    assert manifest.source["eos_added"] == 2


def test_rows_of_a_stream_are_cut_at_eos(tmp_path):
    documents = of_sizes([5, 0, 60, 1, 31])
    ids = flat(documents)
    table(tmp_path / "a.parquet", [ids[at : at + 8] for at in range(0, len(ids), 8)])
    import_shards("parquet", [tmp_path], tmp_path / "ours", plain(documents="eos"))
    assert documents_of(tmp_path / "ours") == documents


@pytest.mark.parametrize(
    ("rows", "changes", "says"),
    [
        ([[1, None]], {}, "nulls"),
        ([[1], None], {}, "nulls"),
        ([[1, 300]], {}, "token 1 is 300"),
        ([[1]], {"column": "text"}, "no column 'text'.*it has url.*input_ids"),
        ([[1]], {"dtype": "uint16"}, "no meaning"),
        ([[1]], {"eos_id": None}, "name its id"),
    ],
)
def test_tables_that_hold_no_tokens_are_refused(tmp_path, rows, changes, says):
    table(tmp_path / "a.parquet", rows)
    with pytest.raises(ValueError, match=says):
        import_shards("parquet", [tmp_path / "a.parquet"], tmp_path / "ours", plain(**changes))


def test_a_file_that_is_no_table_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    for content in (b"", b"PAR1", b"ARROW1", b"some text"):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet: no parquet or arrow file"):
            import_shards("parquet", [tmp_path / "a.parquet"], tmp_path / "ours", plain())


def test_without_pyarrow_the_line_to_install_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"pip install 'tinylm\[files\]'"):
        import_shards("parquet", [tmp_path / "a.parquet"], tmp_path / "ours", plain())
