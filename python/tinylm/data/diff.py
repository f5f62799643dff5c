"""`python -m tinylm.data diff A B`: in what two folders of shards differ.

Compared are the manifests, which hold a hash of every 1 MiB, so a folder of any size takes no time.
Tokens are read only to find the first document that differs, from the first block that does.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinylm import commands
from tinylm.data.manifest import Manifest, Shard
from tinylm.data.shards import BLOCK_BYTES, Dataset

# Tokens compared at once, as many as lie in a block of uint16.
_CHUNK = BLOCK_BYTES // 2


def add(subparsers: Any) -> None:
    """Add the command to those of `python -m tinylm.data`."""
    command = subparsers.add_parser("diff", help="in what two folders of shards differ")
    command.add_argument("a", type=commands.path, metavar="A")
    command.add_argument("b", type=commands.path, metavar="B")
    command.set_defaults(command=_diff)


def _diff(options: argparse.Namespace) -> None:
    found = list(differences(Path(options.a), Path(options.b)))
    for line in found or ["the same tokens of the same tokenizer and source"]:
        print(line)


def differences(a: Path, b: Path) -> Iterator[str]:
    """A line for each difference of two folders of shards; none if all is the same.

    Raises `ValueError` or `OSError` where a manifest is damaged or not there. Files of tokens need
    not be there: then the first document that differs is not told.
    """
    ours, theirs = Manifest.load(a), Manifest.load(b)
    for name in ("tokenizer_sha256", "vocab_size", "eos_id", "itemsize"):
        if (was := getattr(ours, name)) != (now := getattr(theirs, name)):
            yield f"{name}: {was} -> {now}"
    for name in sorted(ours.source.keys() | theirs.source.keys()):
        if (was := ours.source.get(name)) != (now := theirs.source.get(name)):
            yield f"source.{name}: {was} -> {now}"
    for split in sorted(ours.splits.keys() | theirs.splits.keys()):
        if split not in ours.splits or split not in theirs.splits:
            yield f"{split}: only in {a if split in ours.splits else b}"
            continue
        was, now = ours.splits[split], theirs.splits[split]
        for name in ("tokens", "documents", "bytes"):
            before, after = getattr(was, name), getattr(now, name)
            if before != after:
                yield f"{split}: {name} {_count(before)} -> {_count(after)}{_by(before, after)}"
        yield from _shards(split, was.shards, now.shards)
        if _contents(was.shards) != _contents(now.shards):
            yield from _first_document(split, a, ours, b, theirs)


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _by(before: int | None, after: int | None) -> str:
    return "" if before is None or after is None else f" ({after - before:+,})"


def _contents(shards: list[Shard]) -> list[Any]:
    return [(shard.tokens, shard.blocks, shard.lengths) for shard in shards]


def _shards(split: str, was: list[Shard], now: list[Shard]) -> Iterator[str]:
    """Shards that were added, removed or changed, told by their names and hashes."""
    old, new = ({shard.name: shard for shard in shards} for shards in (was, now))
    changed = [n for n in old.keys() & new.keys() if _contents([old[n]]) != _contents([new[n]])]
    for verb, names in (
        ("removed", old.keys() - new.keys()),
        ("added", new.keys() - old.keys()),
        ("changed", changed),
    ):
        if names:
            listed = sorted(names)
            more = f" and {len(listed) - 3:,} more" if len(listed) > 3 else ""
            yield f"{split}: {len(listed):,} shards {verb}: {', '.join(listed[:3])}{more}"


def _first_document(
    split: str, a: Path, ours: Manifest, b: Path, theirs: Manifest
) -> Iterator[str]:
    """The first document that is not the same, if the tokens of both are at hand."""
    try:
        one, other = Dataset(a, ours, split), Dataset(b, theirs, split)
        at = _first_token(one, other)
        lengths, others = one.lengths(), other.lengths()
    except OSError as error:
        yield f"{split}: the first document that differs is not known: {error}"
        return
    ends = np.cumsum(lengths, dtype=np.int64)
    both = min(lengths.size, others.size)
    unequal = np.flatnonzero(lengths[:both] != others[:both])
    # A document of another length differs too, be it that a mark was moved and no token.
    document = int(np.searchsorted(ends, at, "right"))
    document = min([document, *unequal[:1].tolist()])
    begin = int(ends[document - 1]) if document else 0
    yield (
        f"{split}: document {document:,} is the first that differs, "
        f"from token {max(at - begin, 0):,} of it on"
        if at < min(one.n_tokens, other.n_tokens)
        else f"{split}: the first {document:,} documents are the same"
    )


def _first_token(one: Dataset, other: Dataset) -> int:
    """The first token that differs, or the number of tokens that both have."""
    n = min(one.n_tokens, other.n_tokens)
    for start in range(_equal_tokens(one, other), n, _CHUNK):
        size = min(_CHUNK, n - start)
        # Of two widths, as numbers: uint16 against uint32 compares the values.
        unequal = np.flatnonzero(one.read(start, size) != other.read(start, size))
        if unequal.size:
            return start + int(unequal[0])
    return n


def _equal_tokens(one: Dataset, other: Dataset) -> int:
    """Leading tokens that are equal by their hashes, without reading them."""
    done = 0
    if one.manifest.itemsize != other.manifest.itemsize:
        return done
    per_block = BLOCK_BYTES // one.manifest.itemsize
    for was, now in zip(one.shards, other.shards, strict=False):
        if (was.tokens, was.blocks) != (now.tokens, now.blocks):
            pairs = zip(was.blocks, now.blocks, strict=False)
            same = next((k for k, (x, y) in enumerate(pairs) if x != y), None)
            least = min(len(was.blocks), len(now.blocks))
            # The last block of a shard may be short, and equal only by chance of its length.
            return done + per_block * (max(least - 1, 0) if same is None else same)
        done += was.tokens
    return done
