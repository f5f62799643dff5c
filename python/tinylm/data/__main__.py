"""`python -m tinylm.data`: prepare, import, inspect, verify, export and more. Needs no torch."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tinylm import commands, disk, terminal
from tinylm.config import DataConfig
from tinylm.corpus import filter_specs, tasks
from tinylm.data import diff, document_lengths, exchange, inspection, prepare_command, trace
from tinylm.data.manifest import Manifest, Split
from tinylm.data.shards import Dataset, SplitWriter


def main(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    options.command(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tinylm.data", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare_command.add(subparsers)

    command = subparsers.add_parser("tasks", help="the demo conversations, one per line of jsonl")
    command.add_argument("out", type=commands.path, metavar="OUT.jsonl")
    command.add_argument("--seed", type=int, default=0, help="of their order; default: %(default)s")
    command.add_argument(
        "--val-fraction", type=float, default=DataConfig().val_fraction, help="default: %(default)s"
    )
    command.add_argument(
        "--split", choices=("train", "val"), default="train", help="default: %(default)s"
    )
    command.set_defaults(command=_tasks)

    command = subparsers.add_parser("filters", help="the filters of documents, with their limits")
    command.set_defaults(command=_filters)

    inspection.add(subparsers)

    command = subparsers.add_parser("verify", help="check every hash of a folder of shards")
    command.add_argument("folder", type=commands.path)
    command.set_defaults(command=_verify)

    exchange.add(subparsers)
    trace.add(subparsers)
    diff.add(subparsers)

    command = subparsers.add_parser("subset", help="the first documents of train; all the others")
    command.add_argument("folder", type=commands.path)
    command.add_argument("out", type=commands.path, metavar="OUT")
    command.add_argument("--tokens", type=int, required=True, help="about how many to keep")
    command.set_defaults(command=_subset)
    return parser


def _filters(_: argparse.Namespace) -> None:
    for line in filter_specs.listed():
        print(line)


def _tasks(options: argparse.Namespace) -> None:
    if not 0 < options.val_fraction < 1:
        raise ValueError(f"--val-fraction {options.val_fraction} must be above 0 and below 1")
    validation, count = options.split == "val", 0
    with disk.replacing(options.out) as file:
        for row in tasks.rows(validation, options.val_fraction, options.seed):
            file.write(row.encode())
            count += 1
    print(f"{options.out}: {count:,} conversations")


def _verify(options: argparse.Namespace) -> None:
    manifest = Manifest.load(options.folder)
    live = terminal.watched()
    for name, split in manifest.splits.items():
        for done in Dataset(Path(options.folder), manifest, name).verify():
            if live:
                terminal.draw(f"\r\x1b[Kverify {name}: {done:,} of {split.tokens:,} tokens")
        if live:
            terminal.draw("\n")
    print(f"{options.folder}: every hash is right")
    listed = {shard.name for split in manifest.splits.values() for shard in split.shards}
    extra = sorted({path.name for path in Path(options.folder).glob("*.bin")} - listed)
    if extra:
        # Not an error: only the files of the manifest are ever read.
        warnings.warn(
            f"{options.folder}: never read, because manifest.json does not name them: "
            f"{', '.join(extra[:3])}{', ...' if len(extra) > 3 else ''}",
            stacklevel=2,
        )


def _subset(options: argparse.Namespace) -> None:
    """Whole documents of train until `--tokens` are reached; every other split entirely."""
    manifest = Manifest.load(options.folder)
    out = Path(options.out)
    if options.tokens < 1:
        raise ValueError(f"--tokens {options.tokens} must be at least 1")
    with disk.filling(out):
        splits = {}
        for name, split in manifest.splits.items():
            limit = options.tokens if name == "train" else split.tokens
            splits[name] = _copy(Dataset(Path(options.folder), manifest, name), out, limit)
        source = {**manifest.source, "subset_tokens": options.tokens}
        replace(manifest, splits=splits, source=source, command=sys.argv[1:]).save(out)
    print(out)
    manifest = Manifest.load(out)
    for name, split in manifest.splits.items():
        print(next(document_lengths.lines(name, split, document_lengths.Lengths())))


def _copy(dataset: Dataset, out: Path, limit: int) -> Split:
    writer = SplitWriter(out, dataset.manifest, dataset.split)
    tokens = 0
    for ids in dataset.documents():
        if tokens >= limit:
            break
        writer.add(ids.astype(np.uint32), np.array([0, ids.size]))
        # Its eos is a token too.
        tokens += ids.size + 1
    # Without the tokenizer, the text of a part cannot be counted.
    return writer.finish(dataset.n_bytes if tokens == dataset.n_tokens else None)


if __name__ == "__main__":
    commands.run(main)
