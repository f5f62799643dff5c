"""What TinyLM computed when these files were written: one JSON file a snapshot.

    python tests/golden/make.py              write all of them again
    python tests/golden/make.py losses       write these

A property test compares two computations of today, and is silent where both change. These files
hold today against the past: a change that shows here changes what users get, or what their old
runs resume to, and belongs in CHANGELOG.md. `tests/test_golden.py` compares.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinylm import Tokenizer, model, optim
from tinylm.config import ModelConfig, OptimConfig
from tinylm.data import Dataset, Loader, ShardWriter
from tinylm.reference import order as reference
from tinylm.reference import patterns

FOLDER = Path(__file__).parent
TEXT = (
    "The quick brown fox jumps over the lazy dog; the dog's fox isn't quick.\n"
    "def f(x):\n    return x + 1  # 12345 \t\r\n\n"
    "\u4e2d\u6587\u6587\u672c\uff0c\u4e2d\u6587\u3002 \xe9t\xe9, \xc9T\xc9; e\u0301a \U0001f642\n"
) * 4
LENGTH = 16
RATES = {"adamw": 0.01, "sgd": 0.1, "muon": 0.01}


def permutation() -> Any:
    """Where permutations below and above the size of the table send their first places."""
    cases = [(1, 0), (10, 7), (1023, 1), (1024, 1), (1_000_003, 2**64 - 1)]
    return {
        f"n={n} key={key}": [reference.permute(i, n, key) for i in range(min(n, 12))]
        for n, key in cases
    }


def tokenizers() -> dict[str, Tokenizer]:
    """One tokenizer of TEXT for each rule of ties."""
    return {ties: Tokenizer.train([TEXT], vocab_size=310, ties=ties) for ties in ("ids", "bytes")}


def merges() -> Any:
    """Every merge of TEXT as hexadecimal bytes, and the ids of TEXT's beginning."""
    return {
        ties: {
            "sha256": tokenizer.sha256,
            "merges": [f"{left.hex()} {right.hex()}" for left, right in tokenizer.merges],
            "ids": tokenizer.encode(TEXT[:80]),
        }
        for ties, tokenizer in tokenizers().items()
    }


def splits() -> Any:
    """The pieces of a quarter of TEXT, which is all of its lines, in each published pattern."""
    lines = TEXT[: len(TEXT) // 4]
    return {name: patterns.split(lines, name) for name in ("gpt2", "gpt4", "o200k", "llama3")}


def dataset(folder: Path) -> Dataset:
    """TEXT line by line as documents, in shards of 100 tokens."""
    tokenizer = tokenizers()["ids"]
    with ShardWriter(folder, tokenizer=tokenizer, shard_tokens=100) as writer:
        for line in TEXT.splitlines(keepends=True):
            ids = tokenizer.encode_array(line)
            writer.add(ids, n_bytes=len(line.encode()))
    return Dataset.open(folder)


def shards() -> Any:
    """SHA-256 of every shard file."""
    with tempfile.TemporaryDirectory() as folder:
        dataset(Path(folder))
        files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".bin", ".doc"))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows() -> Any:
    """The first tokens of the rows that the loader serves, two epochs, in each order."""
    with tempfile.TemporaryDirectory() as folder:
        data = dataset(Path(folder))
        loaders = {
            order: Loader(data, batch_size=2, context_length=LENGTH, order=order, seed=5)
            for order in ("shuffle", "sequential", "random")
        }
        return {
            f"{order}, epoch {epoch}": [loader.row(epoch, i)[0][:4].tolist() for i in range(8)]
            for order, loader in loaders.items()
            for epoch in range(2)
        }


def tiny(architecture: str) -> model.Model:
    """A model of two blocks whose weights are all random: as built, its branches are zero."""
    config = ModelConfig(
        architecture=architecture,
        vocab_size=310,
        context_length=LENGTH,
        d_model=24,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
    )
    made = model.build(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


def logits() -> Any:
    """The first 8 logits at 4 positions."""
    tokens = torch.arange(4)[None] * 70
    with torch.inference_mode():
        return {
            name: [
                [round(logit, 6) for logit in position[:8]]
                for position in tiny(name)(tokens)[0].tolist()
            ]
            for name in ("llama3", "gpt2")
        }


def losses() -> Any:
    """The loss of 20 steps on the CPU in float32, with each optimizer."""
    return {name: train(name) for name in RATES}


def train(name: str) -> list[float]:
    """The losses of a tiny llama3 on the shards of TEXT."""
    network = tiny("llama3")
    config = OptimConfig(name=name, lr=RATES[name], warmup=0.2)
    optimizer = optim.build(network, config)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        loader = Loader(dataset(Path(folder)), batch_size=4, context_length=LENGTH, seed=3)
        with loader:
            for step in range(20):
                batch = next(loader)
                loss = network.loss(batch.tokens, batch.targets)
                loss.backward()
                optimizer.step(optim.schedule(step, 20, config))
                found.append(round(loss.item(), 6))
    return found


SNAPSHOTS: dict[str, Callable[[], Any]] = {
    make.__name__: make for make in (permutation, merges, splits, shards, rows, logits, losses)
}


def path_of(name: str) -> Path:
    """The file of a snapshot."""
    return FOLDER / f"{name}.json"


def main(wanted: list[str]) -> None:
    """Write the snapshots named, or all."""
    for name in wanted or SNAPSHOTS:
        path_of(name).write_text(json.dumps(SNAPSHOTS[name](), indent=1) + "\n", encoding="utf-8")
        print(path_of(name))


if __name__ == "__main__":
    main(sys.argv[1:])
