"""Lists of tokens in parquet and arrow files: a row is a document, or a part of a stream.

Needs `pyarrow`, which is imported only when such a file is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.corpus.tables import parquet_file, reading

ENDINGS = (".parquet", ".arrow", ".feather")
# What Hugging Face and others call them, tried in this order.
COLUMNS = ("input_ids", "tokens", "token_ids", "ids")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A reader of parquet, of an arrow file or of an arrow stream, by what it begins with."""
    with reading(path, "parquet or arrow") as pyarrow, path.open("rb") as file:
        magic = file.read(6)
        if magic[:4] == b"PAR1":
            with parquet_file(pyarrow, path) as reader:
                yield reader
            return
        # Hugging Face's datasets keep theirs as streams.
        opened = pyarrow.ipc.open_file if magic == b"ARROW1" else pyarrow.ipc.open_stream
        yield opened(pyarrow.memory_map(str(path)))


def n_rows(path: Path) -> int:
    """Rows of a file; reads the tokens only of arrow files, which do not say it."""
    with _opened(path) as reader:
        if hasattr(reader, "metadata") and hasattr(reader.metadata, "num_rows"):
            return int(reader.metadata.num_rows)
        return sum(batch.num_rows for batch in _record_batches(reader, None))


def batches(
    paths: list[Path], column: str | None, rows: slice
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(ids, the ends of the rows among them) of some rows, counted through all files.

    Raises ValueError if there is no such column, or if it is no list of whole numbers.
    """
    first = 0
    for path in paths:
        with _opened(path) as reader:
            schema = getattr(reader, "schema_arrow", None) or reader.schema
            name = _column(path, schema, column)
            for batch in _record_batches(reader, name):
                begin, end = max(rows.start - first, 0), min(rows.stop - first, batch.num_rows)
                first += batch.num_rows
                if begin < end:
                    yield _lists(path, name, batch.column(name).slice(begin, end - begin))


def _record_batches(reader: Any, column: str | None) -> Iterator[Any]:
    if hasattr(reader, "iter_batches"):
        yield from reader.iter_batches(
            batch_size=4096, columns=None if column is None else [column]
        )
    elif hasattr(reader, "num_record_batches"):
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from reader


def _column(path: Path, schema: Any, wanted: str | None) -> str:
    from pyarrow import types

    def fits(kind: Any) -> bool:
        is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        return bool(is_list) and bool(types.is_integer(kind.value_type))

    lists = [field.name for field in schema if fits(field.type)]
    if wanted is None:
        # One alone needs no name: it can only be this.
        named = [name for name in COLUMNS if name in lists] or (lists if len(lists) == 1 else [])
        if named:
            return named[0]
    elif wanted in lists:
        return wanted
    have = ", ".join(f"{field.name} ({field.type})" for field in schema)
    what = "a list of whole numbers that is known" if wanted is None else repr(wanted)
    raise ValueError(
        f"{path}: no column {what}: name one of lists of whole numbers (--column); it has {have}"
    )


def _lists(path: Path, name: str, array: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from pyarrow import compute

    values = array.flatten()
    if array.null_count or values.null_count:
        raise ValueError(f"{path}: column {name} has nulls, which are no tokens")
    lengths = compute.list_value_length(array).to_numpy(zero_copy_only=False)
    # Ids of any width, also those of uint64 that no vocabulary has.
    ids = values.to_numpy(zero_copy_only=False)
    if ids.dtype == np.uint64 and ids.size and int(ids.max()) >= 2**63:
        raise ValueError(f"{path}: column {name} has the id {ids.max()}, which is too large")
    return ids.astype(np.int64), np.cumsum(lengths, dtype=np.int64)
