"""`python -m tinylm.data import` and `export`: from and to the files of other programs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm import commands
from tinylm.config import DataConfig
from tinylm.data import exporting, foreign
from tinylm.data.folders import load_tokenizer
from tinylm.data.importing import FORMATS, Options, import_shards
from tinylm.data.manifest import Split
from tinylm.data.shards import Dataset

if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer


def add(subparsers: Any) -> None:
    """Add both commands to those of `python -m tinylm.data`."""
    _add_import(subparsers)
    _add_export(subparsers)


def _add_import(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "import", help="tokens of other programs to a folder of shards, mostly without a copy"
    )
    command.add_argument("format", choices=FORMATS, help="; ".join(FORMATS))
    command.add_argument(
        "sources",
        type=commands.path,
        nargs="+",
        metavar="SOURCE",
        help="files or folders; val or test in the name of a file or a subfolder tells its split",
    )
    command.add_argument("--out", type=commands.path, required=True, metavar="FOLDER")
    command.add_argument("--tokenizer", type=commands.path, metavar="FILE", help="that made them")
    command.add_argument("--vocab-size", type=int, metavar="N", help="in place of a tokenizer")
    command.add_argument(
        "--eos-id", metavar="ID", help="that ends a document; none for a text without any"
    )
    command.add_argument(
        "--val-fraction",
        type=float,
        default=DataConfig().val_fraction,
        help="of the documents, the last ones, if no file is called val; default: %(default)s",
    )
    command.add_argument(
        "--dtype", choices=foreign.DTYPES, help="of a token; default: as the file or N says"
    )
    command.add_argument(
        "--documents",
        choices=("file", "eos"),
        default="file",
        help="end where the file says (default), or at each eos",
    )
    command.add_argument("--column", metavar="NAME", help="of lists of tokens, in a table")
    command.add_argument("--copy", action="store_true", help="write shards in any case")
    command.set_defaults(command=_import)


def _import(options: argparse.Namespace) -> None:
    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer)
    vocab_size, eos_id = _vocabulary(options, tokenizer)
    manifest = import_shards(
        options.format,
        options.sources,
        options.out,
        Options(
            vocab_size=vocab_size,
            eos_id=eos_id,
            tokenizer=tokenizer,
            val_fraction=options.val_fraction,
            dtype=options.dtype,
            documents=options.documents,
            copy=options.copy,
            column=options.column,
        ),
    )
    print(options.out)
    for name, split in manifest.splits.items():
        print(f"{name}: {split.tokens:,} tokens, {split.documents:,} documents, {_where(split)}")
    if (added := manifest.source.get("eos_added")) is not None:
        print(f"{added:,} documents had no eos and got one")


def _where(split: Split) -> str:
    if split.shards[0].file is None:
        return "copied"
    n = len(split.shards)
    return f"read where they are, in {n:,} file{'s' * (n > 1)}"


def _vocabulary(
    options: argparse.Namespace, tokenizer: "Tokenizer | None"
) -> tuple[int, int | None]:
    """The size of the vocabulary and the id of eos, as the arguments or a meta.pkl say."""
    size, eos = options.vocab_size, options.eos_id
    if tokenizer is not None:
        if size is not None or eos is not None:
            raise ValueError("--vocab-size and --eos-id are those of --tokenizer: leave them out")
        return tokenizer.vocab_size, tokenizer.eos_id
    if size is None and options.format == "nanogpt":
        first = Path(options.sources[0])
        meta = (first if first.is_dir() else first.parent) / "meta.pkl"
        size = foreign.meta_vocab(meta) if meta.exists() else None
    if size is None:
        raise ValueError("name the --tokenizer that made the tokens, or its --vocab-size")
    if eos is None:
        raise ValueError("name the --eos-id that ends a document; none if there is no such token")
    if eos != "none" and not eos.isdecimal():
        raise ValueError(f"--eos-id {eos} must be an id, or none")
    return size, None if eos == "none" else int(eos)


def _add_export(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "export", help="shards to lines of jsonl, or to the files of nanoGPT or Megatron"
    )
    command.add_argument("folder", type=commands.path)
    command.add_argument(
        "out", type=commands.path, metavar="OUT", help="a file; of megatron, without .bin and .idx"
    )
    command.add_argument(
        "--format",
        choices=("jsonl", "nanogpt", "megatron"),
        default="jsonl",
        help="default: %(default)s",
    )
    command.add_argument(
        "--tokenizer", type=commands.path, metavar="FILE", help="for jsonl, which is text"
    )
    command.add_argument("--split", default="train", help="default: %(default)s")
    command.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> None:
    dataset = Dataset.open(options.folder, split=options.split)
    if (options.format == "jsonl") != (options.tokenizer is not None):
        need = "is needed for" if options.tokenizer is None else "has no meaning with"
        raise ValueError(f"--tokenizer {need} --format {options.format}")
    if options.format == "nanogpt":
        exporting.nanogpt(dataset, options.out)
        print(f"{options.out}: {dataset.n_tokens:,} tokens of {8 * dataset.manifest.itemsize} bits")
    elif options.format == "megatron":
        for path in exporting.megatron(dataset, options.out):
            print(f"{path}: {path.stat().st_size:,} bytes")
    else:
        tokenizer = load_tokenizer(options.tokenizer, dataset.manifest)
        exporting.jsonl(dataset, options.out, tokenizer)
        print(f"{options.out}: {dataset.n_documents:,} documents")
