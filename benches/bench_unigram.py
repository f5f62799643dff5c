"""Unigram against SentencePiece: training and encoding, in one run on one core.

    python benches/bench_unigram.py english.txt              vocabularies of 8,000 and 32,000
    python benches/bench_unigram.py english.txt --sizes 8000 --megabytes 4 --rounds 3
    python benches/bench_unigram.py english.txt --json unigram.json   the figures too

Training is compared where it is the same task: words of the text as SentencePiece normalises it,
all characters as tokens, pieces of one script. Ours is timed from the normalised lines to the
vocabulary. The gate is the log likelihood of the best segmentations of all words: a vocabulary that
says the text worse has no speed. Encoding reads the model that SentencePiece trained, and gives
equal ids, but for segmentations with the same sum, which are counted. Each document has about 2
kB. Encoders start each round fresh, without the words they remembered.
"""

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from race import OURS, Race, check, measure, report

from tinylm import Tokenizer, _rust

DOCUMENT = 2000


def train_theirs(lines: list[str], size: int, path: Path) -> float:
    """Writes SentencePiece's model; the seconds that it took."""
    out = io.BytesIO()
    start = time.process_time()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        vocab_size=size,
        model_type="unigram",
        character_coverage=1.0,
        num_threads=1,
        max_sentence_length=1 << 20,
        minloglevel=2,
    )
    seconds = time.process_time() - start
    path.write_bytes(out.getvalue())
    return seconds


def train_ours(normal: list[str], size: int) -> tuple[list[bytes], list[float]]:
    """Tokens and scores from normalised lines; three less than `size`, for <unk>, <s> and </s>."""
    counts = _rust.WordCounts("marks", [], 1)
    counts.add(normal)
    characters = sorted(char.encode() for char in set().union(*map(set, normal)))
    return _rust.train_unigram(counts, size - 3, 1, characters, True, None)


def likelihood(normal: list[str], tokens: list[bytes], scores: list[float]) -> tuple[float, int]:
    """The log likelihood of the best segmentations of all words, and their tokens."""
    model = _rust.Model.unigram([*scores, min(scores)], unknown=len(tokens))
    named = {token: id for id, token in enumerate([*tokens, b"<unk>"])}
    core = _rust.Tokenizer(named, model, "marks", [])
    ids, _ = core.encode_batch(normal, "text", "uint32")
    check(bool((ids < len(tokens)).all()), "a character is unknown")
    return float(np.array(scores)[ids].sum()), len(ids)


def train(lines: list[str], size: int, path: Path) -> dict[str, float]:
    """A line for the training of both; the seconds of each."""
    theirs = train_theirs(lines, size, path)
    peer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    normal = [line for line in map(peer.normalize, lines) if line]
    start = time.process_time()
    tokens, scores = train_ours(normal, size)
    ours = time.process_time() - start
    pieces = range(3, peer.get_piece_size())
    check(len(tokens) == len(pieces), f"{len(tokens)} tokens, not {len(pieces)}")
    their_tokens = [peer.id_to_piece(id).encode() for id in pieces]
    their_scores = [peer.get_score(id) for id in pieces]
    ours_fit, ours_tokens = likelihood(normal, tokens, scores)
    theirs_fit, theirs_tokens = likelihood(normal, their_tokens, their_scores)
    worse = ours_fit / theirs_fit - 1
    check(worse <= 0.005, f"the log likelihood is {worse:.2%} worse")
    print(
        f"\ntrain {size:,}: {OURS} {ours:.2f} s, sentencepiece {theirs:.2f} s of one core, "
        f"{theirs / ours:.1f}x; log likelihood {-worse:+.2%}, tokens "
        f"{ours_tokens / theirs_tokens - 1:+.2%}"
    )
    return {OURS: ours, "sentencepiece": theirs}


def documents_of(text: str) -> list[str]:
    """The text in documents of about 2 kB, cut at ends of lines."""
    documents, pending = [], ""
    for line in text.split("\n"):
        pending += line + " "
        if len(pending) >= DOCUMENT:
            documents.append(pending)
            pending = ""
    return [*documents, pending]


def encode(documents: list[str], path: Path, size: int) -> Race:
    """A document at a time, by the model of SentencePiece."""

    def fresh() -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))

    peer, ours = fresh(), Tokenizer.load(path)
    scores = np.array([peer.get_score(id) for id in range(peer.get_piece_size())])
    ties = 0
    for text in documents:
        own, theirs = np.array(ours.encode(text, special="text")), np.array(peer.encode(text))
        if not np.array_equal(own, theirs):
            same = np.isclose(scores[own].sum(), scores[theirs].sum(), rtol=1e-6)
            check(bool(same), "sentencepiece gives other ids")
            ties += 1
    print(f"{ties} of {len(documents)} documents differ in segmentations with the same sum")
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    runs = {
        OURS: lambda t: [t.encode_array(text, special="text") for text in documents],
        "sentencepiece": lambda t: [t.encode(text) for text in documents],
    }
    made = {OURS: lambda: Tokenizer.load(path), "sentencepiece": fresh}
    return Race(f"encode, {size:,} tokens, a document at a time", megabytes, "MB/s", runs, made)


def main() -> None:
    parser = argparse.ArgumentParser(description="Unigram against SentencePiece.")
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8000, 32000])
    parser.add_argument("--megabytes", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures of every round")
    args = parser.parse_args()
    check(_rust.build_profile == "release", "this is a debug build")
    text = args.text.read_bytes()[: int(args.megabytes * 1e6)].decode(errors="ignore")
    documents = documents_of(text)
    figures: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            path = Path(folder, f"{size}.model")
            seconds = train(text.split("\n"), size, path)
            race = encode(documents, path, size)
            results = measure(race, args.rounds)
            report(race, results)
            figures[size] = {"train": seconds, "encode": results}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
