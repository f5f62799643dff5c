"""A `.model` of SentencePiece that comes from no file: pieces and settings to its bytes.

What is read back is the tokenizer itself, so both are one by construction. Texts are not changed
but for blanks: one is put before a text, and each is written U+2581, as Llama's file has it.
"""

from collections.abc import Iterable, Mapping, Sequence

from tinylm.tokenizer import protobuf, sentencepiece
from tinylm.tokenizer.beside import NAMES
from tinylm.tokenizer.contents import Contents
from tinylm.tokenizer.protobuf import BYTES, VARINT, Field
from tinylm.tokenizer.sentencepiece import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    NORMALIZER,
    PIECES,
    TRAINER,
    UNIGRAM,
    UNKNOWN,
)

UNK = "<unk>"
# -1 in the ten bytes of a varint: no such token.
NONE = 2**64 - 1


def made(
    pieces: Sequence[tuple[str, float]],
    special_tokens: Sequence[str],
    *,
    unigram: bool,
    byte_fallback: bool,
) -> Contents:
    """The contents of a new `.model`: `<unk>`, special tokens, bytes, then pieces with scores.

    ValueError for a special token that is named like another piece.
    """
    every = [(UNK, 0.0, UNKNOWN), *((token, 0.0, CONTROL) for token in special_tokens)]
    if byte_fallback:
        every += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    every += [(text, score, NORMAL) for text, score in pieces]
    spec: dict[int, int | bytes] = {
        3: UNIGRAM if unigram else BPE,
        4: len(every),
        35: int(byte_fallback),
        40: 0,
    }
    # Roles are told by usual names, as everywhere; a token without a role has the number -1.
    for number, role in ((41, "bos_token"), (42, "eos_token"), (43, "pad_token")):
        name = next((name for name in NAMES[role] if name in special_tokens), None)
        spec[number] = NONE if name is None else 1 + special_tokens.index(name)
        if name is not None:
            spec[number + 5] = name.encode()
    normalizer: dict[int, int | bytes] = {1: b"identity", 3: 1, 4: 0, 5: 1}
    return sentencepiece.contents_of(data_of(every, spec, normalizer))


def data_of(
    pieces: Iterable[tuple[str, float, int]],
    spec: Mapping[int, int | bytes],
    normalizer: Mapping[int, int | bytes],
) -> bytes:
    """The bytes of a file of pieces (text, score, type) and the fields of its two other parts."""
    fields: list[Field] = []
    for text, score, kind in pieces:
        piece: list[Field] = [(1, BYTES, text.encode()), protobuf.float_field(2, score)]
        if kind != NORMAL:
            piece.append((3, VARINT, kind))
        fields.append((PIECES, BYTES, protobuf.written(piece)))
    for number, part in ((TRAINER, spec), (NORMALIZER, normalizer)):
        values = sorted(part.items())
        kinds = [(n, VARINT if isinstance(v, int) else BYTES, v) for n, v in values]
        fields.append((number, BYTES, protobuf.written(kinds)))
    return protobuf.written(fields)
