"""The tokenizer against those that people use, in one run on this machine.

    python benches/bench_peers.py                      all of it, on the standard library's sources
    python benches/bench_peers.py encode decode        these; also: train
    python benches/bench_peers.py --json peers.json    the figures too

Before anything is timed, every contender must give the same result: a fast wrong answer has no
speed. Then rounds: each contender once per round, in turn, so that a busy machine slows all alike;
the ratio is taken inside a round. Reported are the median of the rounds and the range of the
middle half. Encoders start each round fresh, without the pieces they remembered. gigatoken takes
part where it is installed (`pip install gigatoken`).
"""

import argparse
import functools
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tokenizers
from race import OURS, Race, check, measure, report

from tinylm import Tokenizer, corpus
from tinylm.reference import patterns

try:
    import gigatoken
except ImportError:
    gigatoken = None

VOCAB, PATTERN, EOS = 8192, "gpt4", "<|endoftext|>"


def texts() -> list[str]:
    """The standard library's sources, one document per file."""
    source = corpus.open("stdlib", val_fraction=0.05)
    return [*source.train(), *source.validation()]


def tiktoken_of(tokenizer: Tokenizer) -> tiktoken.Encoding:
    """tiktoken with our vocabulary."""
    special = tokenizer.special_tokens
    ids = set(special.values())
    return tiktoken.Encoding(
        "peer",
        pat_str=patterns.PATTERNS[tokenizer.pattern],
        mergeable_ranks={token: id for id, token in tokenizer.vocab.items() if id not in ids},
        special_tokens=special,
    )


def contenders(
    tokenizer: Tokenizer, folder: Path
) -> tuple[Callable[[], Tokenizer], Callable[[], tiktoken.Encoding], Callable[[], Any]]:
    """What makes a fresh tokenizer of each library, all with the same vocabulary."""
    path = str(folder / "tokenizer.json")
    tokenizer.save(path)
    return (
        lambda: Tokenizer.load(path),
        lambda: tiktoken_of(tokenizer),
        lambda: tokenizers.Tokenizer.from_file(path),
    )


def encode(documents: list[str], tokenizer: Tokenizer, folder: Path) -> Iterator[Race]:
    """Text to ids: one document after the other on one core, and all at once on all."""
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    ours, openai, face = contenders(tokenizer, folder)
    a, b, c = ours(), openai(), face()
    for text in documents:
        ids = a.encode(text, special="text")
        check(ids == b.encode_ordinary(text), "tiktoken gives other ids")
        check(ids == c.encode(text).ids, "tokenizers gives other ids")
    threads = os.cpu_count() or 1
    fresh = {OURS: ours, "tiktoken": openai, "tokenizers": face}
    one_by_one = {
        OURS: lambda t: [t.encode(text, special="text") for text in documents],
        "tiktoken": lambda t: [t.encode_ordinary(text) for text in documents],
        "tokenizers": lambda t: [t.encode(text).ids for text in documents],
    }
    yield Race("encode, a document at a time", megabytes, "MB/s", one_by_one, fresh)
    together = {
        OURS: lambda t: t.encode_batch(documents, special="text"),
        "tiktoken": lambda t: t.encode_ordinary_batch(documents, num_threads=threads),
        "tokenizers": lambda t: t.encode_batch(documents),
    }
    yield Race(f"encode, all documents, {threads} cores", megabytes, "MB/s", together, fresh)
    if gigatoken is None:
        print("\ngigatoken is not installed: pip install gigatoken")
    else:
        yield from encode_to_arrays(documents, tokenizer, folder)


def encode_to_arrays(documents: list[str], tokenizer: Tokenizer, folder: Path) -> Iterator[Race]:
    """Text to NumPy, which is what gigatoken gives: new to the encoder, and seen before."""
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    ranks = folder / "ranks.tiktoken"
    tokenizer.save(ranks, format="tiktoken")
    runs = {
        OURS: lambda t: [t.encode_array(text, special="text") for text in documents],
        "gigatoken": lambda t: [t.encode(text) for text in documents],
    }
    cold = {
        OURS: lambda: Tokenizer.load(folder / "tokenizer.json"),
        "gigatoken": lambda: gigatoken.Tokenizer.from_tiktoken(ranks, pretokenizer=PATTERN),
    }
    for ours, theirs in zip(*(runs[name](cold[name]()) for name in runs), strict=True):
        check(np.array_equal(ours, theirs), "gigatoken gives other ids")
    yield Race("encode to NumPy, a document at a time", megabytes, "MB/s", runs, cold)
    # Made once, and warm after the first round, which does not count.
    warm = {name: functools.cache(fresh) for name, fresh in cold.items()}
    yield Race("encode to NumPy, seen before", megabytes, "MB/s", runs, warm)


def decode(documents: list[str], tokenizer: Tokenizer, folder: Path) -> Iterator[Race]:
    """Ids to text, a document at a time."""
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    ours, openai, face = contenders(tokenizer, folder)
    rows = [tokenizer.encode(text, special="text") for text in documents]
    runs = {
        OURS: lambda t: [t.decode(ids) for ids in rows],
        "tiktoken": lambda t: [t.decode(ids) for ids in rows],
        "tokenizers": lambda t: [t.decode(ids, skip_special_tokens=False) for ids in rows],
    }
    fresh = {OURS: ours, "tiktoken": openai, "tokenizers": face}
    for name, run in runs.items():
        check(run(fresh[name]()) == documents, f"{name} does not give the text back")
    yield Race("decode, a document at a time", megabytes, "MB/s", runs, fresh)


def face_trained(documents: list[str]) -> Any:
    """Hugging Face's trainer with our pattern and alphabet."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(patterns.PATTERNS[PATTERN]), "isolated", invert=False
    )
    spell = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, spell])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[EOS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def train(documents: list[str], tokenizer: Tokenizer, folder: Path) -> Iterator[Race]:
    """Text to a vocabulary. Ties differ between the two, so equal compression is the gate."""
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    theirs = face_trained(documents)
    check(theirs.get_vocab_size() == tokenizer.vocab_size == VOCAB, "the vocabularies differ")
    ours_tokens = sum(tokenizer.count(text, special="text") for text in documents)
    theirs_tokens = sum(len(ids.ids) for ids in theirs.encode_batch(documents))
    apart = abs(ours_tokens / theirs_tokens - 1)
    check(apart < 0.001, f"the compression differs by {apart:.2%}")
    runs = {
        OURS: lambda _: Tokenizer.train(documents, vocab_size=VOCAB, pattern=PATTERN),
        "tokenizers": lambda _: face_trained(documents),
    }
    fresh: dict[str, Callable[[], Any]] = dict.fromkeys(runs, lambda: None)
    yield Race(f"train {VOCAB:,} tokens", megabytes, "MB/s", runs, fresh)


PARTS = {part.__name__: part for part in (encode, decode, train)}


def main() -> None:
    """Run the parts named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures of every round")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: {', '.join(PARTS)}")
    documents = texts()
    size = sum(len(text.encode()) for text in documents)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"text: {len(documents)} files of the standard library, {size / 1e6:.1f} MB")
    tokenizer = Tokenizer.train(documents, vocab_size=VOCAB, pattern=PATTERN)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.parts or PARTS:
            for race in PARTS[name](documents, tokenizer, Path(folder)):
                results = measure(race, options.rounds)
                report(race, results)
                figures[race.name] = {"unit": race.unit, "contenders": results}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
