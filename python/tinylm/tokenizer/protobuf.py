"""Protocol buffers, as far as a SentencePiece model needs them: fields to bytes and back.

A message is a row of fields: a number and a value, whose kind is told by three bits (varint, 8
bytes, length and bytes, 4 bytes). What a field means is the reader's matter; so an unknown field is
kept and written back as it stood.
"""

import struct
from collections.abc import Iterable

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
# A field: its number, its kind, and its value as an integer or bytes.
Field = tuple[int, int, int | bytes]


def fields(data: bytes) -> list[Field]:
    """The fields of a message; ValueError if it is cut short or of another format."""
    found: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == VARINT:
            value, at = _varint(data, at)
        else:
            if kind == BYTES:
                length, at = _varint(data, at)
            elif kind in (EIGHT, FOUR):
                length = 8 if kind == EIGHT else 4
            else:
                raise ValueError(f"no protocol buffer: a field of kind {kind} at byte {at}")
            value = data[at : at + length]
            if len(value) < length:
                raise ValueError(f"cut short: a field of {length} bytes at byte {at}")
            at += length
        if number == 0:
            raise ValueError(f"no protocol buffer: a field of number 0 before byte {at}")
        found.append((number, kind, value))
    return found


def written(message: Iterable[Field]) -> bytes:
    """The bytes of fields: those that `fields` read, if their numbers are as short as can be."""
    out = bytearray()
    for number, kind, value in message:
        out += _as_varint(number << 3 | kind)
        if isinstance(value, int):
            out += _as_varint(value)
            continue
        if kind == BYTES:
            out += _as_varint(len(value))
        out += value
    return bytes(out)


def as_float(value: int | bytes) -> float:
    """A number of four bytes."""
    if not isinstance(value, bytes) or len(value) != 4:
        raise ValueError(f"{value!r} is no float of four bytes")
    return float(struct.unpack("<f", value)[0])


def float_field(number: int, value: float) -> Field:
    """A field of four bytes, rounded to float32."""
    return number, FOUR, struct.pack("<f", value)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number whose bytes begin at `at`, seven bits each, and where they end."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError(f"cut short: a number at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"no protocol buffer: a number of more than ten bytes before byte {at}")


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
