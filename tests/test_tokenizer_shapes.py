"""Files in the shapes in which models are published, with small vocabularies, against `tokenizers`.

Each shape is the normalizer, pre_tokenizer, post_processor, decoder and the options of the model of
a tokenizer.json as its project publishes it; the tokens are learned here.
"""

import json
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from tests.support.fuzzing import texts
from tests.support.tokenizer_data import TEXTS
from tests.support.tokenizer_json import added
from tests.test_tokenizer_published import HARD
from tinylm import Tokenizer

MARK = "\u2581"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NEMO = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KIMI = (
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"


def byte_level(*, blank: bool = False, trim: bool = True, regex: bool = True) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": blank,
        "trim_offsets": trim,
        "use_regex": regex,
    }


def split(regex: str, behavior: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": regex},
        "behavior": behavior,
        "invert": invert,
    }


def sequence(*pretokenizers: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [*pretokenizers]}


def digits(*, individual: bool = True) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": individual}


BARE = byte_level(regex=False)
NFC = {"type": "NFC"}
# Byte-level BPE.
BYTES: dict[str, dict[str, Any]] = {
    "llama 3": {"pre_tokenizer": sequence(split(LLAMA3), BARE), "ignore_merges": True},
    "qwen 3": {
        "normalizer": NFC,
        "pre_tokenizer": sequence(
            split(LLAMA3.replace("{1,3}", "")), byte_level(trim=False, regex=False)
        ),
        "post_processor": byte_level(trim=False, regex=False),
    },
    "olmo": {"normalizer": NFC, "pre_tokenizer": byte_level()},
    "gpt-j": {"pre_tokenizer": byte_level(), "post_processor": byte_level(blank=True, trim=False)},
    "nemo": {"pre_tokenizer": sequence(split(NEMO), BARE), "ignore_merges": True},
    "command r": {"normalizer": NFC, "pre_tokenizer": sequence(digits(), byte_level())},
    "starcoder": {"pre_tokenizer": sequence(digits(), byte_level())},
    "bloom": {"pre_tokenizer": sequence(split(BLOOM), BARE)},
    "kimi k2": {"pre_tokenizer": sequence(split(KIMI), BARE)},
    "superbpe": {"pre_tokenizer": sequence(split(r"(?=(\d{3})+(?!\d))"), byte_level())},
    "bart": {"pre_tokenizer": byte_level(blank=True)},
    "inverted": {
        "pre_tokenizer": sequence(split(LLAMA3, "Removed", invert=True), BARE),
        "ignore_merges": True,
    },
    "granite": {"pre_tokenizer": sequence(digits(individual=False), byte_level())},
}
REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
BACK = {"type": "Replace", "pattern": {"String": MARK}, "content": " "}
FALLBACK = [BACK, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
# BPE over characters.
CHARS: dict[str, dict[str, Any]] = {
    "gemma": {
        "normalizer": REPLACED,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {"type": "Sequence", "decoders": FALLBACK},
    },
    "phi-3": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": MARK}, REPLACED],
        },
        "decoder": {"type": "Sequence", "decoders": [*FALLBACK, STRIP]},
    },
    "mistral 2": {
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": MARK,
            "prepend_scheme": "first",
            "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": [*FALLBACK, STRIP]},
    },
}


@cache
def learned(*, over_bytes: bool) -> dict[str, Any]:
    """A model of 400 tokens, as its file has it."""
    made = tokenizers.Tokenizer(models.BPE(unk_token=None if over_bytes else "<unk>"))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    first = [] if over_bytes else ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    step = pre_tokenizers.ByteLevel(False) if over_bytes else pre_tokenizers.Metaspace()
    made.pre_tokenizer = step
    trainer = trainers.BpeTrainer(
        vocab_size=400 + len(first),
        special_tokens=first,
        initial_alphabet=alphabet if over_bytes else [],
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    found: dict[str, Any] = json.loads(made.to_str())["model"]
    return found


def document(shape: dict[str, Any], *, over_bytes: bool) -> dict[str, Any]:
    """A tokenizer.json of a shape, with two special tokens and one that is none."""
    model = dict(learned(over_bytes=over_bytes))
    model |= {"ignore_merges": shape.get("ignore_merges", False)}
    if not over_bytes:
        model |= {"byte_fallback": True, "fuse_unk": True}
    size = len(model["vocab"])
    tokens = [
        added("<|begin|>", size),
        added("<|end|>", size + 1, rstrip=True),
        added("    ", size + 2, special=False, normalized=True),
    ]
    parts = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    parts |= {"decoder": byte_level()} if over_bytes else {}
    parts |= {key: value for key, value in shape.items() if key in parts}
    return {"version": "1.0", "added_tokens": tokens, **parts, "model": model}


@pytest.mark.parametrize("name", [*BYTES, *CHARS])
def test_a_file_in_a_published_shape_agrees(name: str, tmp_path: Path) -> None:
    made = document(BYTES.get(name) or CHARS[name], over_bytes=name in BYTES)
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    ours, theirs = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    ours.save(path)
    assert json.loads(path.read_text(encoding="utf-8")) == made
    tokens = [*made["model"]["vocab"], "<|begin|>", "<|end|> ", "    "]
    for text in [*HARD, *islice(texts(3, tokens), 80)]:
        ids = ours.encode(text, special="allow")
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        told = theirs.decode(ids, skip_special_tokens=False)
        assert "\ufffd" in told or ours.decode(ids) == told, text
