"""Lists of tokens in parquet and arrow files, copied into shards."""

import importlib

import numpy as np
import pytest

from tests.support.token_files import (
    EOS,
    documents_of,
    flat,
    of_sizes,
    plain,
)
from tinylm.data import importing
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


def test_splits_of_tables_may_come_in_any_order(tmp_path):
    documents = of_sizes([5, 0, 60, 1])
    table(tmp_path / "train.parquet", documents)
    table(tmp_path / "test.parquet", documents[:2])
    names = ["train.parquet", "test.parquet"]
    for order in (names, names[::-1]):
        folder = tmp_path / order[0].partition(".")[0]
        sources = [tmp_path / name for name in order]
        import_shards("parquet", sources, folder, plain(val_fraction=0.5))
        assert documents_of(folder) == documents[:2]
        assert documents_of(folder, "val") == documents[2:]
        assert documents_of(folder, "test") == documents[:2]
    for rows, says in (([], "the file is empty"), ([[1]], "of a single document")):
        table(tmp_path / "train.parquet", rows)
        with pytest.raises(ValueError, match=rf"train\.parquet: .*{says}"):
            import_shards("parquet", sources[1:], tmp_path / "no", plain(val_fraction=0.5))


@pytest.mark.parametrize("every", [1, 3, 7, 100])
def test_documents_by_eos_are_the_same_in_batches_of_any_size(every):
    ids = np.array([1, 2, EOS, EOS, *range(20), EOS, 5])
    cuts = [ids[at : at + every] for at in range(0, len(ids), every)]
    found = []
    for part, ends in importing._by_eos(((cut, np.array([cut.size])) for cut in cuts), EOS):
        found += [document.tolist() for document in np.split(part, ends)[:-1]]
    assert found == [[1, 2, EOS], [EOS], [*range(20), EOS], [5]]


def test_a_page_that_does_not_fit_its_checksum_is_damage(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    ids = arrow.array([[*range(200)]] * 9, arrow.list_(arrow.uint16()))
    write = importlib.import_module("pyarrow.parquet").write_table
    write(
        arrow.table({"ids": ids}),
        path,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    whole = path.read_bytes()
    assert len(documents_of_file(path, tmp_path / "whole")) == 9
    at = whole.index(bytes([100, 0, 0, 0, 101]))
    path.write_bytes(whole[:at] + bytes([101, 0, 0, 0, 100]) + whole[at + 5 :])
    with pytest.raises(
        ValueError, match=r"a\.parquet: is cut off, damaged or no parquet"
    ) as caught:
        documents_of_file(path, tmp_path / "flipped")
    assert "\n" not in str(caught.value)


def documents_of_file(path, folder):
    import_shards("parquet", [path], folder, plain())
    return documents_of(folder)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    for content in (b"", b"PAR1", b"ARROW1", b"some text"):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet: is cut off.*no parquet or arrow"):
            import_shards("parquet", [tmp_path / "a.parquet"], tmp_path / "ours", plain())


def test_without_pyarrow_the_line_to_install_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"pip install 'tinylm\[files\]'"):
        import_shards("parquet", [tmp_path / "a.parquet"], tmp_path / "ours", plain())
