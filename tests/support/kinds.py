"""Tokenizers of every kind trained on one text, and a small model for each."""

import ast
import functools

from tests.support.models import build
from tinylm import Tokenizer
from tinylm.config import ModelConfig
from tinylm.model import Model

TEXT = "def visit(self, node):\n    for name in names:\n        return nodes  # caf\u00e9 \u20ac\n"
SIZE = 330
CONTEXT = 12
KINDS = ["gpt4", "gpt2", "llama3", "char", "whitespace", "byte"]


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    """A tokenizer of a kind, or BPE with the pattern of that name."""
    pattern, kind = (kind, "bpe") if kind.startswith(("gpt", "llama")) else ("gpt4", kind)
    with open(ast.__file__, encoding="utf-8") as file:
        texts = [TEXT * 9, file.read()[:9000]]
    return Tokenizer.train(texts, vocab_size=SIZE, kind=kind, pattern=pattern)


@functools.cache
def model_of(kind: str) -> Model:
    """A model of the vocabulary of `tokenizer_of(kind)`, in float64."""
    size = tokenizer_of(kind).vocab_size
    shape = ModelConfig(
        vocab_size=size, d_model=12, n_layers=1, n_heads=2, context_length=CONTEXT, tied=False
    )
    return build(shape)
