"""Writers and readers of other programs' files of tokens, from the layouts that they publish.

The layouts are written with plain `struct`, a value at a time, and share nothing with
`tinylm.data`.
"""

import struct

import numpy as np

from tinylm.data import Dataset
from tinylm.data.importing import Options

LETTERS = {"uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i"}
LETTERS |= {"int64": "q", "float32": "f", "float64": "d"}
# `DType` of megatron/core/datasets/indexed_dataset.py.
CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7}
CODES |= {"uint16": 8}


def packed(ids, dtype):
    return struct.pack(f"<{len(ids)}{LETTERS[dtype]}", *ids)


def flat(documents):
    return [id for document in documents for id in document]


def write_llmc(path, ids, dtype="uint16"):
    """`write_datafile` of llm.c's dev/data/data_common.py: 256 int32, then the tokens."""
    magic, version = {"uint16": (20240520, 1), "uint32": (20240801, 7)}[dtype]
    header = [magic, version, len(ids), *[0] * 253]
    path.write_bytes(struct.pack("<256i", *header) + packed(ids, dtype))


def read_llmc(path):
    """As llmc/dataloader.h does: magic, version, the count, the exact size; then uint16."""
    data = path.read_bytes()
    header = struct.unpack_from("<256i", data)
    assert header[0] == 20240520, "Bad magic in the data file"
    assert header[1] == 1, "Bad version in data file"
    n_tokens = header[2]
    assert n_tokens > 0
    assert len(data) == 256 * 4 + n_tokens * 2, "file size is not as expected"
    return list(struct.unpack_from(f"<{n_tokens}H", data, 1024))


def read_modded(path):
    """As `_load_data_shard` of modded-nanogpt's train_gpt.py, which reads to the file's end."""
    with path.open("rb") as file:
        header = struct.unpack("<256i", file.read(1024))
        assert header[0] == 20240520, "magic number mismatch in the data .bin file"
        assert header[1] == 1, "unsupported version"
        tokens = file.read()
    assert len(tokens) == 2 * header[2], "number of tokens read does not match header"
    return list(struct.unpack(f"<{header[2]}H", tokens))


def write_megatron(prefix, documents, dtype="uint16", modes=None, cut=lambda document: [document]):
    """`IndexedDatasetBuilder`: the sequences that `cut` makes of each document."""
    data, lengths, indices = b"", [], [0]
    for document in documents:
        for sequence in cut(document):
            data += packed(sequence, dtype)
            lengths.append(len(sequence))
        indices.append(len(lengths))
    pointers, at = [], 0
    for length in lengths:
        pointers.append(at)
        at += length * struct.calcsize(LETTERS[dtype])
    index = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, CODES[dtype])
    index += struct.pack("<QQ", len(lengths), len(indices))
    index += packed(lengths, "int32") + packed(pointers, "int64") + packed(indices, "int64")
    if modes is not None:
        index += packed(modes(len(lengths)), "int8")
    prefix.with_name(f"{prefix.name}.bin").write_bytes(data)
    prefix.with_name(f"{prefix.name}.idx").write_bytes(index)


def write_datatrove(path, documents, dtype="uint16", note=True, index=True):
    """`TokenizedFile`: tokens, the ends of the documents, and a note for people."""
    path.write_bytes(packed(flat(documents), dtype))
    ends, at = [], 0
    for document in documents:
        at += len(document)
        ends.append(at)
    if index:
        path.with_name(f"{path.name}.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    if note:
        width = struct.calcsize(LETTERS[dtype])
        path.with_name(f"{path.name}.metadata").write_text(f"gpt2|{width}\n{at}\n{at} T")


EOS = 256


def plain(**changes):
    """Options of the vocabulary of bytes and eos."""
    return Options(**{"vocab_size": 257, "eos_id": EOS, **changes})


def of_sizes(sizes, largest=EOS):
    """Documents of random ids, each ended by eos."""
    rng = np.random.default_rng(len(sizes))
    return [[*rng.integers(0, largest, size).tolist(), EOS] for size in sizes]


def documents_of(folder, split="train"):
    """What was imported, verified."""
    dataset = Dataset.open(folder, split=split)
    list(dataset.verify())
    return [[*ids.tolist(), EOS] for ids in dataset.documents()]
