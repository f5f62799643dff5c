"""The bytes of a file, unpacked on the way where its name ends in .gz, .bz2, .xz or .zst.

    with opened(Path("part-0.jsonl.gz")) as file:     # reads as part-0.jsonl would
        first = file.readline()

Nothing is unpacked in advance: memory is a few MiB, however much an archive grows. One that is
cut off or damaged is a `ValueError` with its name; half of a text is never taken for the whole.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# What is read from an archive at once. A zstd block of 4 bytes may stand for 128 KiB, so 1 KiB
# grows to at most 32 MiB; the formats of the standard library unpack no more than is asked for.
PIECE = 1 << 10


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file at `path` for reading, unpacked if `is_archive`.

    Raises `ValueError` for an archive that is damaged, and for a `.zst` where neither Python (from
    3.14 on) nor the package `zstandard` can read it.
    """
    if not is_archive(path):
        with path.open("rb") as plain:
            yield plain
        return
    with path.open("rb") as packed:
        inner = _OPENERS[path.suffix.lower()](packed, path)
        # `BufferedReader` gives lines and asks for 64 KiB at a time, not for one line.
        with io.BufferedReader(_Checked(inner, path), 1 << 16) as file:
            yield file


def is_archive(path: Path) -> bool:
    """Whether a file of this name is unpacked before it is read."""
    return path.suffix.lower() in _OPENERS


def inner(path: Path) -> Path:
    """The name of what an archive holds, `a.jsonl` of `a.jsonl.gz`; of another file its own."""
    return path.with_suffix("") if is_archive(path) else path


class _Checked(io.RawIOBase):
    """What an archive holds, its errors in one line with its name."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path, self._at = file, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except EOFError:
            problem = "is cut off"
        except (OSError, zlib.error, lzma.LZMAError, _DamagedError) as error:
            # With a number it is the disk's; gzip and bz2 raise it without one for bad data.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            problem = f"is damaged or no {self._path.suffix.lower()} data"
        else:
            buffer[: len(data)] = data
            self._at += len(data)
            return len(data)
        raise ValueError(
            f"{self._path}: the archive {problem} after {self._at:,} unpacked bytes: fetch it "
            f"again or remove it"
        )


class _DamagedError(Exception):
    """An archive that `zstandard` cannot read."""


class _Zstd:
    """The frames of a `.zst`, one after the other, by the package `zstandard`.

    Its own file object takes an archive that is cut off for a whole one, so `decompressobj`, which
    knows where a frame ends, is fed in pieces.
    """

    def __init__(self, packed: BinaryIO, library: Any) -> None:
        self._packed, self._library = packed, library
        self._frame: Any = None
        self._fed, self._ready, self._at = b"", b"", 0

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        while self._at == len(self._ready):
            fed = self._fed or self._packed.read(PIECE)
            if not fed:
                if self._frame is not None:
                    raise EOFError
                return b""
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            try:
                self._ready, self._at = self._frame.decompress(fed), 0
            except self._library.ZstdError as error:
                raise _DamagedError from error
            self._fed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        data = self._ready[self._at : self._at + size]
        self._at += len(data)
        return data


def _zstd(packed: BinaryIO, path: Path) -> Any:
    try:
        # Python 3.14 and newer; it raises EOFError for an archive that is cut off.
        from compression import zstd
    except ModuleNotFoundError:
        try:
            import zstandard
        except ModuleNotFoundError:
            raise ValueError(
                f"{path} needs zstandard, which is not installed: pip install 'tinylm[files]'"
            ) from None
        return _Zstd(packed, zstandard)
    return _Translated(zstd.ZstdFile(packed), zstd.ZstdError)


class _Translated:
    """A file whose own kind of error is `_DamagedError`."""

    def __init__(self, file: Any, error: type[Exception]) -> None:
        self._file, self._error = file, error

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        try:
            data: bytes = self._file.read(size)
        except self._error as error:
            raise _DamagedError from error
        return data


_OPENERS: dict[str, Callable[[BinaryIO, Path], Any]] = {
    ".gz": lambda packed, path: gzip.GzipFile(fileobj=packed),
    ".bz2": lambda packed, path: bz2.BZ2File(packed),
    # Closed with the file that it reads.
    ".xz": lambda packed, path: lzma.LZMAFile(packed),  # noqa: SIM115
    ".zst": _zstd,
    ".zstd": _zstd,
}
ARCHIVES = tuple(_OPENERS)
