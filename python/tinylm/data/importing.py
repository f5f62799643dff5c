"""Files of tokens that other programs wrote to a folder that is read as one of ours.

No token is copied where it need not be: a manifest names the file, the byte of its first token and
a hash of every 1 MiB, and the folder gets the lengths of the documents. So these files are checked
as shards are, and everything that takes a folder of shards takes this one. Copied are tokens of one
byte or eight, lists in parquet and arrow files, and documents that do not end with eos.

Importing reads every token once, twice where documents are told by eos: ids that the vocabulary
does not have would otherwise fail in the middle of a run.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinylm import _rust, disk
from tinylm.data import foreign, tables
from tinylm.data.foreign import Part
from tinylm.data.manifest import HEADER_BYTES, Manifest, Shard, Split
from tinylm.data.shards import BLOCK_BYTES, SplitWriter, lengths_between

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

FORMATS = (*foreign.FORMATS, "parquet")
# Tokens read at once; at four bytes or less they lie in a few blocks.
_CHUNK = 1 << 22
_UNKNOWN = "0" * 64
# Ids, and the ends of the documents among them.
Batches = Iterator[tuple[NDArray[Any], NDArray[np.int64]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the files do not say, or say otherwise.

    `eos_id` is None where no token ends a document. `documents` are as the `file` says, where it
    does, or told by `eos`. `copy` makes shards of ours in any case. `column` is that of a table.
    """

    vocab_size: int
    eos_id: int | None
    tokenizer: "Tokenizer | None" = None
    val_fraction: float = 0.0
    dtype: str | None = None
    documents: Literal["file", "eos"] = "file"
    copy: bool = False
    column: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.vocab_size < 2**31:
            raise ValueError(f"vocab_size={self.vocab_size} must be between 1 and {2**31 - 1}")
        if self.eos_id is not None and not 0 <= self.eos_id < self.vocab_size:
            raise ValueError(
                f"eos_id={self.eos_id} must be between 0 and vocab_size - 1 = {self.vocab_size - 1}"
            )
        if self.eos_id is None and (self.copy or self.documents == "eos"):
            raise ValueError("without an eos_id nothing ends a document: name the id that does")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction} must be at least 0 and below 1")


def import_shards(
    form: str, sources: Sequence[str | Path], folder: str | Path, options: Options
) -> Manifest:
    """Files of the format `form` to the splits in `folder`, which must be new or empty.

    The splits are told by the names of the files (`foreign.files`). If none is called `val`, the
    last documents of train are, about `val_fraction` of its tokens. The tokenizer, if it is given,
    is saved beside the manifest. Raises ValueError for a file that is damaged or not of the format,
    for ids outside the vocabulary, and for documents without eos where they are not copied.
    """
    folder = Path(folder)
    if form not in FORMATS:
        raise ValueError(f"format {form!r}: must be one of {', '.join(FORMATS)}")
    endings = tables.ENDINGS if form == "parquet" else (foreign.FORMATS[form][0],)
    # Absolute: a folder may be used from anywhere.
    splits = foreign.files([Path(source).absolute() for source in sources], *endings)
    held_out = 0.0 if "val" in splits else options.val_fraction
    if held_out and "train" not in splits:
        raise ValueError(
            f"{' '.join(map(str, sources))}: by its name it is {' and '.join(splits)} alone, and "
            f"val_fraction={held_out} is held out of train: rename a file, or set it to 0"
        )
    if options.column is not None and form != "parquet":
        raise ValueError(f"column={options.column} has no meaning for {form}: leave it out")
    manifest = Manifest(
        tokenizer_sha256=options.tokenizer.sha256 if options.tokenizer else _UNKNOWN,
        vocab_size=options.vocab_size,
        eos_id=options.eos_id,
        splits={},
        source={
            "source": " ".join(map(str, sources)),
            "format": form,
            "val_fraction": held_out,
        },
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
    )
    with disk.filling(folder):
        make = _of_tables if form == "parquet" else _of_parts
        manifest = make(form, splits, folder, manifest, options, held_out)
        for split, part in manifest.splits.items():
            if part.tokens == 0:
                raise ValueError(f"{' '.join(map(str, sources))}: {split} has no token")
        if options.tokenizer is not None:
            options.tokenizer.save(folder / "tokenizer.json")
        manifest.save(folder)
    return manifest


def _of_parts(
    form: str,
    files: dict[str, list[Path]],
    folder: Path,
    manifest: Manifest,
    options: Options,
    held_out: float,
) -> Manifest:
    opened = foreign.FORMATS[form][1]
    dtype = None if options.dtype is None else np.dtype(options.dtype).newbyteorder("<")
    streams = {
        split: Stream.of([opened(path, dtype, options.vocab_size) for path in paths], options)
        for split, paths in files.items()
    }
    if held_out:
        streams["train"], streams["val"] = streams["train"].split(held_out, options.eos_id)
    widths = {part.dtype.itemsize for stream in streams.values() for part in stream.parts}
    if options.copy or widths not in ({2}, {4}):
        if options.eos_id is None:
            raise ValueError(
                f"tokens of {', '.join(map(str, sorted(widths)))} bytes must be copied, and "
                "documents of ours end with eos: name its id"
            )
        return _copied(folder, manifest, {name: s.batches() for name, s in streams.items()})
    for split, stream in streams.items():
        manifest.splits[split] = _in_place(folder, manifest, split, stream)
    (width,) = widths
    return replace(manifest, width=width)


def _of_tables(
    form: str,
    files: dict[str, list[Path]],
    folder: Path,
    manifest: Manifest,
    options: Options,
    held_out: float,
) -> Manifest:
    if options.eos_id is None:
        raise ValueError(f"documents of {form} files are written with an eos: name its id")
    if options.dtype is not None:
        raise ValueError(f"dtype={options.dtype} has no meaning for {form}: leave it out")
    streams = {}
    for split, paths in files.items():
        n_rows = sum(map(tables.n_rows, paths))
        kept = n_rows
        if held_out and split == "train":
            kept -= round(n_rows * held_out)
            if not 0 < kept < n_rows:
                raise _none_left(paths[0], held_out, n_rows)
            streams["val"] = tables.batches(paths, options.column, slice(kept, n_rows))
        streams[split] = tables.batches(paths, options.column, slice(0, kept))
    if options.documents == "eos":
        streams = {split: _by_eos(batches, options.eos_id) for split, batches in streams.items()}
    return _copied(folder, manifest, streams)


def _none_left(path: Path, fraction: float, documents: int) -> ValueError:
    if not documents:
        return ValueError(f"{path}: train has no token: the file is empty")
    if documents == 1:
        problem = "cannot hold out one of a single document: set it to 0, and name a file val"
    else:
        problem = (
            f"leaves no document of {documents:,} in train or in val: choose another, or 0 and a "
            "file with val in its name"
        )
    return ValueError(f"{path}: val_fraction={fraction} {problem}")


@dataclass(frozen=True, slots=True)
class Stream:
    """The tokens of several files as one array, and the ends of its documents, ascending."""

    parts: list[Part]
    ends: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Tokens of all parts."""
        return sum(part.tokens for part in self.parts)

    @classmethod
    def of(cls, parts: list[Part], options: Options) -> "Stream":
        """The parts in their order; documents without an end are told by eos."""
        ends, first = [np.empty(0, np.int64)], 0
        for part in parts:
            found = part.ends
            if options.documents == "eos" or found is None:
                found = _eos_ends(part, options.eos_id)
            ends.append(found + first)
            first += part.tokens
        # What follows the last end is a document too: it was cut, or begins with its eos.
        return cls(parts, np.unique(np.concatenate([*ends, [first]] if first else ends)))

    def split(self, fraction: float, eos_id: int | None) -> tuple["Stream", "Stream"]:
        """The first documents, and the last ones that hold about `fraction` of the tokens."""
        goal = round(self.tokens * (1 - fraction))
        # Where nothing ends a document, it may be cut anywhere.
        near = int(np.argmin(np.abs(self.ends - goal))) if self.ends.size else 0
        at = int(self.ends[near]) if eos_id is not None and self.ends.size else goal
        if not 0 < at < self.tokens:
            raise _none_left(self.parts[0].path, fraction, self.ends.size)
        return self._cut(0, at), self._cut(at, self.tokens)

    def _cut(self, start: int, stop: int) -> "Stream":
        parts, first = [], 0
        for part in self.parts:
            begin, end = max(start - first, 0), min(stop - first, part.tokens)
            if begin < end:
                parts.append(part.cut(begin, end))
            first += part.tokens
        ends = self.ends[(self.ends > start) & (self.ends < stop)]
        return Stream(parts, np.append(ends, stop) - start)

    def read(self, start: int, n: int) -> NDArray[Any]:
        """Tokens `start` to `start + n` -> array[n]."""
        found, first = [], 0
        for part in self.parts:
            begin, end = max(start - first, 0), min(start + n - first, part.tokens)
            if begin < end:
                found.append(part.read(begin, end - begin))
            first += part.tokens
        return np.concatenate(found) if found else np.empty(0, np.uint16)

    def batches(self) -> Batches:
        """Whole documents, some millions of tokens at a time."""
        at = 0
        while at < self.ends.size:
            start = int(self.ends[at - 1]) if at else 0
            stop = max(at + 1, int(np.searchsorted(self.ends, start + _CHUNK, "right")))
            ends = self.ends[at:stop] - start
            yield self.read(start, int(ends[-1])), ends
            at = stop


def _eos_ends(part: Part, eos_id: int | None) -> NDArray[np.int64]:
    """The ends of the documents of a part, each after an eos."""
    if eos_id is None:
        return np.empty(0, np.int64)
    found = [
        np.flatnonzero(part.read(at, min(_CHUNK, part.tokens - at)) == eos_id) + (at + 1)
        for at in range(0, part.tokens, _CHUNK)
    ]
    return np.concatenate([np.empty(0, np.int64), *found])


def _by_eos(batches: Batches, eos_id: int) -> Batches:
    """The same ids, cut into documents at each eos, whatever the batches end in."""
    # Joined only at an eos: a document of many batches would otherwise be copied for each of them.
    rest: list[NDArray[Any]] = []
    for ids, _ in batches:
        ends = np.flatnonzero(ids == eos_id) + 1
        last = int(ends[-1]) if ends.size else 0
        if last:
            before = sum(part.size for part in rest)
            yield np.concatenate([*rest, ids[:last]]), ends + before
            rest = []
        if last < ids.size:
            rest.append(ids[last:])
    if rest:
        ids = np.concatenate(rest)
        yield ids, np.array([ids.size])


def _copied(folder: Path, manifest: Manifest, streams: dict[str, Batches]) -> Manifest:
    """The splits as shards of ours; every document ends with eos, whether it did or not."""
    added = 0
    for split, batches in streams.items():
        writer = SplitWriter(folder, manifest, split)
        for ids, ends in batches:
            _check_ids(ids, manifest.vocab_size, f"{split}: ")
            filled = ends > np.concatenate([[0], ends[:-1]])
            last = np.where(filled, ends - 1, 0)
            ended = filled & (ids[last] == manifest.eos_id) if ids.size else filled
            # The writer adds the eos of every document itself.
            kept = np.delete(ids, last[ended]).astype(np.uint32)
            offsets = np.concatenate([[0], ends - np.cumsum(ended)]).astype(np.int64)
            writer.add(kept, offsets)
            added += int(np.count_nonzero(~ended))
        manifest.splits[split] = writer.finish(None)
    return replace(manifest, source={**manifest.source, "eos_added": added})


def _in_place(folder: Path, manifest: Manifest, split: str, stream: Stream) -> Split:
    """A split whose tokens stay in their files; the lengths of its documents are written."""
    shards = []
    begins = np.concatenate([[0], stream.ends[:-1]]) if stream.ends.size else stream.ends
    fix = "name the --eos-id that ends its documents, or import less of it"
    lengths = lengths_between(stream.ends, f"{fix} ({stream.parts[0].path})")
    first = without = 0
    for number, part in enumerate(stream.parts):
        here = stream.ends[(stream.ends > first) & (stream.ends <= first + part.tokens)] - first
        blocks, missing = _hashed(part, here, manifest)
        without += missing
        # A document is listed where it begins, and may end in a later file.
        listed = lengths[(begins >= first) & (begins < first + part.tokens)].tobytes()
        name = f"{split}-{number:05}.bin"
        (folder / name).with_suffix(".doc").write_bytes(listed)
        header = None
        if part.headed:
            with part.path.open("rb") as file:
                header = _hex(file.read(HEADER_BYTES))
        shards.append(
            Shard(
                name,
                part.tokens,
                len(listed) // 4,
                header,
                blocks,
                [_hex(listed[at : at + BLOCK_BYTES]) for at in range(0, len(listed), BLOCK_BYTES)],
                str(part.path),
                part.payload,
            )
        )
        first += part.tokens
    # The last document of all may have been cut, and nothing follows it.
    without -= int(first and int(stream.read(first - 1, 1)[0]) != manifest.eos_id)
    if without and manifest.eos_id is not None:
        raise ValueError(
            f"{stream.parts[0].path}: {without:,} of {stream.ends.size:,} documents do not end "
            f"with eos {manifest.eos_id}: --copy writes them with it, and --documents eos ignores "
            "where the file says that they end"
        )
    return Split(first, stream.ends.size, None, shards)


def _hashed(part: Part, ends: NDArray[np.int64], manifest: Manifest) -> tuple[list[str], int]:
    """The hash of every block, and how many of the documents that end here have no eos.

    Raises ValueError for an id outside the vocabulary.
    """
    blocks: list[str] = []
    missing = 0
    # A number of whole blocks.
    step = 8 * BLOCK_BYTES // part.dtype.itemsize
    for start in range(0, part.tokens, step):
        ids = part.read(start, min(step, part.tokens - start))
        _check_ids(ids, manifest.vocab_size, f"{part.path}: ", start)
        data = ids.view(np.uint8)
        blocks += [_hex(data[at : at + BLOCK_BYTES]) for at in range(0, data.size, BLOCK_BYTES)]
        from_, to = np.searchsorted(ends, [start, start + ids.size], "right")
        missing += int(np.count_nonzero(ids[ends[from_:to] - 1 - start] != manifest.eos_id))
    return blocks, missing


def _check_ids(ids: NDArray[Any], vocab_size: int, where: str, first: int = 0) -> None:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        at = int(np.flatnonzero((ids < 0) | (ids >= vocab_size))[0])
        raise ValueError(
            f"{where}token {first + at:,} is {ids[at]}, which must be between 0 and vocab_size - 1 "
            f"= {vocab_size - 1}: is {ids.dtype.name} its dtype, and this its tokenizer?"
        )


def _hex(data: "bytes | NDArray[np.uint8]") -> str:
    return f"{_rust.xxh3_64(data):016x}"
