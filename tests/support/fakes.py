"""A tokenizer and a dataset of plain Python, for tests of what is built on them."""

import codecs
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np


class ByteStream:
    """Ids to whole characters, as `Tokenizer.stream` gives them."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return "<|endoftext|>" if token == 256 else self.decoder.decode(bytes([token]))

    def finish(self) -> str:
        return self.decoder.decode(b"", final=True)


class ByteTokenizer:
    """Each byte is a token; token 256 ends the document."""

    eos_id = 256
    vocab_size = 257
    special_tokens = {"<|endoftext|>": 256}  # noqa: RUF012
    vocab = {byte: bytes([byte]) for byte in range(256)} | {256: b"<|endoftext|>"}
    sha256 = hashlib.sha256(b"bytes").hexdigest()
    missing_ids: tuple[int, ...] = ()
    prefix_ids: tuple[int, ...] | None = None

    def encode(self, text: str | bytes, *, special: Any = "raise") -> list[int]:
        if isinstance(text, bytes):
            return list(text)
        if special == "raise" and "<|endoftext|>" in text:
            raise ValueError("special token '<|endoftext|>' in the text: special='allow' or 'text'")
        return list(text.encode())

    def encode_batch(
        self, texts: list[str | bytes], *, special: Any = "raise"
    ) -> tuple[np.ndarray, np.ndarray]:
        ids = [self.encode(text, special=special) for text in texts]
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return np.array(sum(ids, []), dtype=np.uint32), offsets  # noqa: RUF017

    def decode(self, ids: list[int]) -> str:
        stream = ByteStream()
        return "".join(map(stream.push, ids)) + stream.finish()

    def stream(self) -> ByteStream:
        return ByteStream()


@dataclass(frozen=True)
class ListDataset:
    """Ids as a dataset."""

    ids: list[int]
    n_bytes: int | None = None
    tokenizer_sha256: str = ByteTokenizer.sha256
    kind: str = "text"

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    def read(self, start: int, n: int) -> np.ndarray:
        assert 0 <= start <= start + n <= len(self.ids)
        return np.array(self.ids[start : start + n], dtype=np.uint16)
