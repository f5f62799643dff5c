"""A `.model` of SentencePiece as a `tokenizer.json`, for Hugging Face's tokenizers and for runs.

Ids of texts are equal, but for these: a text that holds U+2581 or spells out a special token, which
a tokenizer.json always finds; with a map of characters, one whose key reaches over several
user-perceived characters, which `tokenizers` maps one by one; Unigram pieces with equal sums (see
`sentencepiece`); and of a BPE, overlapping ways to make one token (`aa a` and `a aa`), which have
one rank there and two here. `<unk>` is decoded as it is written and not as U+2047.
"""

import base64
from pathlib import Path
from typing import Any

from tinylm.tokenizer import sentencepiece
from tinylm.tokenizer.contents import Contents
from tinylm.tokenizer.sentencepiece import (
    BYTE,
    CONTROL,
    MARK,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Parts,
)

Step = dict[str, Any]
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def document(contents: Contents, path: Path) -> dict[str, Any]:
    """The tokenizer.json of contents that have a `.model`; ValueError for what it cannot say."""
    parts = sentencepiece.parts_of(contents.proto or b"")
    for kind, what in ((USER_DEFINED, "user-defined"), (UNUSED, "unused")):
        found = next((text for text, _, own in parts.pieces if own == kind), None)
        if found is not None:
            raise ValueError(
                f"{path}: a tokenizer.json cannot say the {what} piece {found!r} of this .model; "
                "save as .model"
            )
    if parts.spec["treat_whitespace_as_suffix"]:
        raise ValueError(
            f"{path}: a tokenizer.json cannot put a blank behind a text, as the "
            "treat_whitespace_as_suffix of this .model asks; save as .model"
        )
    special = [
        {"id": id, "content": text, **FLAGS, "special": True}
        for id, (text, _, kind) in enumerate(parts.pieces)
        if kind in (UNKNOWN, CONTROL)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": _sequence("normalizers", _normalizers(parts)),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _sequence("decoders", _decoders(parts)),
        "model": _unigram(parts) if parts.spec["model_type"] == UNIGRAM else _bpe(parts),
    }


def _sequence(inner: str, steps: list[Step]) -> Step | None:
    return {"type": "Sequence", inner: steps} if steps else None


def _replace(pattern: dict[str, str], content: str) -> Step:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _normalizers(parts: Parts) -> list[Step]:
    rules, steps = parts.rules, list[Step]()
    if rules["precompiled_charsmap"]:
        chars = base64.b64encode(rules["precompiled_charsmap"]).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": chars})
    if rules["remove_extra_whitespaces"]:
        # Blanks alone: Strip would take line ends too.
        steps += [_replace({"Regex": r"\A +| +\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
    mark = MARK if rules["escape_whitespaces"] else " "
    if rules["add_dummy_prefix"]:
        steps.append({"type": "Prepend", "prepend": mark})
    if rules["escape_whitespaces"]:
        steps.append(_replace({"String": " "}, MARK))
    return steps


def _decoders(parts: Parts) -> list[Step]:
    rules = parts.rules
    steps: list[Step] = [_replace({"String": MARK}, " "), {"type": "ByteFallback"}]
    steps.append({"type": "Fuse"})
    if rules["add_dummy_prefix"] or rules["remove_extra_whitespaces"]:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _unigram(parts: Parts) -> Step:
    lowest = min((score for _, score, kind in parts.pieces if kind == NORMAL), default=0.0)
    # A byte has no score of its own. This one changes neither that of unknown characters nor,
    # where a text does not spell out the name of a byte, any id.
    scores = [[text, lowest if kind == BYTE else score] for text, score, kind in parts.pieces]
    return {
        "type": "Unigram",
        "unk_id": _unknown(parts)[1],
        "vocab": scores,
        "byte_fallback": bool(parts.spec["byte_fallback"]),
    }


def _bpe(parts: Parts) -> Step:
    """Any two tokens whose text is a token merge, the highest score first.

    Of the ways to make one token that with the longest left part comes first. SentencePiece takes
    the leftmost, which in a run such as blanks is that one, as the run was merged from its left.
    """
    normal = {text: score for text, score, kind in parts.pieces if kind == NORMAL}
    splits = [
        (-score, -i, text[:i], text[i:])
        for text, score in normal.items()
        for i in range(1, len(text))
        if text[:i] in normal and text[i:] in normal
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": _unknown(parts)[0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": bool(parts.spec["byte_fallback"]),
        "ignore_merges": False,
        "vocab": {text: id for id, (text, _, _) in enumerate(parts.pieces)},
        "merges": [[left, right] for _, _, left, right in sorted(splits)],
    }


def _unknown(parts: Parts) -> tuple[str, int]:
    """The text and the id of `<unk>`, which every model has."""
    kinds = ((text, id) for id, (text, _, kind) in enumerate(parts.pieces) if kind == UNKNOWN)
    return next(kinds)
