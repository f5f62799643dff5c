"""`python -m tinylm.data inspect`: what shards hold, in numbers, text and a picture."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylm import _rust, commands
from tinylm.data import document_lengths
from tinylm.data.folders import load_tokenizer
from tinylm.data.manifest import Manifest
from tinylm.data.shards import Dataset

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

# Tokens of a sample that are shown.
_SHOWN = 64


def add(subparsers: Any) -> None:
    """Add the command to those of `python -m tinylm.data`."""
    command = subparsers.add_parser("inspect", help="counts and lengths of a folder of shards")
    command.add_argument("folder", type=commands.path)
    command.add_argument(
        "--tokenizer", type=commands.path, metavar="FILE", help="show the first tokens as text"
    )
    command.add_argument(
        "--samples", type=int, default=0, metavar="N", help="show N documents from all over a split"
    )
    command.add_argument(
        "--context-length", type=int, metavar="T", help="show how the documents fill rows of T"
    )
    document_lengths.add_picture(command)
    command.set_defaults(command=_inspect)


def _inspect(options: argparse.Namespace) -> None:
    folder = Path(options.folder)
    manifest = Manifest.load(folder)
    if options.picture is not None:
        document_lengths.check_picture(options.picture)
    if options.samples < 0:
        raise ValueError(f"--samples {options.samples} must be at least 0")
    tokenizer = load_tokenizer(options.tokenizer, manifest) if options.tokenizer else None
    print(f"vocab_size {manifest.vocab_size:,}, tokenizer {manifest.tokenizer_sha256}")
    if manifest.source:
        print(f"source {json.dumps(manifest.source)}")
    lengths = document_lengths.of(folder, manifest)
    for name, split in manifest.splits.items():
        for line in list(document_lengths.lines(name, split, lengths[name]))[:2]:
            print(line)
    for name in manifest.splits:
        dataset = Dataset(folder, manifest, name)
        print(f"\n{name}: documents by tokens")
        for line in document_lengths.bars(lengths[name]):
            print(line)
        if options.context_length is not None:
            print(_packed(dataset, options.context_length))
        first = dataset.read(0, min(dataset.n_tokens, _SHOWN))
        print(f"first tokens: {' '.join(map(str, first[:16].tolist()))}")
        if tokenizer is not None:
            print(f"as text: {_text(tokenizer, first.tolist())!r}")
        for line in _samples(dataset, options.samples, tokenizer):
            print(line)
    if options.picture is not None:
        document_lengths.draw(options.picture, folder.name, lengths)
        print(options.picture)


def _text(tokenizer: "Tokenizer", ids: list[int]) -> str:
    # The last token may end in the middle of a character.
    return tokenizer.decode_bytes(ids).decode(errors="replace")


def _samples(dataset: Dataset, n: int, tokenizer: "Tokenizer | None") -> Iterator[str]:
    """A line for each of `n` documents, at equal distances from the first to the last."""
    if not n or not dataset.n_documents:
        return
    ends = np.cumsum(dataset.lengths(), dtype=np.int64)
    numbers = np.unique(np.linspace(0, ends.size - 1, n).round().astype(int))
    for number in numbers.tolist():
        begin = int(ends[number - 1]) if number else 0
        size = int(ends[number]) - begin
        ids = dataset.read(begin, min(size, _SHOWN)).tolist()
        shown = " ".join(map(str, ids[:16])) if tokenizer is None else repr(_text(tokenizer, ids))
        yield f"document {number:,} of {size:,} tokens: {shown}"


def _packed(dataset: Dataset, context_length: int) -> str:
    """How `data.pack=true` would fill rows of this length, beside rows that are cut anywhere."""
    if not 0 < context_length < 2**31:
        raise ValueError(f"--context-length {context_length} must be between 1 and {2**31 - 1}")
    lengths = dataset.lengths()
    rows = _rust.Rows.packed(
        dataset.tokens,
        lengths,
        order="sequential",
        seed=0,
        context_length=context_length,
        mask_at=None,
    )
    filled, most = rows.filled
    padding = 1 - filled / (rows.n_rows * context_length)
    # Windows cut a document wherever a row ends inside it.
    ends = np.cumsum(lengths, dtype=np.int64) - 1
    starts = np.concatenate([[0], ends[:-1]])
    fits = ends - starts <= context_length
    cut = (starts // context_length != (ends - 1) // context_length) & (ends > starts)
    share = int(np.count_nonzero(fits & cut)) / max(1, int(np.count_nonzero(fits)))
    return (
        f"packed into rows of {context_length:,}: {rows.n_rows:,} rows, {padding:.3%} padding, at "
        f"most {most:,} documents per row; {np.count_nonzero(~fits):,} documents are longer than a "
        f"row\ncut anywhere: {-(-filled // context_length):,} rows, {share:.1%} of the documents "
        "that fit into a row are cut"
    )
