"""The commands that learn tokenizers: `train`, `count` and `join`."""

import argparse
import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from tinylm import commands, terminal
from tinylm.config import Kind
from tinylm.tokenizer import Characters, Tokenizer, counting
from tinylm.tokenizer.training import Ties

Command = Callable[[argparse.Namespace], None]


def train(args: argparse.Namespace) -> None:
    """Learn a tokenizer from text files, or from files of counts that `count` wrote."""
    refuse_existing(args.out, force=args.force)
    start = time.perf_counter()
    # What both ways take.
    rules: dict[str, Any] = {
        "vocab_size": args.vocab_size,
        "kind": args.kind,
        "min_frequency": args.min_frequency,
        "max_token_length": args.max_token_length,
        "blocked": args.block,
        "alphabet": _alphabet(args),
        "ties": args.ties,
        "progress": True if terminal.watched() else None,
    }
    if all(Path(path).suffix == counting.ENDING for path in args.files):
        for name in ("pattern", "special"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name}: files of counts say it themselves; leave it out")
        tokenizer = Tokenizer.train_counts(args.files, **rules)
    else:
        how = _how(args)
        tokenizer = Tokenizer.train_files(args.files, threads=args.threads, **rules, **how)
    tokenizer.save(args.out)
    seconds = time.perf_counter() - start
    print(f"{args.out}: {tokenizer.vocab_size} tokens in {seconds:.1f} s")


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """How texts are cut; no defaults in the parser, as files of counts say it themselves."""
    special = args.special or ["<|endoftext|>"]
    return {"pattern": args.pattern or "gpt4", "special_tokens": special}


def _alphabet(args: argparse.Namespace) -> Characters | None:
    if not args.characters:
        for name in ("alphabet", "coverage", "limit_alphabet", "no_byte_fallback"):
            if getattr(args, name):
                raise ValueError(f"--{name.replace('_', '-')} is for --characters; pass that too")
        return None
    return Characters(
        initial=args.alphabet or "",
        coverage=1.0 if args.coverage is None else args.coverage,
        limit=args.limit_alphabet,
        byte_fallback=not args.no_byte_fallback,
    )


def count(args: argparse.Namespace) -> None:
    """Count text files into a folder, to train on later; a second call goes on."""
    start = time.perf_counter()
    files = counting.count_files(
        args.files,
        args.out,
        alphabet=Characters() if args.characters else None,
        memory=args.memory << 20,
        threads=args.threads,
        progress=True if terminal.watched() else None,
        **_how(args),
    )
    seconds = time.perf_counter() - start
    print(f"{args.out}: {len(files)} files of counts in {seconds:.1f} s")


def join(args: argparse.Namespace) -> None:
    """Join files of counts into one."""
    refuse_existing(args.out, force=args.force)
    pieces, total = counting.join_counts(args.files, args.out)
    print(f"{args.out}: {pieces} distinct pieces of {total}")


def refuse_existing(path: str, *, force: bool) -> None:
    """FileExistsError if the output is there already; a folder may be there if it is empty."""
    out = Path(path)
    if force or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    raise FileExistsError(errno.EEXIST, "exists already; name another, or pass --force", str(out))


def _cutting(sub: argparse.ArgumentParser, text: str) -> None:
    sub.add_argument("files", type=commands.path, nargs="+", help=text)
    sub.add_argument(
        "--pattern",
        help="gpt2, gpt4 (default), o200k, llama3, qwen2 or a regular expression",
    )
    sub.add_argument(
        "--special",
        action="append",
        metavar="TOKEN",
        help="a special token; repeat for more (default: <|endoftext|>)",
    )
    sub.add_argument(
        "--characters",
        action="store_true",
        help="learn over characters, as SentencePiece, and not over bytes",
    )
    sub.add_argument("--threads", type=int, default=0, help="0 for all cores")


def add(
    command: Callable[[str, Command], argparse.ArgumentParser],
    out: Callable[[argparse.ArgumentParser, str], None],
) -> None:
    """Adds the commands of this file to a parser."""
    sub = command("train", train)
    _cutting(sub, "text files, each one document, or files of counts")
    sub.add_argument("--vocab-size", type=int, required=True, help="tokens, special ones included")
    out(sub, "where to write the tokenizer.json, or with --characters a .model")
    sub.add_argument("--kind", default="bpe", choices=get_args(Kind))
    sub.add_argument(
        "--block",
        action="append",
        default=[],
        metavar="TOKEN",
        help="a token that is never made; repeat for more",
    )
    sub.add_argument("--alphabet", metavar="TEXT", help="characters that always are tokens")
    sub.add_argument("--coverage", type=float, help="share of the text that characters cover")
    sub.add_argument("--limit-alphabet", type=int, metavar="N", help="characters at most")
    sub.add_argument(
        "--no-byte-fallback", action="store_true", help="other characters are <unk>, not bytes"
    )
    sub.add_argument("--min-frequency", type=int, default=1, help="rarer pairs do not merge")
    sub.add_argument("--max-token-length", type=int, metavar="BYTES", help="of the longest token")
    sub.add_argument("--ties", default="ids", choices=get_args(Ties), help="between equal pairs")

    sub = command("count", count)
    _cutting(sub, "text files")
    sub.add_argument("--out", type=commands.path, required=True, help="folder of files of counts")
    sub.add_argument(
        "--memory", type=int, default=1024, metavar="MIB", help="bound of the tables (1024)"
    )

    sub = command("join", join)
    sub.add_argument("files", type=commands.path, nargs="+", help="files of counts")
    out(sub, "the file that has all counts")
