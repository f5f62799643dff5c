"""Files of tokens that other programs wrote: where the tokens lie, and where documents end.

- `llm.c`, also modded-nanogpt's: uint16 or uint32 behind a header of 1024 bytes. Documents are told
  by eos. Source: `dev/data/data_common.py` of llm.c.
- `nanogpt`: tokens and nothing else. Source: `data/openwebtext/prepare.py` of nanoGPT.
- `megatron`: a `.bin` of uint8 to int64, documents in the `.idx`. Source:
  `megatron/core/datasets/indexed_dataset.py` of Megatron-LM.
- `datatrove`: a `.ds` of uint16 or uint32, documents in the `.ds.index`. Source:
  `pipeline/tokens/tokenizer.py` of datatrove.

A file is opened to a `Part`, which says this and holds no token. Whatever a header or an index
says is held against the size of its file first, so that a damaged one ends in one line of error.
Lists of tokens in parquet and arrow files are another matter: `tinylm.data.tables`.
"""

import errno
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.data.manifest import HEADER_BYTES

# Magic number and version of llm.c to the dtype; fixed by its readers for GPT-2 and Llama 3.
_LLMC = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
_MEGATRON = b"MMIDIDX\x00\x00"
# `DType` of Megatron's index; 6 and 7 are floats, which are no tokens.
_CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = {6: "float64", 7: "float32"}
DTYPES = ("uint8", "uint16", "uint32", "int16", "int32", "int64")
# Words in the name of a file or folder that say which split it is; train only where no other does.
_SPLITS = {"val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens that lie one after another in one file.

    `ends` are the tokens up to the end of each document, ascending; None where the format does not
    say. `headed` parts are whole files with the header of llm.c.
    """

    path: Path
    payload: int
    tokens: int
    dtype: np.dtype[Any]
    ends: NDArray[np.int64] | None = None
    headed: bool = False

    def read(self, start: int, n: int) -> NDArray[Any]:
        """Tokens `start` to `start + n` -> array[n] of the file's dtype."""
        offset = self.payload + start * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, n, offset=offset)

    def cut(self, start: int, stop: int) -> "Part":
        """Its tokens `start` to `stop`, without the ends of documents."""
        payload = self.payload + start * self.dtype.itemsize
        whole = stop - start == self.tokens
        return replace(
            self, payload=payload, tokens=stop - start, ends=None, headed=self.headed and whole
        )


def llmc(path: Path, dtype: np.dtype[Any] | None, vocab_size: int) -> Part:
    """A shard of llm.c or modded-nanogpt: the header says how many tokens of which width."""
    size = path.stat().st_size
    header = np.fromfile(path, "<i4", HEADER_BYTES // 4)
    if header.size < HEADER_BYTES // 4:
        raise _bad(path, f"expected a header of {HEADER_BYTES} bytes, found a file of {size}")
    magic, version, tokens = header[:3].tolist()
    if magic == 20240522:
        raise _bad(path, "an evaluation file of llm.c (magic 20240522), not a stream of tokens")
    found = _LLMC.get((magic, version))
    if found is None:
        raise _bad(
            path,
            "expected llm.c's magic 20240520 version 1 or 20240801 version 7, found "
            f"{magic} version {version}; a file of tokens alone is of the format nanogpt",
        )
    _refuse_dtype(path, dtype, np.dtype(found), "its header")
    expected = HEADER_BYTES + tokens * np.dtype(found).itemsize
    if tokens < 0 or size != expected:
        raise _bad(
            path,
            f"its header says {tokens} tokens, which is a file of {expected} bytes, found {size}: "
            "copy or download it again",
        )
    return Part(path, HEADER_BYTES, tokens, np.dtype(found), headed=True)


def nanogpt(path: Path, dtype: np.dtype[Any] | None, vocab_size: int) -> Part:
    """A file of tokens and nothing else, of the narrowest dtype unless another is given."""
    dtype = dtype or _narrowest(vocab_size)
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise _bad(
            path,
            f"{size} bytes are no whole number of {dtype.name}: name its dtype (--dtype), or copy "
            "the file again",
        )
    return Part(path, 0, size // dtype.itemsize, dtype)


def megatron(path: Path, dtype: np.dtype[Any] | None, vocab_size: int) -> Part:
    """Megatron's `.bin`, by the `.idx` beside it; `path` is either.

    A document is the sequences between two of its document indices. The index ends with a mode
    for each sequence in multimodal data; a mode other than 0 is an image, and refused.
    """
    data, index = path.with_suffix(".bin"), path.with_suffix(".idx")
    lengths, modes, documents, found = _megatron_index(index)
    _refuse_dtype(index, dtype, found, "its index")
    if np.any(modes):
        count = int(np.count_nonzero(modes))
        raise _bad(index, f"{count} of its sequences are no text (their mode is not 0)")
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    tokens = int(ends[-1])
    size = data.stat().st_size
    if size != tokens * found.itemsize:
        raise _bad(
            data,
            f"its index counts {tokens} tokens of {found.name}, which are "
            f"{tokens * found.itemsize} bytes, found {size}: copy both files again",
        )
    # Documents without a token are left out: there is nothing of them to read.
    return Part(data, 0, tokens, found, np.unique(ends[documents[1:]][ends[documents[1:]] > 0]))


def _megatron_index(
    path: Path,
) -> tuple[NDArray[np.int32], NDArray[np.int8], NDArray[np.int64], np.dtype[Any]]:
    """(lengths [S], modes [S] or [0], document indices [D + 1], dtype of a token)."""
    data = path.read_bytes()
    # Magic, version, dtype code, sequences, document indices.
    if data[:9] != _MEGATRON:
        old = "; the older TNTIDX is not read: make it again" if data[:6] == b"TNTIDX" else ""
        raise _bad(path, f"expected the index of Megatron, MMIDIDX, found {data[:9]!r}{old}")
    if len(data) < 34:
        raise _bad(path, f"expected a header of 34 bytes, found a file of {len(data)}")
    version = int.from_bytes(data[9:17], "little")
    if version != 1:
        raise _bad(path, f"version {version} of Megatron's index; this TinyLM reads version 1")
    code = data[17]
    if code not in _CODES:
        known = ", ".join(f"{code} {np.dtype(name)}" for code, name in _CODES.items())
        what = _FLOATS.get(code, "unknown")
        raise _bad(path, f"dtype code {code} is {what}: tokens are one of {known}")
    sequences = int.from_bytes(data[18:26], "little")
    indices = int.from_bytes(data[26:34], "little")
    expected = 34 + 12 * sequences + 8 * indices
    if len(data) not in (expected, expected + sequences):
        raise _bad(
            path,
            f"{sequences} sequences and {indices} document indices are {expected} bytes, or "
            f"{expected + sequences} with modes, found {len(data)}: copy it again",
        )
    dtype = np.dtype(_CODES[code])
    lengths = np.frombuffer(data, "<i4", sequences, 34)
    pointers = np.frombuffer(data, "<i8", sequences, 34 + 4 * sequences)
    documents = np.frombuffer(data, "<i8", indices, 34 + 12 * sequences)
    modes = np.frombuffer(data, "i1", offset=expected)
    if np.any(lengths < 0):
        raise _bad(path, "a sequence of negative length: copy it again")
    # Megatron's writer computes them in just this way.
    before = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[:-1]
    if not np.array_equal(pointers, before * dtype.itemsize):
        at = int(np.flatnonzero(pointers != before * dtype.itemsize)[0])
        raise _bad(
            path,
            f"sequence {at} lies at byte {pointers[at]}, expected byte "
            f"{before[at] * dtype.itemsize}: sequences must follow each other",
        )
    if not (
        indices
        and documents[0] == 0
        and documents[-1] == sequences
        and np.all(np.diff(documents) >= 0)
    ):
        raise _bad(path, f"its document indices do not ascend from 0 to {sequences}")
    return lengths, modes, documents, dtype


def datatrove(path: Path, dtype: np.dtype[Any] | None, vocab_size: int) -> Part:
    """A `.ds` of datatrove; its `.index` and its `.metadata` are read where they are there."""
    size = path.stat().st_size
    note = path.with_name(f"{path.name}.metadata")
    tokens = None
    if note.exists():
        dtype, tokens = _datatrove_note(note, dtype)
    dtype = dtype or _narrowest(vocab_size)
    if size % dtype.itemsize or (tokens is not None and size != tokens * dtype.itemsize):
        wanted = "" if tokens is None else f", expected {tokens}"
        raise _bad(
            path, f"{size} bytes do not hold a number of {dtype.name}{wanted}: name its --dtype"
        )
    tokens = size // dtype.itemsize
    loss = path.with_name(f"{path.name}.loss")
    if loss.exists() and not np.all(np.fromfile(loss, np.uint8)):
        raise _bad(loss, "it leaves targets out of the loss, which shards cannot say")
    index = path.with_name(f"{path.name}.index")
    if not index.exists():
        return Part(path, 0, tokens, dtype)
    if index.stat().st_size % 8:
        raise _bad(index, "it is no whole number of uint64: copy it again")
    ends = np.fromfile(index, "<u8")
    total = int(ends[-1]) if ends.size else 0
    if total != tokens or np.any(ends[1:] < ends[:-1]):
        raise _bad(
            index,
            f"its documents end at token {total} of {tokens}, or do not ascend: copy it again",
        )
    return Part(path, 0, tokens, dtype, np.unique(ends[ends > 0]).astype(np.int64))


def _datatrove_note(path: Path, given: np.dtype[Any] | None) -> tuple[np.dtype[Any], int]:
    """The dtype and the number of tokens that a `.metadata` names: NAME|WIDTH, then the number."""
    found = re.match(r"[^\n]*\|([24])\n(\d+)\s", path.read_text(encoding="utf-8", errors="replace"))
    if found is None:
        raise _bad(path, "expected TOKENIZER|2 or TOKENIZER|4 and the number of tokens")
    dtype = np.dtype(f"<u{found[1]}")
    _refuse_dtype(path, given, dtype, "it")
    return dtype, int(found[2])


def _narrowest(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def meta_vocab(path: Path) -> int | None:
    """The vocabulary's size in nanoGPT's `meta.pkl`, None if it has none.

    It is read off the file, which is not unpickled: that could run any code.
    """
    found, at_size = None, False
    for operation, value, _ in pickletools.genops(path.read_bytes()):
        # The dict's key, then perhaps a note to remember it, then its value.
        if at_size and isinstance(value, int) and "PUT" not in operation.name:
            found, at_size = value, False
        elif isinstance(value, str):
            at_size = value == "vocab_size"
    return found


# Each with the ending of the files that it looks for in a folder.
FORMATS: dict[str, tuple[str, Callable[[Path, np.dtype[Any] | None, int], Part]]] = {
    "llm.c": (".bin", llmc),
    "nanogpt": (".bin", nanogpt),
    "megatron": (".idx", megatron),
    "datatrove": (".ds", datatrove),
}


def files(sources: list[Path], *endings: str) -> dict[str, list[Path]]:
    """The files of each split, sorted by name within each source; folders are looked through.

    A name that has the word `val` or `test` in it belongs to that split. A name without such a
    word, and without `train`, is told by the nearest folder that has one, up to the source, which
    counts only if it is called `val` or the like and nothing else. What is left is `train`.
    """
    splits: dict[str, list[Path]] = {}
    for source in sources:
        found = [source]
        if source.is_dir():
            found = sorted(path for path in source.rglob("*") if path.suffix in endings)
        elif not source.exists() and endings == (".idx",):
            # Megatron names its data by what both files begin with.
            found = [source.with_name(f"{source.name}.idx")]
        if not found:
            problem = f"no {' or '.join(endings)} file in it"
            raise FileNotFoundError(errno.ENOENT, problem, str(source))
        for path in found:
            names = [path.stem]
            if source.is_dir():
                names += reversed(path.relative_to(source).parent.parts)
                # A project may lie in a folder such as "test of tokens".
                names += [source.name] if source.name.lower() in _SPLITS else []
            split = next(filter(None, map(_split, names)), "train")
            splits.setdefault(split, []).append(path)
    return splits


def _split(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower())
    found = next((_SPLITS[word] for word in words if word in _SPLITS), None)
    return found or ("train" if "train" in words else None)


def _refuse_dtype(path: Path, given: np.dtype[Any] | None, found: np.dtype[Any], who: str) -> None:
    if given is not None and given != found:
        raise _bad(path, f"{who} says {found.name}: leave out --dtype {given.name}")


def _bad(path: Path, problem: str) -> ValueError:
    return ValueError(f"{path}: {problem}")
