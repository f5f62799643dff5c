"""Documents to shard files and back, as llm.c lays them out.

A shard is 256 little-endian int32, then the tokens as uint16 (magic 20240520, version 1) or
uint32 (magic 20240801, version 7), and not a byte more: llm.c checks the size. It reads slots 0
to 2 (magic, version, tokens); the slots it ignores say what the file is to us:

    3 the letters TLM1    4 our version, 1    5 documents that begin here
    6 leading tokens that end a document begun earlier    7 vocab_size    8 id of eos
    9..16 sha256 of the tokenizer

The `.doc` file beside it holds the length of each document that begins in the shard, eos
included, as uint32. A document may continue in the next shard. Source of the layout:
`dev/data/data_common.py` of llm.c.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

HEADER = struct.Struct("<256i")
# Bytes per token to llm.c's magic and version, and the letter of struct.
LAYOUTS = {2: (20240520, 1, "H"), 4: (20240801, 7, "I")}
SIGNATURE = int.from_bytes(b"TLM1", "little")
VERSION = 1


def itemsize(vocab_size: int) -> int:
    """Bytes of a token: two while every id fits."""
    return 2 if vocab_size <= 1 << 16 else 4


def cut(
    documents: Iterable[list[int]], eos_id: int, shard_tokens: int
) -> Iterator[tuple[list[int], list[int], int]]:
    """(tokens, lengths, carried) of each shard; every document is followed by `eos_id`.

    A document is listed in the shard of its first token; `carried` counts the tokens before
    the first document that begins in the shard.
    """
    tokens: list[int] = []
    lengths: list[int] = []
    carried = 0
    for document in documents:
        rest = [*document, eos_id]
        # A full shard is closed when the next document begins, not before: it may be the last one.
        if len(tokens) == shard_tokens:
            yield tokens, lengths, carried
            tokens, lengths, carried = [], [], 0
        lengths.append(len(rest))
        while True:
            room = shard_tokens - len(tokens)
            tokens += rest[:room]
            rest = rest[room:]
            if not rest:
                break
            yield tokens, lengths, carried
            # A long document fills the next shard as well, which then lists no document.
            tokens, lengths, carried = [], [], min(len(rest), shard_tokens)
    if tokens:
        yield tokens, lengths, carried


def write(
    folder: Path,
    split: str,
    documents: Iterable[list[int]],
    *,
    vocab_size: int,
    eos_id: int,
    shard_tokens: int,
    tokenizer_sha256: bytes,
) -> list[Path]:
    """Write `{split}-00000.bin` and `.doc`, and so on; the paths of the `.bin` files."""
    size = itemsize(vocab_size)
    magic, version, code = LAYOUTS[size]
    paths = []
    for number, shard in enumerate(cut(documents, eos_id, shard_tokens)):
        tokens, lengths, carried = shard
        slots = [magic, version, len(tokens), SIGNATURE, VERSION, len(lengths), carried]
        # The header has 32-bit slots, so the hash of 32 bytes takes eight.
        slots += [vocab_size, eos_id, *struct.unpack("<8i", tokenizer_sha256)]
        slots += [0] * (256 - len(slots))
        path = folder / f"{split}-{number:05}.bin"
        path.write_bytes(HEADER.pack(*slots) + struct.pack(f"<{len(tokens)}{code}", *tokens))
        path.with_suffix(".doc").write_bytes(struct.pack(f"<{len(lengths)}I", *lengths))
        paths.append(path)
    return paths


def read(path: Path) -> list[int]:
    """The tokens of one shard, ours or llm.c's."""
    data = path.read_bytes()
    magic, version, n_tokens = HEADER.unpack_from(data)[:3]
    for size, layout in LAYOUTS.items():
        if layout[:2] == (magic, version):
            # llm.c makes the same check: a file cut short is found before it is read.
            if len(data) != HEADER.size + n_tokens * size:
                raise ValueError(f"{path}: {len(data)} bytes do not hold {n_tokens} tokens")
            return list(struct.unpack_from(f"<{n_tokens}{layout[2]}", data, HEADER.size))
    raise ValueError(f"{path}: magic {magic} version {version} is not a shard's")


def documents(paths: Iterable[Path]) -> Iterator[list[int]]:
    """The documents of consecutive shards, each with its eos."""
    tokens: list[int] = []
    lengths: list[int] = []
    for path in paths:
        tokens += read(path)
        data = path.with_suffix(".doc").read_bytes()
        lengths += struct.unpack(f"<{len(data) // 4}I", data)
    begin = 0
    for length in lengths:
        yield tokens[begin : begin + length]
        begin += length
