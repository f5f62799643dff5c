"""Rows: one object of JSON per line, or one row of a table, its text in the field `text`.

`data.text_field` names another field; `a.b` is the field b of the object in a. Other fields are
passed over, whatever they hold: numbers of any size, NaN, a field that comes twice. Blank lines and
rows whose text is empty are skipped; a byte order mark before the first line and CR LF at the ends
are allowed. Everything else is an error that names file and line.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinylm.corpus import tables
from tinylm.corpus.archives import opened
from tinylm.corpus.reading import TEXT

# Fields that an error lists when the right one is missing.
_SHOWN = 5
# So many first lines decide whether a file of another name holds rows.
_FIRST = 8
# The beginning of a row that is longer than what is looked at.
_ROW_BEGINS = re.compile(rb'\{\s*("text"\s*:\s*"|"messages"\s*:\s*\[)')
_ONE_EACH = "write one whole object per line (jq -c . FILE; of a list, jq -c '.[]' FILE)"

# An object becomes a tuple of pairs, so that a second "text" is seen and a list is told apart.
# As a float, a number may have more than the 4300 digits that Python's int() takes.
_DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float)


def rows(path: Path, field: str = TEXT) -> Iterator[str]:
    """The text of each row; `ValueError` names the file and the line of a bad one."""
    for where, value in _values(path, field):
        problem = _problem(value, field)
        if problem:
            raise ValueError(f"{where} {problem}")
        if value:
            yield value


def _values(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    """What the field of each row holds, after its place for an error."""
    if tables.is_table(path):
        yield from tables.values(path, field)
        return
    for where, line in lines(path):
        value, problem = find(record(line, where), field)
        if problem:
            raise ValueError(f"{where} {problem}")
        yield where, value


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, each after its place for an error."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            data = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if data and not data.isspace():
                yield f"{path}: line {number}", data


def begins_with_rows(block: bytes, field: str = TEXT) -> bool:
    """Whether the first line is a row of text or of a conversation, and the next begin as objects.

    `block` is the beginning of a file, without its byte order mark. Of the next lines, the last
    may go on in another block and one may be torn, so they are not decoded.
    """
    # Of almost every text this is the only test. A program may begin with a brace too.
    if not block.lstrip().startswith(b"{"):
        return False
    # At a carriage return as well: JSON has none within its strings.
    first, *others = [line for line in map(bytes.strip, block.splitlines()) if line][:_FIRST]
    if not others and _ROW_BEGINS.match(first):
        return True
    return _is_row(first, field) and all(line.startswith(b"{") for line in others)


def _is_row(line: bytes, field: str) -> bool:
    try:
        record = _DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return False
    names = {name for name, _ in record} if isinstance(record, tuple) else set()
    return bool(names & {TEXT, "messages", field, field.partition(".")[0]})


def record(line: bytes, where: str) -> Any:
    """A line of JSON decoded, an object as a tuple of (name, value); `ValueError` at `where`."""
    try:
        return _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (its byte {error.start}): convert the file"
    except json.JSONDecodeError as error:
        # In words of the line: the position that json counts is one too small for people.
        at = min(error.pos, len(error.doc.rstrip())) + 1
        what = f"{error.msg.removesuffix(' at')} at character {at}"
        problem = f"is not JSON: {what}: {_advice(line, error)}"
    except RecursionError:
        problem = "is nested too deeply to be read as JSON: mend or remove the line"
    raise ValueError(f"{where} {problem}") from None


def _advice(line: bytes, error: json.JSONDecodeError) -> str:
    """What to do with a line that is not JSON."""
    if error.msg == "Extra data" and b"\r" in line.rstrip():
        return "the lines of the file end with CR alone: convert them (tr '\\r' '\\n')"
    # JSON that is printed over several lines: the object goes on in the next one.
    if error.msg == "Extra data" or error.pos >= len(error.doc.rstrip()):
        return _ONE_EACH
    return "mend or remove the line"


def find(record: Any, field: str) -> tuple[Any, str]:
    """What a decoded row has in `field`, and what is wrong where it is not there once."""
    missing = f'has no text in a field "{field}"'
    if not isinstance(record, tuple):
        return None, f"{missing}: it is {kind_of(record)}, not an object: {_ONE_EACH}"
    found = [value for name, value in record if name == field]
    # A name with a dot in it comes before the field of an object.
    head, dot, rest = field.partition(".")
    if not found and dot:
        inside = [value for name, value in record if name == head]
        if len(inside) == 1 and isinstance(inside[0], tuple):
            return find(inside[0], rest)
    if not found:
        names = ", ".join(json.dumps(name) for name, _ in record[:_SHOWN])
        more = ", ..." if len(record) > _SHOWN else ""
        fix = "rename the one that has it, or name it in data.text_field"
        return None, f"{missing} (its fields: {names or 'none'}{more}): {fix}"
    if len(found) > 1:
        return None, f'has the field "{field}" {len(found)} times: keep one'
    return found[0], ""


def _problem(value: Any, field: str) -> str:
    """Why what a row has in its field is no text; empty if it is one."""
    if not isinstance(value, str):
        missing = f'has no text in a field "{field}": it is {kind_of(value)} there'
        return f"{missing}: give a string or remove the line"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"half of a surrogate pair at character {error.start + 1} of its text"
        return f"is not UTF-8 text: {half}: mend or remove the line"
    return ""


def kind_of(value: Any) -> str:
    """What a decoded value is, in words for an error."""
    kinds = {str: "a string", bool: "true or false", int: "a number", float: "a number"}
    kinds |= {list: "a list"}
    return "null" if value is None else kinds.get(type(value), "an object")
