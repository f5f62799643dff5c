"""Shards to the files of other programs: nanoGPT's, Megatron's, and documents as lines of JSON.

Shards are llm.c's files already: llm.c and modded-nanogpt read them as they are.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylm import disk
from tinylm.data.shards import Dataset

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Tokens held at once.
_CHUNK = 1 << 22


def nanogpt(dataset: Dataset, out: str | Path) -> None:
    """Every token to the file `out` and nothing else, uint16 or uint32 as in the shards."""
    with disk.replacing(out) as file:
        for at in range(0, dataset.n_tokens, _CHUNK):
            file.write(dataset.read(at, min(_CHUNK, dataset.n_tokens - at)).tobytes())


def megatron(dataset: Dataset, prefix: str | Path) -> tuple[Path, Path]:
    """Every document to `prefix.bin` and `prefix.idx`, a sequence each, its eos included.

    The same bytes as those of Megatron's `IndexedDatasetBuilder`, given these documents. Its tokens
    are uint16 if the vocabulary has less than 65,500, otherwise int32. Returns both paths. Raises
    ValueError for a document of 2^31 tokens or more, whose length its index cannot say.
    """
    lengths = dataset.lengths()
    if lengths.size and int(lengths.max()) >= 2**31:
        raise ValueError(
            f"document {int(lengths.argmax()):,} has {int(lengths.max()):,} tokens, and Megatron's "
            f"index says at most {2**31 - 1:,}: export to nanogpt"
        )
    prefix = Path(prefix)
    data, index = (prefix.with_name(f"{prefix.name}{ending}") for ending in (".bin", ".idx"))
    # Megatron's own limit (`DType.optimal_dtype`), with the codes of its index.
    dtype, code = (np.dtype("<u2"), 8) if dataset.vocab_size < 65_500 else (np.dtype("<i4"), 4)
    with disk.replacing(data) as file:
        for at in range(0, dataset.n_tokens, _CHUNK):
            ids = dataset.read(at, min(_CHUNK, dataset.n_tokens - at))
            file.write(ids.astype(dtype).tobytes())
    ends = np.cumsum(lengths, dtype=np.int64)
    pointers = np.concatenate([[0], ends[:-1]])[: lengths.size] * dtype.itemsize
    documents = np.arange(lengths.size + 1, dtype="<i8")
    # Last: without its index Megatron does not open the data.
    with disk.replacing(index) as file:
        counts = [1, code, lengths.size, documents.size]
        sizes = [8, 1, 8, 8]
        file.write(b"MMIDIDX\x00\x00")
        for number, size in zip(counts, sizes, strict=True):
            file.write(number.to_bytes(size, "little"))
        for array in (lengths.astype("<i4"), pointers.astype("<i8"), documents):
            file.write(array.tobytes())
    return data, index


def jsonl(dataset: Dataset, out: str | Path, tokenizer: "Tokenizer") -> None:
    """Each document to a line `{"text": ...}`, or `{"messages": ...}` of a conversation."""
    with disk.replacing(out) as file:
        for ids in dataset.documents():
            row: dict[str, Any]
            if dataset.kind == "chat":
                from tinylm.tokenizer import chat

                row = {"messages": chat.decode(tokenizer, ids.tolist())}
            else:
                row = {"text": tokenizer.decode_bytes(ids.tolist()).decode(errors="replace")}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
