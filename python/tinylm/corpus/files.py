"""Single files: a text, whose last part is validation, or a jsonl of documents."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from tinylm.corpus.documents import Corpus, decode, in_validation


def file(
    path: Path, name: str, source: str, val_fraction: float, fingerprint: str | None = None
) -> Corpus:
    """The documents of one file; its SHA-256 is computed unless the caller knows it.

    Raises `ValueError` for a file that is empty or too small to be cut.
    """
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"data.source={source} is empty")
    if fingerprint is None:
        with path.open("rb") as text:
            fingerprint = hashlib.file_digest(text, "sha256").hexdigest()
    if path.suffix == ".jsonl":

        def documents(validation: bool) -> Iterator[str]:
            for text in _lines(path):
                if in_validation(text.encode(), val_fraction) == validation:
                    yield text
    else:
        cut = _cut(path, int((1 - val_fraction) * size))
        if val_fraction < 1 and cut in (0, size):
            raise ValueError(
                f"data.source={source} of {size} bytes is too small for "
                f"data.val_fraction={val_fraction}"
            )

        def documents(validation: bool) -> Iterator[str]:
            if not validation and cut == 0:
                return
            with path.open("rb") as text:
                text.seek(cut if validation else 0)
                data = text.read() if validation else text.read(cut)
            yield decode(data, path, cut if validation else 0)

    return Corpus(name, source, 1, size, fingerprint, val_fraction, documents)


def _cut(path: Path, at: int) -> int:
    """The start of the character that holds byte `at`."""
    with path.open("rb") as file:
        first = max(0, at - 3)
        file.seek(first)
        data = file.read(at - first + 1)
    while at > first and data[at - first] & 0xC0 == 0x80:
        at -= 1
    return at


def _lines(path: Path) -> Iterator[str]:
    """The texts of a jsonl file; blank lines and empty texts are skipped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                text = record["text"]
                text.encode()
            except UnicodeError:
                raise ValueError(f"{path}: line {number} is not UTF-8 text") from None
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not JSON: {error}") from None
            except (KeyError, TypeError, AttributeError):
                raise ValueError(f'{path}: line {number} has no text in a field "text"') from None
            if text:
                yield text
