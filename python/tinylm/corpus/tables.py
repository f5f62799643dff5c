"""Rows of parquet files by `pyarrow`: one document in each row of a column of texts.

    for place, value in values(Path("train-0.parquet"), "text"): ...

A file is read some rows at a time, of one column; a column of conversations is named `messages`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDING = ".parquet"
# Rows that are decoded at once: few, because one may be a book.
ROWS = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """What the end of a parquet file says of its column: bytes of the values, and of what kind."""

    rows: int
    bytes: int
    columns: tuple[str, ...]


def is_table(path: Path) -> bool:
    """Whether a file of this name is read as parquet."""
    return path.suffix.lower() == ENDING


def shape(path: Path, column: str) -> Shape:
    """The size of a column, and the names of all; reads the end of the file alone.

    Raises `ValueError` for a file that is no parquet, and without `pyarrow`.
    """
    with _table(path) as table:
        found = table.metadata
        # A column of a column, such as the contents of messages, counts to the one that holds it.
        size = sum(
            part.total_uncompressed_size
            for group in map(found.row_group, range(found.num_row_groups))
            for part in map(group.column, range(group.num_columns))
            if f"{part.path_in_schema}.".startswith(f"{column}.")
        )
        return Shape(found.num_rows, size, tuple(table.schema_arrow.names))


def values(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    """Each row's value in `column` (`a.b`: in field b of a), after its place for an error."""
    number = 0
    with _table(path) as table:
        for batch in table.iter_batches(ROWS, columns=[column]):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", _within(row, column)


def _within(row: dict[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        # A structure that is null holds nothing.
        value = None if value is None else value[name]
    return value


@contextmanager
def _table(path: Path) -> Iterator[Any]:
    """The opened file; what `pyarrow` finds wrong with it is a `ValueError` with its name."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ValueError(
            f"{path} needs pyarrow, which is not installed: pip install 'tinylm[files]'"
        ) from None
    try:
        with path.open("rb") as file, parquet.ParquetFile(file) as table:
            yield table
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(
            f"{path}: is cut off, damaged or no parquet data ({_line(error)}): fetch it again or "
            f"remove it"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
