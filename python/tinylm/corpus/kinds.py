"""Whether a file holds text, rows or neither, by its ending and its first bytes.

The ending decides in any spelling (`A.JSONL`), of an archive the one before (`a.jsonl.gz`). The
first bytes have the last word: a gzip that is named `a.txt` is no text.
"""

import codecs
from pathlib import Path

from tinylm.corpus.archives import inner, is_archive
from tinylm.corpus.tables import is_table

ROWS = (".jsonl", ".ndjson", ".jsonlines", ".jl", ".ldjson")
# So many bytes show a binary format.
HEAD = 8192

_UNPACK = "unpack it first"
_NAME = "rename it to end in {}"
_WRITE_ROWS = 'write its texts to a .jsonl, one {"text": ...} per line'
_SAVE_AS_TEXT = "save it as plain text"
# What people keep texts in and TinyLM does not open, with the way out.
_ENDINGS = {
    _UNPACK: ".tgz .tbz .txz .lz4 .lzma .br .z .zip .7z .rar .tar",
    _WRITE_ROWS: ".json .arrow .feather .orc .avro .csv .tsv .xls .xlsx .ods .sqlite",
    _SAVE_AS_TEXT: ".pdf .doc .docx .odt .rtf .epub .mobi .ppt .pptx .ps .djvu",
}
_ADVICE = {ending: advice for advice, endings in _ENDINGS.items() for ending in endings.split()}
# Long enough that no text begins so: "PAR1" and "BZh" alone are letters.
_BEGINNINGS = (
    (b"\x1f\x8b", "gzip data", _NAME.format(".gz")),
    (b"\x28\xb5\x2f\xfd", "zstd data", _NAME.format(".zst")),
    (b"\xfd7zXZ\0", "xz data", _NAME.format(".xz")),
    (b"7z\xbc\xaf\x27\x1c", "7z data", _UNPACK),
    (b"Rar!\x1a\x07", "rar data", _UNPACK),
    (b"\x04\x22\x4d\x18", "lz4 data", _UNPACK),
    (b"PK\x03\x04", "zip data", _UNPACK),
    (b"PAR1\x15", "parquet data", _NAME.format(".parquet")),
    (b"ARROW1\0\0", "arrow data", _WRITE_ROWS),
    (b"\xff\xff\xff\xff", "arrow data", _WRITE_ROWS),
    (b"SQLite format 3\0", "sqlite data", _WRITE_ROWS),
    (b"Obj\x01", "avro data", _WRITE_ROWS),
    (b"%PDF-", "PDF data", _SAVE_AS_TEXT),
    (b"{\\rtf", "RTF data", _SAVE_AS_TEXT),
    (codecs.BOM_UTF32_LE, "UTF-32", "convert it (iconv -f UTF-32 -t UTF-8)"),
    (codecs.BOM_UTF32_BE, "UTF-32", "convert it (iconv -f UTF-32 -t UTF-8)"),
    (codecs.BOM_UTF16_LE, "UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
    (codecs.BOM_UTF16_BE, "UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
)
# After "BZh" and a digit, a block of bzip2 begins with the digits of pi.
_BZIP2 = bytes.fromhex("314159265359")


class NoTextError(ValueError):
    """A file that holds no text. `reason` is what it is, in the few words of a summary."""

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(problem)
        self.reason = reason


def has_rows(path: Path) -> bool:
    """Whether a file of this name holds one document per row: of JSON, or of a table."""
    return inner(path).suffix.lower() in ROWS or is_table(path)


def refuse_foreign(path: Path, head: bytes) -> None:
    """Raise `NoTextError` unless a file of this name may be text.

    `head` is what it begins with, of an archive unpacked.
    """
    found = _foreign(path, head)
    if found is not None:
        reason, advice = found
        if is_archive(path):
            reason, advice = f"an archive of {reason}", _UNPACK
        raise NoTextError(f"{path}: {reason}, which is not read as text: {advice}", reason)


def _foreign(path: Path, head: bytes) -> tuple[str, str] | None:
    """What the file is instead of text, and the way out."""
    for beginning, reason, advice in _BEGINNINGS:
        if head.startswith(beginning):
            return reason, advice
    if head.startswith(b"BZh") and head[4:10] == _BZIP2:
        return "bzip2 data", _NAME.format(".bz2")
    # Tar has no first bytes of its own; its mark stands behind the name of the first file.
    if head[257:262] == b"ustar":
        return "tar data", _UNPACK
    ending = inner(path).suffix.lower()
    if ending in _ADVICE:
        return f"{ending} data", _ADVICE[ending]
    return None


def refuse_zeros(path: Path, block: bytes, at: int) -> None:
    """Raise `NoTextError` if a block, which begins at byte `at` of the file, has a zero byte."""
    found = block.find(b"\0")
    if found >= 0:
        # UTF-16 without a byte order mark: in European scripts every second byte is zero.
        raise NoTextError(
            f"{path}: binary data, which is not read as text: byte {at + found} is zero: remove "
            f"zero bytes, or if it is UTF-16, convert it (iconv -f UTF-16LE -t UTF-8)",
            "binary data",
        )
