"""`.model`, the file of SentencePiece: Unigram and BPE, read and written.

A file that was read is written back byte by byte. Of its fields those that decide ids or text are
applied, the rest is kept:

| field | |
|---|---|
| pieces: piece, score | applied |
| pieces: type | applied: see below |
| trainer_spec: model_type | UNIGRAM or BPE; WORD and CHAR are refused |
| trainer_spec: byte_fallback, treat_whitespace_as_suffix, unk_surface | applied |
| trainer_spec: unk_id, bos_id, eos_id, pad_id and their pieces | applied: the roles of tokens |
| trainer_spec: all else | kept: how the model was made |
| normalizer_spec: precompiled_charsmap, add_dummy_prefix | applied |
| normalizer_spec: remove_extra_whitespaces, escape_whitespaces | applied |
| normalizer_spec: name, normalization_rule_tsv | kept: the map says what they said |
| denormalizer_spec | refused if it has a map |
| self_test_data | kept |
| any other | refused |

Control tokens are special ones, user-defined ones always match, `<unk>` and unused ones come from
no text, and byte ones say what no other piece can.

SentencePiece sums scores over the whole text in float32, so which of several segmentations with
nearly the same sum it takes (`00 0` or `0 00`) depends on the text before. TinyLM takes the same
one, by the same sums where it matters (`rust/tokenizer/src/unigram_float.rs`), for texts whose sum
is above -16384: at least 5 kB. In longer ones a word may be cut as it is by itself.

As in SentencePiece no id is added before or after a text, and special tokens in a text are text
with `special="text"`.
"""

import struct
from collections.abc import Collection, Mapping
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from tinylm import disk
from tinylm.tokenizer import protobuf
from tinylm.tokenizer.contents import AddedToken, Contents, Stages
from tinylm.tokenizer.decoders import Surfaces
from tinylm.tokenizer.models import CharBpe, Model, Unigram

MARK = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
MODEL_TYPES = {3: "WORD", 4: "CHAR"}
# The fields of a model, of its trainer's and of its normaliser's part.
PIECES, TRAINER, NORMALIZER, SELF_TEST, DENORMALIZER = range(1, 6)
SPEC = {
    3: "model_type",
    24: "treat_whitespace_as_suffix",
    35: "byte_fallback",
    40: "unk_id",
    41: "bos_id",
    42: "eos_id",
    43: "pad_id",
    44: "unk_surface",
    **dict.fromkeys((1, 2, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22), ""),
    **dict.fromkeys((23, 25, 26, 30, 31, 32, 33, 34, 36, 45, 46, 47, 48, 49, 50, 51, 52), ""),
    **dict.fromkeys((53, 54), ""),
}
DEFAULTS: dict[str, int | bytes] = {
    "model_type": UNIGRAM,
    "treat_whitespace_as_suffix": 0,
    "byte_fallback": 0,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    # -1 in the ten bytes of a varint.
    "pad_id": 2**64 - 1,
    "unk_surface": b" \xe2\x81\x87 ",
}
RULES = {
    1: "",
    2: "precompiled_charsmap",
    3: "add_dummy_prefix",
    4: "remove_extra_whitespaces",
    5: "escape_whitespaces",
    6: "",
}
RULE_DEFAULTS: dict[str, int | bytes] = {
    "precompiled_charsmap": b"",
    "add_dummy_prefix": 1,
    "remove_extra_whitespaces": 1,
    "escape_whitespaces": 1,
}


def read(path: Path) -> Contents:
    """The contents of a `.model`; ValueError names what in it is not supported."""
    data = path.read_bytes()
    try:
        return contents_of(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write(contents: Contents, path: Path) -> None:
    """Writes the file that the contents were read from; ValueError for those of another file."""
    if contents.proto is None:
        raise ValueError(
            f"{path}: only a tokenizer that was read from a .model or trained with "
            "alphabet=Characters(...) can be written as one, as SentencePiece has no patterns and "
            "no tokens that end inside a character; save as tokenizer.json"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.replace(path, contents.proto)


class Parts(NamedTuple):
    """A `.model` as it stands: pieces with their scores and types, and two rows of settings."""

    pieces: list[tuple[str, float, int]]
    spec: dict[str, Any]
    rules: dict[str, Any]


def contents_of(data: bytes) -> Contents:
    """What the bytes of a `.model` say."""
    return _contents(*parts_of(data), data)


def parts_of(data: bytes) -> Parts:
    """The parts of a `.model`; ValueError names a field that is not supported."""
    pieces: list[tuple[str, float, int]] = []
    spec, rules = dict(DEFAULTS), dict(RULE_DEFAULTS)
    for number, _, value in protobuf.fields(data):
        if number == SELF_TEST:
            continue
        if number not in (PIECES, TRAINER, NORMALIZER, DENORMALIZER) or isinstance(value, int):
            raise ValueError(f"field {number} of the model is not supported")
        if number == PIECES:
            pieces.append(_piece(value, len(pieces)))
        elif number == TRAINER:
            spec |= _values(value, SPEC, "trainer_spec")
        elif number == NORMALIZER:
            rules |= _values(value, RULES, "normalizer_spec")
        elif _values(value, RULES, "denormalizer_spec").get("precompiled_charsmap"):
            raise ValueError("denormalizer_spec.precompiled_charsmap is not supported")
    if not pieces:
        raise ValueError("no SentencePiece model: it has no pieces")
    return Parts(pieces, spec, rules)


def _piece(data: bytes, place: int) -> tuple[str, float, int]:
    """Text, score and type of a piece."""
    text, score, kind = "", 0.0, NORMAL
    for number, _, value in protobuf.fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode()
        elif number == 2:
            score = protobuf.as_float(value)
        elif number == 3 and isinstance(value, int):
            kind = value
        else:
            raise ValueError(f"field {number} of piece {place} is not supported")
    if not text or not NORMAL <= kind <= BYTE:
        raise ValueError(f"piece {place} {text!r} of type {kind} is not supported")
    return text, score, kind


def _values(data: bytes, known: Mapping[int, str], where: str) -> dict[str, int | bytes]:
    """The fields with a name; ValueError for one that is not `known`."""
    found = {}
    for number, _, value in protobuf.fields(data):
        if number not in known:
            raise ValueError(f"field {number} of {where} is not supported")
        if name := known[number]:
            found[name] = value
    return found


def _contents(
    pieces: list[tuple[str, float, int]],
    spec: Mapping[str, Any],
    rules: Mapping[str, Any],
    data: bytes,
) -> Contents:
    if spec["model_type"] not in (UNIGRAM, BPE):
        kind = MODEL_TYPES.get(spec["model_type"], spec["model_type"])
        raise ValueError(f"model_type {kind} is not supported, only UNIGRAM and BPE")
    by_kind: dict[int, list[int]] = {kind: [] for kind in range(NORMAL, BYTE + 1)}
    for id, (_, _, kind) in enumerate(pieces):
        by_kind[kind].append(id)
    if len(by_kind[UNKNOWN]) != 1:
        raise ValueError(f"{len(by_kind[UNKNOWN])} unknown pieces are not supported, only one")
    if len({text for text, _, _ in pieces}) < len(pieces):
        raise ValueError("a piece is listed twice")
    if spec["model_type"] == BPE and by_kind[UNUSED]:
        unused = pieces[by_kind[UNUSED][0]][0]
        raise ValueError(f"the unused piece {unused!r} of a BPE is not supported")
    unknown, unigram = by_kind[UNKNOWN][0], spec["model_type"] == UNIGRAM
    kept = [pieces[id][0] for id in by_kind[USER_DEFINED]]
    ids = sorted(by_kind[NORMAL] + by_kind[USER_DEFINED])
    tokens = {pieces[id][0].encode(): id for id in ids}
    scores = [pieces[id][1] for id in ids]
    fallback = bool(spec["byte_fallback"])
    model: Model
    if unigram:
        best = max((pieces[id][1] for id in by_kind[NORMAL]), default=0.0)
        bonus = {id: _bonus(pieces[id][0], best) for id in by_kind[USER_DEFINED]}
        scores = [bonus.get(id, score) for id, score in zip(ids, scores, strict=True)]
    if fallback:
        # Known by their names, which as a text are text: such a score is never chosen.
        tokens |= {pieces[id][0].encode(): id for id in by_kind[BYTE]}
        scores += [-inf] * len(by_kind[BYTE])
    if unigram:
        model = Unigram(tuple(scores), unknown, fallback, float32=True)
    else:
        frozen = tuple(by_kind[USER_DEFINED])
        model = CharBpe(None, False, unknown, True, fallback, scores=tuple(scores), frozen=frozen)
    return Contents(
        tokens=tokens,
        model=model,
        pattern=pattern_of([pieces[id][0] for id in ids]),
        added_tokens=tuple(AddedToken(pieces[id][0], id) for id in by_kind[CONTROL]),
        stages=Stages(normalizers=(_normalizer(spec, rules, kept),), chars=True),
        surfaces=_surfaces(pieces, spec, rules),
        inert={pieces[id][0]: id for id in (*by_kind[UNKNOWN], *by_kind[UNUSED])},
        roles=_roles(pieces, spec, by_kind[CONTROL]),
        proto=data,
    )


def _bonus(text: str, best: float) -> float:
    """The score of a user-defined token in a Unigram: as SentencePiece has it, in float32."""
    product = struct.unpack("<f", struct.pack("<f", len(text.encode()) * best))[0]
    return float(product - 0.1)


def pattern_of(pieces: Collection[str]) -> str:
    """ "marks" if no piece goes on after a blank, so that words can be encoded by themselves."""
    alone = MARK in pieces
    joined = any(a != MARK and b == MARK for piece in pieces for a, b in pairwise(piece))
    return "marks" if alone and not joined else "whole"


def _normalizer(
    spec: Mapping[str, Any], rules: Mapping[str, Any], kept: list[str]
) -> dict[str, Any]:
    return {
        "type": "SentencePiece",
        "precompiled_charsmap": rules["precompiled_charsmap"],
        "kept": kept,
        "add_dummy_prefix": bool(rules["add_dummy_prefix"]),
        "remove_extra_whitespaces": bool(rules["remove_extra_whitespaces"]),
        "escape_whitespaces": bool(rules["escape_whitespaces"]),
        "treat_whitespace_as_suffix": bool(spec["treat_whitespace_as_suffix"]),
    }


def _surfaces(
    pieces: list[tuple[str, float, int]], spec: Mapping[str, Any], rules: Mapping[str, Any]
) -> Surfaces:
    """What each token looks like in a text: a mark is a blank, a control token nothing."""
    found = {}
    for id, (text, _, kind) in enumerate(pieces):
        if kind == BYTE:
            found[id] = bytes([int(text[3:5], 16)])
        elif kind == UNKNOWN:
            found[id] = bytes(spec["unk_surface"])
        else:
            found[id] = b"" if kind == CONTROL else text.replace(MARK, " ").encode()
    # The blank that normalising put before the text; and where it leaves none there, another one.
    drop = rules["remove_extra_whitespaces"] or rules["add_dummy_prefix"]
    drop = drop and not spec["treat_whitespace_as_suffix"]
    return Surfaces(found, {}, (" ", 1) if drop else None)


def _roles(
    pieces: list[tuple[str, float, int]], spec: Mapping[str, Any], control: list[int]
) -> dict[str, str]:
    names = {"eos_token": "eos_id", "bos_token": "bos_id", "pad_token": "pad_id"}
    return {role: pieces[spec[key]][0] for role, key in names.items() if spec[key] in control}
