"""Rows of parquet files by `pyarrow`: one document in each row of a column of texts.

    for place, value in values(Path("train-0.parquet"), "text"): ...

A file is read some rows at a time, of one column; a column of conversations is named `messages`.
Damage is found where the file has checksums of its pages, which its writer may leave out
(`write_page_checksum` of `pyarrow`), and where what is left cannot be decoded.
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
    # Those of structures too, as `meta` and `meta.raw`.
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
        return Shape(found.num_rows, size, tuple(_names(table.schema_arrow)))


def _names(fields: Any, prefix: str = "") -> Iterator[str]:
    for field in fields:
        yield f"{prefix}{field.name}"
        # Of a list, the fields are no column of one value in each row.
        if field.type.num_fields and hasattr(field.type, "get_field_index"):
            within = map(field.type.field, range(field.type.num_fields))
            yield from _names(within, f"{prefix}{field.name}.")


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
    for name, value in row.items():
        # A structure that is null holds nothing.
        if column.startswith(f"{name}.") and value is not None:
            return _within(value, column.removeprefix(f"{name}."))
    return None


@contextmanager
def _table(path: Path) -> Iterator[Any]:
    with reading(path) as pyarrow, path.open("rb") as file, parquet_file(pyarrow, file) as table:
        yield table


def parquet_file(pyarrow: Any, source: Any) -> Any:
    """A reader of a parquet file that holds each page against its checksum, if it has one."""
    return pyarrow.parquet.ParquetFile(source, page_checksum_verification=True)


@contextmanager
def reading(path: Path, kind: str = "parquet") -> Iterator[Any]:
    """`pyarrow`; what it finds wrong in the block is a `ValueError` with the name of the file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ValueError(
            f"{path} needs pyarrow, which is not installed: pip install 'tinylm[files]'"
        ) from None
    try:
        yield pyarrow
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(
            f"{path}: is cut off, damaged or no {kind} data ({_line(error)}): fetch it again or "
            f"remove it"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
