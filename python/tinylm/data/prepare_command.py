"""`python -m tinylm.data prepare`: a text and a tokenizer to a folder of shards."""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tinylm import commands, corpus
from tinylm.config import DataConfig
from tinylm.corpus import filters
from tinylm.corpus.remembered import remembering
from tinylm.data import document_lengths, jobs
from tinylm.data.cluster import on_ray
from tinylm.data.folders import default_folder
from tinylm.data.jobs import JOB_BYTES, Job, Jobs
from tinylm.data.manifest import NAME as MANIFEST
from tinylm.data.preparation import prepare, prepare_share, run_here


def add(subparsers: Any) -> None:
    """Add the command to those of `python -m tinylm.data`."""
    command = subparsers.add_parser("prepare", help="text and a tokenizer to a folder of shards")
    command.add_argument(
        "source",
        type=commands.path,
        help="stdlib, a dataset, a text, .jsonl or .parquet, also packed, or a folder of them",
    )
    command.add_argument("--tokenizer", type=commands.path, required=True, metavar="FILE")
    command.add_argument(
        "--out", type=commands.path, metavar="FOLDER", help="default: data/processed/SOURCE-HASH"
    )
    command.add_argument(
        "--val-fraction", type=float, default=DataConfig().val_fraction, help="default: %(default)s"
    )
    command.add_argument(
        "--separator",
        default=DataConfig().separator,
        metavar="MARK",
        help="ends a document in a text; off for none; default: auto, a <|endoftext|> that "
        "begins or ends a line",
    )
    command.add_argument(
        "--text-field",
        default=DataConfig().text_field,
        metavar="NAME",
        help="field of a row with its text, a.b in an object; default: %(default)s",
    )
    command.add_argument(
        "--filters",
        type=lambda names: tuple(filter(None, names.split(","))),
        default=DataConfig().filters,
        metavar="A,B:LIMIT",
        help="which documents stay; python -m tinylm.data filters lists them",
    )
    command.add_argument(
        "--shuffle-seed",
        dest="shuffle_documents",
        type=int,
        metavar="SEED",
        help="put the documents into another order; default: the order of the files",
    )
    command.add_argument(
        "--rank", type=int, default=0, metavar="R", help="which of the processes this is, from 0"
    )
    command.add_argument(
        "--world",
        type=int,
        metavar="N",
        help="processes that share the work, each given this command with a rank of its own; the "
        "last to finish writes the manifest. Each filters the whole text for duplicates, and "
        "copies all of it to be shuffled: what is shared then is the encoding. A folder with jobs "
        "of another text or setting is refused; without --world they are removed",
    )
    command.add_argument(
        "--engine",
        choices=("here", "ray"),
        default="here",
        help="ray: on the machines of a Ray cluster, --world jobs at a time; default: %(default)s",
    )
    command.add_argument(
        "--job-bytes",
        type=int,
        default=JOB_BYTES,
        metavar="B",
        help="text of a job, the unit of sharing and of going on after a crash; each has shards "
        "of its own; default: %(default)s",
    )
    document_lengths.add_picture(command)
    command.set_defaults(command=_prepare)


def _prepare(options: argparse.Namespace) -> None:
    """Prepare, and print the folder and what is in it."""
    # Imported here: `verify` and `subset` need no tokenizer.
    from tinylm.tokenizer import Tokenizer

    if options.picture is not None:
        # A large text takes hours, and the picture comes last.
        document_lengths.check_picture(options.picture)
    tokenizer = Tokenizer.load(options.tokenizer)
    if options.rank and (options.world is None or options.engine == "ray"):
        raise ValueError(
            f"--rank {options.rank} needs --world, of how many processes, and no --engine"
        )
    # Before the text is read: an engine that is not installed is told at once.
    run = _on_ray(options) if options.engine == "ray" else run_here
    with _memory(options):
        text = corpus.open(options.source, **corpus.reading(options))
    for note in text.notes:
        # Standard output is for programs: its first line is the folder.
        commands.tell(note)
    folder = default_folder(text, tokenizer.sha256)
    if options.out is not None:
        folder = Path(options.out)
    if options.world is None or options.engine == "ray":
        manifest = prepare(text, tokenizer, folder, job_bytes=options.job_bytes, run=run)
    else:
        share = prepare_share(
            text,
            tokenizer,
            folder,
            rank=options.rank,
            world=options.world,
            job_bytes=options.job_bytes,
        )
        if share is None:
            commands.tell(
                f"{folder}: the jobs of rank {options.rank} are done; the last of the "
                f"{options.world} ranks to finish writes the manifest"
            )
            return
        manifest = share
    print(folder)
    lengths = document_lengths.of(folder, manifest)
    for name, split in manifest.splits.items():
        for line in document_lengths.lines(name, split, lengths[name]):
            print(line)
    for line in filters.table(manifest.source.get("filtered", ())):
        print(line)
    if options.picture is not None:
        document_lengths.draw(options.picture, folder.name, lengths)
        print(options.picture)


def _memory(options: argparse.Namespace) -> AbstractContextManager[None]:
    """What is found of the text is kept in the folder that is being made, if that is known."""
    if options.out is None or (Path(options.out) / MANIFEST).exists():
        return nullcontext()
    return remembering(
        Path(options.out) / jobs.NAME / jobs.FOUND, rank=options.rank, world=options.world or 1
    )


def _on_ray(options: argparse.Namespace) -> Callable[[Jobs, list[Job]], None]:
    return on_ray(
        options.source,
        options.tokenizer,
        world=options.world,
        job_bytes=options.job_bytes,
        **corpus.reading(options),
    )
