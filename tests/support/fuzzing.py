"""Hostile texts without end against the tools whose vocabularies are at hand.

    TINYLM_DATA=FOLDER python -m tests.support.fuzzing tiktoken 1000000 --seed 1
    TINYLM_DATA=FOLDER python -m tests.support.fuzzing huggingface 100000 --only smollm deepseek

A text on which the ids or the text decoded from them differ is printed in a short form that still
fails. Add that line to `tests/golden/fuzzed.txt`, which `tests/test_fuzzed.py` reads.
"""

import argparse
import gzip
import json
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import tokenizers

from tests.support.strategies import CLASSES, FRAGMENTS
from tests.support.tokenizer_data import data, published, tiktoken_of
from tinylm import Tokenizer

# What is wrong with a text, or None.
Check = Callable[[str], str | None]
RECORDED = Path(__file__).parent.parent / "golden" / "fuzzed.txt"
LOOK_ALIKES = ("<|endoftext", "|endoftext|>", "\uff1c|endoftext|>", "<|end", "</s", "[MASK", "<unk")
RANGES = ((0x20, 0x250), (0x300, 0x3000), (0x3000, 0xD800), (0xE000, 0x30000))


def recorded() -> list[str]:
    """The texts that failed once, those of UTF-8."""
    lines = RECORDED.read_text(encoding="utf-8").splitlines()
    found = (
        line.encode().decode("unicode_escape").encode("latin-1")
        for line in lines
        if not line.startswith("#")
    )
    return [text.decode() for text in found]


def texts(seed: int, tokens: list[str]) -> Iterator[str]:
    """Texts of six families: fragments, runs, tokens in a row, cut UTF-8, look-alikes, anything."""
    rng = random.Random(seed)
    while True:
        some = rng.choices((*FRAGMENTS, *LOOK_ALIKES), k=rng.choice((2, 4, 60)))
        match rng.randrange(6):
            case 0:
                text = "".join(rng.choices(some, k=2)) * rng.randrange(100)
            case 1:
                text = "".join(rng.choices(tokens, k=rng.randrange(12)))
            case 2:
                spans = rng.choices(RANGES, k=rng.randrange(10))
                text = "".join(chr(rng.randrange(*span)) for span in spans)
            case 3:
                text = "".join(rng.choices(CLASSES, k=rng.randrange(20)))
            case 4:
                whole = "".join(rng.choices(some, k=rng.randrange(20))).encode()
                at = rng.randrange(len(whole) + 1)
                text = whole[at : at + rng.randrange(40)].decode(errors="replace")
            case _:
                text = "".join(rng.choices(some, k=rng.randrange(20)))
        yield text


def shortest(text: str, fails: Check) -> str:
    """A shorter text that still fails, by leaving stretches out."""
    length = len(text) // 2
    while length:
        at = 0
        while at + length <= len(text):
            shorter = text[:at] + text[at + length :]
            if fails(shorter):
                text = shorter
            else:
                at += length
        length //= 2
    return text


def against_tiktoken(name: str) -> tuple[Check, list[str]]:
    """The check of a vocabulary and its tokens."""
    ours = published(name)
    theirs = tiktoken_of(ours)

    def check(text: str) -> str | None:
        ids = ours.encode(text, special="text")
        if ids != theirs.encode_ordinary(text):
            return f"{name}: other ids"
        return None if ours.decode(ids) == text else f"{name}: another text comes back"

    return check, [t.decode(errors="replace") for t in ours.vocab.values()]


def against_hugging_face(name: str) -> tuple[Check, list[str]]:
    """The check of a published tokenizer.json, and its tokens."""
    text = gzip.decompress(data(f"fixtures/tokenizers/{name}.json.gz").read_bytes()).decode()
    theirs = tokenizers.Tokenizer.from_str(text)
    theirs.no_truncation()
    theirs.no_padding()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        path.write_text(text, encoding="utf-8")
        ours = Tokenizer.load(path)

    model = json.loads(text)["model"]
    scores = [score for _, score in model["vocab"]] if "unk_id" in model else []

    def equal(mine: list[int], told: list[int]) -> bool:
        # It reads some numbers of JSON one unit off in the last place, which decides between
        # segmentations that are equally probable.
        def total(ids: list[int]) -> float:
            return sum(scores[id] for id in ids if id < len(scores))

        return mine == told or (bool(scores) and math.isclose(total(mine), total(told)))

    def check(text: str) -> str | None:
        ids = ours.encode(text, special="allow")
        if not equal(ids, theirs.encode(text, add_special_tokens=False).ids):
            return f"{name}: other ids"
        # It gives several U+FFFD where a run of bytes is no UTF-8.
        mine, told = ours.decode(ids), theirs.decode(ids, skip_special_tokens=False)
        return None if mine == told or "\ufffd" in told else f"{name}: another text comes back"

    return check, [t.decode(errors="replace") for t in ours.vocab.values()]


def main() -> int:
    """Tries texts until one fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("peer", choices=("tiktoken", "huggingface"))
    parser.add_argument("count", type=int, help="texts for each vocabulary")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], help="names of vocabularies")
    given = parser.parse_args()
    names = given.only
    if not names and given.peer == "tiktoken":
        names = ["cl100k_base", "o200k_base", "gpt2"]
    elif not names:
        folder = data("fixtures/tokenizers")
        names = sorted(path.name.removesuffix(".json.gz") for path in folder.glob("*.json.gz"))
    against = against_tiktoken if given.peer == "tiktoken" else against_hugging_face
    for name in names:
        check, tokens = against(name)
        for number, text in zip(range(given.count), texts(given.seed, tokens), strict=False):
            if problem := check(text):
                short = shortest(text, check).encode()
                escaped = repr(short)[2:-1]
                print(f"{problem}, seed {given.seed}, text {number}: {escaped}")
                return 1
        print(f"{name}: {given.count:,} texts, seed {given.seed}, no difference", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
