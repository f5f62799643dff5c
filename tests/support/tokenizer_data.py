"""Tokenizers and texts that several tests use: small ones made here, corpora and published
vocabularies from the folder that TINYLM_DATA names."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import tiktoken

from tests.support.strategies import LONG_WORD
from tinylm import Tokenizer
from tinylm.reference.patterns import PATTERNS
from tinylm.tokenizer.contents import to_bytes

CORPORA = [
    "corpora/english.txt",
    "corpora/multilingual.txt",
    "corpora/tinyshakespeare.txt",
    "fixtures/corpus.en",
    "fixtures/german.txt",
]
ENDOFTEXT = "<|endoftext|>"

# Small tokenizers of every kind, and what they were trained on.
TEXTS = [
    "The quick brown fox jumps over the lazy dog; the dog's fox isn't quick.\n" * 3,
    "def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n",
    "\u4e2d\u6587\u6587\u672c\uff0c\u4e2d\u6587\u3002 \xe9t\xe9, \xc9T\xc9; na\xefve na\xefve\n",
    "aaaa aaa aaaaaaa abababab    \n\n  1234567 12 3\r\n",
    f" {LONG_WORD}" * 30,
]
TOKENIZERS = {
    name: Tokenizer.train(
        TEXTS, vocab_size=370, pattern=name, special_tokens=("<|endoftext|>", "<|end|>", "<|end|>>")
    )
    for name in ("gpt2", "gpt4", "o200k", "llama3")
}
KINDS = {
    "char": Tokenizer.train(TEXTS, vocab_size=262, kind="char"),
    "whitespace": Tokenizer.train(TEXTS, vocab_size=271, kind="whitespace"),
    "byte": Tokenizer.train(TEXTS, vocab_size=257, kind="byte"),
}
EVERY = [*TOKENIZERS.values(), *KINDS.values()]


def data(name: str) -> Path:
    """A file below TINYLM_DATA; skips the test where there is none."""
    folder = os.environ.get("TINYLM_DATA")
    if not folder:
        pytest.skip("TINYLM_DATA names no folder with corpora and fixtures")
    path = Path(folder, name)
    if not path.exists():
        pytest.skip(f"TINYLM_DATA holds no {name}")
    return path


def corpus(name: str, size: int | None = None) -> str:
    """The text of a corpus, or its first `size` characters, line ends as they are."""
    with open(data(name), encoding="utf-8", newline="") as file:
        return file.read(size)


def over_a_mebibyte(unit: str) -> str:
    """`unit` and a number in a row: long enough to be cut into portions for the threads."""
    unit += " 1 "
    return unit * (1 + 1_100_000 // len(unit.encode()))


def standard_library(files: int | None = None) -> str:
    """The sources of Python's own library, in a fixed order."""
    folder = Path(os.__file__).parent
    paths = sorted(folder.glob("*.py"))[:files]
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


@cache
def gpt2() -> Tokenizer:
    """GPT-2's tokenizer, from its vocabulary and merges."""
    vocab = json.loads(data("fixtures/gpt2_vocab.json").read_text(encoding="utf-8"))
    lines = data("fixtures/gpt2_merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(map(to_bytes, line.split(" "))) for line in lines if line[:9] != "#version:"]
    special = {ENDOFTEXT: vocab.pop(ENDOFTEXT)}
    tokens = {id: to_bytes(token) for token, id in vocab.items()}
    return Tokenizer.from_merges(tokens, merges, pattern="gpt2", special_tokens=special)


@cache
def published(name: str) -> Tokenizer:
    """gpt2, cl100k_base or o200k_base."""
    return gpt2() if name == "gpt2" else Tokenizer.load(data(f"fixtures/{name}.tiktoken.gz"))


@cache
def tiktoken_of(tokenizer: Tokenizer) -> tiktoken.Encoding:
    """The tiktoken encoding with the same ranks, pattern and special tokens."""
    special = tokenizer.special_tokens
    ids = set(special.values())
    return tiktoken.Encoding(
        "peer",
        pat_str=PATTERNS[tokenizer.pattern],
        mergeable_ranks={token: id for id, token in tokenizer.vocab.items() if id not in ids},
        special_tokens=special,
    )
